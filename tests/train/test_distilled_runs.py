"""Runs that learn from a teacher: how it computes, what it means for memory, and which one it is."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from growing import records, repeatable, write_photos, write_teacher
from safetensors.torch import load_file, save_file

from bimkern.models.attention import sdpa
from bimkern.models.layers import Attention, Linear, PatchEmbed
from bimkern.models.teacher import Teacher
from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.train import network
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.memory.estimate import live_activation_peak

pytestmark = pytest.mark.usefixtures("without_pictures")

STUDENT = "fastmim_vit_test_distilled"  # of 64 pixels


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("files") / "photos", count=8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher") / "backbone")


def train(photos, out, teacher, *options):
    given = ("--data", photos, "--out", out, "--teacher", teacher, "--workers", "0", "--log-every", "1", *options)
    main([STUDENT, *map(str, given)])


def config_with(teacher, **options):
    config = RECIPES[STUDENT].config
    return replace(config, run=replace(config.run, teacher=teacher, **options))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_teacher_computes_in_the_precision_of_the_run(
    photos, teacher, tmp_path, monkeypatch, capsys, precision, dtype
):
    plain, dtypes = Teacher.features, []

    def features(self, *args):
        products = (module for module in self.encoder.modules() if isinstance(module, (Linear, PatchEmbed)))
        dtypes.extend(module.compute_dtype for module in products)
        found = plain(self, *args)
        assert {tensor.dtype for tensor in found} == {torch.float32}
        return found

    monkeypatch.setattr(Teacher, "features", features)
    train(photos, tmp_path / "run", teacher, "--steps", "1", "--precision", precision)
    assert len(dtypes) >= 1 + 4 * 4
    assert set(dtypes) == {dtype}
    assert f"also learns the features of {teacher}" in capsys.readouterr().out


def test_the_teacher_mixes_tokens_by_the_attention_of_the_run(teacher):
    calls = []

    def attention_fn(*qkv):
        calls.append(qkv)
        return sdpa(*qkv)

    model = network.build(config_with(teacher))
    assert model.teacher is not None
    network.set_compute(model, torch.bfloat16, attention_fn)
    model.targets([0], torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert len(calls) == 4
    assert {tensor.dtype for qkv in calls for tensor in qkv} == {torch.bfloat16}
    assert all(
        m.attention_fn is attention_fn
        for part in (model, model.teacher.encoder)
        for m in part.modules()
        if isinstance(m, Attention)
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_dry_run_counts_the_teacher_as_the_run_does(photos, teacher, tmp_path, precision):
    """Positions that are interpolated once are no activations."""
    train(photos, tmp_path / "run", teacher, "--steps", "2", "--precision", precision)
    counted = records(tmp_path / "run")[-1]["live_activation_bytes"]
    config = config_with(teacher, precision=precision)
    assert live_activation_peak(config, config.step_layout(8).at(0)) == counted


def test_a_run_resumes_with_its_teacher_wherever_that_lies(photos, teacher, tmp_path):
    whole, resumed, moved = tmp_path / "whole", tmp_path / "resumed", tmp_path / "moved.safetensors"
    train(photos, whole, teacher, "--steps", "4", "--save-every", "2")
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-00000004")
    shutil.copy(teacher, moved)
    train(photos, resumed, moved, "--steps", "4", "--save-every", "2")
    assert repeatable(resumed) == repeatable(whole)
    ours, theirs = (checkpoints.load_latest(run / "checkpoints") for run in (whole, resumed))
    assert all(torch.equal(ours.model[name], theirs.model[name]) for name in ours.model)
    assert ours.state["teacher"] == theirs.state["teacher"] == hashlib.sha256(moved.read_bytes()).hexdigest()


def test_another_teacher_at_the_same_path_is_refused(photos, tmp_path, capsys):
    path, out = tmp_path / "backbone", tmp_path / "run"
    train(photos, out, write_teacher(path), "--steps", "2")
    logged = (out / "metrics.jsonl").read_bytes()
    write_teacher(path, seed=1)
    with pytest.raises(SystemExit) as stopped:
        train(photos, out, path, "--steps", "2")
    assert stopped.value.code == 2
    wanted = f"was trained with another teacher than --teacher {path} holds now; choose another --out"
    assert wanted in capsys.readouterr().err
    assert (out / "metrics.jsonl").read_bytes() == logged


def test_a_teacher_that_makes_no_sense_is_one_line(photos, teacher, tmp_path, capsys):
    path = tmp_path / "wrong.safetensors"
    encoder = {"type": "ViTConfig", "width": 32, "depth": 4, "num_heads": 2, "patch": 0, "image_size": 64}
    save_file(load_file(teacher), path, metadata={"encoder": json.dumps(encoder)})
    with pytest.raises(SystemExit) as stopped:
        train(photos, tmp_path / "run", path, "--steps", "2")
    assert stopped.value.code == 2
    assert f"--teacher {path}: its description is wrong" in capsys.readouterr().err
