"""What a run is judged by and shown on: images that are put aside, and how its blocks reconstruct them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bimkern.mim.model import MIM
from bimkern.mim.reconstruct import hidden_errors
from bimkern.train import pictures
from bimkern.train.outage import Outage

NUM_IMAGES = 64
_DRAWN_IMAGES = 6


@dataclass(frozen=True)
class Outcome:
    """How well every stage reconstructs images that were put aside, against the mean visible colour."""

    errors: list[float]
    baselines: list[float]


class Judge:
    """Reconstruct the same images, with the same masks, whenever it is asked."""

    def __init__(self, images: Tensor, draw_ids: Tensor, seed: int, folder: Path) -> None:
        """Take images [B, C, H, W] uint8, their draw ids [B], the masks' seed, and a folder for pictures."""
        self._images, self._draw_ids, self._seed = images, draw_ids, seed
        self._folder, self._outage = folder, Outage(f"{folder}")

    def outcome(self, model: MIM) -> Outcome:
        errors, baselines = hidden_errors(model, self._images, self._draw_ids, seed=self._seed)
        return Outcome(errors.tolist(), baselines.tolist())

    def sketch(self, model: MIM, records: list[dict[str, Any]], title: str) -> Callable[[], None]:
        """Predict what the pictures show, with the weights as they are; return what draws it, in any thread."""
        drawn = slice(0, _DRAWN_IMAGES)
        shown = pictures.predict(model, self._images[drawn], self._draw_ids[drawn], self._seed)

        def draw() -> None:
            with self._outage.tolerated():
                pictures.draw_reconstructions(self._folder / "reconstruction.png", shown, title)
                if records:
                    pictures.draw_curves(self._folder / "curves.png", records)
                    pictures.draw_memory(self._folder / "memory.png", records)

        return draw
