"""Files that are taken for weights: read without running anything in them, or refused in one line."""

import argparse
import io
import json
import os
import re

import pytest
import torch
from safetensors.torch import save_file

from bimkern.importers.weights_file import WeightsError, read_weights

WEIGHTS = {"norm.weight": torch.arange(3.0), "norm.bias": torch.ones(3)}


class Runs:
    """Its restoring would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def saved(path, content):
    torch.save(content, path)
    return path


def assert_weights(found):
    assert found.tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in WEIGHTS.items())


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"model": WEIGHTS, "epoch": 3, "optimizer": {"state": {}}},
        {"state_dict": WEIGHTS, "arch": "vit"},
        {"model": WEIGHTS, "args": argparse.Namespace(lr=1e-3, device="cuda", betas=(0.9, 0.95))},
        {"model": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}},
        {f"_orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()},
    ],
    ids=["bare", "model", "state_dict", "with arguments", "parallel", "compiled"],
)
def test_a_state_dict_is_found_in_what_training_programs_save(tmp_path, content):
    assert_weights(read_weights(saved(tmp_path / "weights.pth", content)))


def test_the_format_before_zip_archives_is_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    assert_weights(read_weights(tmp_path / "weights.pth"))


def test_a_folder_of_older_releases_is_read(tmp_path):
    saved(tmp_path / "pytorch_model.bin", WEIGHTS)
    assert_weights(read_weights(tmp_path))


def test_what_could_run_code_is_refused_and_not_run(tmp_path):
    path = saved(tmp_path / "weights.pth", {"model": WEIGHTS, "extra": Runs(str(tmp_path / "run"))})
    message = r"weights\.pth holds .*open, which only code that runs on loading can restore; save the state_dict of the"
    with pytest.raises(WeightsError, match=message):
        read_weights(path)
    assert not (tmp_path / "run").exists()


def truncated():
    content = io.BytesIO()
    torch.save(WEIGHTS, content)
    return content.getvalue()[:-200]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 343000000\n",
            "is a Git LFS pointer in place of the weights; git lfs pull fetches them",
        ),
        (b"\n<!DOCTYPE html><html>Log in", "is a web page in place of the weights; download the file itself"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page in place of the weights"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is neither safetensors nor a file of torch.save ("),
        (truncated(), "cannot be read ("),
    ],
    ids=["empty", "lfs", "html", "xml", "png", "truncated"],
)
def test_another_content_is_named(tmp_path, content, message):
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(WeightsError, match=re.escape(f"{tmp_path / 'weights'} {message}")) as error:
        read_weights(tmp_path / "weights")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "found"), [({"epoch": 3, "args": None}, "epoch, args"), ([1, 2], "list"), (torch.ones(2), "Tensor")]
)
def test_what_is_no_state_dict_is_named(tmp_path, content, found):
    with pytest.raises(WeightsError, match=f"weights.pth holds no state dict, but {found}"):
        read_weights(saved(tmp_path / "weights.pth", content))


def test_a_place_without_weights_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere cannot be read \(No such file or directory\)"):
        read_weights(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"holds neither a run nor model\.safetensors or pytorch_model\.bin"):
        read_weights(tmp_path)


def test_a_path_that_is_no_utf8_is_said(tmp_path):
    file = tmp_path / os.fsdecode(b"\xff.safetensors")
    save_file({"w": torch.zeros(1)}, file)
    with pytest.raises(
        WeightsError, match=r"\udcff.safetensors cannot be read: its path is not UTF-8, and safetensors"
    ):
        read_weights(file)


HALVES = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
MEAN_AND_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("processor", "found"),
    [
        (HALVES, MEAN_AND_STD),
        (HALVES | {"do_normalize": True, "do_rescale": True, "rescale_factor": 0.00392156862745098}, MEAN_AND_STD),
        (HALVES | {"do_normalize": False}, None),
        (HALVES | {"rescale_factor": 1 / 127.5}, None),
        (HALVES | {"rescale_factor": None}, None),
        (HALVES | {"do_rescale": False}, None),
        ({"image_mean": [0.5] * 3}, None),
        ({"image_mean": [123.675, 116.28, 103.53], "image_std": [58.395, 57.12, 57.375]}, None),
        (HALVES | {"image_mean": "000"}, None),
        (HALVES | {"image_mean": 0.5}, None),
        (HALVES | {"image_mean": [0.5]}, None),
        ({"image_mean": [], "image_std": []}, None),
        ([], None),
    ],
)
def test_transformers_says_how_images_were_normalized(tmp_path, processor, found):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert read_weights(tmp_path).statistics == found


def test_timm_says_it_first(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALVES))
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.1], "std": [0.2]}}))
    assert read_weights(tmp_path).statistics == ((0.1,), (0.2,))


def test_what_is_no_number_to_normalize_by_is_refused_with_the_file_that_says_it(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALVES | {"image_std": [0, 1, 1]}))
    with pytest.raises(WeightsError, match=r"^preprocessor_config\.json beside the weights: its mean and std must be"):
        _ = read_weights(tmp_path).statistics
