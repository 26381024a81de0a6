"""What both examples share: the drawn data set, learning rates, and what they refuse."""

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import small_swin
import torch
from interop import import_or_skip
from PIL import Image
from torch import nn

from bimkern.exporters.own import write_own
from bimkern.exporters.trained import Trained
from bimkern.mim.model import MIM
from bimkern.models.encoder import WholeImages
from bimkern.models.swin import Swin
from bimkern.models.vit import ViT, ViTConfig
from bimkern.recipes import RECIPES
from bimkern.recipes.find import find_config

import_or_skip("torchvision")
import_or_skip("pycocotools")
from examples.detection.coco import CocoImages  # noqa: E402
from examples.segmentation.folder import read_folder  # noqa: E402
from examples.transfer import command, shapes  # noqa: E402
from examples.transfer.errors import TransferError  # noqa: E402
from examples.transfer.training import Recipe, train  # noqa: E402

RECIPE = Recipe(image_size=64, batch_size=4, lr=1e-2, weight_decay=0.1, drop_path=0.0, warmup=0, steps=3)
SAMPLES = [(torch.randn(3, 32, 32), torch.randn(())) for _ in range(4)]


class Reader(nn.Module):
    """A network that reads a number off the patches of a tiny ViT."""

    def __init__(self, depth):
        super().__init__()
        self.encoder = ViT(ViTConfig(width=8, depth=depth, num_heads=1, patch=8, image_size=32))
        self.encoder.positions.train_table(like=self.encoder.cls_token)
        self.head = nn.Linear(8, 1)

    def loss(self, samples):
        images, targets = (torch.stack(tensors) for tensors in zip(*samples, strict=True))
        tokens, view = self.encoder.embed(images), WholeImages((4, 4))
        for layer in range(self.encoder.config.depth):
            tokens = self.encoder.run_layer(layer, tokens, view)
        return (self.head(tokens[:, 1:].mean(dim=1))[:, 0] - targets).square().mean()


@pytest.mark.usefixtures("few")
def test_both_formats_show_the_same_shapes(tmp_path):
    shapes.draw_coco(tmp_path / "coco")
    shapes.draw_masks(tmp_path / "masks")
    instances = CocoImages(tmp_path / "coco", "val", None)
    pairs = read_folder(tmp_path / "masks", "val", nn.Identity())
    assert len(instances) == len(pairs) == 4
    assert instances.names(torch.tensor([1, 3])) == ["circle", "triangle"]
    for index in range(4):
        image, target = instances[index]
        pixels, labels = pairs.read(index)
        torch.testing.assert_close(image, pixels / 255)
        drawn = torch.zeros_like(labels)
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            drawn[mask.bool()] = label.item()
            rows, columns = mask.nonzero().unbind(1)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert torch.equal(drawn, labels)


@pytest.mark.usefixtures("few")
def test_precision_of_the_truth_is_one_and_of_nothing_zero(tmp_path):
    shapes.draw_coco(tmp_path)
    images = CocoImages(tmp_path, "val", None)
    truth = [
        {**target, "scores": torch.ones(len(target["labels"])), "masks": target["masks"][:, None].float()}
        for _, target in (images[index] for index in range(len(images)))
    ]
    assert images.average_precision(truth) == dict.fromkeys(("box_ap", "box_ap50", "mask_ap", "mask_ap50"), 1.0)
    assert set(
        images.average_precision([{name: value[:0] for name, value in one.items()} for one in truth]).values()
    ) == {0.0}


