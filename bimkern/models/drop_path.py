"""Drop path: residual branches that some images skip while a network is trained.

Shapes: B images, T tokens, D width, P branches of an encoder.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bimkern.rng import WORD, Stream, draw


class DropPath(nn.Module):
    """The end of a residual branch, which is zeroed for some images and scaled up for the others.

    It changes nothing until set_drop_path gives it a rate, nor in evaluation mode.

    Source: Huang et al. 2016 (Stochastic Depth), section 3; scaled in training instead of in evaluation, as in timm.
    """

    rate: float = 0.0  # share of the images that skip the branch
    scale: Tensor | None = None  # [B], for the images that come next

    def forward(self, branch: Tensor) -> Tensor:
        """Scale the rows of a branch [B, T, D]."""
        if self.scale is None or not self.training:
            return branch
        return branch * self.scale[:, None, None].to(branch.dtype)


def set_drop_path(encoder: Any, rate: float) -> None:
    """Set the rates of an encoder's branches: they rise linearly, from 0 in its first layer to `rate` in its last.

    Raises:
        ValueError: it has no branches that can be dropped.
    """
    config, paths = encoder.config, dict(_paths(encoder))
    if rate and not paths:
        raise ValueError(f"drop_path must be 0, as {type(encoder).__name__} has no DropPath in its layers, got {rate}")
    for name, path in paths.items():
        layer = config.layer_group(f"{name}.") - 1
        path.rate = rate * layer / max(config.depth - 1, 1)


def draw_paths(encoder: nn.Module, draw_ids: Tensor, seed: int, device: torch.device) -> None:
    """Draw which images skip which branches in the next forward pass of an encoder.

    It depends on (seed, draw id, branch) alone, so neither on the batch that an image is in nor on a resume.

    Args:
        encoder: its rates are set.
        draw_ids: [B] int64, on the CPU.
        seed: of the run.
        device: that the encoder is on.
    """
    paths = [path for _, path in _paths(encoder)]
    if not any(path.rate for path in paths):
        return
    rates = torch.tensor([path.rate for path in paths], dtype=torch.float64).unsqueeze(1)  # [P, 1]
    words = draw(Stream.DROP_PATH, torch.arange(len(paths)).unsqueeze(1), draw_ids, seed)[0]  # [P, B]
    scales = ((words >= rates * (WORD + 1)) / (1 - rates)).float().to(device, non_blocking=True)
    for path, scale in zip(paths, scales, strict=True):
        path.scale = scale if path.rate else None


def _paths(encoder: nn.Module) -> list[tuple[str, DropPath]]:
    return [(name, module) for name, module in encoder.named_modules() if isinstance(module, DropPath)]
