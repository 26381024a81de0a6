"""The step of a recipe, ready to run, and the usual ones where they are written: an eager loop, Hugging Face's ViTMAE.

The eager loop is that of MAE's kin or of LocalMIM.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.eager import hf_loop
from bench.eager.form import find_form
from bench.eager.hf_loop import HfLoop
from bench.eager.localmim_loop import LocalMimLoop, has_program
from bench.eager.loop import Loop, usual_loop
from bench.entry import Case, Run
from bench.training import SAME_MASK, Ours, hold, random_images
from bimkern.train.config.run import Config

EAGER, HF = "eager", "hf"
_ROUNDED_TARGETS = 1e-3  # relative, likewise: LocalMIM's program computes HOG from normalized images
# Ours and the truth see the same mask; a timed loop of others draws its own, as it always does. Of one image, that
# moves LocalMIM's losses by 0.04 (rms), others' by less; of B images, by 1/sqrt(B) of it.
_OTHER_MASK = 0.25


@dataclass(frozen=True, kw_only=True)
class StepRuns:
    """Steps of one recipe from the same weights, on the same images."""

    images: Tensor
    ours: Ours
    eager: Loop | LocalMimLoop | None
    hf: HfLoop | None

    @property
    def truth(self) -> Run:
        """Computes the losses that every step must have: by an eager loop of the same targets, or as they are defined.

        LocalMIM's program takes its targets from normalized images, whose rounding moves pixels between bins.
        """
        if not isinstance(self.eager, Loop):
            return self.ours.losses
        return partial(self.eager.step, self.images, self.ours.noise())

    @property
    def others(self) -> dict[str, tuple[Run, nn.Module]]:
        """The timed steps of others, by name, and the networks that they train."""
        return {name: (partial(loop.step, self.images), loop.network) for name, loop in self._loops.items()}

    def hold(self, case: Case, provider: str, got: Tensor, expected: Tensor, *, other: str = "") -> None:
        """Hold the losses of a step to the true ones; those of another, by its name in others, on our mask too.

        Raises:
            WrongResult: they are off by more than rounding, or than another mask explains.
        """
        if not other:
            hold(provider, got, expected, SAME_MASK[case.dtype])
            return
        wanted = expected if got.shape == expected.shape else expected.sum()[None]
        hold(provider, got, wanted, _OTHER_MASK / len(self.images) ** 0.5 + SAME_MASK[case.dtype])
        if other == EAGER and isinstance(self.eager, Loop):
            return  # it is the truth
        allowed = _ROUNDED_TARGETS if other == EAGER else 0.0
        hold(f"{provider} on our mask", self.on_our_mask(other), wanted, max(allowed, SAME_MASK[case.dtype]))

    def on_our_mask(self, other: str) -> Tensor:
        """Compute the losses of another step on our masks."""
        noise = self.ours.noise()  # some sort it unstably: no two patches may have the same
        distinct = noise * noise.shape[1] + torch.arange(noise.shape[1], device=noise.device)
        losses: Tensor = self._loops[other].step(self.images, distinct)
        return losses

    @property
    def _loops(self) -> dict[str, Any]:
        loops = {EAGER: self.eager, HF: self.hf}
        return {name: loop for name, loop in loops.items() if loop is not None}


def step_runs(config: Config, case: Case, *, with_eager: bool = True, with_hf: bool = False) -> StepRuns:
    """Make the steps of a recipe, and those of others that are wanted where there are any."""
    images = random_images(config, case)
    ours, form = Ours(config, case, images), find_form(config.method)
    eager: Loop | LocalMimLoop | None = None
    hf = None
    if form and with_eager:
        eager = usual_loop(form, config.optim, case.torch_dtype, case.device)
        eager.network.load_state_dict(ours.model.state_dict())
    elif with_eager and has_program(config.method):
        eager = LocalMimLoop(config, ours.model, case.torch_dtype)
    if form and with_hf and hf_loop.has_network(form) and hf_loop.unusable() is None:
        hf = HfLoop(config, ours.model, case.torch_dtype)
    return StepRuns(images=images, ours=ours, eager=eager, hf=hf)
