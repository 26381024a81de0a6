"""Weights of this and other programs, found, fitted and accounted for."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from interop import import_or_skip
from safetensors.torch import load_file, save_file

from bimkern.exporters.hf import write_hf
from bimkern.exporters.mae_program import write_mae_program
from bimkern.exporters.own import write_own
from bimkern.exporters.timm import write_timm
from bimkern.exporters.trained import Trained
from bimkern.importers.initialize import read_initial_weights
from bimkern.mim.model import MIM
from bimkern.models.encoder import WholeImages
from bimkern.models.layers import set_compute_dtype
from bimkern.models.pos_embed import sincos_table
from bimkern.models.swin_layers import resized_table
from bimkern.recipes import RECIPES
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.store import Checkpoint
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import to_json
from bimkern.train.run_folder.folder import RunFolder

CONFIG = RECIPES["bim_vit_test"].config  # 4 layers of width 32, 4 x 4 patches of 8 pixels
TINY = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}  # in timm: 8 x 8 patches


def with_encoder(config=CONFIG, **numbers):
    return replace(config, method=replace(config.method, encoder=replace(config.method.encoder, **numbers)))


def random_model(config=CONFIG):
    model = MIM(config.method)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def write_run(path, trained, depth):
    folder = RunFolder(path)
    folder.open(trained.config)
    folder.record(trained.config)
    saved = Checkpoint(trained.step, dict(trained.weights), {}, {"config": to_json(trained.config)})
    checkpoints.save(folder.checkpoints, saved, best_step=0)
    folder.close()


WRITERS = {"timm": write_timm, "mae": write_mae_program, "hf": write_hf, "bimkern": write_own, "run": write_run}


def initialized(path, config=CONFIG):
    """A network that starts from weights, and what was said of them."""
    init = read_initial_weights(config, path)
    model = MIM(config.method)
    model.load_state_dict(init.tensors, strict=False)
    return model, init


def features(model, images):
    """The tokens after the last norm, [B, R+N, D], of normalized images in float64."""
    set_compute_dtype(model.double().eval(), torch.float64)
    view = WholeImages(model.encoder.grid(images))
    tokens = model.encoder.embed(images)
    for layer in range(model.method.encoder.depth):
        tokens = model.encoder.run_layer(layer, tokens, view)
    return model.heads[-1].in_norm(tokens)


def same(model, other, prefix):
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if name.startswith(prefix))


@pytest.mark.parametrize("layout", WRITERS)
def test_what_is_exported_is_taken_back(tmp_path, layout):
    trained = random_model()
    WRITERS[layout](tmp_path / "out", Trained(CONFIG, 7, trained.state_dict()), 4)
    model, init = initialized(tmp_path / "out")
    assert same(trained, model, "encoder.")
    assert same(trained, model, "heads.3.in_norm.")
    assert same(trained, model, "heads.3.") == (layout in ("mae", "hf", "run"))
    assert same(trained, model, "heads.") == (layout == "run")
    assert init.report["resized"] == {}
    assert model.encoder.positions.table is None  # the very table that is computed
    assert set(init.report["taken"]) - {"encoder.positions.table"} == init.tensors.keys()
    assert init.tensors.keys() | set(init.report["random"]) == trained.state_dict().keys()
    assert init.report["left"] == {"mae": ["decoder_pos_embed"], "hf": ["decoder.decoder_pos_embed"]}.get(layout, [])
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(features(model, images), features(trained, images), rtol=0, atol=0)


def test_timms_positions_are_kept_with_those_of_the_prefix_and_exported_again(tmp_path):
    timm = import_or_skip("timm")
    theirs = timm.create_model("vit_base_patch16_224", num_classes=0, **TINY)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    config = with_encoder(image_size=64)
    model, init = initialized(tmp_path / "timm.pth", config)
    assert init.report["left"] == []
    write_timm(tmp_path / "again", Trained(config, 7, model.state_dict()), 4)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in theirs.state_dict().items())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(features(model, images), theirs.double().eval().forward_features(images))


def test_positions_of_another_grid_are_interpolated_bicubically(tmp_path):
    timm = import_or_skip("timm")
    weights = timm.create_model("vit_base_patch16_224", **TINY).state_dict()
    save_file(weights, tmp_path / "timm.safetensors")
    model, init = initialized(tmp_path / "timm.safetensors")
    table = weights["pos_embed"]
    image = table[0, 1:].T.reshape(1, 32, 8, 8)
    expected = F.interpolate(image, (4, 4), mode="bicubic", align_corners=False).flatten(2).mT
    assert torch.equal(model.encoder.positions.table, torch.cat([table[:, :1], expected], dim=1))
    assert init.report["resized"] == {"encoder.positions.table": {"from": [8, 8], "to": [4, 4]}}
    assert "encoder.positions.table resized from 8 x 8 to 4 x 4; left there: head 2" in init.summary


@pytest.mark.parametrize("layout", ["run", "bimkern", "timm"])
def test_computed_positions_are_interpolated_like_stored_ones(tmp_path, layout):
    larger = with_encoder(image_size=64)
    WRITERS[layout](tmp_path / "out", Trained(larger, 7, random_model(larger).state_dict()), 4)
    model, _ = initialized(tmp_path / "out")
    image = sincos_table(32, (8, 8)).T.reshape(1, 32, 8, 8)
    expected = F.interpolate(image, (4, 4), mode="bicubic", align_corners=False).flatten(2).mT
    torch.testing.assert_close(model.encoder.positions.table[:, 1:], expected)
    assert not model.encoder.positions.table[:, 0].any()


@pytest.mark.parametrize("kind", ["ViTMAEForPreTraining", "ViTMAEModel"])
@pytest.mark.parametrize("of", ["folder", "file"])
def test_what_transformers_saves_is_taken(tmp_path, kind, of):
    transformers = import_or_skip("transformers")
    head = CONFIG.method.head(3)
    settings = transformers.ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
        mask_ratio=0.0,
        decoder_hidden_size=head.width,
        decoder_num_hidden_layers=head.depth,
        decoder_num_attention_heads=head.num_heads,
        decoder_intermediate_size=4 * head.width,
    )
    theirs = getattr(transformers, kind)(settings)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    model, init = initialized(tmp_path if of == "folder" else tmp_path / "model.safetensors")
    whole = kind == "ViTMAEForPreTraining"
    assert ("heads.3.pred.weight" in init.tensors) == whole
    if whole:
        assert torch.equal(model.heads[3].pred.weight, theirs.decoder.decoder_pred.weight)
    encoder = theirs.vit if whole else theirs
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    noise = torch.arange(16.0).expand(2, -1)  # nothing is masked, and the order stays
    found = encoder.double().eval()(images, noise=noise).last_hidden_state
    torch.testing.assert_close(features(model, images), found)


def test_a_decoder_of_another_depth_or_a_linear_head_is_left(tmp_path):
    deeper = replace(CONFIG.method.head(3), depth=2)
    config = replace(CONFIG, method=replace(CONFIG.method, heads=(deeper,)))
    write_mae_program(tmp_path / "mae.pth", Trained(config, 7, random_model(config).state_dict()), 4)
    _, init = initialized(tmp_path / "mae.pth")
    assert {name for name in init.tensors if name.startswith("heads.")} == {
        "heads.3.in_norm.weight",
        "heads.3.in_norm.bias",
    }
    assert "decoder_blocks.1.mlp.fc1.bias" in init.report["left"]


def test_heads_of_a_run_go_to_the_stages_that_end_with_the_same_layer(tmp_path):
    trained = random_model()
    write_run(tmp_path / "run", Trained(CONFIG, 7, trained.state_dict()), 4)
    fewer = replace(CONFIG, method=replace(CONFIG.method, taps=(1, 3)))
    model, init = initialized(tmp_path / "run", fewer)
    for mine, theirs in ((0, 1), (1, 3)):
        for name, tensor in model.heads[mine].state_dict().items():
            assert torch.equal(tensor, trained.heads[theirs].state_dict()[name])
    assert init.report["random"] == []
    assert {name.split(".")[1] for name in init.report["left"]} == {"0", "2"}


def autoencoder(**numbers):
    """The config of one stage, and one head, on another encoder."""
    method = RECIPES["mae_vit_test"].config.method
    encoder = replace(method.encoder, **numbers)
    statistics = {name: getattr(method, name)[: encoder.channels] for name in ("mean", "std")}
    return replace(CONFIG, method=replace(method, encoder=encoder, taps=(encoder.depth - 1,), **statistics))


def written(path, layout, **numbers):
    config = autoencoder(**numbers)
    WRITERS[layout](path, Trained(config, 7, random_model(config).state_dict()), config.method.encoder.depth)
    return path


@pytest.mark.parametrize(
    ("numbers", "described", "bare"),
    [
        ({"width": 64}, "width is 64 instead of 32", "is [64, 3, 8, 8] instead of [32, 3, 8, 8]"),
        ({"patch": 4}, "patch is 4 instead of 8", "is [32, 3, 4, 4] instead of [32, 3, 8, 8]"),
        ({"depth": 3}, "depth is 3 instead of 4", "it has 3 layers instead of 4"),
        ({"depth": 5}, "depth is 5 instead of 4", "it has 5 layers instead of 4"),
        ({"channels": 1}, "channels is 1 instead of 3", "is [32, 1, 8, 8] instead of [32, 3, 8, 8]"),
        ({"mlp_ratio": 2}, "mlp_ratio is 2 instead of 4", "is [64, 32] instead of [128, 32]"),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["bimkern", "timm", "hf"])
def test_another_encoder_is_refused_with_the_sizes(tmp_path, layout, numbers, described, bare):
    folder = written(tmp_path / "out", layout, **numbers)
    with pytest.raises(ConfigError, match=f"--init {folder}: the encoder differs: {described}"):
        read_initial_weights(CONFIG, folder)
    save_file(load_file(folder / "model.safetensors"), tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match=r"bare\.safetensors: the encoder differs: .*" + re.escape(bare)):
        read_initial_weights(CONFIG, tmp_path / "bare.safetensors")


@pytest.mark.parametrize(("layout", "name"), [("hf", "num_attention_heads"), ("timm", "num_heads")])
def test_another_number_of_heads_is_known_from_the_config_beside_a_file(tmp_path, layout, name):
    file = written(tmp_path / "out", layout, num_heads=4) / "model.safetensors"
    weights = load_file(file)
    save_file(weights, file)
    with pytest.raises(ConfigError, match=f"the encoder differs: {name} is 4 instead of 2"):
        read_initial_weights(CONFIG, file)


def without(weights, name):
    return {other: tensor for other, tensor in weights.items() if other != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: without(weights, "blocks.2.attn.qkv.bias"), "differs: it lacks blocks.2.attn.qkv.bias"),
        (
            lambda weights: weights | {f"blocks.{i}.ls1.gamma": torch.ones(32) for i in range(4)},
            "differs: it also has blocks.0.ls1.gamma, blocks.1.ls1.gamma, blocks.2.ls1.gamma, and 1 more",
        ),
        (lambda weights: without(weights, "pos_embed"), "differs: it lacks pos_embed"),
        (
            lambda weights: weights | {"pos_embed": torch.ones(1, 18, 32)},
            r"pos_embed: positions must be \[1, 1 \+ a square, 32\], got \[1, 18, 32\]",
        ),
        (
            lambda _: {"conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)},
            "no weights of such an encoder; it names",
        ),
    ],
)
def test_what_is_no_such_encoder_is_refused(tmp_path, change, message):
    weights = load_file(written(tmp_path / "out", "timm") / "model.safetensors")
    save_file(change(weights), tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match=message):
        read_initial_weights(CONFIG, tmp_path / "weights.safetensors")


def test_positions_without_a_prefix_get_one_of_zeros(tmp_path):
    weights = load_file(written(tmp_path / "out", "timm") / "model.safetensors")
    patches = torch.randn(1, 16, 32)
    save_file(weights | {"pos_embed": patches}, tmp_path / "weights.safetensors")
    model, _ = initialized(tmp_path / "weights.safetensors")
    assert torch.equal(model.encoder.positions.table, torch.cat([torch.zeros(1, 1, 32), patches], dim=1))


def test_half_precision_becomes_that_of_the_network(tmp_path):
    weights = load_file(written(tmp_path / "out", "timm") / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, tmp_path / "half.safetensors")
    _, init = initialized(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in init.tensors.values()} == {torch.float32}


def test_the_digest_is_that_of_the_content(tmp_path):
    weights = load_file(written(tmp_path / "out", "timm") / "model.safetensors")
    torch.save({"model": weights}, tmp_path / "same.pth")
    save_file(weights | {"norm.bias": weights["norm.bias"] + 1}, tmp_path / "other.safetensors")
    digests = [
        read_initial_weights(CONFIG, tmp_path / name).sha256 for name in ("out", "same.pth", "other.safetensors")
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_swin_begins_with_one_of_timm(tmp_path):
    timm = import_or_skip("timm")
    config = RECIPES["greenmim_swin_tiny_test"].config
    settings = config.method.encoder.layout("timm").settings["model_args"]
    theirs = timm.models.SwinTransformer(**settings, num_classes=7)
    save_file(theirs.state_dict(), tmp_path / "swin.safetensors")
    model, init = initialized(tmp_path / "swin.safetensors", config)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name])
    assert torch.equal(model.heads[0].in_norm.weight, theirs.norm.weight)
    assert init.report["left"] == ["head.fc.bias", "head.fc.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (2, 4, 2)}, "it has 8 layers instead of 6"),
        ({"embed_dim": 32}, r"is \[32, 3, 4, 4\] instead of \[16, 3, 4, 4\]"),
    ],
)
def test_another_swin_is_refused(tmp_path, changes, message):
    timm = import_or_skip("timm")
    config = RECIPES["greenmim_swin_tiny_test"].config
    settings = config.method.encoder.layout("timm").settings["model_args"] | changes
    save_file(timm.models.SwinTransformer(**settings, num_classes=0).state_dict(), tmp_path / "swin.safetensors")
    with pytest.raises(ConfigError, match=rf"swin\.safetensors: the encoder differs: .*{message}"):
        read_initial_weights(config, tmp_path / "swin.safetensors")


def test_biases_of_another_window_are_resized(tmp_path):
    timm = import_or_skip("timm")
    config = RECIPES["greenmim_swin_tiny_test"].config
    settings = config.method.encoder.layout("timm").settings["model_args"] | {"window_size": 2}
    theirs = timm.models.SwinTransformer(**settings, num_classes=0).state_dict()
    save_file(theirs, tmp_path / "swin.safetensors")
    model, init = initialized(tmp_path / "swin.safetensors", config)
    name = "layers.0.blocks.1.attn.relative_position_bias_table"
    expected = resized_table(theirs[name], (2, 2), (4, 4))
    assert torch.equal(model.encoder.state_dict()[name], expected)
    assert init.report["resized"][f"encoder.{name}"] == {"from": [2, 2], "to": [4, 4]}
