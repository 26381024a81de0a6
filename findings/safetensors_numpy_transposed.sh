#!/usr/bin/env bash
# safetensors.numpy saves a transposed array with its new shape and its old order, so other values come back.
set -euo pipefail
exec "$(dirname "$0")/with_packages" safetensors==0.8.0 numpy==2.4.6 <<'PYTHON'
import numpy
import safetensors
import safetensors.numpy

array = numpy.arange(6, dtype=numpy.float32).reshape(2, 3).T
loaded = safetensors.numpy.load(safetensors.numpy.save({"x": array}))["x"]
print(f"safetensors {safetensors.__version__}, numpy {numpy.__version__}")
print(f"expected: what was saved, {array.tolist()}, or an error, as safetensors.torch raises for such a view")
print(f"observed: {loaded.tolist()}, and no error")
assert loaded.shape == array.shape
assert loaded.tolist() == [[0, 1], [2, 3], [4, 5]], "this has changed"
PYTHON
