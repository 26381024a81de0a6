#!/usr/bin/env bash
# ScheduleFreeWrapper's own example fails at its first step: torch's optimizers take its entry in their state for theirs.
set -euo pipefail
exec "$(dirname "$0")/with_packages" schedulefree==1.4.1 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from schedulefree import ScheduleFreeWrapper, ScheduleFreeWrapperReference


def raised(wrapper, base):
    """Return what one training step raises, if anything."""
    model = torch.nn.Linear(3, 2)
    optimizer = wrapper(base(model.parameters(), lr=0.0025), momentum=0.9, weight_decay_at_y=0.1)
    optimizer.train()
    model(torch.rand(4, 3)).square().mean().backward()
    try:
        optimizer.step()
    except KeyError as error:
        return f"KeyError: {error}"
    return None


print(f"schedulefree {version('schedulefree')}, torch {torch.__version__}")
print("expected: steps, as in its README with RMSprop: a wrapper \"which can wrap any base optimizer\"")
works = (torch.optim.SGD, torch.optim.Adagrad)
for wrapper in (ScheduleFreeWrapper, ScheduleFreeWrapperReference):
    for base in (torch.optim.RMSprop, torch.optim.AdamW, torch.optim.NAdam, *works):
        error = raised(wrapper, base)
        print(f"observed: {wrapper.__name__} of {base.__name__}: {error or 'a step'}")
        assert (error is None) == (base in works), "this has changed"
PYTHON