def test_lower_layers_learn_at_lower_rates_and_not_all_decays():
    """In the first step of AdamW, each weight moves by the learning rate, beside its decay."""
    model = Reader(depth=3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    recipe = replace(RECIPE, lr=1e-3, weight_decay=5.0, layer_decay=0.5, steps=1)
    train(model, model.encoder, SAMPLES, model.loss, recipe)
    below = {"patch_embed": 4, "cls_token": 4, "positions": 4, "blocks.0": 3, "blocks.1": 2, "blocks.2": 1}
    fixed = {"encoder.cls_token", "encoder.positions.table"}
    for name, parameter in model.named_parameters():
        inner = name.removeprefix("encoder.")
        rate = 1e-3 * 0.5 ** next((steps for part, steps in below.items() if inner.startswith(part)), 0)
        decay = 5.0 * rate if parameter.dim() > 1 and name not in fixed else 0.0
        moved = (parameter - before[name] * (1 - decay)).abs().max().item()
        assert moved == pytest.approx(rate, rel=1e-2), name


@pytest.mark.parametrize(("network", "kept"), [("vit", r"cls_token|positions\.table"), ("swin", r".*bias_table")])
def test_tokens_positions_and_window_biases_do_not_decay(network, kept):
    """Without a gradient, a step of AdamW moves what decays and nothing else."""
    encoder = Reader(depth=1).encoder if network == "vit" else Swin(small_swin.recipe(window=2).method.encoder)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter)
    before = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}

    def no_loss(part):
        return sum((0 * parameter.sum() for parameter in encoder.parameters()), start=torch.zeros(()))

    train(encoder, encoder, SAMPLES, no_loss, replace(RECIPE, steps=1))
    matrices = {name: parameter for name, parameter in encoder.named_parameters() if parameter.dim() > 1}
    found = {name for name, now in matrices.items() if torch.equal(now, before[name])}
    assert found == {name for name in matrices if re.fullmatch(kept, name)} != set()


def test_learning_rates_warm_up_and_fall():
    drops = Recipe(**vars(RECIPE) | {"warmup": 4, "lr_drops": (0.5, 0.75)})
    factors = [drops.lr_factor(step, 40) for step in (0, 1, 2, 3, 19, 20, 29, 30, 39)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.1, 0.1, 0.01, 0.01])
    linear = Recipe(**vars(RECIPE) | {"warmup": 1500})
    assert [linear.lr_factor(step, 20) for step in (0, 1, 10, 19)] == pytest.approx([0.5, 0.95, 0.5, 0.05])
    assert linear.lr_factor(0, 4) == 1  # a short run has no time for it
    assert Recipe(**vars(RECIPE) | {"steps": 0, "epochs": 3}).num_steps(10) == 8


def test_micro_batches_sum_to_the_same_gradient_and_drop_the_same_branches():
    def losses(size, drop_path=0.5):
        torch.manual_seed(0)
        model = Reader(depth=2)
        recipe = replace(RECIPE, drop_path=drop_path)
        return train(model, model.encoder, SAMPLES, model.loss, recipe, micro_batch=size)

    whole = losses(None)
    for size in (1, 3):
        assert losses(size) == pytest.approx(whole, rel=1e-4)
    assert losses(None, drop_path=0.0) != whole


@pytest.mark.parametrize(
    ("power", "message"), [(0.0, "the loss of step 1 is nan"), (0.5, "the gradient of step 1 is not finite")]
)
def test_what_is_not_finite_ends_training(power, message):
    model = Reader(depth=1)

    def loss_of(part):
        zero = model.loss(part) * 0
        return zero**0.5 if power else zero * torch.nan

    with pytest.raises(TransferError, match=f"^{message}; lower --lr$"):
        train(model, model.encoder, SAMPLES, loss_of, RECIPE)


