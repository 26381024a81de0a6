#!/usr/bin/env bash
# pytorch-optimizer's Chebyshev schedule takes its largest step three times in a row, and two of its steps never.
set -euo pipefail
exec "$(dirname "$0")/with_packages" pytorch-optimizer==4.1.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import numpy
import torch
from pytorch_optimizer.lr_scheduler import get_chebyshev_schedule
from pytorch_optimizer.lr_scheduler.chebyshev import get_chebyshev_perm_steps

EPOCHS = 16
curvatures = numpy.linspace(0.05, 1, 1000)  # the interval that the schedule is made for, by default


def remaining(steps):
    """Return the largest part of an error that gradient descent with these steps leaves of a quadratic function."""
    return abs(numpy.prod(1 - curvatures * numpy.array(steps)[:, None], axis=0)).max()


optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)
scheduler = get_chebyshev_schedule(optimizer, EPOCHS)
taken = []
for _ in range(EPOCHS):
    taken.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()
nodes = get_chebyshev_perm_steps(EPOCHS).tolist()
print(f"pytorch-optimizer {version('pytorch-optimizer')}, torch {torch.__version__}")
print("expected: each of its 16 steps once, in an order that keeps errors small (Agarwal et al. 2021)")
print(f"observed: steps of the schedule: {', '.join(f'{step:.1f}' for step in taken)}")
print(f"          its own steps:         {', '.join(f'{step:.1f}' for step in nodes)}")
print(f"          an error is multiplied by up to {remaining(taken):.4f}, with its own steps {remaining(nodes):.4f}")
assert remaining(nodes) < 0.01
assert taken[:3] == [max(nodes)] * 3 and taken[2:] == nodes[: EPOCHS - 2], "this has changed"
assert remaining(taken) > 2, "this has changed"
PYTHON
