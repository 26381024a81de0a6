"""Whole runs with xformers and apex, or rather with stand-ins that keep their interfaces."""

import functools
import importlib
import json
import logging
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bimkern.mim.model import MIM
from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import to_json
from bimkern.train.run_folder.folder import RunFolder

pytestmark = pytest.mark.usefixtures("without_pictures", "standins")

ADAPTERS = [
    ("--attention", "xformers"),
    ("--attention", "xformers", "--precision", "bf16"),
    ("--optimizer", "apex_adam"),
    ("--optimizer", "apex_lamb"),
    ("--optimizer", "apex_lamb", "--precision", "fp16"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def train(photos, out, *options):
    fixed = ("--workers", "0", "--log-every", "1", "--device", "cpu", "--steps", "5", "--save-every", "3")
    main(["bim_vit_test", "--data", str(photos), "--out", str(out), *fixed, *options])


def losses(out):
    return [json.loads(line)["loss_per_stage"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def saved(out):
    last = out / "checkpoints" / "step-00000005"
    return load_file(last / "model.safetensors") | load_file(last / "optimizer.safetensors")


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """Return the folder of a finished run with some options; each is trained once."""

    @functools.cache
    def run(*options):
        out = tmp_path_factory.mktemp("whole") / "run"
        train(photos, out, *options)
        return out

    return run


@pytest.fixture
def killed(whole, tmp_path):
    """Make a copy of a finished run one that was killed after its checkpoint of step 3."""

    def run(*options):
        out = shutil.copytree(whole(*options), tmp_path / "killed")
        shutil.rmtree(out / "checkpoints" / "step-00000005")
        return out

    return run


@pytest.mark.parametrize("options", ADAPTERS, ids=" ".join)
def test_a_run_resumes_from_a_checkpoint_bit_for_bit(photos, whole, killed, options):
    resumed = killed(*options)
    train(photos, resumed, *options)
    assert losses(resumed) == losses(whole(*options))
    ours, theirs = saved(resumed), saved(whole(*options))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_xformers_changes_rounding_alone_and_may_take_over(photos, whole, killed):
    torchs, run = losses(whole()), killed()
    seen = importlib.import_module("xformers.ops").seen
    train(photos, run, "--attention", "xformers")
    assert len(seen) > 2 * (4 + 4)  # two steps of four stages and four decoders, and the held-out evaluation
    np.testing.assert_allclose(losses(run), torchs, rtol=1e-4)


def test_apex_adam_learns_what_adamw_learns_and_lamb_does_not(whole):
    adamw = losses(whole())
    adam, lamb = (losses(whole("--optimizer", name)) for name in ("apex_adam", "apex_lamb"))
    np.testing.assert_allclose(adam, adamw, rtol=1e-3)
    assert not np.allclose(lamb, adamw, rtol=1e-3)
    assert np.isfinite(lamb).all()


def test_one_optimizer_does_not_resume_from_the_state_of_another(photos, killed, capsys):
    with pytest.raises(SystemExit) as stop:
        train(photos, killed(), "--optimizer", "apex_adam")
    assert stop.value.code == 2
    message = "holds a run with other settings (run.optimizer: adamw before, apex_adam now)"
    assert message in capsys.readouterr().err


def test_a_run_older_than_the_choice_was_trained_by_the_default(tmp_path):
    config = RECIPES["bim_vit_test"].config
    old = to_json(config)
    del old["run"]["optimizer"], old["run"]["attention"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    RunFolder(tmp_path).open(config)
    with pytest.raises(ConfigError, match=r"\(run.optimizer: adamw before, apex_lamb now\)"):
        RunFolder(tmp_path).open(replace(config, run=replace(config.run, optimizer="apex_lamb")))


def test_a_nan_in_one_stage_skips_that_stage_alone(photos, tmp_path, monkeypatch, caplog):
    plain, calls = MIM.loss, iter(range(10**6))

    def loss(self, stage, *args):
        result = plain(self, stage, *args)
        return result * math.nan if stage == 2 and next(calls) in (1, 2) else result

    monkeypatch.setattr(MIM, "loss", loss)
    with caplog.at_level(logging.WARNING):
        train(photos, tmp_path / "run", "--optimizer", "apex_lamb")
    assert "stage 3 has a gradient that is not finite" in caplog.text
    steps = {name: int(t) for name, t in saved(tmp_path / "run").items() if name.endswith(".pred.bias/step")}
    assert steps == {f"heads.{k}.pred.bias/step": 3 if k == 2 else 5 for k in range(4)}
