"""Reconstructions: what every stage predicts of what is hidden from it, and how far from the truth that is.

Shapes: B images, C channels, H W pixels, N patches, M predicted cells, P values a cell, h w places of a map with Q
values each (mim/readers.py), S stages.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from bimkern.mim.masking.random import StageView
from bimkern.mim.model import MIM, Method
from bimkern.mim.reconstruction.renderers import Reader, Statistics, reader_of


@dataclass(frozen=True)
class StageReconstruction:
    reader: Reader
    view: StageView
    scale: float  # of the predicted grid, against that of the patches
    vectors: Tensor  # [B, M, P]
    truth: Tensor  # [B, Q, h, w]

    @property
    def hidden(self) -> Tensor:
        """The share of every place that is hidden from the stage, [B, 1, h, w]."""
        return hidden_at(self.view, (self.truth.shape[2], self.truth.shape[3]))

    def predicted(self, statistics: Statistics = "visible") -> Tensor:
        """Return what is predicted, [B, Q, h, w], in the units of the truth."""
        grid = (int(self.view.grid[0] * self.scale), int(self.view.grid[1] * self.scale))
        return self.reader.read(self.vectors, grid, self.truth, 1 - self.hidden, statistics)

    def pasted(self, statistics: Statistics = "visible") -> Tensor:
        """Return the truth, with what is predicted laid over the places that are hidden, [B, Q, h, w]."""
        return torch.where(self.hidden > 0, self.predicted(statistics), self.truth)

    def guessed(self) -> Tensor:
        """Return the plainest prediction, the mean over all places that the stage sees, [B, Q, 1, 1]."""
        shown = 1 - self.hidden
        return (self.truth * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True)

    def error(self, prediction: Tensor) -> Tensor:
        """Return the mean squared error of a prediction over what is hidden."""
        return ((prediction - self.truth).square() * self.hidden).sum() / (self.hidden.sum() * self.truth.shape[1])


@torch.no_grad()
def reconstruct(model: MIM, images: Tensor, draw_ids: Tensor, seed: int) -> list[StageReconstruction]:
    """Predict what is hidden of uint8 images [B, C, H, W] from every stage."""
    results, tokens = [], images
    for stage, view in enumerate(model.views(images, draw_ids, seed)):
        tokens = model.encode(stage, tokens, view)
        reader = reader_of(model, stage)
        truth = reader.truth(images)
        vectors = model.predict(stage, tokens, view).to(truth.dtype)
        results.append(StageReconstruction(reader, view, model.method.head(stage).scale, vectors, truth))
    return results


def hidden_errors(model: MIM, images: Tensor, draw_ids: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Measure every stage against the plainest guess, the mean of what it sees.

    Returns:
        Two [S] tensors: the mean squared error on what is hidden, of the predictions (never with statistics of the
        truth) and of the guess. In normalised colours, or of histograms of length 1.
    """
    results = reconstruct(model, images, draw_ids, seed)
    errors = [result.error(result.predicted()) for result in results]
    return torch.stack(errors), torch.stack([result.error(result.guessed()) for result in results])


def masked(model: MIM, images: Tensor, view: StageView) -> Tensor:
    """Lay grey over the hidden patches of uint8 images, whatever the encoder takes in their place: [B, C, H, W]."""
    hidden = hidden_at(view, (images.shape[2], images.shape[3]))
    return torch.where(hidden > 0, model.mean.view(-1, 1, 1), images / 255)


def hidden_at(view: StageView, grid: tuple[int, int]) -> Tensor:
    """Return the share that is hidden of every place of another grid over the image, [B, 1, h, w]."""
    return adaptive_avg_pool2d(view.hidden.unflatten(1, (1, *view.grid)), grid)


def stage_name(method: Method, stage: int) -> str:
    """Name a stage by where its head reads the encoder; blocks count from 1."""
    return f"after block {method.taps[stage] + 1}"
