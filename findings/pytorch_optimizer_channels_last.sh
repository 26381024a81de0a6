#!/usr/bin/env bash
# AdamP, SGDP, SWATS and Nero of pytorch-optimizer raise for the convolutions of a model in channels_last format.
set -euo pipefail
exec "$(dirname "$0")/with_packages" pytorch-optimizer==4.1.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from pytorch_optimizer import SGDP, SWATS, AdaBelief, AdamP, Lamb, Nero


def raised(optimizer_class, memory_format):
    """Return what two steps of a convolution raise, if anything."""
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=memory_format)
    optimizer = optimizer_class(model.parameters(), lr=1e-3)
    try:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.rand(2, 3, 8, 8).to(memory_format=memory_format)).square().mean().backward()
            optimizer.step()
    except RuntimeError as error:
        return str(error).split(" (")[0]
    return None


print(f"pytorch-optimizer {version('pytorch-optimizer')}, torch {torch.__version__}")
print("expected: a step, in whatever order the weights lie in memory, as with torch's optimizers")
for optimizer_class in (torch.optim.AdamW, AdaBelief, Lamb, AdamP, SGDP, SWATS, Nero):
    found = {name: raised(optimizer_class, getattr(torch, name)) for name in ("contiguous_format", "channels_last")}
    print(f"observed: {optimizer_class.__name__}, channels_last: {found['channels_last'] or 'a step'}")
    assert found["contiguous_format"] is None
    fails = optimizer_class in (AdamP, SGDP, SWATS, Nero)
    assert (found["channels_last"] is not None) == fails, "this has changed"
PYTHON
