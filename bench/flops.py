"""Operations of the matrix products of a training step, and of a whole run whose schedule freezes units."""

from collections import Counter

import torch

from bimkern.mim.masking.random import StageView
from bimkern.mim.model import HeadConfig, Method
from bimkern.mim.schedule import Schedule
from bimkern.models.heads import LinearConfig
from bimkern.models.vit import ViT

FORMULA = """\
operations of an image, a multiply-add being two: of N patches K are visible, T tokens (with cls) enter a stage; D width
of the encoder, d of a decoder, H the hidden one of an MLP; V values of a patch, P predicted of a cell
  transformer block  2 T (4 D^2 + 2 D H) + 4 T^2 D
  embedding          2 K D V, also where all N patches pass the encoder
  decoder            2 T D d for the entry of the tokens that it is shown, its blocks of width d at N + 1 tokens
  its prediction     2 N d P; read at a scale s, of hidden patches alone and layer by layer: 2 s d P each, after 4 d^2
                     at s = 2 and 8 d^2 at s = 4; at s = 1/2 of all cells, N d P / 2 together
  linear head        2 N D P
  a step             3 times the forward pass; the embedding, whose input has no gradient, twice;
                     frozen blocks and a frozen embedding once, the heads of frozen blocks never"""

_STEPS = 10_000  # of the run over which a schedule is read
_PREFIX = ViT.num_prefix


def block_flops(tokens: int, width: int, hidden: int) -> int:
    """Count the forward pass of a transformer block."""
    products = 2 * tokens * (4 * width**2 + 2 * width * hidden)
    attention = 4 * tokens**2 * width
    return products + attention


def prediction_flops(head: HeadConfig, width: int, out_length: int, view: StageView) -> int:
    """Count what makes predictions of a head's features, which are `width` wide."""
    num_tokens = view.hidden.shape[1]
    if isinstance(head, LinearConfig) or head.match_scale is None:
        return 2 * num_tokens * width * out_length
    if head.scale < 1:
        return 2 * int(num_tokens * head.scale**2) * width * out_length
    num_hidden = int(view.hidden.count_nonzero())
    deconvolved = {1: 0, 2: 4 * width**2, 4: 8 * width**2}[int(head.scale)]
    return num_hidden * (deconvolved + 2 * int(head.scale) * width * out_length)


def head_flops(method: Method, stage: int, entering: int, view: StageView) -> int:
    """Count the forward pass of a head, from the tokens of its stage to its predictions."""
    encoder, head = method.encoder, method.head(stage)
    out_length = method.target(stage).length(encoder.channels, encoder.patch, head.scale)
    if isinstance(head, LinearConfig):
        return prediction_flops(head, encoder.width, out_length, view)
    shown = entering if view.decoded is None else view.decoded.shape[1]
    entry = 2 * (shown + _PREFIX) * encoder.width * head.width
    block = block_flops(view.hidden.shape[1] + _PREFIX, head.width, int(head.width * head.mlp_ratio))
    return entry + head.depth * block + prediction_flops(head, head.width, out_length, view)


def step_flops(method: Method, frozen_units: int = 0) -> int:
    """Count the operations of one image in one training step by FORMULA, the first frozen_units units being frozen."""
    encoder, num_stages = method.encoder, len(method.taps)
    views = method.masker.views(torch.zeros(1, dtype=torch.int64), encoder.grid, num_stages, seed=0)
    embedding = 2 * views[0].keep.shape[1] * encoder.width * encoder.channels * encoder.patch**2
    total = embedding * (1 if frozen_units else 2)
    unit = 1  # as a schedule numbers them: the embedding is 0
    counts = method.masker.entering(encoder.grid, num_stages)
    for stage, (tap, entering) in enumerate(zip(method.taps, counts, strict=True)):
        block = block_flops(entering + _PREFIX, encoder.width, int(encoder.width * encoder.mlp_ratio))
        while unit <= tap + 1:
            total += block * (1 if unit < frozen_units else 3)
            unit += 1
        if tap + 1 >= frozen_units:
            total += 3 * head_flops(method, stage, entering, views[stage])
    return total


def freeze_shares(schedule: Schedule, depth: int) -> dict[int, float]:
    """Return for what share of a run how many units are frozen, in the order in which it comes to that."""
    counts = Counter(schedule.frozen_units((i + 0.5) / _STEPS, depth) for i in range(_STEPS))
    return {units: count / _STEPS for units, count in counts.items()}


def run_flops(method: Method, schedule: Schedule) -> float:
    """Count the operations of one image in one training step, averaged over a run."""
    shares = freeze_shares(schedule, method.encoder.depth)
    return sum(share * step_flops(method, units) for units, share in shares.items())
