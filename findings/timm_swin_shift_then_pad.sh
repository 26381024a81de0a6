#!/usr/bin/env bash
# A Swin of timm whose windows do not divide the grid, as at 192 pixels with windows of 7, attends across opposite edges.
set -euo pipefail
exec "$(dirname "$0")/with_packages" timm==1.0.31 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from timm.models import SwinTransformer


def rows_read_by_row(row, side):
    """Return which rows of a grid reach a row through attention in shifted windows of 7."""
    torch.manual_seed(0)
    model = SwinTransformer(side, 1, depths=(2,), num_heads=(1,), embed_dim=4, window_size=7).eval()
    second = model.layers[0].blocks[1]
    assert second.window_size == (7, 7) and second.shift_size == (3, 3)
    x = torch.randn(1, side, side, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(second._attn(x)[:, row].sum(), x)
    reached = grad.abs().sum((0, 2, 3)) > 1e-20  # what is masked, by -100, has a weight of about 1e-44
    return reached.nonzero().flatten().tolist()


print(f"timm {version('timm')}, torch {torch.__version__}")
print("expected: windows that are shifted by 3 begin with rows 0 to 2, so row 0 reads these alone, and row 1 as well")
found = {side: (rows_read_by_row(0, side), rows_read_by_row(1, side)) for side in (49, 48)}
print(f"a grid of 49 x 49, which windows of 7 divide: row 0 reads {found[49][0]}, row 1 reads {found[49][1]}")
print(f"observed, at 48 x 48 (images of 192 pixels): row 0 reads {found[48][0]}, row 1 reads {found[48][1]}")
print("it pads behind the shift, and masks as if it had padded before it")
assert found[49] == ([0, 1, 2], [0, 1, 2]), "this has changed"
assert found[48] == ([0, 45, 46, 47], [1, 2]), "this has changed"
PYTHON
