#!/usr/bin/env bash
# vector-quantize-pytorch's affine_param learns in eval mode, and its indices do not stand for what was put out.
set -euo pipefail
exec "$(dirname "$0")/with_packages" vector-quantize-pytorch==1.32.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from vector_quantize_pytorch import VectorQuantize


def run(**options):
    """Return what a trained quantizer says of the same patches in eval mode, before and after it saw others."""
    torch.manual_seed(0)
    model = VectorQuantize(dim=8, codebook_size=64, **options)
    for _ in range(50):
        model(torch.randn(16, 32, 8))
    model.eval()
    patches = torch.randn(4, 16, 8)
    with torch.no_grad():
        before, indices, _ = model(patches)
        decoded = model.get_output_from_indices(indices)
        for _ in range(100):
            model(3 + torch.randn(4, 16, 8))  # images of another kind
        after, others, _ = model(patches)
    return before, decoded, after, (indices != others).float().mean().item()


print(f"vector-quantize-pytorch {version('vector-quantize-pytorch')}, torch {torch.__version__}")
print("expected: in eval mode nothing is learned (the codebook's own mean is not, either); indices stand for outputs")
for name, options in (("plain", {}), ("affine_param", {"affine_param": True})):
    before, decoded, after, other = run(**options)
    again, back = (before - after).abs().max().item(), (before - decoded).abs().max().item()
    print(f"observed: {name}: patches change by {again:.2f}, {other:.0%} of their indices, after 100 other batches;")
    print(f"          get_output_from_indices differs from the output by {back:.2f}")
    if name == "plain":
        assert again == back == other == 0
    else:
        assert again > 0.5 and back > 0.1 and other > 0.2, "this has changed"
PYTHON
