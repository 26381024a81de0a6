"""`python -m bimkern.pack SOURCE OUT`: shrink images into tar shards, which load faster than the originals."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bimkern.abridged import SHOWN
from bimkern.cli import command
from bimkern.cli.training import run_command
from bimkern.data.addresses import is_address, text_of
from bimkern.data.decoding import Alpha, Decoding, Range
from bimkern.data.formats import MAX_PIXELS, allow_pixels, pil_settings_kept
from bimkern.data.loader import default_workers
from bimkern.data.pack_manifest import MANIFEST, Manifest
from bimkern.data.packing import pack
from bimkern.data.repack import Repacking, Side
from bimkern.data.sources.find import find_source
from bimkern.train.config.run import ConfigError
from bimkern.train.reporting.progress import checking
from bimkern.units import human_bytes
from bimkern.watchdog import ending_at_once

_PROGRAM = "python -m bimkern.pack"
_HELP = f"""Shrink images into WebDataset shards, with their index, which a run reads by --data OUT.

Images that are small enough already are never enlarged, and stay as they are if they are JPEGs. Labels are kept. The
same command continues after an interruption. Pack train and val each into a folder of its name.

Examples:
  {_PROGRAM} photos packed
  {_PROGRAM} imagenet/train packed/train --size 256 --quality 95
  {_PROGRAM} s3://bucket/photos packed --keep"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to pack, and how."""

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SOURCE")]]
    """Images: whatever --data of a run takes."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Folder for the shards, outside of SOURCE."""
    size: int = Repacking.size
    """Pixels of one side of larger images."""
    side: Side = Repacking.side
    """Which side --size is about."""
    quality: int = Repacking.quality
    """Quality of JPEG, 1 to 100."""
    keep: bool = False
    """Keep every file as it is, byte by byte: batches are then those of SOURCE."""
    channels: int = Decoding.channels
    """Channels of the encoder that is to be trained: 1 and 3 are packed as JPEG, others as arrays."""
    alpha: Alpha = "drop"
    """Alpha of images in gray or RGB: left out (drop), or the image is laid over white or black."""
    range: Range | None = None
    """Values that become 0 and 255 in images of more than 8 bits: two numbers, or dtype for all of their unsigned
    integers. They are packed with 8 bits, unless all files are kept."""
    shard_images: int = 2000
    """Images in a shard."""
    workers: int | None = None
    """Processes. Default: one per core, at most 16."""
    max_bad_ratio: float = 0.1
    """Largest share of unreadable images. They are listed in manifest.json; a larger share ends the command."""
    max_pixels: int = MAX_PIXELS
    """Largest image to read, in pixels."""

    def __post_init__(self) -> None:
        for name in ("size", "channels", "shard_images", "max_pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"--quality must be in [1, 100], got {self.quality}")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"--workers must be at least 0, got {self.workers}")
        if not 0 <= self.max_bad_ratio < 1:
            raise ConfigError(f"--max-bad-ratio must be in [0, 1), got {self.max_bad_ratio}")
        if is_address(out := text_of(self.out)):
            raise ConfigError(f"OUT must be a folder of this machine, got {out}")


def main(argv: Sequence[str] | None = None) -> None:
    run_command(_PROGRAM, _run, argv)


def _run(arguments: list[str]) -> str:
    options = command.parse(Options, arguments, usage=_PROGRAM, description=_HELP, addresses=True)
    how = Repacking(
        size=options.size,
        side=options.side,
        quality=options.quality,
        keep=options.keep,
        decoding=_decoding(options),
    )
    begin = time.monotonic()
    with pil_settings_kept(), checking("packing", "packed") as progress:
        allow_pixels(options.max_pixels)
        manifest = pack(
            find_source(options.source),
            options.out,
            how,
            shard_images=options.shard_images,
            workers=default_workers() if options.workers is None else options.workers,
            max_bad_ratio=options.max_bad_ratio,
            progress=progress,
        )
    return _closing_words(manifest, options.out, time.monotonic() - begin)


def _decoding(options: Options) -> Decoding:
    try:
        return Decoding(channels=options.channels, alpha=options.alpha, range=options.range)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _closing_words(manifest: Manifest, out: Path, seconds: float) -> str:
    shards = "1 shard" if len(manifest.shards) == 1 else f"{len(manifest.shards)} shards"
    lines = [f"{out}: {manifest.images} images, {human_bytes(manifest.bytes)}, in {shards} ({seconds:.0f} s)"]
    if left_out := manifest.left_out:
        count = "1 file that is no image" if len(left_out) == 1 else f"{len(left_out)} files that are no images"
        lines += [f"left out {count} or cannot be read:"]
        lines += [f"  {file}: {reason}" for file, reason in list(left_out.items())[:SHOWN]]
        if len(left_out) > SHOWN:
            lines += [f"  and {len(left_out) - SHOWN} more; {out / MANIFEST} lists them"]
    return "\n".join([*lines, f"Next: python -m bimkern.pretrain --data {out}"])


def script() -> None:
    """Run as the script `bimkern-pack`, or by `python -m`."""
    with ending_at_once():
        main()


if __name__ == "__main__":
    script()
