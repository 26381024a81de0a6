"""Options never pass by layers of plain torch: what a piece of the user's own would ignore is refused."""

from dataclasses import replace

import pytest
from interop import import_or_skip
from torch import nn
from two_stages import TwoStages, TwoStagesConfig

from bench.flops import step_flops
from bimkern.mim.masking.units import BlockPixels
from bimkern.mim.model import MIM
from bimkern.mim.targets import HogTarget
from bimkern.models.heads import DecoderConfig, LinearConfig
from bimkern.models.layers import other_dtype_layers
from bimkern.recipes import RECIPES
from bimkern.train import network
from bimkern.train.config.run import ConfigError

BASE = RECIPES["bim_vit_test"].config
METHOD = replace(
    BASE.method,
    encoder=TwoStagesConfig(),  # of convolutions of torch and of our linear layers
    taps=(1, 3),
    masker=BlockPixels(ratio=0.75, mask_unit=2),
    heads=(DecoderConfig(width=16, depth=1, num_heads=2), LinearConfig()),
    targets=(HogTarget(),),
)
CONFIG = replace(BASE, method=METHOD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "TwoStages has no compute_dtype in patch_embed, .*more layers; choose fp32, or add it"),
        ({"attention": "xformers"}, "TwoStages has no attention_fn; choose sdpa, or add it"),
    ],
)
def test_an_option_that_its_plain_layers_would_ignore_is_refused(options, message):
    config = replace(CONFIG, run=replace(CONFIG.run, **options))
    (name, value), *_ = options.items()
    with pytest.raises(ConfigError, match=f"^--{name} {value}: {message}"):
        network.build(config)


def test_other_layers_are_those_that_nothing_sets():
    model = MIM(CONFIG.method)
    plain = [name for name, module in model.encoder.named_modules() if isinstance(module, nn.Conv2d)]
    assert other_dtype_layers(model.encoder) == plain
    assert other_dtype_layers(model.heads) == []
    model.encoder.compute_dtype = None  # it says that it takes care of what is inside
    assert other_dtype_layers(model.encoder) == []


def test_its_layers_are_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda layer: compiled.append(layer))
    model = MIM(CONFIG.method)
    network.compile_layers(model)
    assert compiled == [*model.encoder.layers, *model.heads[0].blocks]


def test_without_layers_it_cannot_be_compiled(monkeypatch):
    plain = TwoStages.__init__

    def renamed(self, config):
        plain(self, config)
        self.steps = self.layers
        del self.layers

    monkeypatch.setattr(TwoStages, "__init__", renamed)
    with pytest.raises(ConfigError, match="--compile: TwoStages has no `layers`, an iterable of modules to compile"):
        network.build(replace(CONFIG, run=replace(CONFIG.run, compile=True)))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (lambda: nn.Dropout(0.1), "layers.1"),
        (lambda: nn.Sequential(nn.Dropout2d(0.0), nn.Dropout2d(0.1)), "layers.1.1"),
        (lambda: nn.MultiheadAttention(16, 2, dropout=0.1), "layers.1"),
    ],
)
def test_what_draws_from_torchs_generators_is_refused(monkeypatch, part, name):
    plain = TwoStages.__init__

    def with_part(self, config):
        plain(self, config)
        self.layers[1] = part()

    monkeypatch.setattr(TwoStages, "__init__", with_part)
    message = f"^bim_vit_test: {name} of the TwoStages drops at random, which neither a resumed run nor --recompute"
    with pytest.raises(ConfigError, match=message):
        network.build(CONFIG)


def test_paths_that_a_network_of_timm_would_drop_are_refused():
    import_or_skip("timm")
    config = RECIPES["fastmim_convnext_test"].config
    assert network.build(config).encoder
    encoder = replace(config.method.encoder, model_args=config.method.encoder.model_args | {"drop_path_rate": 0.1})
    with pytest.raises(ConfigError, match=r"drop_path of the TimmPatchBackbone drops at random.*encoder\.model_args$"):
        network.build(replace(config, method=replace(config.method, encoder=encoder)))


class Uncounted(TwoStagesConfig):
    layer_flops = None


def test_operations_that_it_does_not_count_are_asked_for():
    with pytest.raises(ValueError, match=r"Uncounted must have embedding_flops\(\) and layer_flops\(\)"):
        step_flops(replace(CONFIG.method, encoder=Uncounted()))
