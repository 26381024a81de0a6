"""Features of a trained encoder: those of timm, of any depth, in one forward pass."""

from itertools import pairwise

import pytest
import torch
from interop import import_or_skip
from safetensors.torch import load_file, save_file
from saved_runs import make_run

from bimkern.evaluate.backbone import read_backbone
from bimkern.evaluate.depths import evaluate
from bimkern.evaluate.errors import EvaluationError
from bimkern.evaluate.labeled import Labeled, in_memory
from bimkern.evaluate.linear import LinearProbe
from bimkern.exporters.own import write_own
from bimkern.exporters.timm import write_timm

QUICK = LinearProbe(min_steps=30)


def images_of(backbone, count=3):
    side = backbone.images.image_size.height
    return torch.randint(0, 256, (count, backbone.config.channels, side, side), dtype=torch.uint8)


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_features_equal_timms_on_the_export(tmp_path, depth, pool):
    timm = import_or_skip("timm")
    write_timm(tmp_path / "timm", make_run(tmp_path / "run"), depth)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    backbone = read_backbone(tmp_path / "run")
    images = images_of(backbone)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (backbone.images.mean, backbone.images.std))
    with torch.no_grad():
        tokens = theirs.forward_features((images / 255 - mean) / std)
        expected = theirs((images / 255 - mean) / std) if pool == "mean" else tokens[:, 0]
    for source in ("run", "timm"):
        found = read_backbone(tmp_path / source).features(images, [depth], pool)[depth]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", ["bim_vit_test", "mae_vit_test", "bim_swin_tiny_test", "fastmim_cmt_test"])
def test_all_depths_take_one_pass_of_the_deepest(tmp_path, monkeypatch, recipe):
    make_run(tmp_path / "run", recipe)
    backbone = read_backbone(tmp_path / "run")
    depths, images = range(1, backbone.config.depth + 1), images_of(backbone)
    ran, embedded, encoder = [], [], type(backbone.encoder)
    run_layer, embed = encoder.run_layer, encoder.embed
    monkeypatch.setattr(
        encoder, "run_layer", lambda self, layer, *rest: ran.append(layer) or run_layer(self, layer, *rest)
    )
    monkeypatch.setattr(encoder, "embed", lambda self, *rest: embedded.append(1) or embed(self, *rest))
    together = backbone.features(images, depths)
    assert ran == [depth - 1 for depth in depths]
    assert embedded == [1]
    for depth in depths:
        assert together[depth].shape == (len(images), backbone.config.level(depth).width)
        assert torch.equal(backbone.features(images, [depth])[depth], together[depth])
    counts = [backbone.count_parameters(depth) for depth in depths]
    assert all(fewer < more for fewer, more in pairwise(counts))
    assert counts[-1] >= sum(parameter.numel() for parameter in backbone.encoder.parameters())


def test_where_no_head_reads_tokens_are_normalized_without_weights(tmp_path):
    make_run(tmp_path / "run", "mae_vit_test")  # one head, behind the last layer
    backbone = read_backbone(tmp_path / "run")
    assert backbone.norms.keys() == {4}
    _, found = backbone.features(images_of(backbone), [4, 2], "cls").values()
    features = backbone.features(images_of(backbone), [2], "cls")[2]
    torch.testing.assert_close(features.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.var(dim=1, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    assert found.shape[1] == backbone.config.width


def labeled(count=40):
    labels = torch.arange(count) % 2
    stripes = (torch.arange(8) % 2).float()
    images = torch.where(labels.view(-1, 1, 1, 1) > 0, stripes.view(1, 1, 8, 1), stripes.view(1, 1, 1, 8)) * 200
    images = images + 40 * torch.rand(count, 1, 8, 8)
    half = count // 2
    parts = (in_memory(images[:half], labels[:half]), in_memory(images[half:], labels[half:]))
    return Labeled(classes=("across", "down"), train=parts[0], test=parts[1])


@pytest.mark.parametrize("recipe", ["bim_vit_test", "bim_swin_tiny_test"])
def test_the_accuracy_is_the_same_from_run_checkpoint_and_export(tmp_path, recipe):
    trained = make_run(tmp_path / "run", recipe)
    depth = trained.config.method.encoder.depth
    write_own(tmp_path / "own", trained, depth)
    write_timm(tmp_path / "timm", trained, depth)
    checkpoint, data, found = tmp_path / "run/checkpoints/step-00000012", labeled(), []
    for path in (tmp_path / "run", checkpoint, tmp_path / "own", tmp_path / "timm/model.safetensors"):
        (result,) = evaluate(read_backbone(path), data, [depth], neighbors=(3, 1), probe=QUICK)
        assert result.latency_ms > 0
        found.append((result.parameters, result.knn, result.linear, result.chance))
    assert found == found[:1] * 4
    assert (result.chance, result.linear) == (0.5, 1)


def test_a_depth_whose_features_are_not_finite_is_named(tmp_path):
    make_run(tmp_path / "run", "bim_vit_test")
    backbone = read_backbone(tmp_path / "run")
    for parameter in backbone.norms[3].parameters():
        parameter.fill_(torch.nan)
    message = r"^the features behind layer 3 are not finite, and cannot be evaluated; train it again$"
    with pytest.raises(EvaluationError, match=message):
        evaluate(backbone, labeled(), [2, 3, 4], neighbors=(1,), probe=QUICK)


def test_what_holds_no_encoder_is_refused_in_a_line(tmp_path):
    with pytest.raises(
        EvaluationError, match="nothing holds no encoder; give a run folder, one of its checkpoints, or"
    ):
        read_backbone(tmp_path / "nothing")
    write_own(tmp_path / "own", make_run(tmp_path / "run"), 4)
    file = tmp_path / "own/model.safetensors"
    encoder = (tmp_path / "own/config.json").read_text()
    save_file(load_file(file), file, {"encoder": encoder})
    with pytest.raises(
        EvaluationError, match=r"it does not say how images are prepared .*interpolation.*export it again"
    ):
        read_backbone(tmp_path / "own")


def test_an_encoder_without_class_token_has_none_to_pool(tmp_path):
    make_run(tmp_path / "run", "bim_swin_tiny_test")
    backbone = read_backbone(tmp_path / "run")
    with pytest.raises(EvaluationError, match="pool cls: SwinConfig has no class token; choose mean"):
        backbone.features(images_of(backbone), [1], "cls")
