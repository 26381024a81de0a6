"""Layer-wise learning rates: the lower a layer of a trained encoder, the slower it learns.

Source: Clark et al. 2020 (ELECTRA), appendix B; Bao et al. 2022 (BEiT), whose groups these are.
"""

from typing import Any

from torch import nn

from bimkern.mim.schedule import LayerGroup


def layer_groups(model: nn.Module, encoder: Any) -> dict[str, LayerGroup]:
    """Return the layer group of every parameter of a network: those outside its encoder are the group on top."""
    config = encoder.config
    numbers = {parameter: config.layer_group(name) for name, parameter in encoder.named_parameters()}
    top = LayerGroup(config.depth + 1, head=True)
    return {
        name: LayerGroup(numbers[parameter]) if parameter in numbers else top
        for name, parameter in model.named_parameters()
    }


def decayed(layer_decay: float, group: LayerGroup, depth: int) -> float:
    """Return the factor of the learning rate of a layer group: 1 on top of an encoder of some depth."""
    return layer_decay ** (depth + 1 - group.number)
