"""`python -m bimkern.export CHECKPOINT [options]`: write trained weights in the layout of another program."""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Annotated, Literal

import tyro

from bimkern.cli import command
from bimkern.exporters.detectron2 import lazy_config, write_detectron2
from bimkern.exporters.hf import write_hf
from bimkern.exporters.import_line import import_line
from bimkern.exporters.mae_program import write_mae_program
from bimkern.exporters.mmpretrain import backbone_config, write_mmpretrain
from bimkern.exporters.own import write_own
from bimkern.exporters.timm import write_timm
from bimkern.exporters.trained import Trained, depths, read_trained
from bimkern.importers.weights_file import is_run
from bimkern.output import printing
from bimkern.recipes.find import import_module
from bimkern.train.config.run import ConfigError

_PROGRAM = "python -m bimkern.export"

Format = Literal["timm", "mae", "hf", "detectron2", "mmpretrain", "bimkern"]

_HELP = f"""Write trained weights in the layout of another program.

Formats:
  timm        folder for timm.create_model: the encoder with its last norm, no classifier
  mae         file for the MAE program (facebookresearch/mae): encoder and decoder under "model"
  hf          folder for ViTMAEForPreTraining.from_pretrained in transformers: encoder and decoder
  detectron2  file for ViTDet in detectron2: a ViT without class token and last norm
  mmpretrain  file for mmdet, mmsegmentation and mmpretrain: a ViT or Swin with its last norm
  bimkern     folder with the encoder and its last norm under our own names

mae and hf require methods made of MAE's pieces; timm, detectron2 and mmpretrain an encoder that they have; bimkern
accepts all.

Examples:
  {_PROGRAM} runs/demo
  {_PROGRAM} runs/demo --depth 2 --format hf --out demo-2-layers
  {_PROGRAM} runs/mine/checkpoints/step-00001000 --format mae --out mine.pth"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which weights to write, in which layout, and where."""

    checkpoint: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT")]]
    """Run folder, whose newest intact checkpoint is used, or one of its checkpoints/step-... folders."""
    depth: int | None = None
    """Encoder layers to keep; a head must read the last of them. Default: all."""
    format: Format = "timm"
    """Layout of the output."""
    modules: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="import", metavar="SOURCE")] = ()
    """Python file or module to import first, for a run with your own pieces."""
    out: Path | None = None
    """Output folder, or file for mae, detectron2 and mmpretrain. Default: in exported/ of the run, named by format,
    depth and step."""


def _load_with_timm(path: Path, trained: Trained, depth: int) -> str:
    return (
        f"{import_line('timm')}\n"
        f"model = timm.create_model({f'local-dir:{path}'!r}, pretrained=True).eval()\n"
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        "# model(transform(image)[None]) is the mean of the patch tokens after the last norm"
    )


def _load_with_mae_program(path: Path, trained: Trained, depth: int) -> str:
    return (
        "import torch\n"
        f"weights = torch.load({str(path)!r}, weights_only=True)['model']  # what main_finetune.py --finetune reads"
    )


def _load_with_hf(path: Path, trained: Trained, depth: int) -> str:
    return (
        f"{import_line('transformers')}\n"
        f"model = transformers.ViTMAEForPreTraining.from_pretrained({str(path)!r})\n"
        "# from_pretrained makes both position tables trainable; these lines fix them again, as in training\n"
        "model.vit.embeddings.position_embeddings.requires_grad_(False)\n"
        "model.decoder.decoder_pos_embed.requires_grad_(False)\n"
        f"processor = transformers.AutoImageProcessor.from_pretrained({str(path)!r})"
    )


@dataclass(frozen=True)
class _Writer:
    write: Callable[[Path, Trained, int], None]
    suffix: str
    how_to_load: Callable[[Path, Trained, int], str]


def _load_our_own(path: Path, trained: Trained, depth: int) -> str:
    return (
        "from bimkern.models.exported import load_encoder\n"
        f"model = load_encoder({str(path)!r})  # an encoder of your own: import its module first"
    )


_WRITERS: dict[Format, _Writer] = {
    "timm": _Writer(write_timm, "", _load_with_timm),
    "mae": _Writer(write_mae_program, ".pth", _load_with_mae_program),
    "hf": _Writer(write_hf, "", _load_with_hf),
    "detectron2": _Writer(write_detectron2, ".pth", lazy_config),
    "mmpretrain": _Writer(write_mmpretrain, ".pth", backbone_config),
    "bimkern": _Writer(write_own, "", _load_our_own),
}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s %(message)s")
    with command.ended_in_a_line(_PROGRAM):
        options = command.parse(Options, arguments, usage=_PROGRAM, description=_HELP)
        for source in options.modules:
            import_module(source)
        writer = _WRITERS[options.format]
        folder, trained = read_trained(options.checkpoint)
        depth = _choose_depth(options.depth, depths(trained.config.method))
        name = f"{options.format}-depth{depth:02d}-step{trained.step:08d}{writer.suffix}"
        path = _refuse_run(options.out or folder.exported / name)
        writer.write(path, trained, depth)
    lines = f"# images: {trained.preprocessing}\n{writer.how_to_load(path, trained, depth)}"
    with printing():
        print(f"Wrote {path}\n\nTo load it:\n{indent(lines, '  ')}")


def _choose_depth(wanted: int | None, available: tuple[int, ...]) -> int:
    if wanted is not None and wanted not in available:
        raise ConfigError(f"--depth must be one of {', '.join(map(str, available))}, got {wanted}")
    return available[-1] if wanted is None else wanted


def _refuse_run(path: Path) -> Path:
    """Return where to write to, unless a run or a checkpoint lies there, whose config.json or weights would be lost."""
    if is_run(path):
        raise ConfigError(f"--out {path} is a run folder, or a checkpoint, and would be overwritten; choose another")
    return path


if __name__ == "__main__":
    main()
