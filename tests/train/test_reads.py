"""A run never waits for its device to be told a number, but at the steps that are known for it."""

import pytest
import torch
from growing import write_photos
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bimkern.pretrain import main
from bimkern.train.pretraining import Pretraining

pytestmark = pytest.mark.usefixtures("without_pictures")

# What gives Python a number, or the host an array, of a tensor.
READS = {
    *(Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__),
    *(Tensor.cpu, Tensor.numpy, Tensor.nonzero, torch.nonzero, torch.equal, Tensor.__format__),
}


class Reads(TorchFunctionMode):
    """Note in which steps a tensor is read, whichever it is."""

    def __init__(self):
        super().__init__()
        self.step, self.found = 0, set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in READS:
            self.found.add(self.step)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("recipe", ["mae_vit_test", "bim_vit_test", "vitfreeze_vit_test", "simmim_vit_test"])
def test_losses_and_gradients_are_read_at_logged_steps_and_every_tenth(
    device, tmp_path, monkeypatch, recipe, precision
):
    reads, plain = Reads(), Pretraining.step

    def step(self, index, batch, memory):
        reads.step = index + 1
        return plain(self, index, batch, memory)

    monkeypatch.setattr(Pretraining, "step", step)
    photos = write_photos(tmp_path / "photos", count=8)
    given = ("--data", photos, "--out", tmp_path / "run", "--device", device, "--precision", precision)
    with reads:
        main([recipe, *map(str, given), "--loader", "pil", "--workers", "0", "--steps", "25", "--log-every", "7"])
    # 10 and 20: whether gradients are finite. 25: the last, which is logged and saved.
    assert reads.found - {0} == {1, 7, 10, 14, 20, 21, 25}
