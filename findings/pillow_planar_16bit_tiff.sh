#!/usr/bin/env bash
# A TIFF of three 16-bit bands in planes, as tifffile writes it by default: Pillow opens it as 8-bit RGB and reads noise.
set -euo pipefail
exec "$(dirname "$0")/with_packages" pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6 <<'PYTHON'
import io

import numpy
import PIL
import tifffile
from PIL import Image

ramp = numpy.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(numpy.uint16)
bands = numpy.stack([ramp, ramp[::-1], ramp.T])
files = {}
for planes in ("separate", "contig"):
    file = io.BytesIO()
    image = bands if planes == "separate" else bands.transpose(1, 2, 0)
    tifffile.imwrite(file, image, photometric="rgb", planarconfig=planes)
    file.seek(0)
    assert numpy.array_equal(tifffile.imread(file), image)
    file.seek(0)
    files[planes] = file

high_bytes = (bands >> 8).transpose(1, 2, 0).astype(int)
print(f"Pillow {PIL.__version__}, tifffile {tifffile.__version__}")
print("expected: the upper 8 bits of every band, as with interleaved samples, or an error")
apart = {}
for planes, file in files.items():
    image = Image.open(file)
    apart[planes] = abs(numpy.asarray(image).astype(int) - high_bytes).mean()
    print(f"observed: {planes}: mode {image.mode}, mean difference {apart[planes]:.1f} levels, no error")
assert apart["contig"] < 1, "this has changed"
assert apart["separate"] > 30, "this has changed"
PYTHON
