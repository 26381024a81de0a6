"""Random cases of the Triton kernels in the interpreter, against float64 and the bounds of their rounding.

    PYTHONPATH=. python tests/ops/fuzz_triton.py [ROUNDS] [SEED] [OP] [FAILURES]

Stops after so many failures. In a process of its own: an access out of bounds may end it. Shapes: B images, C channels,
N tokens or patches, p patch size, P values a token.
"""

import os
import random
import sys
import traceback

os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are decorated
import random_triton as draw
import torch
from watched_triton import watched

from bimkern.ops import group_windows
from bimkern.ops._triton import group_attention, masked_loss, masked_pixel_loss, pixel_targets
from bimkern.ops.group_attention import group_attention_reference
from bimkern.ops.pixel_targets import pixel_targets_reference

case = ()  # the arguments of the op that runs


def fuzz_group_attention():
    global case
    B, rows, columns, H = draw.sizes(2, 9, 9, 3)
    rows, columns, window = max(rows, 1), max(columns, 1), random.randint(1, 9)
    S, T, d = random.choice([1, B]), random.randint(0, rows * columns), random.choice([1, 3, 8, 16, 20])
    H, dtype = max(H, 1), random.choice(draw.FLOATS)
    wide = torch.promote_types(dtype, torch.float32)
    keep = torch.rand(S, rows * columns).argsort(dim=1)[:, :T].sort(dim=1).values
    groups = group_windows(keep, (rows, columns), window, random.randrange(window), published=random.random() < 0.5)
    relative = (2 * min(window, rows) - 1) * (2 * min(window, columns) - 1)
    table = torch.randn(relative, H).to(wide)
    qkv, grad = draw.strided(torch.randn(B, T, 3 * H * d).to(dtype)), draw.strided(torch.randn(B, T, H * d).to(dtype))
    case = qkv, table, groups.members, groups.windows, groups.positions, H, random.choice([d**-0.5, 0.3])
    with watched():
        out, logsumexp = group_attention.group_attention_fwd(*case)
        grads = group_attention.group_attention_bwd(grad, logsumexp, *case)
    leaves = [x.double().requires_grad_() for x in (qkv, table)]
    want = group_attention_reference(*leaves, *case[2:])
    wanted = want, *torch.autograd.grad(want, leaves, grad.double())
    # The table's gradient is a sum of integers: each of its terms, one of a query at most, is cut off by less than one.
    cut_off = (0, 0, B * T / group_attention._integers_per_unit(grad, qkv, d) if grad.numel() else 0)
    for got, exact, cut in zip((out, *grads), wanted, cut_off, strict=True):
        largest = exact.abs().max() if exact.numel() else torch.tensor(0.0)
        assert_within(got, exact.detach(), 64 * torch.finfo(got.dtype).eps * (1 + largest.detach()) + cut)


def fuzz_masked_loss():
    B, N = draw.sizes(3, 13)
    P, dtype = draw.length(), random.choice(draw.FLOATS)
    wide = torch.promote_types(dtype, torch.float32)
    weight, packed_rows = draw.weights(B, N, wide), random.random() < 0.2
    target, pred = (draw.tokens(B, N, P, kind, packed_rows) for kind in (dtype, draw.prediction(wide)))
    unread = (pred, weight == 0), (target, weight == 0)
    spoil(*unread)
    if random.random() < 0.2:
        pred = pred.mT.contiguous().mT  # whose rows are copied
    check_loss(masked_loss, "masked_loss", (pred, target, weight), (), target.to(wide).double(), 0, unread)


def fuzz_masked_pixel_loss():
    images, statistics, patch, normalize, wide = draw_patches()
    cells = images.unflatten(2, (-1, patch)).unflatten(4, (-1, patch)).permute(0, 2, 4, 1, 3, 5)
    B, rows, columns = cells.shape[:3]
    weight = draw.weights(B, rows * columns, wide)
    pred = draw.tokens(B, rows * columns, images.shape[1] * patch**2, draw.prediction(wide), random.random() < 0.2)
    unread = (pred, weight == 0), (cells, (weight == 0).unflatten(1, (rows, columns)))
    spoil(*unread)
    target, error = exact_targets(images, *statistics, patch, normalize, wide)
    options = *statistics, patch, normalize
    check_loss(masked_pixel_loss, "masked_pixel_loss", (pred, images, weight), options, target, error, unread)


def fuzz_pixel_targets():
    global case
    images, statistics, patch, normalize, wide = draw_patches()
    want, error = exact_targets(images, *statistics, patch, normalize, wide)
    case = images, *statistics, patch, normalize, wide
    with watched():
        got = pixel_targets.pixel_targets(*case)
    assert_within(got, want, error)


