"""Files that detectron2's ViTDet starts from: a plain ViT without class token and last norm, which ViTDet has not."""

from pathlib import Path

from bimkern.exporters.trained import Trained
from bimkern.exporters.whole_file import write_pickled
from bimkern.models.encoder import Layout
from bimkern.train.config.run import ConfigError

_CLASS_TOKEN = "backbone.net.cls_token"
_FORMATS = {1: "L", 3: "RGB"}  # in which detectron2 reads images of so many channels


def write_detectron2(path: Path, trained: Trained, depth: int) -> None:
    """Write a file of torch.save, its weights under "model"; the position table keeps the row of the class token.

    The relative positions of ViTDet start from zero, and its pyramid and heads from random weights.

    Raises:
        ConfigError: detectron2 has no such encoder, or not for such images, or the file cannot be written.
    """
    weights = trained.backbone(depth, _layout(trained, depth))
    del weights[_CLASS_TOKEN]
    write_pickled(path, {"model": weights, "metadata": trained.metadata(depth)})


def _layout(trained: Trained, depth: int) -> Layout:
    if not (size := trained.preprocessing.image_size).is_square:
        raise ConfigError(
            f"detectron2's ViTDet starts from positions of square images alone, got images of {size} pixels; --format "
            f"bimkern or timm takes them"
        )
    return trained.layout(depth, "detectron2", "detectron2's ViTDet")


def lazy_config(path: Path, trained: Trained, depth: int) -> str:
    """Return the lines that a config of ViTDet needs for such a file."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in _layout(trained, depth).settings.items())
    mean, std = trained.pixels()
    known = _FORMATS.get(len(mean))
    read = (
        f"model.input_format = {known!r}" if known else f"# images of {len(mean)} channels need a reader of their own"
    )
    return (
        f"model.backbone.net.update(dict({arguments}))\n"
        f"model.pixel_mean, model.pixel_std = {mean}, {std}\n"
        f"{read}\n"
        f"train.init_checkpoint = {str(path)!r}"
    )
