"""Reconstructions: what every stage predicts for what is masked from it, and its error.

Shapes: B images, C channels, H W pixels, N patches, M predicted cells, P values of a cell, h w positions of a map with
Q values each (renderers.py), S stages.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bimkern.mim.masking.view import StageView
from bimkern.mim.model import MIM, Method
from bimkern.mim.reconstruction.renderers import Renderer, Statistics, renderer_for
from bimkern.models.encoder import Grid


@dataclass(frozen=True)
class StageReconstruction:
    renderer: Renderer
    view: StageView
    grid: Grid  # of the predicted cells
    vectors: Tensor  # [B, M, P]
    truth: Tensor  # [B, Q, h, w]

    @property
    def masked(self) -> Tensor:
        """The share of every position that is masked from the stage, [B, 1, h, w]."""
        return self.view.masked_share((self.truth.shape[2], self.truth.shape[3]))

    def predicted(self, statistics: Statistics = "visible") -> Tensor:
        """Return what is predicted, [B, Q, h, w], in the units of the truth."""
        return self.renderer.read(self.vectors, self.grid, self.truth, 1 - self.masked, statistics)

    def pasted(self, statistics: Statistics = "visible") -> Tensor:
        """Return the truth, with predictions laid over the masked positions, [B, Q, h, w]."""
        return torch.where(self.masked > 0, self.predicted(statistics), self.truth)

    def baseline(self) -> Tensor:
        """Return the simplest prediction, the mean over all positions that the stage sees, [B, Q, 1, 1]."""
        shown = 1 - self.masked
        return (self.truth * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True)

    def error(self, prediction: Tensor) -> Tensor:
        """Return the mean squared error of a prediction over what is masked."""
        return ((prediction - self.truth).square() * self.masked).sum() / (self.masked.sum() * self.truth.shape[1])


@torch.no_grad()
def reconstruct(model: MIM, images: Tensor, draw_ids: Tensor, seed: int) -> list[StageReconstruction]:
    """Predict what is masked of uint8 images [B, C, H, W] from every stage."""
    results, tokens = [], images
    for stage, view in enumerate(model.views(images, draw_ids, seed, whole=True)):
        tokens = model.encode(stage, tokens, view)
        renderer = renderer_for(model, stage)
        truth = renderer.truth(images)
        vectors = model.predict(stage, tokens, view).to(truth.dtype)
        scale, (rows, columns) = model.method.head(stage).scale, model.method.grid(stage, view.grid)
        grid = int(rows * scale), int(columns * scale)
        results.append(StageReconstruction(renderer, view, grid, vectors, truth))
    return results


def masked_errors(model: MIM, images: Tensor, draw_ids: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Measure every stage against the simplest baseline, the mean of what it sees.

    Returns:
        Two [S] tensors: the mean squared error on what is masked, of the predictions (never with statistics of the
        truth) and of the baseline. In normalized colors, or of histograms of length 1.
    """
    results = reconstruct(model, images, draw_ids, seed)
    errors = [result.error(result.predicted()) for result in results]
    return torch.stack(errors), torch.stack([result.error(result.baseline()) for result in results])


def gray_out(model: MIM, images: Tensor, view: StageView) -> Tensor:
    """Lay gray over the masked patches of uint8 images, whatever their mask embedding: [B, C, H, W]."""
    masked = view.masked_share((images.shape[2], images.shape[3]))
    return torch.where(masked > 0, model.mean.view(-1, 1, 1), images / 255)


def stage_name(method: Method, stage: int) -> str:
    """Name a stage by where its head reads the encoder; layers count from 1."""
    return f"after layer {method.taps[stage] + 1}"
