"""What a run is judged by and shown on: images that are put aside, and what its stages predict of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bimkern.arena import Plan
from bimkern.files.best_effort import Outage
from bimkern.mim.model import MIM
from bimkern.mim.reconstruction.reconstruct import hidden_errors, stage_name
from bimkern.mim.reconstruction.renderers import renderer_for
from bimkern.train.reporting import plots

NUM_IMAGES = 64
_DRAWN_IMAGES = 6


@dataclass(frozen=True)
class StageOutcome:
    """How well a stage predicts what is hidden of images that were put aside, against a simple baseline."""

    name: str
    error: float
    baseline: str  # in words
    baseline_error: float
    note: str  # what the error does not measure, or nothing


Outcome = list[StageOutcome]


class Judge:
    """Reconstruct the same images, with the same masks, whenever it is asked."""

    def __init__(self, images: Tensor, draw_ids: Tensor, seed: int, folder: Path) -> None:
        """Take images [B, C, H, W] uint8, their draw ids [B], the masks' seed, and a folder for pictures."""
        self._images, self._draw_ids, self._seed = images, draw_ids, seed
        self._folder, self._outage = folder, Outage(f"{folder}")

    def outcome(self, model: MIM) -> Outcome:
        errors, baselines = hidden_errors(model, self._images, self._draw_ids, seed=self._seed)
        outcome = []
        for stage, (error, baseline_error) in enumerate(zip(errors.tolist(), baselines.tolist(), strict=True)):
            renderer, name = renderer_for(model, stage), stage_name(model.method, stage)
            outcome.append(StageOutcome(name, error, renderer.baseline, baseline_error, renderer.note))
        return outcome

    def sketch(
        self, model: MIM, records: list[dict[str, Any]], title: str, plan: Plan | None = None
    ) -> Callable[[], None]:
        """Predict what the pictures show, with the weights as they are; return what draws it, in any thread."""
        drawn = slice(0, _DRAWN_IMAGES)
        names = [stage_name(model.method, stage) for stage in range(model.num_stages)]
        shown = plots.predict(model, self._images[drawn], self._draw_ids[drawn], self._seed)

        def draw() -> None:
            with self._outage.tolerated():
                plots.draw_reconstructions(self._folder / "reconstruction.png", shown, title)
                if records:
                    plots.draw_curves(self._folder / "curves.png", records, names)
                    plots.draw_memory(self._folder / "memory.png", records, plan)

        return draw
