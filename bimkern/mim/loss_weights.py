"""The loss weights of a step's images, of which a process may have a part alone, for the denominators of its losses."""

import torch
from torch import Tensor

from bimkern.image_size import ImageSize
from bimkern.mim.masking.choice import chosen_weight
from bimkern.mim.model import MIM, decodes_partly, num_visible


def loss_weights(model: MIM, draw_ids: Tensor, image_size: ImageSize, seed: int) -> Tensor:
    """Return the loss weights of all samples draw_ids [B], int64, summed for every stage: [S].

    Args:
        model: whose views() has them one by one; which tokens a head decodes is not drawn for this.
        draw_ids: name sample and epoch.
        image_size: of their images.
        seed: of the masks.
    """
    method = model.method
    grid = method.encoder.level(0).grid(*image_size)
    drawn = method.masker.views(draw_ids, grid, model.num_stages, seed)
    found = []
    for stage, view in enumerate(drawn):
        head, weighted = method.head(stage), view.weighted(model.mean.dtype)
        if decodes_partly(head):
            own, visible = method.grid(stage, grid), num_visible(view, drawn)
            found.append(chosen_weight(weighted, own, head.share, visible=visible))
        else:
            found.append(weighted.masked.sum())
    return torch.stack(found)
