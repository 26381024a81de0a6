"""Runs on images that are no squares: trained, resumed, drawn, exported, fine-tuned and planned."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import small_swin
import torch
from growing import write_photos
from interop import import_or_skip
from labeled_stripes import write_stripes
from PIL import Image
from safetensors.torch import save_file

from bimkern.data.augment import CenterCrop
from bimkern.data.step_layout import Phase
from bimkern.data.training_augment import TrainingAugment
from bimkern.evaluate.backbone import read_backbone
from bimkern.evaluate.latency import latencies
from bimkern.exporters.detectron2 import write_detectron2
from bimkern.exporters.hf import write_hf
from bimkern.exporters.mae_program import write_mae_program
from bimkern.exporters.mmpretrain import write_mmpretrain
from bimkern.exporters.own import write_own
from bimkern.exporters.timm import write_timm
from bimkern.exporters.trained import Trained, read_trained
from bimkern.image_size import ImageSize
from bimkern.importers.initialize import read_initial_weights
from bimkern.mim.model import MIM
from bimkern.mim.schedule import Cosine
from bimkern.models.encoder import WholeImages
from bimkern.models.exported import load_encoder
from bimkern.recipes import RECIPES
from bimkern.train.config.finetuning import FinetuneConfig, FinetuneOptions
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import from_json
from bimkern.train.finetuning.run import finetune
from bimkern.train.memory.estimate import image_bytes, live_activation_peak
from bimkern.train.run import run

pytestmark = pytest.mark.usefixtures("pictures_on_request")

SIZE = ImageSize(24, 48)


def of_size(config, size):
    encoder = config.method.encoder.resized(ImageSize.read(size))
    return replace(config, method=replace(config.method, encoder=encoder))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "photos", count=6)


@pytest.fixture
def configure(photos, tmp_path):
    """Return a function that makes the config of a short run on rectangles."""

    def make(recipe="mae_vit_test", size=SIZE, out="run", **options):
        config = of_size(RECIPES[recipe].config, size)
        own = {"data": photos, "out": tmp_path / out, "workers": 0, "log_every": 1, "steps": 4, "batch_size": 4}
        return replace(config, run=replace(config.run, **own | {"save_every": 2} | options))

    return make


def random_network(config):
    model = MIM(config.method).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model, Trained(config, 7, model.state_dict())


def features(encoder, images):
    tokens, grid = encoder.embed(images), encoder.config.level(0).grid(*images.shape[2:])
    for layer in range(encoder.config.depth):
        tokens = encoder.run_layer(layer, tokens, WholeImages(grid))
    return tokens


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_trains_resumes_and_says_its_size(configure, tmp_path, pictures):
    whole, half = tmp_path / "whole", tmp_path / "half"
    run(configure(out="whole"))
    shutil.copytree(whole, half)
    shutil.rmtree(max((half / "checkpoints").glob("*0*")))  # so that the run continues after two of four steps
    run(configure(out="half"))
    assert [record["image_size"] for record in records(half)] == ["24x48"] * 4
    assert json.loads((whole / "config.json").read_text())["method"]["encoder"]["image_size"] == "24x48"
    (_, first), (_, again) = map(read_trained, (whole, half))
    assert (first.step, again.step) == (4, 4)
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert first.preprocessing.image_size == SIZE
    assert str(first.preprocessing).startswith("24x48 px")
    with Image.open(whole / "pictures" / "reconstruction.png") as picture:
        assert picture.width > 4 * 160  # original, masked and two predictions
        assert picture.height < 800
    backbone = read_backbone(whole)
    assert backbone.images.image_size == SIZE
    assert latencies(backbone, [4], "mean", rounds=1)[4] > 0


@pytest.mark.parametrize("size", ["32x48", "48x24", 48])
def test_another_size_is_another_run(configure, size):
    config = configure(steps=1)
    run(config)
    with pytest.raises(ConfigError, match="image_size: 24x48 before, "):
        run(of_size(config, size))


def test_sizes_of_any_shape_follow_each_other(configure, tmp_path):
    sizes = ("32x64", "64x32", "64x96")
    plain = configure("fastmim_vit_test", "64x96", steps=3)
    config = replace(plain, phases=tuple(Phase(share=1 / 3, image_size=size) for size in sizes))
    run(config)
    assert [record["image_size"] for record in records(tmp_path / "run")] == list(sizes)
    with pytest.raises(ValueError, match="the last phase must have the encoder's image_size=64x96, got 64x32"):
        replace(config, phases=(Phase(share=1.0, image_size="64x32"),))


def test_a_run_learns_from_a_teacher_of_the_same_shape(configure, tmp_path):
    teacher = of_size(RECIPES["fastmim_vit_test"].config, "64x96")
    write_timm(tmp_path / "teacher", random_network(teacher)[1], 4)
    run(configure("fastmim_vit_test_distilled", "32x64", steps=1, teacher=tmp_path / "teacher" / "model.safetensors"))
    assert [record["image_size"] for record in records(tmp_path / "run")] == ["32x64"]


def test_arrays_of_several_channels_are_cropped_too(configure, tmp_path):
    np.save(tmp_path / "levels.npy", np.random.default_rng(0).integers(0, 256, (6, 40, 90, 5), dtype=np.uint8))
    config = configure(data=tmp_path / "levels.npy", steps=1)
    encoder, five = replace(config.method.encoder, channels=5), (0.5,) * 5
    outcome = run(replace(config, method=replace(config.method, encoder=encoder, mean=five, std=five)))
    assert outcome.config.channels == 5
    assert [record["image_size"] for record in records(tmp_path / "run")] == ["24x48"]


def test_a_step_is_planned_by_its_pixels(configure):
    wide, tall, square = (configure(size=size, batch_size=8) for size in ("16x64", "64x16", 32))
    found = [
        [count(c, c.step_layout(8).segments[0]) for count in (live_activation_peak, image_bytes)]
        for c in (wide, tall, square)
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("recipe", ["mae_vit_test", "swin"])
def test_timm_computes_the_same_features(tmp_path, recipe):
    timm = import_or_skip("timm")
    config = (
        small_swin.recipe(window=4, image_size="64x128") if recipe == "swin" else of_size(RECIPES[recipe].config, SIZE)
    )
    size = config.image_size
    model, trained = random_network(config)
    write_timm(tmp_path, trained, config.method.encoder.depth)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()  # strict
    data = timm.data.resolve_model_data_config(theirs)
    assert data["input_size"] == (3, *size)
    images = timm.data.create_transform(**data)(Image.new("RGB", (300, 260), "red"))[None] + torch.randn(1, 3, *size)
    assert images.shape == (1, 3, *size)
    tokens = model.heads[-1].in_norm(features(model.encoder, images))
    expected = theirs.forward_features(images)
    torch.testing.assert_close(tokens, expected.flatten(1, 2) if recipe == "swin" else expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(features(load_encoder(tmp_path).eval(), images), features(model.encoder, images))
    assert read_backbone(tmp_path).images.image_size == size


@pytest.mark.parametrize("write", [write_own, write_timm])
def test_an_export_is_taken_up_at_its_size(tmp_path, write):
    config = of_size(RECIPES["mae_vit_test"].config, "32x128")  # 4 x 16 patches, as many as of 8 x 8
    model, trained = random_network(config)
    write(tmp_path / "file", trained, 4)
    init = read_initial_weights(config, tmp_path / "file")
    assert not init.report["resized"]
    assert "encoder.positions.table" not in init.tensors  # the computed one
    assert torch.equal(init.tensors["encoder.cls_token"], model.encoder.cls_token)


def test_stored_positions_are_resized_from_the_grid_that_they_had(tmp_path):
    config = of_size(RECIPES["mae_vit_test"].config, "32x128")
    model, _ = random_network(config)
    model.encoder.positions.expect_table(model.encoder.cls_token)
    table = torch.randn(1, 65, 32)
    model.encoder.positions.table.copy_(table)
    write_own(tmp_path / "own", Trained(config, 7, model.state_dict()), 4)
    same = read_initial_weights(config, tmp_path / "own").tensors["encoder.positions.table"]
    assert torch.equal(same, table)
    wide = read_initial_weights(of_size(config, "32x64"), tmp_path / "own")
    assert wide.report["resized"]["encoder.positions.table"] == {"from": [4, 16], "to": [4, 8]}
    save_file(model.encoder.state_dict(), tmp_path / "bare.safetensors")
    bare = read_initial_weights(of_size(config, "32x64"), tmp_path / "bare.safetensors")
    assert bare.report["resized"]["encoder.positions.table"] == {"from": [8, 8], "to": [4, 8]}  # nothing says more


def test_biases_of_windows_that_are_no_squares_are_taken_as_they_are(tmp_path):
    config = small_swin.recipe(window=7, image_size="64x256")
    model, trained = random_network(config)
    write_own(tmp_path / "own", trained, config.method.encoder.depth)
    init = read_initial_weights(config, tmp_path / "own")
    assert not init.report["resized"]
    assert all(torch.equal(init.tensors[f"encoder.{n}"], tensor) for n, tensor in model.encoder.state_dict().items())
    square = read_initial_weights(small_swin.recipe(window=7, image_size=64), tmp_path / "own")
    resized = [(sizes["from"], sizes["to"]) for sizes in square.report["resized"].values()]
    assert resized == [([4, 7], [4, 4])] * 2 + [([2, 7], [2, 2])] * 2


def test_mmpretrain_is_told_both_sides(tmp_path):
    config = of_size(RECIPES["mae_vit_test"].config, SIZE)
    assert config.method.encoder.layout("mmpretrain").settings["img_size"] == (24, 48)
    write_mmpretrain(tmp_path / "file", random_network(config)[1], 4)
    assert torch.load(tmp_path / "file", weights_only=True)["state_dict"]["backbone.pos_embed"].shape == (1, 19, 32)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_hf, "mae_vit_test has images of 24x48 pixels, where MAE's program and transformers have squares alone"),
        (write_mae_program, "mae_vit_test has images of 24x48 pixels, where MAE's program"),
        (write_detectron2, "ViTDet starts from positions of square images alone, got images of 24x48 pixels"),
    ],
)
def test_programs_of_squares_are_refused(tmp_path, write, words):
    _, trained = random_network(of_size(RECIPES["mae_vit_test"].config, SIZE))
    with pytest.raises(ConfigError, match=words):
        write(tmp_path / "file", trained, 4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("resized", "size"), [(None, SIZE), ("40x24", ImageSize(40, 24))])
def test_fine_tuning_takes_the_size_of_its_backbone_or_its_own(configure, tmp_path, resized, size):
    run(configure(out="pretrained", steps=1))
    options = {"data": write_stripes(tmp_path / "data"), "backbone": tmp_path / "pretrained", "out": tmp_path / "out"}
    config = FinetuneConfig(
        recipe="test",
        augment=TrainingAugment(rand_augment=None, erase_prob=0.0),
        crop=CenterCrop(),
        optim=AdamWConfig(betas=(0.9, 0.999)),
        schedule=Cosine(warmup=0.1),
        run=FinetuneOptions(**options, workers=0, log_every=1, steps=2, batch_size=8, base_lr=1e-3),
        resized=resized,
    )
    outcome = finetune(config)
    assert outcome.config.image_size == size
    assert [record["image_size"] for record in records(tmp_path / "out")] == [str(size)] * 2
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert from_json(saved, FinetuneConfig).image_size == size
