"""Held-out evaluation: how well the stages reconstruct images that are not trained on, as numbers and as pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bimkern.arena import Plan
from bimkern.files.best_effort import BestEffort
from bimkern.mim.model import MIM
from bimkern.mim.reconstruction.reconstruct import hidden_errors, stage_name
from bimkern.mim.reconstruction.renderers import renderer_for
from bimkern.train.reporting import plots
from bimkern.train.reporting.pictures import KeptPictures

NUM_IMAGES = 64
_DRAWN_IMAGES = 6


@dataclass(frozen=True)
class HeldOutError:
    """The error of a stage on masked patches of held-out images, beside that of a simple baseline."""

    name: str
    error: float
    baseline: str  # in words
    baseline_error: float
    note: str  # what the error does not measure; may be empty


class HeldOutEvaluation:
    """Reconstruct the same images with the same masks at every call."""

    def __init__(self, images: Tensor, draw_ids: Tensor, seed: int, pictures: KeptPictures) -> None:
        """Take images [B, C, H, W] uint8, their draw ids [B], the seed of the masks, and where pictures are kept."""
        self._images, self._draw_ids, self._seed = images, draw_ids, seed
        self._pictures, self._writing = pictures, BestEffort(f"{pictures.folder}")

    def errors(self, model: MIM) -> list[HeldOutError]:
        """Return the error of every stage."""
        errors, baselines = hidden_errors(model, self._images, self._draw_ids, seed=self._seed)
        found = []
        for stage, (error, baseline) in enumerate(zip(errors.tolist(), baselines.tolist(), strict=True)):
            renderer, name = renderer_for(model, stage), stage_name(model.method, stage)
            found.append(HeldOutError(name, error, renderer.baseline, baseline, renderer.note))
        return found

    def snapshot(
        self, model: MIM, step: int, records: list[dict[str, Any]], title: str, plan: Plan | None = None
    ) -> Callable[[], Path | None]:
        """Predict with the current weights; return a function that draws the pictures, in any thread.

        It returns the picture that is kept of this step; None where none is.
        """
        drawn = slice(0, _DRAWN_IMAGES)
        names = [stage_name(model.method, stage) for stage in range(model.num_stages)]
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
