"""`python -m bimkern.probe RUN... [options]`: test what a trained encoder learned, at every depth."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from bimkern.cli.evaluation import Findings, run_command
from bimkern.data.addresses import text_of, without_passwords
from bimkern.data.decoding import Alpha, Range
from bimkern.evaluate.backbone import Backbone, Pool, common_decoding
from bimkern.evaluate.checked_images import MAX_BAD_RATIO
from bimkern.evaluate.depths import DepthResult, evaluate
from bimkern.evaluate.errors import NotFinite, ProbeDiverged
from bimkern.evaluate.labeled import Labeled, load_digits, read_labeled
from bimkern.evaluate.linear import LinearProbe
from bimkern.evaluate.options import check_picture, check_pixels, check_runs
from bimkern.evaluate.report import draw, to_json_lines, to_table
from bimkern.train import device
from bimkern.train.config.run import ConfigError

_PROGRAM = "python -m bimkern.probe"
_HELP = f"""Test what a trained encoder learned: k nearest neighbors and a linear probe on its frozen features.

Features of every depth come from one forward pass. Without --data, the test is on the digits that come with
scikit-learn, half of them for training.

Examples:
  {_PROGRAM} runs/demo
  {_PROGRAM} runs/bim runs/mae --data photos --picture compared.png
  {_PROGRAM} runs/mine --data imagenet --depth 12 --pool cls --device cuda --json"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which encoders to test, on which images, and how."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]]
    """Run folders, checkpoints inside one, or backbones that bimkern.export wrote."""
    data: Path | None = None
    """Labeled images, a quarter of which is tested: a folder of class folders, a list of path and label (.csv, .jsonl),
    tar shards, or what else fine-tuning takes; or a folder with train and val, each of them one of these. Default:
    scikit-learn's digits."""
    depth: str = "all"
    """Numbers of encoder layers to test, separated by commas, or all."""
    pool: Pool = "mean"
    """Features of an image: the mean of its patch tokens, or the class token, as in MAE's linear probe."""
    k: tuple[int, ...] = (20, 10, 1)
    """Numbers of nearest neighbors that vote."""
    base_lr: float = LinearProbe.base_lr
    """Learning rate of the linear probe for 256 images; a batch has 16384."""
    epochs: int = LinearProbe.epochs
    """Epochs of the linear probe, 10 / 90 of them warm-up; small data sets get more, up to 1000 steps."""
    crops: int = 0
    """Random crops of each training image that the linear probe learns from, flipped or not; 0: the central crop. MAE's
    probe has another one in every epoch. Each costs a forward pass of the training images."""
    max_bad_ratio: float = MAX_BAD_RATIO
    """Share of the images of --data that may be left out because they cannot be read."""
    batch_size: int = 64
    """Images per forward pass of the encoder."""
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
    seed: int = 0
    """Seed of the linear probe and of random crops."""
    modules: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="import", metavar="SOURCE")] = ()
    """Python file or module to import first, for an encoder of your own."""
    json: bool = False
    """Print one JSON object per run and depth."""
    picture: Path | None = None
    """PNG file for accuracy against depth and latency. Default: pictures/probe.png of the first RUN."""

    def __post_init__(self) -> None:
        check_runs(self.runs)
        check_picture(self.picture)
        check_pixels(self.max_pixels)
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"--k must be numbers of at least 1, got {' '.join(map(str, self.k)) or 'none'}")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.crops < 0:
            raise ConfigError(f"--crops must be at least 0, got {self.crops}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed must be in [0, 2**63), got {self.seed}")
        if not 0 <= self.max_bad_ratio < 1:
            raise ConfigError(f"--max-bad-ratio must be in [0, 1), got {self.max_bad_ratio}")


def main(argv: Sequence[str] | None = None) -> None:
    run_command(_PROGRAM, Options, _HELP, _run, argv)


def _run(options: Options, backbones: dict[str, Backbone]) -> Findings:
    depths = {run: _depths(options.depth, backbone, run) for run, backbone in backbones.items()}
    for backbone in backbones.values():
        backbone.check_pool(options.pool)
    probe = _probe(options)
    data = _data(options, backbones)
    results = {run: _evaluate(options, run, backbones.pop(run), depths[run], data, probe) for run in depths}
    text = to_json_lines(results) if options.json else _text(options, data, results)
    return Findings(text=text, draw=partial(draw, results), name="probe", error=_diverged(results, probe))


def _probe(options: Options) -> LinearProbe:
    warmup = options.epochs * LinearProbe.warmup_epochs // LinearProbe.epochs
    return LinearProbe(base_lr=options.base_lr, epochs=options.epochs, warmup_epochs=warmup)


def _diverged(results: Mapping[str, Sequence[DepthResult]], probe: LinearProbe) -> ProbeDiverged | None:
    """Return the error of probes that diverged, if any did; the other results stand."""
    found = []
    for run, depths in results.items():
        if diverged := [str(result.depth) for result in depths if math.isnan(result.linear)]:
            found.append(f"{', '.join(diverged)} of {run}")
    if not found:
        return None
    where = " and ".join(found)
    return ProbeDiverged(
        f"the linear probe diverges at --base-lr {probe.base_lr:g} at depth {where}; choose a smaller one"
    )


def _depths(text: str, backbone: Backbone, run: str) -> list[int]:
    deepest = backbone.config.depth
    if text == "all":
        return list(range(1, deepest + 1))
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= deepest for word in words):
        raise ConfigError(f"--depth must be all or numbers from 1 to {deepest} with commas for {run}, got {text!r}")
    return sorted({int(word) for word in words})


def _data(options: Options, backbones: Mapping[str, Backbone]) -> Labeled:
    if options.data is None:
        return load_digits()
    return read_labeled(options.data, common_decoding(backbones, options.alpha, options.range), options.max_bad_ratio)


def _evaluate(
    options: Options, run: str, backbone: Backbone, depths: Sequence[int], data: Labeled, probe: LinearProbe
) -> list[DepthResult]:
    try:
        return evaluate(
            backbone,
            data,
            depths,
            pool=options.pool,
            neighbors=options.k,
            probe=probe,
            batch_size=options.batch_size,
            device=device.claim(options.device),
            seed=options.seed,
            crops=options.crops,
        )
    except NotFinite as error:
        raise NotFinite(f"{run}: {error}") from error


def _text(options: Options, data: Labeled, results: dict[str, list[DepthResult]]) -> str:
    source = "scikit-learn's digits" if options.data is None else without_passwords(text_of(options.data))
    pooled = "class token" if options.pool == "cls" else "mean of the patch tokens"
    head = f"{source}: {len(data.classes)} classes, {len(data.train)} training and {len(data.test)} test images"
    return f"{head}; features: {pooled} of frozen layers\n\n{to_table(results)}"


if __name__ == "__main__":
    main()
