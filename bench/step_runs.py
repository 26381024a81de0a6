"""The step of a recipe, ready to run, and the usual eager one where it is written."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from bench.eager.form import find_form
from bench.eager.loop import Loop, usual_loop
from bench.entry import Case, Run
from bench.training import SAME_MASK, Ours, hold, random_images
from bimkern.train.config.run import Config

_OTHER_MASK = 5e-2  # ours and the truth see the same mask; the timed eager loop draws its own, as it always does


@dataclass(frozen=True, kw_only=True)
class StepRuns:
    """Steps of one recipe from the same weights, on the same images."""

    images: Tensor
    ours: Ours
    eager: Loop | None

    @property
    def truth(self) -> Run:
        """Computes the losses that every step must have: by the eager loop, or as they are defined."""
        if self.eager is None:
            return self.ours.losses
        return partial(self.eager.step, self.images, self.ours.noise())

    def run_eager(self) -> Tensor:
        assert self.eager is not None
        return self.eager.step(self.images)


def step_runs(config: Config, case: Case) -> StepRuns:
    images = random_images(config, case)
    ours, eager = Ours(config, case, images), None
    if form := find_form(config.method):
        eager = usual_loop(form, config.optim, case.torch_dtype, case.device)
        eager.network.load_state_dict(ours.model.state_dict())
    return StepRuns(images=images, ours=ours, eager=eager)


def hold_losses(case: Case, provider: str, got: Tensor, expected: Tensor, *, eager: bool) -> None:
    """Hold the losses of a step to the true ones.

    Raises:
        WrongResult: they are off by more than another mask explains, or for ours by more than rounding.
    """
    hold(provider, got, expected, _OTHER_MASK if eager else SAME_MASK[case.dtype])
