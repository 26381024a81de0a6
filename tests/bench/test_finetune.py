"""timm's own step computes what a step of fine-tuning computes."""

from dataclasses import replace

import pytest
import torch

from bench import malloc
from bench.__main__ import main
from bench.eager.timm_loop import TimmLoop, timm_network
from bench.entries.finetune import RECIPES, measure, share_paths
from bench.entry import FLOATS, Case
from bench.finetune_step import NUM_CLASSES, FinetuneStep
from bench.flops import classifier_step_flops
from bench.refcheck import WrongResult
from bimkern.train.memory.allocator import TorchMemory

CPU = torch.device("cpu")


def case(dtype="float32"):
    return Case(device=CPU, dims={"recipe": "vit_test", "B": 4}, dtype=dtype, pass_name="step")


@pytest.mark.parametrize("dtype", FLOATS)
def test_same_loss_on_the_same_draws(dtype):
    made = measure(case(dtype))
    expected = made.reference()
    loss = made.ours()
    made.check("ours", loss, expected)
    made.check("timm", made.rivals["timm"](), expected)
    with pytest.raises(WrongResult, match="ours: losses"):
        made.check("ours", 1.005 * loss, expected)
    with pytest.raises(WrongResult, match="timm: losses"):
        made.check("timm", 1.06 * loss, expected)
    assert torch.equal(made.ours(), loss), "a weight has moved"


def test_same_weights_after_learning(tmp_path):
    """Layer decay, weight decay and what it leaves out are timm's; mixing, erasing and dropped paths are ours."""
    config = replace(RECIPES["vit_test"], drop_path=0.5)
    ours = FinetuneStep(config, case(), base_lr=0.3)
    ours.task.export(tmp_path / "before")
    network = timm_network(tmp_path / "before", drop_path=0.0)
    share_paths(ours.task.model.encoder, network)
    timm = TimmLoop(network, ours.config, NUM_CLASSES, torch.float32)
    rate = ours.task.step(0, [ours.batch], TorchMemory()).lr
    for group in timm.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    timm.train(*ours.augmented())
    ours.task.export(tmp_path / "after")
    after = timm_network(tmp_path / "after", drop_path=0.0).state_dict()
    before = timm_network(tmp_path / "before", drop_path=0.0).state_dict()
    agree = []
    for name, value in network.state_dict().items():
        assert not torch.equal(after[name], before[name]), f"{name} learned nothing"
        agree.append(((value - after[name]).abs() < 1e-2 * rate).flatten())
    # AdamW's first step is the sign of a gradient; where that is zero, as for a key's bias, rounding decides it.
    assert torch.cat(agree).float().mean() > 0.98


def test_operations_of_a_vit_base():
    """As many as timm's README counts for vit_base_patch16_224, 17.6 G multiply-adds, but for what it counts beside."""
    config = replace(RECIPES["mae_vit_base"], num_classes=1000)
    assert classifier_step_flops(config) == pytest.approx(2 * 3 * 17.5e9, rel=0.01)


def test_a_whole_run(monkeypatch, capsys):
    for name, value in malloc.WARM.items():
        monkeypatch.setenv(name, value)
    assert main(["finetune", "--quick", "--process-time", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert all(f"finetune  step  {dtype}  recipe=vit_test B=4" in printed for dtype in FLOATS)
