#!/usr/bin/env bash
# lightly keeps the covariance of its TiCo loss out of its state_dict: a resumed run begins with a tenth of its contrast.
set -euo pipefail
exec "$(dirname "$0")/with_packages" lightly==1.6.0 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from lightly.loss import DINOLoss, TiCoLoss


def losses(loss_class, stop=None, **options):
    """Return the losses of 30 steps; those of a run that is stopped are resumed from the state of its loss."""
    torch.manual_seed(0)
    loss_function, found = loss_class(**options), []
    for step in range(30):
        if step == stop:
            state = loss_function.state_dict()
            loss_function = loss_class(**options)
            loss_function.load_state_dict(state)
        first, second = torch.randn(2, 256, 16)
        arguments = ([first], [first, second]) if loss_class is DINOLoss else (first, first)
        found.append(loss_function(*arguments).item())
    return found


print(f"lightly {version('lightly')}, torch {torch.__version__}")
print("expected: a loss with a moving average is resumed as it was, as DINO's is, whose center is a buffer")
for loss_class, options in ((DINOLoss, {"output_dim": 16}), (TiCoLoss, {})):
    whole, resumed = losses(loss_class, **options), losses(loss_class, stop=25, **options)
    name, keys = loss_class.__name__, list(loss_class(**options).state_dict())
    print(f"observed: {name}, saved: {keys}: steps 24 to 29: {', '.join(f'{loss:.3f}' for loss in whole[24:])}")
    print(f"          resumed at step 25: {', '.join(f'{loss:.3f}' for loss in resumed[24:])}")
    if loss_class is DINOLoss:
        assert resumed == whole
    else:
        assert not keys and resumed[:25] == whole[:25] and resumed[25] < 0.2 * whole[25], "this has changed"
PYTHON
