"""Training steps of recipes, for the entries that time them: ours on a batch, and entries with a case for every recipe.

Images are random uint8, so that no loader is measured. The learning rate is zero: the arithmetic is the same, and since
no weight moves, losses can be compared at any step.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.entry import Case, Entry, Measure, Measured
from bench.flops import FORMULA
from bench.refcheck import WrongResult, relative_error
from bench.variants import KNOWN
from bimkern.mim import recompute
from bimkern.mim.flow import MicroBatch, ScopeFactory, StepOptions
from bimkern.mim.masking.view import StageView
from bimkern.mim.model import MIM
from bimkern.models.layers import set_compute_dtype
from bimkern.recipes import Recipe
from bimkern.train.config.run import Config
from bimkern.train.optim.group import GroupOptimizer

DTYPE = {"cpu": "float32", "cuda": "bfloat16"}  # of matrix products
SAME_MASK = {"float32": 1e-4, "bfloat16": 1e-2}  # relative error of losses


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What an entry measures where the command line does not say."""

    recipes: tuple[str, ...]
    quick_recipes: tuple[str, ...]
    batch: Mapping[str, int]  # by type of device
    quick_batch: int = 4


def recipe_entry(
    name: str,
    defaults: Defaults,
    recipes: tuple[str, ...],
    batch_size: int | None,
    dtype: str | None = None,
    *,
    summary: str,
    measure: Callable[[Case], Measure],
    closing: Callable[[Measured], str],
    options: Sequence[str] = (),
) -> Entry:
    """Make an entry with a case for every recipe; options are more of the command line that measure knows of."""

    def cases(device: torch.device, quick: bool) -> Iterable[Case]:
        batch = batch_size or (defaults.quick_batch if quick else defaults.batch[device.type])
        for recipe in recipes or (defaults.quick_recipes if quick else defaults.recipes):
            dims = {"recipe": recipe, "B": batch}
            yield Case(device=device, dims=dims, dtype=dtype or DTYPE[device.type], pass_name="step")

    return Entry(
        name=name,
        summary=summary,
        cases=cases,
        measure=measure,
        notes=FORMULA,
        closing=closing,
        arguments=(*recipes, *batch_and_dtype(batch_size, dtype), *options),
    )


def batch_and_dtype(batch_size: int | None, dtype: str | None) -> list[str]:
    """Return the options of a command line for a batch size and dtype; none for the default."""
    batch = [] if batch_size is None else ["--batch-size", str(batch_size)]
    return batch + ([] if dtype is None else ["--dtype", dtype])


def distinct_steps() -> tuple[str, ...]:
    """Name the recipes with steps of their own: the first of those that differ in schedule or length alone.

    Without those that learn from a teacher, which is a file of the user's, and those that take an optional package.
    """
    names: dict[Hashable, str] = {}
    for name, recipe in KNOWN.items():
        if isinstance(recipe, Recipe) and (config := recipe.config).method.distillation is None:
            names.setdefault((config.method, config.optim, config.phases, config.schedule.per_group), name)
    return tuple(names.values())


def config_of(case: Case) -> Config:
    return KNOWN[case.dims["recipe"]].config


def random_images(config: Config, case: Case) -> Tensor:
    """Return uint8 images [B, C, H, W] of the size that a recipe trains on."""
    encoder = config.method.encoder
    shape = (case.dims["B"], encoder.channels, *encoder.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=case.device)


def hold(provider: str, got: Tensor, expected: Tensor, allowed: float) -> None:
    """Hold losses [S] to the true ones.

    Raises:
        WrongResult: they are off by more than is allowed.
    """
    error = relative_error(got, expected)
    if not error <= allowed:
        raise WrongResult(f"{provider}: losses {got.tolist()}, expected {expected.tolist()} within {allowed:.0e}")


class Ours:
    """A recipe's network, optimizers and flow on one batch."""

    def __init__(self, config: Config, case: Case, images: Tensor) -> None:
        self.model = MIM(config.method).to(case.device)
        set_compute_dtype(self.model, case.torch_dtype)
        self._flow, self._images = config.method.flow, images
        ids = torch.arange(len(images))  # on the host, as a loader's: an encoder that plans would wait for a device
        self._ids = ids.pin_memory() if case.device.type == "cuda" else ids
        groups = self.model.layer_groups() if config.schedule.per_group else None
        self._updates = [
            GroupOptimizer(name, group, config.optim, device=case.device, fp16=False, layer_groups=groups)
            for name, group in self._flow.partition(self.model).items()
        ]

    def step(
        self,
        slices: int,
        frozen_groups: int = 0,
        scope: ScopeFactory = nullcontext,
        recomputed: str = recompute.NONE,
    ) -> Tensor:
        self.model.recompute = recomputed
        batch = MicroBatch(self._images, self._views())
        return self._flow.step(
            self.model,
            [batch],
            self._updates,
            StepOptions(slices=slices, frozen_groups=frozen_groups, scope=scope),
        )

    def losses(self) -> Tensor:
        """Return the losses of the stages [S] as they are defined: a pass forward, every head on the whole batch."""
        tokens, losses = self._images, []
        with torch.no_grad():
            for stage, view in enumerate(self._views()):
                tokens = self.model.encode(stage, tokens, view)
                target = self.model.targets([stage], self._images)[stage]
                total = view.masked.sum()
                loss = self.model.loss(stage, tokens, images=self._images, view=view, target=target, denominator=total)
                losses.append(loss)
        return torch.stack(losses)

    def noise(self) -> Tensor:
        """Return noise [B, N] whose order masks what step() masks of the last level's N patches, most stages first."""
        method = self.model.method
        weights = [view.weights(method.grid(stage, view.grid)) for stage, view in enumerate(self._views())]
        return torch.stack(weights).sum(dim=0)

    def _views(self) -> list[StageView]:
        return self.model.views(self._images, self._ids, seed=0)
