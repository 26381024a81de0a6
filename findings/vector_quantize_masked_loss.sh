#!/usr/bin/env bash
# With a mask vector-quantize-pytorch takes its loss to the raw input: another with cosines, none with narrow codebooks.
set -euo pipefail
exec "$(dirname "$0")/with_packages" vector-quantize-pytorch==1.32.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from vector_quantize_pytorch import VectorQuantize

torch.manual_seed(0)
patches, mask = torch.randn(2, 6, 16), torch.arange(6).expand(2, 6) < 4


def losses(**options):
    """Return the commitment loss of the first 4 patches of each image, cut out and with a mask, or what that raises."""
    torch.manual_seed(0)
    model = VectorQuantize(dim=16, codebook_size=32, **options)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    whole = model(patches[:, :4])[2].item()
    model.load_state_dict(state)
    try:
        return whole, model(patches, mask=mask)[2].item()
    except RuntimeError as error:
        return whole, str(error)


kinds = {"plain": {}, "use_cosine_sim": {"use_cosine_sim": True}, "codebook_dim=4": {"codebook_dim": 4},
         "2 heads": {"codebook_dim": 8, "heads": 2}}
print(f"vector-quantize-pytorch {version('vector-quantize-pytorch')}, torch {torch.__version__}")
print("expected: the loss of 4 patches is the same, whether two others are masked or not there")
found = {name: losses(**options) for name, options in kinds.items()}
for name, (whole, masked) in found.items():
    masked = masked if isinstance(masked, str) else f"{masked:.4f}"
    print(f"observed: {name}: {whole:.4f} without the others; with a mask: {masked}")
assert found["plain"][0] == found["plain"][1]
assert found["use_cosine_sim"][1] > 5 * found["use_cosine_sim"][0], "this has changed"
assert all(isinstance(found[name][1], str) for name in ("codebook_dim=4", "2 heads")), "this has changed"
PYTHON
