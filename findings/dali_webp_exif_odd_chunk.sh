#!/usr/bin/env bash
# DALI refuses a lossless WebP with EXIF whose picture chunk has an odd length: it takes the padding byte for a chunk.
set -euo pipefail
exec "$(dirname "$0")/with_packages" nvidia-dali-cuda130==2.4.0 pillow==13.0.0 numpy==2.4.6 <<'PYTHON'
import io

import numpy
import nvidia.dali
import nvidia.nvimgcodec
from nvidia.dali import Pipeline, fn
from PIL import Image


def webp(width):
    """Return a WebP file that says how it is turned, and the length of its picture chunk."""
    pixels = numpy.random.default_rng(0).integers(0, 4, (17, width, 3), dtype=numpy.uint8) * 64
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, exif=exif.tobytes())
    content = file.getvalue()
    start = content.index(b"VP8L") + 4
    return content, int.from_bytes(content[start : start + 4], "little")


def decodes(content):
    Image.open(io.BytesIO(content)).load()
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        encoded = fn.external_source(source=lambda: [numpy.frombuffer(content, dtype=numpy.uint8)])
        pipeline.set_outputs(fn.decoders.image(encoded))
    pipeline.build()
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True


found = [(length % 2, decodes(content)) for content, length in map(webp, range(20, 32))]
odd, even = ([works for parity, works in found if parity == wanted] for wanted in (1, 0))
print(f"DALI {nvidia.dali.__version__}, nvImageCodec {nvidia.nvimgcodec.__version__}")
print(f"expected: all {len(found)} files decode, as they do with Pillow; an odd chunk is followed by a byte of padding")
print(f"observed: {sum(even)} of {len(even)} decode with an even length, {sum(odd)} of {len(odd)} with an odd one")
assert even and all(even), "this has changed"
assert odd and not any(odd), "this has changed"
PYTHON
