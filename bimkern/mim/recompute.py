"""Recomputation: layers keep what enters them alone, and run once more in the backward pass. No result changes.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 4.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

NONE, LAYERS, STAGES = "none", "layers", "stages"


def check(choice: str) -> None:
    """Raise ValueError unless a choice is none, layers, stages, or a number of layers."""
    if choice not in (NONE, LAYERS, STAGES) and not (choice.isdecimal() and int(choice) > 0):
        raise ValueError(f"must be none, layers, stages, or a number of layers of at least 1, got {choice!r}")


def described(choice: str) -> str:
    """Say which layers of the encoder run again, as the end of a line; nothing where none does."""
    if choice == NONE:
        return ""
    return f", recomputed: {f'{choice} layers of every stage' if choice.isdecimal() else choice}"


def parts(layers: range, choice: str) -> list[tuple[range, bool]]:
    """Cut the layers of a stage into parts, and tell of each whether it runs again as a whole.

    none, no layer; layers, each layer on its own; a number, each of the first so many; stages, all at once.
    """
    if choice == STAGES:
        return [(layers, True)]
    count = 0 if choice == NONE else len(layers) if choice == LAYERS else min(int(choice), len(layers))
    ones = [(layers[i : i + 1], True) for i in range(count)]
    return ones + ([(layers[count:], False)] if count < len(layers) else [])


def run_again(
    run: Callable[[Sequence[int], Tensor], Tensor],
    layers: Sequence[int],
    tokens: Tensor,
    again: Callable[[], AbstractContextManager[object]],
) -> Tensor:
    """Run layers now, and once more, in the context of `again`, when their gradients are asked for."""
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # nothing is drawn
    found: Tensor = checkpoint(run, layers, tokens, context_fn=lambda: (nullcontext(), again()), **options)
    return found
