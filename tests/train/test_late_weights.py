"""Weights that are drawn part by part are those of a network that is built at once, and never in memory together."""

import pytest
import torch
from live_on_host import OnHost
from torch import nn

from bimkern.recipes import RECIPES
from bimkern.train import network
from bimkern.train.memory.live_bytes import LiveBytes
from bimkern.train.memory.tracker import AllocationTracker
from bimkern.train.sharding.late_weights import LateWeights, NotLate

NAMES = ["mae_vit_test", "bim_vit_test", "greenmim_swin_tiny_test", "localmim_vit_test"]


def seeded(build):
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(3)
        return build(), torch.rand(3)


def late(build):
    weights = LateWeights()

    def built():
        with weights:
            return build()

    model, after = seeded(built)
    return weights, model, after


def layers_of(model):
    return [layer for part in (model.encoder, *model.heads) for layer in network.called_layers(part)]


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_a_network_that_is_built_at_once(name):
    def build():
        return network.build(RECIPES[name].config)

    expected, after = seeded(build)
    weights, model, late_after = late(build)
    assert torch.equal(after, late_after)
    layers = layers_of(model)
    assert all(parameter.is_meta for layer in layers for parameter in layer.parameters())
    for part in (*reversed(layers), model):  # in any order
        weights.draw(part)
    state = model.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(state[key], tensor), key
        assert state[key].stride() == tensor.stride()
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert parameter.requires_grad == other.requires_grad


def test_one_tensor_is_in_memory_while_it_is_built_and_one_layer_while_it_is_drawn():
    sizes, live = LiveBytes(), LiveBytes()
    config = RECIPES["mae_vit_test"].config
    with AllocationTracker([], sizes):
        whole = network.build(config)
    largest = max(sum(p.nbytes for p in layer.parameters()) for layer in layers_of(whole))
    tensor = max(p.nbytes for p in whole.parameters())
    inside = sum(p.nbytes for layer in layers_of(whole) for p in layer.parameters())
    rest = sizes.now - inside  # with tables of positions
    with OnHost([], live):
        weights, model, _ = late(lambda: network.build(config))
        assert live.peak <= rest + tensor
        for layer in layers_of(model):
            weights.draw(layer)
            layer.to("meta")  # as if other ranks had it
        assert live.peak <= rest + largest + tensor
    assert inside > 3 * (largest + tensor)


def test_a_shared_weight_stays_shared():
    def build():
        first, second = nn.Linear(3, 3), nn.Linear(3, 3)
        second.weight = first.weight
        return nn.Sequential(first, second)

    expected, _ = seeded(build)
    weights, model, _ = late(build)
    weights.draw(model)
    assert model[0].weight is model[1].weight
    assert torch.equal(model[0].weight, expected[0].weight)
    assert torch.equal(model[1].bias, expected[1].bias)


def test_changes_of_a_part_are_made_in_their_order():
    def build():
        layer = nn.Linear(4, 4)
        with torch.no_grad():
            layer.weight[1:3].normal_()
            layer.weight.mul_(2)
            layer.weight.t()[0].copy_(torch.arange(4.0))
            layer.bias.data.zero_()
        return layer

    expected, _ = seeded(build)
    weights, layer, _ = late(build)
    weights.draw(layer)
    assert torch.equal(layer.weight, expected.weight)
    assert torch.equal(layer.bias, expected.bias)


def test_a_value_that_weights_are_computed_from_stays_as_it_is():
    def build():
        layer, scale = nn.Linear(3, 3), torch.ones(3)
        layer.weight.data.mul_(scale)
        scale.zero_()

    with pytest.raises(NotLate, match=r"aten.zero_.default on what weights are computed from"), LateWeights():
        build()


@pytest.mark.parametrize(
    "read",
    [torch.Tensor.sum, torch.Tensor.clone, lambda weight: weight.copy_(weight + 1), lambda weight: weight[0, 0].item()],
)
def test_a_constructor_that_reads_its_weights_is_noticed(read):
    with pytest.raises(NotLate, match="aten"), LateWeights():
        read(nn.Linear(3, 3).weight.data)
