"""Does a compiled module work under this torch? A separate program, since an incompatible module may crash.

`python -P self_test.py MODULE` ends with 0 if it does. It imports nothing of the package: that needs a module.
"""

import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any

import torch

SIZE = 64
STEPS = 4  # one runs unrecorded, one is recorded, two are replayed


def load(path: Path) -> Any:
    """Import a compiled module by its path: its name says what it was built for, and is none that Python would find.

    Raises:
        ImportError: it does not fit this Python or this torch.
    """
    spec = importlib.util.spec_from_file_location("bimkern.arena._arena", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def work(step: int) -> list[torch.Tensor]:
    """Allocate as training does: what autograd saves, gradients, views, workspaces, empty and odd sizes."""
    weight = (torch.arange(SIZE * SIZE, dtype=torch.float32).reshape(SIZE, SIZE) % 7).requires_grad_()
    tokens = torch.full((SIZE, SIZE), float(step + 1))
    torch.nn.functional.gelu(tokens @ weight).square().mean().backward()
    assert weight.grad is not None
    odd = torch.cat([torch.ones(3), torch.empty(0), torch.arange(5.0)])
    ordered = torch.randperm(1001).sort().values
    return [weight.grad, odd, ordered, tokens.T.contiguous(), tokens.cumsum(0).flatten().unique()]


def run(module: Any) -> None:
    """Train inside of scopes and hold every result to that of torch's own allocator, also after the arena is gone.

    Raises:
        AssertionError: a result differs, or the arena did not serve what it should.
    """
    arena = module.HostArena(False)
    kept = []
    for step in range(STEPS):
        expected = work(step)
        for name in ("first", "second"):
            arena.open(name)
            results = work(step)
            other = threading.Thread(target=work, args=(step,))
            other.start()
            other.join()
            arena.close(name, False)
            torch.testing.assert_close(results, expected, rtol=0, atol=0)
        kept.append((results, expected))
    numbers = arena.statistics()
    assert numbers["planned"] > 0, numbers
    assert numbers["other_allocations"] > 0, numbers
    del arena, results
    for got, wanted in kept:
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    kept.clear()
    torch.testing.assert_close(work(step), expected, rtol=0, atol=0)


if __name__ == "__main__":
    run(load(Path(sys.argv[1])))
