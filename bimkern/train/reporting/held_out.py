"""Held-out evaluation: how well the stages reconstruct images that are not trained on, as numbers and as pictures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bimkern.arena import Plan
from bimkern.files.best_effort import BestEffort
from bimkern.mim import evaluation
from bimkern.mim.model import MIM
from bimkern.mim.reconstruction.reconstruct import masked_errors, stage_name
from bimkern.mim.reconstruction.renderers import renderer_for
from bimkern.train.reporting import plots
from bimkern.train.reporting.pictures import KeptPictures

NUM_IMAGES = 64
NUM_HELD_OUT = 256  # whose loss is computed, where they are not trained on
_DRAWN_IMAGES = 6


@dataclass(frozen=True)
class HeldOutError:
    """The loss and the error of a stage on masked patches of held-out images, beside those of simple baselines."""

    name: str
    loss: float  # as it is trained with, without distillation
    mean_loss: float  # of predicting the mean visible target
    error: float
    baseline: str  # in words
    baseline_error: float
    note: str  # what the error does not measure; may be empty


class HeldOutEvaluation:
    """Reconstruct the same images with the same masks at every call."""

    def __init__(
        self, images: Tensor, draw_ids: Tensor, *, seed: int, micro_batch: int, pictures: KeptPictures
    ) -> None:
        """Evaluate on some images.

        Args:
            images: [B, C, H, W] uint8.
            draw_ids: [B].
            seed: of the masks.
            micro_batch: images whose loss is computed at a time.
            pictures: where they are kept.
        """
        self._micro_batch = micro_batch
        self._images, self._draw_ids, self._seed = images, draw_ids, seed
        self._pictures, self._writing = pictures, BestEffort(f"{pictures.folder}")

    def errors(self, model: MIM) -> list[HeldOutError]:
        """Return the error of every stage."""
        some = slice(0, NUM_IMAGES)
        with _evaluating(model):
            errors, baselines = masked_errors(model, self._images[some], self._draw_ids[some], seed=self._seed)
        values = zip(*self._losses(model), errors.tolist(), baselines.tolist(), strict=True)
        found = []
        for stage, (loss, mean_loss, error, baseline) in enumerate(values):
            renderer, name = renderer_for(model, stage), stage_name(model.method, stage)
            found.append(HeldOutError(name, loss, mean_loss, error, renderer.baseline, baseline, renderer.note))
        return found

    def losses(self, model: MIM) -> list[float]:
        """Return the loss of every stage."""
        return self._losses(model)[0]

    def _losses(self, model: MIM) -> tuple[list[float], list[float]]:
        options = {"seed": self._seed, "micro_batch": self._micro_batch}
        with _evaluating(model):
            predicted, mean = evaluation.losses(model, self._images, self._draw_ids, **options)
        return predicted.tolist(), mean.tolist()

    def snapshot(
        self, model: MIM, step: int, records: list[dict[str, Any]], title: str, plan: Plan | None = None
    ) -> Callable[[], Path | None]:
        """Predict with the current weights; return a function that draws the pictures, in any thread.

        It returns the picture that is kept of this step; None where none is.
        """
        drawn = slice(0, _DRAWN_IMAGES)
        names = [stage_name(model.method, stage) for stage in range(model.num_stages)]
        with _evaluating(model):
            shown = plots.predict(model, self._images[drawn], self._draw_ids[drawn], self._seed)

        def draw() -> Path | None:
            folder, kept = self._pictures.folder, None
            with self._writing.attempt():
                plots.draw_reconstructions(self._pictures.newest, shown, f"{title}, step {step}")
                kept = self._pictures.keep(step)
                if records:
                    plots.draw_curves(folder / "curves.png", records, names)
                    plots.draw_memory(folder / "memory.png", records, plan)
            return kept

        return draw


@contextmanager
def _evaluating(model: MIM) -> Iterator[None]:
    """Have batch norms use the statistics of training, and learn none from held-out images."""
    trains = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(trains)
