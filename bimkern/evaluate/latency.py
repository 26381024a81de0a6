"""How long the forward pass of a backbone takes at each depth."""

import statistics
import time
from collections.abc import Sequence

import torch

from bimkern.evaluate.backbone import Backbone, Pool


def latencies(backbone: Backbone, depths: Sequence[int], pool: Pool, *, rounds: int = 11) -> dict[int, float]:
    """Return the median milliseconds of a forward pass of one image, cut off at each depth.

    Depths are timed in turns, so that a slow moment of the machine meets all; a first round is not counted.
    """
    device = next(backbone.encoder.parameters()).device
    image = torch.zeros(1, backbone.config.channels, *backbone.images.image_size, dtype=torch.uint8, device=device)
    times: dict[int, list[float]] = {depth: [] for depth in depths}
    for _ in range(rounds + 1):
        for depth in depths:
            _wait(device)
            began = time.perf_counter()
            backbone.features(image, [depth], pool)
            _wait(device)
            times[depth].append(1e3 * (time.perf_counter() - began))
    return {depth: statistics.median(values[1:]) for depth, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
