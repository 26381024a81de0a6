"""The classifier: what is averaged and normalized, how its last layer begins, and positions that learn."""

import pytest
import torch

from bimkern.models.classifier import Classifier
from bimkern.models.encoder import WholeImages
from bimkern.models.pos_embed import resized, sincos_table
from bimkern.models.swin import SwinConfig
from bimkern.models.vit import ViTConfig

VIT = ViTConfig(image_size=32, patch=8, width=32, depth=2, num_heads=2)
SWIN = SwinConfig(image_size=32, width=8, depths=(1, 2), num_heads=(1, 2), window=4)
STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


def images_of(count=3):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("config", [VIT, SWIN], ids=["vit", "swin"])
def test_patches_are_averaged_and_normalized(config, norm_first):
    model = Classifier(config, 5, norm_first=norm_first, **STATISTICS)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.norm.bias)
    images = images_of()
    tokens = model.encoder.embed(images, model.mean, model.std)
    for layer in range(config.depth):
        tokens = model.encoder.run_layer(layer, tokens, WholeImages((32 // config.patch,) * 2))
    patches = tokens[:, 1:] if config is VIT else tokens
    pooled = model.norm(patches).mean(dim=1) if norm_first else model.norm(patches.mean(dim=1))
    torch.testing.assert_close(model(images), model.head(pooled))
    torch.testing.assert_close(model(model.normalized(images)), model.head(pooled), rtol=1e-4, atol=1e-5)
    assert model.norm.eps == (1e-6 if config is VIT else 1e-5)


def test_the_last_layer_begins_near_zero():
    weight = Classifier(ViTConfig(width=768, depth=1, num_heads=12), 1000, **STATISTICS).head.weight
    assert weight.std().item() == pytest.approx(2e-5, rel=0.05)
    assert weight.abs().max() > 4e-5  # a normal distribution, cut far out


def test_positions_learn_from_where_they_are():
    model = Classifier(VIT, 5, **STATISTICS)
    model.train_positions()
    table = dict(model.named_parameters())["encoder.positions.table"]
    torch.testing.assert_close(table[0, 1:], sincos_table(32, (4, 4)))
    assert not table[0, 0].any()
    model.head.weight.data.normal_()
    model(images_of()).square().sum().backward()
    assert (table.grad.abs().sum(dim=2) > 0).all()  # of the class token, too, which the patches attend to
    images = images_of()
    found = model(images)
    table.data[:, 1:] += torch.randn_like(table[:, 1:])
    assert not torch.allclose(model(images), found)  # no table is remembered


def test_trained_positions_are_resized_for_other_images():
    model = Classifier(VIT, 5, **STATISTICS)
    model.train_positions()
    positions = model.encoder.positions
    positions.table.data.normal_()
    found = positions((2, 2), model.head.weight)
    torch.testing.assert_close(found, resized(positions.table[:, 1:], (4, 4), (2, 2))[0])
    found.sum().backward()
    assert positions.table.grad.isfinite().all()
