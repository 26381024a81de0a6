"""`python -m bench dropin --parts`: equal results and gradients first, then times of what a patch replaces."""

import re

import pytest
import torch
from interop import import_or_skip

from bench import cli
from bench.dropin import command as dropin
from bench.dropin import parts
from bench.malloc import WARM
from bench.refcheck import WrongResult
from bimkern.ops import masked_pixel_loss

PACKAGES = {
    "hf": "transformers",
    "vit_pytorch": "vit_pytorch",
    "lightly": "lightly.models.modules",
    "lightly_functions": "lightly.models.utils",
    "functions": "timm",
}
LINE = re.compile(r"^  .+?  host +([\d.]+) ms  ours +([\d.]+) ms  [\d.]+x$")


def report(name):
    return parts.report(name, torch.device("cpu"), batch_size=2, rounds=1, tiny=True)


@pytest.mark.parametrize("name", parts.SIDES)
def test_parts_of_a_tiny_host_are_measured(name):
    if name in PACKAGES:
        import_or_skip(PACKAGES[name])
    title, *lines = report(name).splitlines()
    assert title == f"{name}, parts alone: batch 2, forward and backward"
    seconds = [[float(x) for x in LINE.match(line).groups()] for line in lines]
    *parts, together = seconds
    assert [sum(column) for column in zip(*parts, strict=True)] == pytest.approx(together, abs=1e-3 * len(parts))
    assert lines[-1].startswith("  together ")


def test_the_parts_of_mae_compute_what_they_are_named():
    sides = parts.SIDES["mae"][1](parts.Sizes("mae", torch.device("cpu"), 2, True), True)
    shapes = {name: [list(x.shape) for x in parts.tensors(part.of(sides.ours)())] for name, part in sides.parts.items()}
    tokens, masks = [2, 1 + 4, 16], [2, 16]
    assert shapes == {"masks and embedding": [tokens, masks, masks], "decoder's input": [[2, 16, 12]], "loss": [[]]}


@pytest.mark.parametrize(
    ("change", "output"),
    [
        (lambda loss: loss * 1.001, "output 0 is off by 0.001 of the largest value"),
        (lambda loss: loss + (loss.detach() - loss) / 2, "output 1 is off by 0.5 of the largest value"),
    ],
    ids=["result", "gradient"],
)
def test_a_part_that_differs_is_a_failure(monkeypatch, change, output):
    monkeypatch.setattr(
        "bimkern.dropin.layers.masked_pixel_loss", lambda *args, **named: change(masked_pixel_loss(*args, **named))
    )
    monkeypatch.setattr("bimkern.dropin.trial.difference", lambda *args: None)  # which would leave the host's
    with pytest.raises(WrongResult, match=rf"^mae, loss: {output}, allowed 1e-05$"):
        report("mae")


def test_the_command(monkeypatch, capsys):
    for name, value in {**WARM, "OMP_WAIT_POLICY": "PASSIVE"}.items():  # else the process starts again
        monkeypatch.setenv(name, value)
    assert dropin.main(["--parts", "mae", "--quick", "--rounds", "1", "--batch-size", "2"]) == 0
    assert capsys.readouterr().out.startswith("mae, parts alone: batch 2, forward and backward\n")


def test_wrong_command_lines():
    with pytest.raises(cli.UsageError, match=rf"^no host is named 'timm'; choose from {', '.join(parts.SIDES)}$"):
        dropin.parse(["--parts", "timm"])
    with pytest.raises(cli.UsageError, match=r"^--arena belongs to whole steps, got --parts too$"):
        dropin.parse(["--parts", "--arena"])