def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, vit_run):
    from examples.detection import __main__ as detection
    from examples.segmentation import __main__ as segmentation

    def error(program, data, *more):
        """Return what a program says of a data set and options."""
        given = {"backbone": vit_run, "data": data, "out": tmp_path / "out"}
        arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["x", *arguments, *more])
        with pytest.raises(SystemExit) as stop:
            command.run(*program)
        assert stop.value.code == 2
        said, newline, rest = capsys.readouterr().err.removeprefix("python -m x: ").partition("\n")
        assert (newline, rest) == ("\n", "")
        return said

    detect = ("x", detection.Options, detection.detection, "")
    segment = ("x", segmentation.SegmentationOptions, segmentation.segmentation, "")
    assert error(detect, tmp_path) == f"{tmp_path} has no annotations/instances_train*.json"
    assert error(detect, tmp_path, "--depth", "3") == "there is no option --depth; did you mean --epochs, --data?"
    assert error(segment, tmp_path) == f"--num-classes is missing, and so is {tmp_path / 'classes.txt'}"
    classes = ("--num-classes", "3")
    assert error(segment, tmp_path, *classes) == f"{tmp_path} has none of images/train, images/training"
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
    assert error(segment, tmp_path, *classes) == f"{tmp_path / 'images/train'} holds no .jpeg, .jpg, .png"
    image = tmp_path / "images/train/a.jpg"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    assert error(segment, tmp_path, *classes) == f"{image} has no mask; it should be {tmp_path / 'masks/train/a.png'}"
    expected = "pyramid: taps must be 4 ascending layers in [0, 4), got (9,)"
    assert error(segment, tmp_path, *classes, "--taps", "9") == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--steps -3", "--steps must be at least 1, got -3"),
        ("--batch-size 0", "--batch-size must be at least 1, got 0"),
        ("--micro-batch 0", "--micro-batch must be at least 1, got 0"),
        ("--micro-batch -1", "--micro-batch must be at least 1, got -1"),
        ("--image-size 0", "--image-size must be at least 1, got 0"),
        ("--image-size 80", "--image-size must be a multiple of 32, got 80"),
        ("--workers -1", "--workers must be at least 0, got -1"),
        ("--epochs 0", "--epochs must be above 0 and finite, got 0"),
        ("--epochs nan", "--epochs must be above 0 and finite, got nan"),
        ("--lr -0.5", "--lr must be above 0 and finite, got -0.5"),
        ("--lr inf", "--lr must be above 0 and finite, got inf"),
        ("--steps 3 --epochs 2", "--steps and --epochs both say how long training takes; give one of them"),
        ("--seed -1", "--seed must be in [0, 2**63), got -1"),
        ("--device gpu", "--device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("--num-classes 0", "--num-classes must be at least 1, got 0"),
    ],
)
def test_numbers_that_no_training_has_are_one_line(tmp_path, monkeypatch, capsys, options, message):
    from examples.segmentation.__main__ import SegmentationOptions

    given = ["--backbone", "walk", "--data", "shapes", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["x", *given, *options.split()])
    with pytest.raises(SystemExit) as stop:
        command.run("x", SegmentationOptions, pytest.fail, "")
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"python -m x: {message}\n"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    given = ["--backbone", "walk", "--data", "shapes", "--out", str(tmp_path / "file/out")]
    monkeypatch.setattr(sys, "argv", ["x", *given])
    with pytest.raises(SystemExit):
        command.run("x", command.Options, pytest.fail, "")
    assert re.fullmatch(r"python -m x: cannot continue \(.*file/out'\)\n", capsys.readouterr().err)


def test_epochs_of_fewer_images_than_a_batch_are_as_many():
    recipe = Recipe(**vars(RECIPE) | {"steps": 0, "epochs": 5, "batch_size": 64})
    assert recipe.num_steps(10) == 5
    assert recipe.num_steps(64) == 5
    assert recipe.num_steps(65) == 6
    model = Reader(depth=1)
    with pytest.raises(TransferError, match=r"^there is no image to train on$"):
        train(model, model.encoder, [], model.loss, recipe)


def test_an_encoder_of_other_images_is_refused(tmp_path, vit_run):
    from examples.transfer.encoder import read_encoder

    assert read_encoder(vit_run).config.channels == 3
    gray = RECIPES["mae_vit_test"].config
    gray = replace(
        gray, method=replace(gray.method, encoder=replace(gray.method.encoder, channels=1), mean=(0.5,), std=(0.5,))
    )
    write_own(tmp_path / "gray", Trained(gray, 7, MIM(gray.method).state_dict()), gray.method.encoder.depth)
    with pytest.raises(TransferError, match=r"gray: images must have 3 channels, .*, got 1; choose"):
        read_encoder(tmp_path / "gray")


def test_unlabeled_images_are_others_of_the_same_kind(tmp_path):
    shapes.main([str(tmp_path / "more"), "--count", "3"])
    found = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "more").iterdir())]
    assert [image.shape for image in found] == [(64, 64, 3)] * 3
    shapes.draw_unlabeled(tmp_path / "again", 2)
    assert all(np.array_equal(Image.open(tmp_path / f"again/0000{i}.png"), found[i]) for i in range(2))
    for part, images in shapes._parts():
        assert not np.array_equal(next(images)[0], found[0]), part


def test_no_images_are_not_drawn(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        shapes.main([str(tmp_path / "none"), "--count", "0"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "python -m examples.transfer.shapes: --count must be at least 1, got 0\n"
    assert not (tmp_path / "none").exists()


def test_the_recipe_for_shapes_is_localmim_on_their_size():
    config = find_config("examples/transfer/recipe.py:shapes")
    assert config.method.encoder.image_size.height == shapes.SIDE
    assert [head.match_scale for head in config.method.heads] == [4, 2, 1, 0.5]
    assert config.run.peak_lr == pytest.approx(1e-3)
