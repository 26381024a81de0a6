"""Which optimizer updates the parameters, and its numbers."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

OptimizerName = Literal["adamw", "apex_adam", "apex_lamb"]


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """Numbers of AdamW; LAMB takes the same.

    Source: Loshchilov & Hutter 2019 (AdamW); betas and decay of He et al. 2022 (MAE), table 8.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05  # not for biases and other 1-D parameters
    clip: float | None = None  # largest L2 norm of a group's gradients
    undecayed: tuple[str, ...] = ()  # parts of the names of further parameters without weight decay

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"AdamWConfig: betas must be in [0, 1), got {self.betas}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"AdamWConfig: weight_decay must be at least 0 and finite, got {self.weight_decay}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"AdamWConfig: clip must be above 0 and finite, or none, got {self.clip}")

    def decays(self, name: str, parameter: Tensor) -> bool:
        return parameter.ndim > 1 and not any(part in name for part in self.undecayed)
