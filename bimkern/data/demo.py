"""The demo's photographs: those inside the installed scikit-image and scikit-learn wheels, nothing downloaded.

They are written once as JPEGs to a cache folder. The right quarter of every photograph is kept out of training, so that
what a model reconstructs can be evaluated on pixels it has never seen.
"""

from importlib.resources import files
from pathlib import Path

from PIL import Image

from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.written_once import written_once

_SHORT_SIDE = 256  # pixels; small enough to decode in well under a millisecond
_HELD_OUT = 0.25  # share of the width
_QUALITY = 95
_PHOTOGRAPHS = {
    "skimage.data": (
        *("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "hubble_deep_field.jpg"),
        *("ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
    ),
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
}


def demo_images() -> ImageFolder:
    """Return the demo's photographs, with their held-out part, written on first use."""
    folder = written_once("demo-v1", _write)
    return ImageFolder(paths=(folder / "train",), held_out=ImageFolder(paths=(folder / "heldout",)))


def _write(folder: Path) -> None:
    for part in ("train", "heldout"):
        (folder / part).mkdir(parents=True)
    for package, names in _PHOTOGRAPHS.items():
        for name in names:
            resource = files(package) / name
            if not resource.is_file():  # the set of photographs differs a little between versions
                continue
            with resource.open("rb") as stream, Image.open(stream) as image:
                photo = image.convert("RGB")
            scale = _SHORT_SIDE / min(photo.size)
            photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
            edge = round(photo.width * (1 - _HELD_OUT))
            target = Path(name).with_suffix(".jpg").name
            photo.crop((0, 0, edge, photo.height)).save(folder / "train" / target, quality=_QUALITY)
            photo.crop((edge, 0, *photo.size)).save(folder / "heldout" / target, quality=_QUALITY)
