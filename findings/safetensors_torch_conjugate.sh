#!/usr/bin/env bash
# safetensors.torch saves the memory of a lazily conjugated tensor, not its values: the sign of the imaginary part is lost.
set -euo pipefail
exec "$(dirname "$0")/with_packages" safetensors==0.8.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import safetensors
import safetensors.torch
import torch

tensor = torch.tensor([1 + 3j, 2 + 4j]).conj()
loaded = safetensors.torch.load(safetensors.torch.save({"x": tensor}))["x"]
print(f"safetensors {safetensors.__version__}, torch {torch.__version__}")
print(f"expected: what was saved, {tensor.tolist()}")
print(f"observed: {loaded.tolist()}, and no error")
assert torch.equal(loaded, tensor.resolve_conj().conj_physical()), "this has changed"
assert not torch.equal(loaded, tensor), "this has changed"
PYTHON
