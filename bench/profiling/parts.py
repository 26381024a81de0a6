"""The parts of a training step, from the events that torch's profiler recorded.

An operator counts for what it does itself. One that only prepares for another (a copy, a view, a sum) counts for the
part that it was called by: attention, our ops or the update, where it was one of these.
"""

from collections.abc import Iterable
from typing import Any

MATRIX, ATTENTION, OURS, UPDATE = "matrix products", "attention", "our ops", "update"
NORM, GELU, COPIES, SUMS, REST = "layer norm", "GELU", "copies", "sums and residuals", "rest"
PARTS = (MATRIX, ATTENTION, NORM, GELU, OURS, COPIES, SUMS, UPDATE, REST)

_ANYWHERE = (MATRIX, ATTENTION, NORM, GELU, OURS, UPDATE)  # what counts for itself in any caller
_CALLERS = (ATTENTION, OURS, UPDATE)  # what else is called there counts for them
_NAMES = {
    MATRIX: (
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::convolution",
        "aten::mkldnn_convolution",
        "mkldnn::_linear_pointwise",
    ),
    ATTENTION: ("aten::_scaled_dot_product", "_Attention", "aten::_softmax", "bimkern::group_attention"),
    NORM: ("aten::native_layer_norm",),
    GELU: ("aten::gelu",),
    OURS: ("bimkern::",),
    UPDATE: ("aten::_fused_adamw_", "aten::linalg_vector_norm", "Optimizer."),
    COPIES: ("aten::copy_", "aten::cat", "aten::fill_", "aten::_to_copy", "aten::clone"),
    SUMS: ("aten::sum", "aten::add", "aten::mul", "aten::sub", "aten::div"),
}


def part_of(event: Any) -> str:
    """Return the part of a step that an event of the profiler, a FunctionEvent, is of."""
    own = _by_name(event.name)
    if own in _ANYWHERE:
        return own
    above = event.cpu_parent
    while above is not None:
        caller = _by_name(above.name)
        if caller in _CALLERS:
            return caller
        above = above.cpu_parent
    return own


def _by_name(name: str) -> str:
    return next((part for part, names in _NAMES.items() if name.startswith(names)), REST)


def shares(events: Iterable[Any]) -> dict[str, float]:
    """Return the share of the time that every part took, of all PARTS together."""
    times = dict.fromkeys(PARTS, 0.0)
    for event in events:
        times[part_of(event)] += event.self_cpu_time_total
    total = sum(times.values())
    return {part: time / total for part, time in times.items()}