def draw_patches():
    """Draw images of whole patches, statistics, the patch size, whether to normalize, and the dtype to compute in."""
    patch = random.choice([1, 2, 3, 4, 5, 7, 14])
    B, C, rows, columns = draw.sizes(2, 4, 2, 2) if patch == 14 else draw.sizes(2, 4, 3, 4)
    C = max(C, 1)
    images = draw.pixels(B, C, rows * patch, columns * patch, random.choice(draw.PIXELS))
    wide = torch.float64 if images.dtype == torch.float64 or random.random() < 0.2 else torch.float32
    return images, draw.statistics(C, wide), patch, C * patch**2 > 1 and random.random() < 0.6, wide


def exact_targets(images, mean, std, patch, normalize, wide):
    """Return the targets in float64, and the error that a value may have in the dtype computed in."""
    mean, std = (None if x is None else x.double() for x in (mean, std))
    raw = pixel_targets_reference(images, mean, std, patch, False, torch.float64)
    shift = 0 if mean is None else (mean / (1 if std is None else std)).abs().max()
    error = 16 * torch.finfo(wide).eps * (raw.abs().amax(-1, keepdim=True) + shift)
    if not normalize:
        return raw, error.expand(raw.shape)
    normalized = pixel_targets_reference(images, mean, std, patch, True, torch.float64)
    deviation = ((raw - raw.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return normalized, error / deviation * (1 + normalized.abs())


def spoil(*unread):
    """Fill what must not be read with NaN."""
    for tensor, mask in unread:
        if tensor.is_floating_point():
            tensor[mask] = torch.nan


def check_loss(module, op, tensors, options, target, error, unread):
    """Hold a loss and its gradient to float64.

    Args:
        target: [B, N, P], float64.
        error: what a value of the target may be off by in the kernel.
    """
    global case
    pred, _, weight = tensors
    wide = torch.finfo(weight.dtype)
    denominator = random.choice([weight.sum(), weight.sum(), torch.rand(()).to(weight.dtype), weight.new_zeros(())])
    absolute, grad = random.random() < 0.5, weight.new_full((), random.choice([1, 60, -60]))
    case = *tensors, denominator, *options, absolute
    with watched(*unread):
        loss, grad_pred = getattr(module, op)(*case), getattr(module, f"{op}_bwd")(grad, *case)

    counts = (weight != 0).unsqueeze(-1)
    difference = torch.where(counts, pred.to(weight.dtype).double() - target, 0)
    error = torch.where(counts, error, 0)
    if absolute:
        values, slope = difference.abs(), difference.sign()
        slope_error, value_error = 2.0 * (difference.abs() < error), error
    else:
        values, slope = difference.square(), 2 * difference
        slope_error, value_error = 2 * error, (2 * difference.abs() + error) * error
    share = (weight / denominator if denominator != 0 else torch.zeros_like(weight)).double().unsqueeze(
        -1
    ) / pred.shape[2]
    want = (share * values).sum()
    assert_within(loss, want, (share * value_error).sum() + 64 * wide.eps * want)
    factor = share * grad.double()
    stored = torch.finfo(pred.dtype)  # bfloat16 is cut off in the interpreter, not rounded
    rounding = (stored.eps + 8 * wide.eps) * (factor * slope).abs() + stored.smallest_normal * stored.eps
    assert_within(grad_pred, factor * slope, factor.abs() * slope_error + rounding)


def assert_within(got, want, error):
    wrong = ~((got.double() - want).abs() <= error)  # NaN is wrong
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(f"{got[at].item()} at {list(at)} in place of {want[at].item()}, {wrong.sum()} are wrong")


OPS = {
    "group_attention": fuzz_group_attention,
    "masked_loss": fuzz_masked_loss,
    "masked_pixel_loss": fuzz_masked_pixel_loss,
    "pixel_targets": fuzz_pixel_targets,
}


SLOW = {"group_attention": 6}  # one of so many rounds, where all ops run


def main(rounds="60", seed=None, only="", most="inf"):
    """Return the number of cases that failed."""
    torch.use_deterministic_algorithms(True)  # which fills what is allocated with NaN
    first = int(seed or os.environ.get("BIMKERN_TEST_SEED") or int.from_bytes(os.urandom(3), "little"))
    failures = 0
    for op in [only] if only else OPS:
        cases = int(rounds) // (1 if only else SLOW.get(op, 1))
        for seed in range(first, first + cases):
            random.seed(seed)
            torch.manual_seed(seed)
            try:
                OPS[op]()
            except Exception:
                failures += 1
                traceback.print_exc(limit=-2)
                print(*map(draw.described, case), sep="\n", file=sys.stderr)
                print(f"repeat it by: fuzz_triton.py 1 {seed} {op}", file=sys.stderr)
                if failures >= float(most):
                    return failures
        print(f"{cases} random cases of {op}, seed {first}")
    print(f"{failures} failed")
    return failures


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:]), 1))
