"""Whether DALI decodes regions of JPEGs on a device as it decodes whole ones.

nvImageCodec, which does it on a GPU, is said to fail at it in some versions, and may take the process with it. So
`python -m bimkern.data.regions DEVICE` tries it in a process of its own, on JPEGs with and without an orientation.
Success is remembered for this GPU, driver and software; a failure is tried again, as what is wrong may be around it.
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image

import bimkern
from bimkern.data import dali, pil
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import BadImages, MicroBatches
from bimkern.data.check import check_file, images
from bimkern.data.dali import DaliLoader
from bimkern.data.file_checks import FileCheck
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.step_layout import StepLayout
from bimkern.data.workers import WorkerDied, signal_name
from bimkern.files.cache import cache_folder
from bimkern.image_size import ImageSize

logger = logging.getLogger("bimkern.data")

_SECONDS = 120.0
_DRIVER = Path("/proc/driver/nvidia/version")
_PACKAGES = ("nvidia-dali", "nvidia-nvimgcodec", "nvidia-nvjpeg")  # and the CUDA that they are for
_WIDTH, _HEIGHT, _CROP = 320, 240, ImageSize.square(64)  # pixels
_TOLERANCE = 2.0  # levels, mean over a crop: decoders round and upsample chroma in their own ways


@lru_cache
def unusable(device: torch.device) -> str | None:
    """Return the reason why regions cannot be decoded on a device, None where they can."""
    setup = _setup(device)
    remembered = cache_folder() / "regions" / hashlib.sha256(setup.encode()).hexdigest()[:16]
    if remembered.is_file():
        return None
    logger.warning("testing DALI's decoding of image regions on %s; this takes up to %.0f s", device, _SECONDS)
    reason = _try(device)
    if reason is None:
        with suppress(OSError):  # then it is tried again
            remembered.parent.mkdir(parents=True, exist_ok=True)
            remembered.write_text(setup)
    return reason


def _setup(device: torch.device) -> str:
    """Describe all that decides whether regions can be decoded, a line each."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else "no GPU"
    driver = _DRIVER.read_text() if _DRIVER.is_file() else "unknown driver"
    names = ((package.name.lower().replace("_", "-"), package.version) for package in metadata.distributions())
    packages = sorted(f"{name} {version}" for name, version in names if name.startswith(_PACKAGES))
    return "\n".join([f"bimkern {bimkern.__version__} on {device.type}", gpu, driver.strip(), *packages, ""])


def _try(device: torch.device) -> str | None:
    command = [sys.executable, "-m", "bimkern.data.regions", str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {_SECONDS:.0f} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"the process that tried was killed by {signal_name(-done.returncode)}"
    output = done.stdout.strip() or done.stderr.strip()
    return (output.splitlines() or [f"exit code {done.returncode}"])[-1]


def difference(loader: DaliLoader, folder: Path) -> float:
    """Return how many levels crops of a loader are from PIL's, the mean over the worst crop.

    Args:
        loader: makes the crops.
        folder: receives the JPEGs, a smooth picture in every orientation.
    """
    data = _jpegs(folder)
    (ours,) = loader.batches(data, 0, 1)
    levels = (ours.images.cpu().float() - pil.decode(data, 0).images).abs()
    return float(levels.mean(dim=(1, 2, 3)).max())


def _jpegs(folder: Path) -> MicroBatches:
    levels = np.random.default_rng(0).integers(0, 256, (_HEIGHT // 16, _WIDTH // 16, 3), dtype=np.uint8)
    picture = Image.fromarray(levels).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
    source, found = ImageFolder(paths=(folder,)), dict[str, FileCheck]()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        name = f"{orientation}.jpg"
        picture.save(folder / name, quality=95, exif=exif)
        found[name] = check_file(source, name)
    layout = StepLayout.uniform(image_size=_CROP, batch_size=len(found), micro_batch=len(found))
    return MicroBatches(images=images(source, found), augment=RandomResizedCrop(), seed=0, layout=layout)


def main() -> int:
    """Decode regions on the device that is named; the last line printed tells what came of it."""
    device = torch.device(sys.argv[1])
    if reason := dali.unusable(device):
        print(f"DALI cannot be used ({reason})")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        try:
            levels = difference(DaliLoader(threads=1, device=device), Path(folder))
        except BadImages as error:
            print(*error.faults.values(), sep="\n")
            return 1
        except WorkerDied as error:
            print(error)
            return 1
    print(f"crops are {levels:.2f} levels from those of PIL, expected at most {_TOLERANCE:g}")
    return int(levels > _TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
