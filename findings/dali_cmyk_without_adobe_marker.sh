#!/usr/bin/env bash
# A CMYK JPEG without Adobe's marker: DALI and Pillow read opposite colors from the same file.
set -euo pipefail
exec "$(dirname "$0")/with_packages" nvidia-dali-cuda130==2.4.0 pillow==13.0.0 numpy==2.4.6 <<'PYTHON'
import io

import numpy
import nvidia.dali
import PIL
from nvidia.dali import Pipeline, fn
from PIL import Image


def by_dali(content):
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        encoded = fn.external_source(source=lambda: [numpy.frombuffer(content, dtype=numpy.uint8)])
        pipeline.set_outputs(fn.decoders.image(encoded))
    pipeline.build()
    (decoded,) = pipeline.run()
    return numpy.asarray(decoded.at(0)).astype(int)


def by_pillow(content):
    return numpy.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


ramp = numpy.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(numpy.uint8)
file = io.BytesIO()
Image.fromarray(ramp).convert("CMYK").save(file, "JPEG", quality=95)
marked = file.getvalue()
start = marked.index(b"Adobe") - 4
unmarked = marked[:start] + marked[start + 2 + int.from_bytes(marked[start + 2 : start + 4], "big") :]
apart = {name: abs(by_dali(content) - by_pillow(content)).mean() for name, content in
         (("with the marker", marked), ("without it", unmarked))}
print(f"DALI {nvidia.dali.__version__}, Pillow {PIL.__version__}")
print("expected: both decoders take the same polarity, whatever it is, with and without the marker")
print("observed: mean difference in levels " + ", ".join(f"{name}: {value:.1f}" for name, value in apart.items()))
print(f"          without it, DALI's lightest level is {by_dali(unmarked).max()}: no ink, as Pillow reads it, is all ink")
assert apart["with the marker"] < 2, "this has changed"
assert apart["without it"] > 50, "this has changed"
PYTHON
