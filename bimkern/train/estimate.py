"""What a step needs before it is run: counted on fake tensors, which have shapes but neither memory nor arithmetic."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bimkern.data.course import Stretch
from bimkern.mim.flow import MicroBatch, NamedParameters
from bimkern.mim.model import MIM
from bimkern.train import network
from bimkern.train.config import DTYPES, Config
from bimkern.train.memory import LiveBytes


class _FreeGradients:
    """The update of a group as far as memory is concerned."""

    def __init__(self, group: NamedParameters) -> None:
        self._group = group

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def apply(self) -> None:
        for _, parameter in self._group:
            parameter.grad = None


def live_activation_peak(config: Config, kind: Stretch) -> int:
    """Count the most bytes of activations and their gradients that live at once while a micro-batch passes the network.

    Equal to the `live_activation_bytes` that a CPU run without accumulation counts on real tensors, in steps of that
    kind. A GPU's attention kernels may save a little more or less.
    """
    run, side = config.run, kind.image_size
    with FakeTensorMode():
        model = network.build(config)
        network.compute_with(model, DTYPES[run.precision])
        updates = [_FreeGradients(group) for group in config.method.flow.partition(model).values()]
        shape = (kind.micro_batch, config.method.encoder.channels, side, side)
        images, ids = torch.empty(shape, dtype=torch.uint8), torch.empty(shape[0], dtype=torch.int64)
        _build_tables(model, images, ids, run.seed)
        with LiveBytes(model.parameters()) as counter:
            batch = MicroBatch(images, model.views(images, ids, run.seed))
            config.method.flow.step(model, [batch], updates, slices=run.slices)
    return counter.peak


@torch.no_grad()
def _build_tables(model: MIM, images: Tensor, ids: Tensor, seed: int) -> None:
    """Have the model, and its teacher, build what they keep for images of a size, by passing some through."""
    tokens = images
    for stage, view in enumerate(model.views(images, ids, seed)):
        tokens = model.encode(stage, tokens, view)
        model.predict(stage, tokens, view)
    model.targets(range(model.num_stages), images)
