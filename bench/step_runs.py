"""The step of a recipe, ready to run, and the usual ones where they are written: an eager loop, Hugging Face's ViTMAE."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.eager import hf_loop
from bench.eager.form import find_form
from bench.eager.hf_loop import HfLoop
from bench.eager.loop import Loop, usual_loop
from bench.entry import Case, Run
from bench.training import SAME_MASK, Ours, hold, random_images
from bimkern.train.config.run import Config

EAGER, HF = "eager", "hf"
_OTHER_MASK = 5e-2  # ours and the truth see the same mask; a timed loop of others draws its own, as it always does


@dataclass(frozen=True, kw_only=True)
class StepRuns:
    """Steps of one recipe from the same weights, on the same images."""

    images: Tensor
    ours: Ours
    eager: Loop | None
    hf: HfLoop | None

    @property
    def truth(self) -> Run:
        """Computes the losses that every step must have: by the eager loop, or as they are defined."""
        if self.eager is None:
            return self.ours.losses
        return partial(self.eager.step, self.images, self.ours.noise())

    @property
    def others(self) -> dict[str, tuple[Run, nn.Module]]:
        """The timed steps of others, by name, and the networks that they train."""
        loops: dict[str, Any] = {EAGER: self.eager, HF: self.hf}
        return {name: (partial(loop.step, self.images), loop.network) for name, loop in loops.items() if loop}

    def hf_losses(self) -> Tensor:
        """Compute the losses of ViTMAE on our masks; it sorts noise, so that no two patches may have the same."""
        assert self.hf is not None
        noise = self.ours.noise()
        return self.hf.step(self.images, noise * noise.shape[1] + torch.arange(noise.shape[1], device=noise.device))


def step_runs(config: Config, case: Case, *, with_eager: bool = True, with_hf: bool = False) -> StepRuns:
    """Make the steps of a recipe, and those of others that are wanted where there are any."""
    images = random_images(config, case)
    ours, eager, hf = Ours(config, case, images), None, None
    form = find_form(config.method)
    if form and with_eager:
        eager = usual_loop(form, config.optim, case.torch_dtype, case.device)
        eager.network.load_state_dict(ours.model.state_dict())
    if form and with_hf and hf_loop.has_network(form) and hf_loop.unusable() is None:
        hf = HfLoop(config, ours.model, case.torch_dtype)
    return StepRuns(images=images, ours=ours, eager=eager, hf=hf)


def hold_losses(case: Case, provider: str, got: Tensor, expected: Tensor, *, other_mask: bool) -> None:
    """Hold the losses of a step to the true ones.

    Raises:
        WrongResult: they are off by more than rounding, or than another mask explains.
    """
    hold(provider, got, expected, _OTHER_MASK if other_mask else SAME_MASK[case.dtype])
