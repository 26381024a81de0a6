"""Operations of the matrix products of a training step, and of a whole run whose schedule freezes layers."""

from collections import Counter

import torch

from bimkern.mim.model import Method
from bimkern.mim.operations import head_flops
from bimkern.mim.schedule import resolve
from bimkern.models.encoder import CountsOperations
from bimkern.train.config.finetuning import FinetuneConfig
from bimkern.train.config.run import Config

FORMULA = """\
operations of an image, a multiply-add being two: of N patches K are visible, T tokens (with cls) enter a stage; D width
of the encoder, d of a decoder, H the hidden width of an MLP; V values of a patch, P predicted of a cell
  transformer layer  2 T (4 D^2 + 2 D H) + 4 T^2 D
  Swin layer         2 T (4 D^2 + 2 D H) + 4 T t D for t tokens of a window, as if they were spread evenly;
                     behind the last of a stage, merging to width 2 D: 4 T D^2
  embedding          2 K D V, also where all N patches pass the encoder
  decoder            2 T D d for the entry of the tokens that it is shown, its layers of width d at N + 1 tokens; the
                     last computes only keys and values, 4 (N + 1) d^2, of all, and the rest of the N - K masked ones
  its prediction     2 (N - K) d P; at a scale s layer by layer: 2 s d P for each masked patch, after 4 d^2
                     at s = 2 and 8 d^2 at s = 4; at s = 1/2 of all cells, N d P / 2 together
  linear head        2 N D P
  a step             3 times the forward pass; the embedding, whose input has no gradient, twice;
                     frozen layers and a frozen embedding once, the heads of frozen layers never"""

_STEPS = 10_000  # of the run over which a schedule is read


def step_flops(method: Method, frozen_groups: int = 0) -> int:
    """Count the operations of one image in one training step by FORMULA, the first frozen_groups being frozen."""
    encoder, num_stages = method.encoder, len(method.taps)
    if not isinstance(encoder, CountsOperations):
        raise ValueError(f"step_flops: {type(encoder).__name__} must have embedding_flops() and layer_flops()")
    grid = encoder.level(0).grid(*encoder.image_size)
    views = method.views(torch.zeros(1, dtype=torch.int64), grid, seed=0)
    total = encoder.embedding_flops(views[0].keep.shape[1]) * (1 if frozen_groups else 2)
    layer = 0
    counts = method.masker.entering(grid, num_stages)
    for stage, (tap, entering) in enumerate(zip(method.taps, counts, strict=True)):
        while layer <= tap:
            total += encoder.layer_flops(layer, entering) * (1 if layer + 1 < frozen_groups else 3)
            layer += 1
        if tap + 1 >= frozen_groups:
            total += 3 * head_flops(method, stage, views[stage])
    return total


def classifier_step_flops(config: FinetuneConfig) -> int:
    """Count the operations of one image in one step of fine-tuning by FORMULA, with a linear layer of one token."""
    encoder = config.known_encoder
    assert isinstance(encoder, CountsOperations)
    assert config.num_classes is not None
    rows, columns = encoder.level(0).grid(*encoder.image_size)
    patches = rows * columns
    layers = sum(encoder.layer_flops(layer, patches) for layer in range(encoder.depth))
    head = 2 * encoder.level(encoder.depth).width * config.num_classes
    return 2 * encoder.embedding_flops(patches) + 3 * (layers + head)


def freeze_shares(config: Config) -> dict[int, float]:
    """Return the shares of a run at which each number of layer groups is frozen, in the order of the run."""
    run, depth = config.run, config.method.encoder.depth
    schedule = resolve(config.schedule, run.epochs, run.peak_lr)
    counts = Counter(schedule.frozen_groups((i + 0.5) / _STEPS, depth) for i in range(_STEPS))
    return {groups: count / _STEPS for groups, count in counts.items()}


def run_flops(config: Config) -> float:
    """Count the operations of one image in one training step, averaged over a run."""
    return sum(share * step_flops(config.method, groups) for groups, share in freeze_shares(config).items())
