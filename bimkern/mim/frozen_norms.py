"""Batch norms of frozen layers: they normalize by the statistics that they have learned, and learn none any more.

Source: Brock et al. 2017 (FreezeOut), whose program puts what it freezes in evaluation mode, as that of ViTFreeze does.
"""

from typing import Any

from torch import nn

NumberedNorms = list[tuple[int, nn.Module]]


def numbered_norms(encoder: Any) -> NumberedNorms:
    """List the batch norms of an encoder, each with the number of its layer group."""
    return [
        (encoder.config.layer_group(f"{name}.running_mean"), module)
        for name, module in encoder.named_modules()
        if getattr(module, "track_running_stats", False)
    ]


def freeze(norms: NumberedNorms, frozen_groups: int, *, training: bool) -> None:
    """Put the norms of the first so many groups in evaluation mode, and all others in the mode of their network."""
    for number, norm in norms:
        norm.train(training and number >= frozen_groups)
