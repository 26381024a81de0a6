"""The learning rates of recipes beside those of the published programs, epoch by epoch on ImageNet-1k.

    python -m bench.learning_rates

Prints the largest difference over all steps as a share of the peak, and draws bench/results/learning_rates.png.

The published rules are written here from the papers' and programs' numbers, with nothing of bimkern. The programs read
them at the beginning of a step, bimkern in its middle; both are compared at the epoch of the middle.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bimkern.data.step_layout import StepLayout
from bimkern.mim.schedule import Schedule, resolve
from bimkern.recipes import RECIPES
from bimkern.train.config.run import Config

NUM_IMAGES = 1_281_167  # of the training set of ImageNet-1k
PICTURE = Path(__file__).parent / "results" / "learning_rates.png"
_OURS, _THEIRS = "#d62728", "#b8cfe5"


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """MAE's util/lr_sched.py, which LocalMIM's trainer shares: one rate for all."""

    blr: float  # for 256 images
    batch: int
    warmup: int  # epochs
    epochs: int
    min_lr: float = 0.0

    def rate(self, epoch: float, group: int) -> float:
        lr = self.blr * self.batch / 256
        if epoch < self.warmup:
            return lr * epoch / self.warmup
        elapsed = (epoch - self.warmup) / (self.epochs - self.warmup)
        return self.min_lr + (lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * elapsed))


@dataclass(frozen=True, kw_only=True)
class LayerFreezing:
    """ViTFreeze's trainer, for ViT-B with 12 layers: group 0 is the embedding, group i layer i with the head there."""

    scaled: bool
    alpha: float = 2e-4 * 2048 / 256
    warmup: int = 10
    epochs: int = 100

    def rate(self, epoch: float, group: int) -> float:
        if epoch < self.warmup:
            return self.alpha * epoch / self.warmup
        rho = (0.8 + (1 - 0.8) * group / 12) ** 3
        learning = (self.epochs - self.warmup) * rho  # epochs
        if epoch - self.warmup > learning:
            return 0.0
        peak = self.alpha / rho if self.scaled else self.alpha
        return 0.5 * peak * (1 + math.cos(math.pi * (epoch - self.warmup) / learning))


PUBLISHED: dict[str, Cosine | LayerFreezing] = {
    "mae_vit_base_1600": Cosine(blr=1.5e-4, batch=4096, warmup=40, epochs=1600),
    "mae_vit_large_1600": Cosine(blr=1.5e-4, batch=4096, warmup=40, epochs=1600),
    "localmim_vit_base_1600": Cosine(blr=2e-4, batch=2048, warmup=40, epochs=1600, min_lr=1e-6),
    "localmim_vit_large": Cosine(blr=1.5e-4, batch=4096, warmup=40, epochs=800, min_lr=1e-6),
    "vitfreeze_vit_base_published": LayerFreezing(scaled=True),
    "vitfreeze_vit_base_unscaled": LayerFreezing(scaled=False),
}


class Ours:
    """The learning rate of every step of a recipe, as training sets it."""

    def __init__(self, config: Config) -> None:
        self._peak, self._depth = config.run.peak_lr, config.method.encoder.depth
        self.layout: StepLayout = config.step_layout(NUM_IMAGES)
        self._schedule: Schedule = resolve(config.schedule, self.layout.num_images() / NUM_IMAGES, self._peak)

    def epoch(self, step: int) -> float:
        """Return the epoch in the middle of a step."""
        return self.layout.progress(step) * self.layout.num_images() / NUM_IMAGES

    def rate(self, step: int, group: int, *, head: bool = False) -> float:
        return self._peak * self._schedule.factor(self.layout.progress(step), group, self._depth, head=head)


def groups_of(name: str) -> tuple[int, ...]:
    """Return the layer groups whose rates are compared: all that differ."""
    return tuple(range(13)) if isinstance(PUBLISHED[name], LayerFreezing) else (0,)


def largest_difference(name: str, steps: Iterable[int] | None = None) -> float:
    """Return how far a recipe is from its published program, as a share of the peak: in all steps, or in some."""
    config = RECIPES[name].config
    ours, theirs, groups = Ours(config), PUBLISHED[name], groups_of(name)
    differences = (
        abs(ours.rate(step, group) - theirs.rate(ours.epoch(step), group))
        for step in (range(ours.layout.num_steps) if steps is None else steps)
        for group in groups
    )
    return max(differences) / config.run.peak_lr


def draw(path: Path) -> None:
    figure = Figure(figsize=(13, 3.2), layout="constrained", dpi=100)
    columns = figure.subplots(1, 4)
    _draw(columns[0], "mae_vit_base_1600")
    _draw(columns[1], "localmim_vit_base_1600")
    _draw(columns[2], "localmim_vit_base_1600", epochs=(0, 60))
    _draw(columns[3], "vitfreeze_vit_base_published", groups=(0, 6, 12))
    figure.savefig(path)


def _draw(axes: Axes, name: str, *, epochs: tuple[float, float] | None = None, groups: tuple[int, ...] = (0,)) -> None:
    ours, theirs = Ours(RECIPES[name].config), PUBLISHED[name]
    first, last = epochs or (0, theirs.epochs)
    steps = [step for step in range(0, ours.layout.num_steps, 50) if first <= ours.epoch(step) <= last]
    found = [ours.epoch(step) for step in steps]
    for group in groups:
        axes.plot(found, [theirs.rate(epoch, group) for epoch in found], color=_THEIRS, linewidth=6, label="published")
        axes.plot(found, [ours.rate(step, group) for step in steps], color=_OURS, linewidth=1, label="bimkern")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[:2], labels[:2], fontsize=7)
    axes.set_title(name if len(groups) == 1 else f"{name}, groups {', '.join(map(str, groups))}", fontsize=8)
    axes.set_xlabel("epoch", fontsize=8)
    axes.tick_params(labelsize=7)


def main() -> None:
    for name in PUBLISHED:
        print(f"{name:30}{largest_difference(name):.1e} of the peak")
    draw(PICTURE)
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
