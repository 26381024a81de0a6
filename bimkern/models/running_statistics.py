"""Which modules count running statistics of what passes through them: batch norms, of torch or alike."""

from typing import Any

from torch import nn


def named_counting(model: nn.Module) -> list[tuple[str, Any]]:
    """List the modules with running_mean and running_var, by name."""
    return [(name, module) for name, module in model.named_modules() if getattr(module, "track_running_stats", False)]
