"""`python -m bimkern.attention RUN... [options]`: show how the layers of a trained encoder attend."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from bimkern.cli.evaluation import Findings, run_command
from bimkern.data.addresses import text_of, without_passwords
from bimkern.data.decoding import Alpha, Range
from bimkern.evaluate.attention_analysis import MIN_BATCH, analyze
from bimkern.evaluate.attention_report import Results, draw, to_json_lines, to_table
from bimkern.evaluate.backbone import Backbone, common_decoding
from bimkern.evaluate.labeled import Unlabeled, load_digits, read_images
from bimkern.evaluate.options import check_picture, check_pixels, check_runs
from bimkern.train import device
from bimkern.train.config.run import ConfigError

_PROGRAM = "python -m bimkern.attention"
_HELP = f"""Show how the layers of a trained encoder attend, on whole images and without training anything.

Attention distance, entropy, normalized mutual information of queries and keys, KL divergence between heads and between
layers, and CKA between the features of layers, also of several runs. Without --data, the images are digits that come
with scikit-learn.

Examples:
  {_PROGRAM} runs/demo
  {_PROGRAM} runs/bim runs/mae --data photos --picture compared.png
  {_PROGRAM} runs/mine --data imagenet/val --images 5000 --device cuda --json"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which encoders to look into, and on which images."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]]
    """Run folders, checkpoints inside one, or backbones that bimkern.export wrote."""
    data: Path | None = None
    """Images: whatever pre-training takes, a folder for example; of a folder with train and val, those of val. Default:
    half of scikit-learn's digits."""
    images: int = 256
    """At most so many images, spread evenly over the data."""
    batch_size: int = 64
    """Images per forward pass of the encoder, and of one estimate of CKA."""
    alpha: Alpha | None = None
    """Alpha of images in gray or RGB: left out (drop), or the image is laid over white or black. Default: as in the
    training of RUN, likewise --range."""
    range: Range | None = None
    """Values that become 0 and 255 in images of more than 8 bits: two numbers, or dtype for all of their unsigned
    integers."""
    max_pixels: int | None = None
    """Largest image to read, in pixels. Default: as in the training of RUN, of several the largest; exported weights
    carry none, and count as 89478485."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto is a GPU if there is one."""
    modules: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="import", metavar="SOURCE")] = ()
    """Python file or module to import first, for an encoder of your own."""
    json: bool = False
    """Print one JSON object per run and layer."""
    picture: Path | None = None
    """PNG file for all measures against the layer. Default: pictures/attention.png of the first RUN."""

    def __post_init__(self) -> None:
        check_runs(self.runs)
        check_picture(self.picture)
        check_pixels(self.max_pixels)
        for name, least in (("images", MIN_BATCH), ("batch_size", MIN_BATCH)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, for CKA, got {value}")


def main(argv: Sequence[str] | None = None) -> None:
    run_command(_PROGRAM, Options, _HELP, _run, argv)


def _run(options: Options, backbones: dict[str, Backbone]) -> Findings:
    if options.data is None:
        images = _digits()
    else:
        images = read_images(options.data, common_decoding(backbones, options.alpha, options.range))
    results = analyze(
        backbones,
        images,
        num_images=options.images,
        batch_size=options.batch_size,
        device=device.claim(options.device),
    )
    text = to_json_lines(results) if options.json else _text(options, images, results)
    return Findings(text=text, draw=partial(draw, results), name="attention")


def _digits() -> Unlabeled:
    part = load_digits().test
    return Unlabeled(count=len(part), read=part.read)


def _text(options: Options, images: Unlabeled, results: Results) -> str:
    source = "scikit-learn's digits" if options.data is None else without_passwords(text_of(options.data))
    head = f"{source}: {min(options.images, images.count)} images; means over heads, queries and images"
    return f"{head}\n\n{to_table(results)}"


if __name__ == "__main__":
    main()
