"""Which runs the layouts of a masked autoencoder of pixels can hold, encoder and decoder."""

from dataclasses import dataclass

from torch import Tensor

from bimkern.exporters.trained import Trained, below, depths
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.targets import PixelTarget
from bimkern.models.encoder import Layout, Program
from bimkern.models.heads import DecoderConfig
from bimkern.models.pos_embed import sincos_table, with_prefix
from bimkern.train.config.run import ConfigError


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """A run up to one depth in the terms of the published program."""

    layout: Layout  # of the encoder
    decoder: DecoderConfig
    target: PixelTarget
    mask_ratio: float
    encoder_weights: dict[str, Tensor]
    decoder_weights: dict[str, Tensor]  # under our names, behind the first norm, which is the encoder's last
    decoder_positions: Tensor


def read_autoencoder(trained: Trained, depth: int, program: Program) -> Autoencoder:
    """Return what a layout of MAE holds of a run.

    Raises:
        ConfigError: a piece is another, which these layouts have no words for.
    """
    method = trained.config.method
    stage = depths(method).index(depth)
    masker, head, target = method.masker, method.head(stage), method.target(stage)
    layout = trained.encoder(depth).layout(program)
    other = "bimkern" if method.encoder.layout("timm") is None else "timm"
    if not (size := method.encoder.image_size).is_square:
        found = f"images of {size} pixels, where MAE's program and transformers have squares alone,"
    elif layout is None:
        found = f"encoder {type(method.encoder).__name__}"
    elif not isinstance(masker, RandomDrop):
        found = f"masker {type(masker).__name__}"
    elif not isinstance(target, PixelTarget):
        found = f"target {type(target).__name__}"
    elif not isinstance(head, DecoderConfig):
        found = f"head {type(head).__name__}"
    elif head.match_scale is not None or not head.positions:
        found = f"a decoder with match_scale={head.match_scale} and positions={head.positions}"
    elif head.attends != "all":
        found = "a decoder whose masked tokens attend to visible ones alone"
    else:
        grid = method.encoder.level(0).grid(*method.encoder.image_size)
        decoder = dict(below("head", trained.cut(depth)))
        return Autoencoder(
            layout=layout,
            decoder=head,
            target=target,
            mask_ratio=masker.ratios[min(stage, len(masker.ratios) - 1)],
            encoder_weights=trained.backbone(depth, layout),
            decoder_weights={name: tensor for name, tensor in decoder.items() if not name.startswith("in_norm.")},
            decoder_positions=with_prefix(sincos_table(head.width, grid)),
        )
    raise ConfigError(
        f"formats mae and hf hold MAE's pieces alone (RandomDrop, a decoder with positions, pixels of every patch); "
        f"{trained.config.recipe} has {found} after layer {depth}; --format {other} takes its encoder"
    )
