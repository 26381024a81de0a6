"""The loss of every stage on images that are not learned from, beside that of the simplest prediction.

Shapes: B images, C channels, H W pixels, M cells, P values of a cell, S stages.
"""

import torch
from torch import Tensor

from bimkern.mim.masking.view import StageView
from bimkern.mim.model import MIM
from bimkern.mim.targets import StageTarget
from bimkern.ops import masked_loss


@torch.no_grad()
def losses(model: MIM, images: Tensor, draw_ids: Tensor, *, seed: int, micro_batch: int) -> tuple[Tensor, Tensor]:
    """Compute the loss that every stage is trained with, without distillation.

    Args:
        model: the network.
        images: [B, C, H, W] uint8.
        draw_ids: [B], which the masks depend on.
        seed: of the masks.
        micro_batch: images at a time; unless a mask is shared by them, the result is that of all together, up to
            rounding.

    Returns:
        Two [S] tensors: the loss of the predictions, and that of the mean visible target of every image.
    """
    sums = images.new_zeros(3, model.num_stages, dtype=torch.float64)
    for start in range(0, len(images), micro_batch):
        rows = slice(start, start + micro_batch)
        tokens = images[rows]
        for stage, view in enumerate(model.views(images[rows], draw_ids[rows], seed, whole=True)):
            tokens = model.encode(stage, tokens, view)
            weight = view.weights(view.grid).sum()
            sums[0, stage] += weight * model.loss(stage, tokens, images[rows], view, StageTarget(), weight)
            sums[1, stage] += weight * _mean_loss(model, stage, images[rows], view)
            sums[2, stage] += weight
    predicted, mean, weights = sums
    return predicted / weights, mean / weights


def _mean_loss(model: MIM, stage: int, images: Tensor, view: StageView) -> Tensor:
    method = model.method
    scale, wanted = method.head(stage).scale, method.target(stage)
    vectors = wanted.vectors(images, method.level(stage).patch, scale, model.colors)  # [B, M, P]
    rows, columns = method.grid(stage, view.grid)
    weights = view.weights((int(rows * scale), int(columns * scale)))  # [B, M]
    shown = (1 - weights).unsqueeze(-1).to(vectors.dtype)
    mean = (vectors * shown).sum(1, keepdim=True) / shown.sum(1, keepdim=True)
    return masked_loss(mean.expand_as(vectors), vectors, weights, wanted.kind)
