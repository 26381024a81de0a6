"""Whole training steps of recipes, `python -m bench step RECIPE...`, against the usual eager loop where one is written.

Synthetic uint8 images, so that no loader is measured. The learning rate is zero: the arithmetic is the same, and since
no weight moves, losses can be compared at any step.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bench.eager.form import find_form
from bench.eager.loop import usual_loop
from bench.entry import Case, Entry, Measure, Run, register
from bench.flops import FORMULA, step_flops
from bench.refcheck import WrongResult, relative_error
from bench.step_table import table
from bimkern.mim.flow import MicroBatch
from bimkern.mim.masking import StageView
from bimkern.mim.model import MIM
from bimkern.models.layers import set_compute_dtype
from bimkern.recipes import RECIPES
from bimkern.train.config import Config
from bimkern.train.optim import GroupOptimizer

NAME = "step"
_RECIPES, _QUICK_RECIPES = ("mae_vit_base", "bim_vit_base"), ("mae_vit_test", "bim_vit_test")
BASE_RECIPES = tuple(name for name in RECIPES if "_vit_base" in name)
_BATCH, _QUICK_BATCH = {"cpu": 16, "cuda": 256}, 4
_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}  # of matrix products

# Ours and the truth see the same mask; the timed eager loop draws its own, as it always does.
_SAME_MASK = {"float32": 1e-4, "bfloat16": 1e-2}
_OTHER_MASK = 5e-2


def step_entry(recipes: tuple[str, ...], batch_size: int | None) -> Entry:
    """Make the entry for some recipes; without any, for a base model of each kind, and tiny ones for a quick look."""

    def cases(device: torch.device, quick: bool) -> Iterable[Case]:
        batch = batch_size or (_QUICK_BATCH if quick else _BATCH[device.type])
        for recipe in recipes or (_QUICK_RECIPES if quick else _RECIPES):
            dims = {"recipe": recipe, "B": batch}
            yield Case(device=device, dims=dims, dtype=_DTYPE[device.type], pass_name="step")

    options = ["--batch-size", str(batch_size)] if batch_size else []
    return Entry(
        name=NAME,
        summary="A whole training step of a recipe, against the usual eager loop where one is written.",
        cases=cases,
        measure=measure,
        notes=FORMULA,
        closing=table,
        arguments=(*recipes, *options),
    )


class Ours:
    """A recipe's network, optimizers and flow on one batch."""

    def __init__(self, config: Config, case: Case, images: Tensor) -> None:
        self.model = MIM(config.method).to(case.device)
        set_compute_dtype(self.model, case.torch_dtype)
        self._flow, self._images = config.method.flow, images
        self._ids = torch.arange(len(images), device=case.device)
        units = self.model.units() if config.schedule.per_unit else None
        self._updates = [
            GroupOptimizer(name, group, config.optim, device=case.device, fp16=False, units=units)
            for name, group in self._flow.partition(self.model).items()
        ]

    def step(self, slices: int, frozen_units: int = 0) -> Tensor:
        batch = MicroBatch(self._images, self._views())
        return self._flow.step(self.model, [batch], self._updates, slices=slices, frozen_units=frozen_units)

    def losses(self) -> Tensor:
        """Return the losses of the stages [S] as they are defined: a pass forward, every head on the whole batch."""
        tokens, losses = self._images, []
        with torch.no_grad():
            for stage, view in enumerate(self._views()):
                tokens = self.model.encode(stage, tokens, view)
                target = self.model.targets([stage], self._images).get(stage)
                weight = view.hidden.sum()
                losses.append(
                    self.model.loss(stage, tokens, images=self._images, view=view, denominator=weight, target=target)
                )
        return torch.stack(losses)

    def noise(self) -> Tensor:
        """Return noise [B, N] whose order hides the patches that step() hides: those of later stages come first."""
        return torch.stack([view.hidden for view in self._views()]).sum(dim=0)

    def _views(self) -> list[StageView]:
        return self.model.views(self._images, self._ids, seed=0)


def random_images(config: Config, case: Case) -> Tensor:
    """Return uint8 images [B, C, H, W] of the size that a recipe trains on."""
    encoder = config.method.encoder
    shape = (case.dims["B"], encoder.channels, encoder.image_size, encoder.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=case.device)


def measure(case: Case) -> Measure:
    config = RECIPES[case.dims["recipe"]].config
    images = random_images(config, case)
    ours = Ours(config, case, images)
    slices = min(config.run.slices, case.dims["B"])
    rivals: dict[str, Run] = {f"ours, {slices} slices": lambda: ours.step(slices)} if slices > 1 else {}
    parameters = {name: list(ours.model.parameters()) for name in ("ours", *rivals)}
    truth: Run = ours.losses
    if form := find_form(config.method):
        usual, noise = usual_loop(form, config.optim, case.torch_dtype, case.device), ours.noise()
        usual.network.load_state_dict(ours.model.state_dict())
        rivals["eager"] = lambda: usual.step(images)
        parameters["eager"] = list(usual.network.parameters())
        truth = lambda: usual.step(images, noise)  # noqa: E731

    def check(provider: str, got: Any, expected: Tensor) -> None:
        allowed = _OTHER_MASK if provider == "eager" else _SAME_MASK[case.dtype]
        error = relative_error(got, expected)
        if not error <= allowed:
            raise WrongResult(f"{provider}: losses {got.tolist()}, expected {expected.tolist()} within {allowed:.0e}")

    return Measure(
        ours=lambda: ours.step(slices=1),
        rivals=rivals,
        reference=truth,
        check=check,
        parameters=parameters,
        matrix_flops=case.dims["B"] * step_flops(config.method),
        items=case.dims["B"],
    )


register(step_entry((), None))
