"""A teacher: read from an exported backbone, seen by the student, untouched by training."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spectral import with_channels

from bimkern.evaluate.backbone import read_backbone
from bimkern.evaluate.errors import EvaluationError
from bimkern.exporters.own import write_own
from bimkern.exporters.timm import write_timm
from bimkern.exporters.trained import Trained
from bimkern.importers.weights_file import WeightsError, read_weights
from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import MIM
from bimkern.mim.targets import Distillation
from bimkern.models.encoder import WEIGHTS_FILE
from bimkern.models.exported import BackboneError
from bimkern.models.teacher import TeacherError, load_teacher
from bimkern.recipes import RECIPES

STUDENT = RECIPES["fastmim_vit_test_distilled"].config.method
TEACHER = RECIPES["fastmim_vit_test"].config
IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return MIM(TEACHER.method)


@pytest.fixture(scope="module")
def path(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    write_timm(folder, Trained(TEACHER, 7, trained.state_dict()), 4)
    return folder / WEIGHTS_FILE


def features(teacher, model, images, layers):
    return teacher.features(images, layers, model.mean, model.std)


def test_features_are_those_of_the_trained_encoder(trained, path):
    first, last = features(load_teacher(path), trained, IMAGES, [0, 3])
    tokens = trained.encoder.embed(IMAGES, trained.mean, trained.std)
    for i, layer in enumerate(trained.encoder.blocks):
        tokens = layer(tokens)
        if i in (0, 3):
            expected = torch.nn.functional.layer_norm(tokens[:, 1:], (32,))
            torch.testing.assert_close(first if i == 0 else last, expected)


def test_our_own_layout_teaches_the_same(trained, path, tmp_path):
    write_own(tmp_path / "ours", Trained(TEACHER, 7, trained.state_dict()), 4)
    (ours,), (theirs,) = (features(load_teacher(of), trained, IMAGES, [3]) for of in (tmp_path / "ours", path))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("write", [write_timm, write_own])
def test_its_images_are_normalized_as_in_its_own_training(trained, tmp_path, write):
    mean, std = (0.2, 0.4, 0.6), (0.5, 0.25, 0.125)
    config = replace(TEACHER, method=replace(TEACHER.method, mean=mean, std=std))
    write(tmp_path / "own", Trained(config, 7, trained.state_dict()), 4)
    (found,) = features(load_teacher(tmp_path / "own"), trained, IMAGES, [0])
    tokens = trained.encoder.blocks[0](trained.encoder.embed(IMAGES, torch.tensor(mean), torch.tensor(std)))
    torch.testing.assert_close(found, torch.nn.functional.layer_norm(tokens[:, 1:], (32,)))


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        ("[0.5]", "must hold 3 values, got"),
        ("0.5", "are wrong"),
        ("[null, 1, 1]", "are wrong"),
        ("[NaN, 1, 1]", "must be finite, and std above 0, got"),
    ],
)
def test_numbers_that_are_no_mean_are_refused(path, tmp_path, mean, message):
    with safe_open(path, "pt") as file:
        metadata = file.metadata() | {"mean": mean}
    save_file(load_file(path), tmp_path / "odd.safetensors", metadata)
    with pytest.raises(BackboneError, match=f"its mean and std {message}"):
        load_teacher(tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match=f"its mean and std {message}"):
        read_weights(tmp_path / "odd.safetensors")
    with pytest.raises(EvaluationError, match=f"its mean and std {message}"):
        read_backbone(tmp_path / "odd.safetensors")


def test_the_folder_is_as_good_as_the_file_in_it(path):
    assert load_teacher(path.parent).sha256 == load_teacher(path).sha256
    with pytest.raises(BackboneError, match="it cannot be read"):
        load_teacher(path.parent.parent)


def test_positions_are_interpolated_to_another_image_size(trained, path):
    (found,) = features(load_teacher(path), trained, torch.zeros(1, 3, 96, 96, dtype=torch.uint8), [3])
    assert found.shape == (1, 36, 32)


def test_positions_of_a_grid_are_interpolated_once(trained, path, monkeypatch):
    teacher, calls, plain = load_teacher(path), [], torch.nn.functional.interpolate

    def interpolate(*args, **options):
        calls.append(args)
        return plain(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", interpolate)
    found = {}
    for side in (64, 96, 128, 96, 64, 128):
        (now,) = features(teacher, trained, torch.zeros(1, 3, side, side, dtype=torch.uint8), [3])
        assert torch.equal(found.setdefault(side, now), now)
    assert [tuple(grid) for _, grid in calls] == [(6, 6), (8, 8)]  # 4 x 4 is its own


def step(model):
    class Update:
        def scale(self, loss):
            return loss

        def apply(self):
            pass

    batch = MicroBatch(IMAGES, model.views(IMAGES, torch.arange(2), 0))
    return model.method.flow.step(model, [batch], [Update()])


def test_the_student_learns_from_it_and_it_learns_nothing(path):
    teacher = load_teacher(path)
    torch.manual_seed(1)
    model = MIM(STUDENT, teacher)
    before = {name: tensor.clone() for name, tensor in teacher.encoder.state_dict().items()}
    loss = step(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.encoder.state_dict().items())
    assert model.projections[0].weight.grad.abs().sum() > 0
    assert not any(name.startswith("teacher") for name in model.state_dict())
    model.method = replace(STUDENT, distillation=None)
    model.zero_grad()
    assert step(model) < loss
    assert model.projections[0].weight.grad is None


def test_the_loss_is_an_l1_error_on_masked_patches(path):
    torch.manual_seed(1)
    model = MIM(STUDENT, load_teacher(path))
    (view,) = model.views(IMAGES, torch.arange(2), 0)
    (whole,) = step(model)
    with torch.no_grad():
        tokens = model.encode(0, IMAGES, view)
        (wanted,) = features(model.teacher, model, IMAGES, [3])
        error = (model.projections[0](tokens[:, 1:]) - wanted).abs().mean(-1)
    model.method = replace(STUDENT, distillation=None)
    (alone,) = step(model)
    torch.testing.assert_close(whole - alone, (error * view.masked).sum() / view.masked.sum())


def test_says_what_is_wrong(path, tmp_path):
    with pytest.raises(TeacherError, match="this method learns from a teacher"):
        MIM(STUDENT)
    with pytest.raises(TeacherError, match=re.escape("the teacher must have the layers (4,), it has 4")):
        MIM(replace(STUDENT, distillation=Distillation(layers=(4,))), load_teacher(path))
    with pytest.raises(TeacherError, match="patches must be those of the student, 8, got 16"):
        MIM(
            replace(STUDENT, encoder=replace(STUDENT.encoder, patch=8), targets=TEACHER.method.targets),
            load_teacher(path),
        )
    with pytest.raises(TeacherError, match="images must have the channels of the student's, 1, got 3"):
        MIM(with_channels(RECIPES["fastmim_vit_test_distilled"].config, 1).method, load_teacher(path))
    with pytest.raises(ValueError, match="distillation must name 1 layers of the teacher, got 2"):
        replace(STUDENT, distillation=Distillation(layers=(1, 2)))
    with pytest.raises(ValueError, match="features of patches that do not enter the encoder cannot be learned"):
        replace(RECIPES["mae_vit_test"].config.method, distillation=Distillation(layers=(1,)))
    with pytest.raises(BackboneError, match="it cannot be read"):
        load_teacher(tmp_path / "nothing")
    nameless = tmp_path / "nameless.safetensors"
    save_file(load_file(path), nameless)
    with pytest.raises(BackboneError, match=r"it does not say which encoder it holds; python -m bimkern\.export"):
        load_teacher(nameless)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("patch", 0, r"its description is wrong \(encoder: ViTConfig: patch must be at least 1, got 0\)"),
        (
            "num_heads",
            5,
            r"its description is wrong \(encoder: ViTConfig: width must be a multiple of num_heads=5",
        ),
        ("depth", "²", r"its description is wrong \(encoder\.depth: must be an integer"),
        ("type", "CNN", r"its description is wrong \(encoder: unknown type 'CNN'; choose one of .*ViTConfig"),
        ("image_size", 32, r"it is no such backbone .*size mismatch for positions.table"),
        ("width", 64, "it is no such backbone .*size mismatch"),
        ("depth", 5, r"it is no such backbone \('blocks.4.norm1.weight'\)"),
    ],
)
def test_a_header_that_is_wrong_is_an_error_of_the_teacher(path, tmp_path, name, value, message):
    encoder = {"type": "ViTConfig", "width": 32, "depth": 4, "num_heads": 2, "patch": 16, "image_size": 64}
    save_file(load_file(path), tmp_path / "wrong.safetensors", {"encoder": json.dumps(encoder | {name: value})})
    with pytest.raises(BackboneError, match=message):
        load_teacher(tmp_path / "wrong.safetensors")


def test_a_header_that_is_no_json_is_an_error_of_the_teacher(path, tmp_path):
    save_file(load_file(path), tmp_path / "wrong.safetensors", {"encoder": "ViT-B"})
    with pytest.raises(BackboneError, match="its description is wrong"):
        load_teacher(tmp_path / "wrong.safetensors")
