"""Extra memory of a call: the most bytes that it held at once beyond what was there before, its results included.

On a CPU every allocation is taken from torch's profiler, which sees compiled and native code too.
"""

import os

import torch
from torch.profiler import ProfilerActivity, profile

from bench.entry import Run

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it reports the profiler's start and stop on stderr


def extra_bytes(run: Run, device: torch.device) -> int:
    return _on_cuda(run, device) if device.type == "cuda" else _on_cpu(run)


def _on_cuda(run: Run, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - held


def _on_cpu(run: Run) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results
    changes = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    held = peak = 0
    for _, size in changes:
        held += size
        peak = max(peak, held)
    return peak
