"""Reconstructions: what a model predicts, as pixels, and how far from the truth they are.

Shapes: B images, C channels, H W pixels, N patches, P values a patch, S stages.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bimkern.mim.masking import StageView
from bimkern.mim.model import MIM
from bimkern.mim.targets import unpatchify
from bimkern.ops import pixel_targets

Statistics = Literal["visible", "truth"]


@dataclass(frozen=True)
class StageReconstruction:
    hidden: Tensor  # [B, N]
    vectors: Tensor  # [B, N, P] predicted pixels of every patch, in normalised colours


@torch.no_grad()
def reconstruct(
    model: MIM, images: Tensor, draw_ids: Tensor, seed: int, statistics: Statistics = "visible"
) -> list[StageReconstruction]:
    """Predict the hidden patches of uint8 images [B, C, H, W] from every stage.

    Predictions of per-patch normalised pixels carry no brightness or contrast. These are put back from the average
    visible patch (an honest reconstruction), or from the hidden patch itself (statistics="truth": it leaks, and a
    picture that uses it must say so). Raw pixel targets need neither.
    """
    patch = model.method.encoder.patch
    truth = pixel_targets(model.normalize(images), patch, normalize=False)
    results, tokens = [], images
    for stage, view in enumerate(model.views(images, draw_ids, seed)):
        tokens = model.encode(stage, tokens, view)
        vectors = model.predict(stage, tokens, view).to(truth.dtype)
        if model.method.target(stage).normalize:
            mean, std = _patch_statistics(truth, view, statistics)
            vectors = vectors * std + mean
        results.append(StageReconstruction(view.hidden, vectors))
    return results


def paste_visible(model: MIM, images: Tensor, result: StageReconstruction) -> Tensor:
    """Lay predictions over the hidden patches of uint8 images: [B, C, H, W] float in [0, 1]."""
    patch, grid = model.method.encoder.patch, model.method.encoder.grid
    truth = pixel_targets(model.normalize(images), patch, normalize=False)
    vectors = torch.where(result.hidden.unsqueeze(-1) > 0, result.vectors, truth)
    return (unpatchify(vectors, patch, grid) * model.std + model.mean).clamp(0, 1)


def hidden_errors(model: MIM, images: Tensor, draw_ids: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Measure every stage against the plainest guess, the mean colour of the visible patches.

    Returns:
        Two [S] tensors: the mean squared error on hidden patches, in normalised colours, of the reconstructions (never
        with statistics of the truth) and of the mean visible colour.
    """
    truth = pixel_targets(model.normalize(images), model.method.encoder.patch, normalize=False)  # [B, N, P]
    colours = truth.unflatten(-1, (-1, model.method.encoder.channels))  # [B, N, p*p, C]
    errors, baselines = [], []
    for result in reconstruct(model, images, draw_ids, seed):
        shown = (1 - result.hidden)[..., None, None]
        colour = (colours * shown).sum((1, 2)) / (shown.sum((1, 2)) * colours.shape[2])  # [B, C]
        guess = colour[:, None, None].expand_as(colours).flatten(2)
        errors.append(_mean_hidden((result.vectors - truth).square(), result.hidden))
        baselines.append(_mean_hidden((guess - truth).square(), result.hidden))
    return torch.stack(errors), torch.stack(baselines)


def _mean_hidden(values: Tensor, hidden: Tensor) -> Tensor:
    return (values.mean(-1) * hidden).sum() / hidden.sum()


def _patch_statistics(truth: Tensor, view: StageView, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation to de-normalise with, [B, N, 1] or [B, 1, 1]."""
    variance, mean = torch.var_mean(truth, dim=-1, keepdim=True)
    std = variance.sqrt()
    if statistics == "truth":
        return mean, std
    shown = (1 - view.hidden).unsqueeze(-1)
    return tuple((value * shown).sum(1, keepdim=True) / shown.sum(1, keepdim=True) for value in (mean, std))  # type: ignore[return-value]
