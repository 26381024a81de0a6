"""What both examples share: the drawn data set, learning rates, and what they refuse."""

import sys

import numpy as np
import pytest
import torch
from interop import import_or_skip
from PIL import Image
from torch import nn

from bimkern.models.vit import ViT, ViTConfig

import_or_skip("torchvision")
import_or_skip("pycocotools")
from examples.detection.coco import CocoImages  # noqa: E402
from examples.segmentation.folder import read_folder  # noqa: E402
from examples.transfer import command, encoder, shapes  # noqa: E402
from examples.transfer.errors import TransferError  # noqa: E402
from examples.transfer.training import Recipe, train  # noqa: E402

RECIPE = Recipe(image_size=64, batch_size=4, lr=1e-2, weight_decay=0.1, drop_path=0.0, warmup=0, steps=3)


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


def test_lower_layers_learn_at_lower_rates_and_vectors_do_not_decay():
    """The rates of a ViT of 12 layers at 0.65 are those of LocalMIM's program, see fine-tuning."""
    inner = ViT(ViTConfig(width=8, depth=12, num_heads=1, image_size=32))
    model = nn.ModuleDict({"encoder": inner, "head": nn.Linear(8, 2)})
    groups = encoder.parameter_groups(model, inner, lr=1.0, weight_decay=0.1, layer_decay=0.65)
    rates = {parameter: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert rates.keys() == set(model.parameters())
    expected = [
        0.0037,
        0.00569,
        0.00875,
        0.01346,
        0.02071,
        0.03186,
        0.04902,
        0.07542,
        0.11603,
        0.17851,
        0.27463,
        0.4225,
        0.65,
        1,
    ]
    found = [rates[inner.patch_embed.weight][0], *(rates[layer.mlp.fc1.weight][0] for layer in inner.blocks)]
    assert [*found, rates[model["head"].weight][0]] == pytest.approx(expected, abs=5e-6)
    assert rates[inner.blocks[3].norm1.weight][1] == rates[model["head"].bias][1] == 0
    assert rates[inner.blocks[3].attn.qkv.weight][1] == 0.1


def test_learning_rates_warm_up_and_fall():
    drops = Recipe(**vars(RECIPE) | {"warmup": 4, "lr_drops": (0.5, 0.75)})
    factors = [drops.lr_factor(step, 40) for step in (0, 1, 2, 3, 19, 20, 29, 30, 39)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.1, 0.1, 0.01, 0.01])
    linear = Recipe(**vars(RECIPE) | {"warmup": 1500})
    assert [linear.lr_factor(step, 20) for step in (0, 1, 10, 19)] == pytest.approx([0.5, 0.95, 0.5, 0.05])
    assert linear.lr_factor(0, 4) == 1  # a short run has no time for it
    assert Recipe(**vars(RECIPE) | {"steps": 0, "epochs": 3}).num_steps(10) == 8


def test_micro_batches_sum_to_the_same_gradient():
    samples = [(torch.randn(3), torch.randn(())) for _ in range(8)]
    found = []
    for size in (None, 1):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        inner = ViT(ViTConfig(width=8, depth=1, num_heads=1, image_size=32))

        def loss_of(part, model=model):
            inputs, targets = (torch.stack(tensors) for tensors in zip(*part, strict=True))
            return (model(inputs)[:, 0] - targets).square().mean()

        losses = train(model, inner, samples, loss_of, RECIPE, micro_batch=size)
        found.append((losses, model.weight))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1])


def test_a_loss_that_is_not_finite_ends_training():
    model = nn.Linear(1, 1)
    inner = ViT(ViTConfig(width=8, depth=1, num_heads=1, image_size=32))
    with pytest.raises(TransferError, match="the loss of step 1 is nan; lower --lr"):
        train(model, inner, [torch.zeros(1)] * 4, lambda part: model(part[0]).sum() * torch.nan, RECIPE)


def test_branches_are_dropped_in_training_alone_and_later_layers_more_often():
    inner = ViT(ViTConfig(width=8, depth=3, num_heads=1, image_size=32))
    encoder.set_drop_path(inner, 0.5)
    with torch.no_grad():
        for layer in inner.blocks:
            layer.mlp.fc2.bias.fill_(1.0)
            layer.mlp.fc2.weight.zero_()
    tokens = torch.zeros(2000, 1, 8)
    rates = [(layer.mlp(tokens)[:, 0, 0] == 0).double().mean().item() for layer in inner.blocks]
    assert rates == pytest.approx([0, 0.25, 0.5], abs=0.06)
    assert inner.blocks[2].mlp(tokens).mean().item() == pytest.approx(1, abs=0.15)
    inner.eval()
    assert torch.equal(inner.blocks[2].mlp(tokens), torch.ones(2000, 1, 8))


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
