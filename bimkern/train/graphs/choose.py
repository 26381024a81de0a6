"""Whether the steps of a run are given to the device as graphs, as --cuda-graphs says."""

import torch

from bimkern.distributed.launch import world_size
from bimkern.train.config.run import ConfigError, RunConfig
from bimkern.train.graphs.device import CudaGraphs
from bimkern.train.graphs.steps import EagerSteps, GraphedSteps, Steps


def check(run: RunConfig, device: torch.device) -> None:
    """Make sure that a run can have the graphs that it asks for.

    Raises:
        ConfigError: it cannot; the message is the reason.
    """
    reason = _why_not(run, device) if run.cuda_graphs else None
    if reason is not None:
        raise ConfigError(f"--cuda-graphs: {reason}")


def choose(run: RunConfig, device: torch.device) -> Steps:
    """Return what gives the steps of a run to the device.

    Raises:
        ConfigError: there are no graphs for it; the message is the reason.
    """
    check(run, device)
    return GraphedSteps(CudaGraphs(device)) if run.cuda_graphs else EagerSteps()


def _why_not(run: RunConfig, device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"needs a GPU, got {device.type}; leave it out"
    if world_size() > 1:
        return f"{world_size()} ranks exchange gradients within what would be captured; start one process"
    if run.compile:
        return "what --compile makes was not tried in a graph; use one of them"
    if run.arena != "plan":
        return f"graphs need the fixed addresses of --arena plan, got {run.arena}"
    return None
