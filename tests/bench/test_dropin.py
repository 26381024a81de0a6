"""`python -m bench dropin`: equal losses first, then times; and what it says of a wrong command line."""

import pytest
import torch
from interop import import_or_skip

from bench import cli
from bench.dropin import command as dropin
from bench.dropin.cases import HOSTS, BenchHost
from bench.refcheck import WrongResult

PACKAGES = {"hf": "transformers", "vit_pytorch": "vit_pytorch", "timm": "timm", "lightly": "lightly.models.modules"}


@pytest.mark.parametrize("name", HOSTS)
def test_a_tiny_host_is_measured(name):
    if name in PACKAGES:
        import_or_skip(PACKAGES[name])
    report = dropin.measure(name, torch.device("cpu"), batch_size=2, rounds=1, tiny=True)
    assert report.startswith(f"{name}: batch 2, 1 rounds, patched in ")
    assert "patched/host: time " in report
    assert "replaced " in report


def test_a_tiny_host_is_measured_in_an_arena():
    report = dropin.measure("mae", torch.device("cpu"), batch_size=2, rounds=1, tiny=True, arena=True)
    assert "the same losses, bit for bit" in report
    assert "page faults a step: " in report


def test_other_losses_in_an_arena_are_a_failure(monkeypatch):
    def step(self):
        dropin.Trainee.step(self)
        self.losses[-1] *= 1 + 1e-9

    monkeypatch.setattr(dropin.TraineeInArena, "step", step)
    monkeypatch.setattr(dropin.TraineeInArena, "count_live_bytes", step)
    with pytest.raises(WrongResult, match=r"^mae: losses are .* without and .* with the arena$"):
        dropin.measure("mae", torch.device("cpu"), batch_size=2, rounds=1, tiny=True, arena=True)


def test_an_arena_is_for_a_cpu(monkeypatch):
    monkeypatch.setattr(cli, "check_device", lambda device: None)
    with pytest.raises(cli.UsageError, match=r"^--arena with --device cuda: it is timed on a CPU$"):
        dropin.parse(["--arena", "--device", "cuda"])


def test_losses_that_part_are_a_failure(monkeypatch):
    host = HOSTS["mae"]

    def loss(model, images):
        return host.loss(model, images) * (1 + hasattr(model, "_bimkern_recipe"))

    monkeypatch.setitem(HOSTS, "mae", BenchHost(make=host.make, loss=loss))
    with pytest.raises(WrongResult, match=r"^mae: losses are .* without and .* with the patch$"):
        dropin.measure("mae", torch.device("cpu"), batch_size=2, rounds=1, tiny=True)


def test_an_unknown_host():
    with pytest.raises(cli.UsageError, match=rf"^no host is named 'dino'; choose from {', '.join(HOSTS)}$"):
        dropin.parse(["dino"])


def test_hosts_and_options_are_read():
    given = dropin.parse(["hf", "--batch-size", "4", "mae", "--rounds", "3"])
    assert (given.hosts, given.batch_size, given.rounds) == (["hf", "mae"], 4, 3)
