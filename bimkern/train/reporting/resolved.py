"""What a start of a run was resolved to: what its options leave open, and what they do not name."""

import platform
from datetime import UTC, datetime
from typing import Any

import torch

from bimkern import versions
from bimkern.data.step_layout import StepLayout
from bimkern.train.config.run import TrainingConfig


def start(config: TrainingConfig, layout: StepLayout, device: torch.device, loader: str, done: int) -> dict[str, Any]:
    """Describe a start after `done` steps, as JSON."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": done,
        "steps": layout.num_steps,
        "peak_lr": max(config.run.peak_lr_of(segment.batch_size) for segment in layout.segments),
        "micro_batch": config.run.images_at_a_time,
        "ranks": layout.segments[0].num_ranks,
        "device": f"{device}",
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "loader": loader,
        "versions": versions.installed(),
        "commit": versions.commit(),
    }
