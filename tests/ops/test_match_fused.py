"""match_loss in chunks: no worse than the reference in any dtype, layout and size, and an op's other promises."""

import math

import pytest
import torch
from matching import DEFAULT, SCALES, compiler, grads, named, ours, predictions, sample, torchs
from tolerance import assert_no_worse_than_torch

from bimkern.arena import Arena, unusable
from bimkern.ops import backends, match_fused

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
GRID = (DEFAULT["rows"], DEFAULT["columns"])
# Enough images and widths that no error is small, or large, by luck.
MANY = {"B": 48, "rows": 2, "columns": 4, "D": 128, "P": 27}
ODD = [
    *({"B": 0}, {"rows": 0}, {"B": 1, "rows": 2, "columns": 2}, {"B": 7, "rows": 14, "columns": 14}),
    *({"D": 4, "P": 1}, {"D": 36, "P": 5}, {"D": 256, "P": 54}),
]


def grid(dims):
    return dims["rows"], dims["columns"]


def compare(scale, dims, inputs, dtype=None, **options):
    """Compare the loss of the batch and of every image: one number may be right by luck."""
    fused, reference = (f(scale, grid(dims), dtype, **options) for f in (ours, torchs))
    pair = (lambda *args, loss=loss: losses(loss, *args) for loss in (fused, reference))
    assert_no_worse_than_torch(*pair, inputs, grads(scale))


def losses(loss, features, target, mask, *parameters):
    images = zip(features.split(1), target.split(1), mask.split(1), strict=True)
    alone = [loss(*image, *parameters) for image in images]
    return torch.stack([loss(features, target, mask, *parameters), *alone])


@pytest.mark.parametrize("features", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_equals_reference_in_every_dtype(device, scale, dtype, features):
    compare(scale, MANY, sample(device, features, scale, **MANY), dtype)


@pytest.mark.parametrize("scale", SCALES)
def test_equals_reference_in_l1(device, scale):
    features, target, *rest = sample(device, torch.float32, scale, **MANY)
    _, reference = predictions(scale, grid(MANY))
    away = (0.1 + torch.rand_like(target)).copysign(target)  # near a target, a sign would be decided by rounding
    compare(scale, MANY, (features, reference(features, *rest[1:]) + away, *rest), kind="l1")


@pytest.mark.parametrize("scale", SCALES)
def test_equals_reference_in_many_chunks(device, scale, monkeypatch):
    monkeypatch.setattr(match_fused, "CHUNK", 50)
    compare(scale, MANY, sample(device, torch.float32, scale, **MANY))


@pytest.mark.parametrize("scale", SCALES)
def test_predictions_that_need_no_padding(device, scale):
    dims = MANY | {"P": 48}
    compare(scale, dims, sample(device, torch.float32, scale, **dims))


def exactly(scale, dims, inputs, **options):
    """In float64, where the smallest sizes show every mistake, and nothing but mistakes."""
    leaves = [inputs[i].requires_grad_() for i in grads(scale)]
    found, want = (f(scale, grid(dims), **options)(*inputs) for f in (ours, torchs))
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(want, leaves))


@pytest.mark.parametrize("kind", ["l2", "l1"])
@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_odd_sizes(device, scale, odd, kind):
    dims = DEFAULT | odd
    exactly(scale, dims, sample(device, torch.float64, scale, **dims, own=torch.float64), kind=kind)


@pytest.mark.parametrize("masked", [0, 0.1, 1])
@pytest.mark.parametrize("scale", SCALES)
def test_nothing_little_or_everything_masked(device, scale, masked):
    exactly(scale, DEFAULT, sample(device, torch.float64, scale, **DEFAULT, own=torch.float64, masked=masked))


@pytest.mark.parametrize("scale", SCALES)
def test_a_mask_may_hold_any_weights(device, scale):
    features, target, mask, *parameters = sample(device, torch.float64, scale, **DEFAULT, own=torch.float64)
    exactly(scale, DEFAULT, (features, target, mask * torch.rand_like(mask), *parameters))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("scale", SCALES)
def test_what_is_visible_is_not_read(device, scale, bad):
    features, target, mask, *parameters = sample(device, torch.float32, scale, **DEFAULT)
    seen = torch.zeros(GRID, dtype=torch.bool, device=device)
    seen[:2, :2] = True  # a whole square, so that it is seen at half the grid too
    mask = mask.masked_fill(seen.flatten(), 0)
    times = int(scale) if scale > 1 else 1
    finer = seen.repeat_interleave(times, 0).repeat_interleave(times, 1) if scale >= 1 else seen[::2, ::2]
    spoiled = features.clone(), target.clone(), mask
    want = with_gradients(scale, GRID, spoiled, parameters)
    spoiled[0][:, seen.flatten()] = bad
    spoiled[1][:, finer.flatten()] = bad
    found = with_gradients(scale, GRID, spoiled, parameters)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("scale", SCALES)
def test_float64_parameters_get_float64_gradients(device, scale):
    inputs = sample(device, torch.float32, scale, **DEFAULT, own=torch.float64)
    leaves = [inputs[i].requires_grad_() for i in grads(scale)]
    found, want = (torch.autograd.grad(f(scale, GRID)(*inputs), leaves) for f in (ours, torchs))
    for a, b in zip(found, want, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=1e-4, atol=1e-5)


def behind_a_prefix(x):
    return torch.cat([x[:, :1], x], dim=1)[:, 1:]


def transposed(x):
    return x.mT.contiguous().mT


def every_other(x):
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def one_image(x):
    return x[:1].expand_as(x)


@pytest.mark.parametrize("layout", [behind_a_prefix, transposed, every_other, one_image])
@pytest.mark.parametrize("scale", SCALES)
def test_any_strides(device, scale, layout):
    features, target, mask, *parameters = sample(device, torch.float32, scale, **DEFAULT)
    mask = transposed(mask) if layout is transposed else layout(mask.unsqueeze(-1)).squeeze(-1)
    strided = layout(features), layout(target), mask
    contiguous = [x.contiguous() for x in strided]
    found, want = (
        with_gradients(scale, GRID, inputs, [p.clone() for p in parameters]) for inputs in (strided, contiguous)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def with_gradients(scale, grid, inputs, parameters):
    features, target, mask = (x.detach() for x in inputs)
    leaves = [features.requires_grad_(), *(p.requires_grad_() for p in parameters)]
    loss = ours(scale, grid)(features, target, mask, *parameters)
    return loss, *torch.autograd.grad(loss, leaves)


def test_cells_of_a_target_may_lie_apart(device):
    features, target, mask, *parameters = sample(device, torch.float32, 4, **DEFAULT)
    wide = torch.cat([target, target], dim=-1)[..., : target.shape[-1]]
    assert wide.stride(1) == 2 * target.stride(1)
    want = ours(4, GRID)(features, target, mask, *parameters)
    assert torch.equal(ours(4, GRID)(features, wide, mask, *parameters), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_the_same_bits_from_one_thread_or_many(scale, dtype):
    dims = {"B": 16, "rows": 14, "columns": 14, "D": 256, "P": 27}
    features, target, mask, *parameters = sample("cpu", dtype, scale, **dims)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(with_gradients(scale, (14, 14), (features, target, mask), parameters))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_scale_with_that_of_the_loss(device, scale):
    features, target, mask, *parameters = sample(device, torch.float16, scale, **DEFAULT)
    leaves = [features.requires_grad_(), *(p.requires_grad_() for p in parameters)]
    loss = ours(scale, GRID)(features, target, mask, *parameters)
    plain = torch.autograd.grad(loss, leaves, retain_graph=True)
    scaled = torch.autograd.grad(loss * 1024, leaves)
    for a, b in zip(plain[1:], scaled[1:], strict=True):
        torch.testing.assert_close(a * 1024, b)


def test_autocast_leaves_the_gradient_of_features_alone(device):
    features, target, mask, *parameters = sample(device, torch.float32, 4, **DEFAULT)
    loss = ours(4, GRID)(features.requires_grad_(), target, mask, *parameters)
    with torch.autocast(device.type, torch.bfloat16):
        (inside,) = torch.autograd.grad(loss, features, retain_graph=True)
    (outside,) = torch.autograd.grad(loss, features)
    assert torch.equal(inside, outside)


@pytest.mark.skipif(unusable() is not None, reason=f"no arena: {unusable()}")
@pytest.mark.parametrize("features", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_allocations_follow_from_shapes_alone(scale, features):
    """However many cells are masked, in however many chunks: the plan of one step fits every other."""
    arena, dims = Arena(), {"B": 8, "rows": 14, "columns": 14, "D": 32, "P": 27}
    shares = (0.75, 0.5, 1, 0.1, 0.9, 0, 0.75)
    for share in shares:
        values, target, mask, *parameters = sample("cpu", features, scale, **dims, masked=share)
        mask[0] = 0
        values = transposed(values).requires_grad_()
        parameters = [p.requires_grad_() for p in parameters]
        with arena.scope("step"):
            ours(scale, (14, 14), torch.float32)(values, transposed(target), mask, *parameters).backward()
    stats = arena.stats()
    assert (stats.plans, stats.diverged_steps) == (1, 0)
    assert stats.steps == len(shares) - 1


@pytest.mark.skipif(unusable() is not None, reason=f"no arena: {unusable()}")
@pytest.mark.parametrize("scale", SCALES)
def test_masks_that_mask_as_many_cells_allocate_alike_in_bfloat16(scale):
    """There products ask for workspaces that follow their rows; how many squares are masked depends on luck."""
    arena, dims = Arena(), {"B": 8, "rows": 14, "columns": 14, "D": 64, "P": 27}
    for _ in range(8):
        values, *constants = sample("cpu", torch.bfloat16, scale, **dims)
        with arena.scope("step"):
            ours(scale, (14, 14))(values.requires_grad_(), *constants).backward()
    stats = arena.stats()
    assert (stats.plans, stats.diverged_steps) == (1, 0)


@pytest.mark.parametrize("scale", SCALES)
def test_keeps_no_predictions(device, scale):
    """What forward keeps for backward is no larger than gradients of features, layers and a scalar."""
    dims = {"B": 4, "rows": 14, "columns": 14, "D": 32, "P": 27}
    features, target, mask, *parameters = sample(device, torch.float32, scale, **dims)
    kept = {}
    features.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):
        ours(scale, (14, 14))(features, target, mask, *(p.requires_grad_() for p in parameters))
    inputs = {x.data_ptr() for x in (features, target, mask, *parameters)}
    extra = sum(x.nbytes for pointer, x in kept.items() if pointer not in inputs)
    assert extra <= features.nbytes + 3 * sum(p.nbytes for p in parameters) + 4096


@pytest.mark.skipif(backends()["match_loss"]["cpu"].backend != "native", reason="no native library")
@pytest.mark.parametrize("scale", [1, 0.5])
def test_a_linear_layer_keeps_the_errors_of_its_cells_alone(scale):
    """Not a gradient of tokens, which is as large as they are."""
    dims = {"B": 4, "rows": 14, "columns": 14, "D": 256, "P": 3}
    features, target, mask, *parameters = sample("cpu", torch.float32, scale, **dims)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss = ours(scale, (14, 14))(features.requires_grad_(), target, mask, *(p.requires_grad_() for p in parameters))
    assert sum(x.nbytes for x in kept) <= target.nbytes + 3 * sum(p.nbytes for p in parameters)
    first, last = (torch.autograd.grad(loss, [features, *parameters], retain_graph=keep) for keep in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(first, last, strict=True))


def test_the_last_backward_needs_no_second_gradient():
    features, target, mask, *parameters = sample("cpu", torch.float32, 4, **DEFAULT)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        loss = ours(4, GRID)(features.requires_grad_(), target, mask, *parameters)
    (first,) = torch.autograd.grad(loss, features, retain_graph=True)
    (last,) = torch.autograd.grad(loss, features)
    assert torch.equal(first, last)
    assert first.data_ptr() not in kept
    assert last.data_ptr() in kept


def test_a_torch_that_does_not_tell_the_last_backward_keeps_what_was_saved(monkeypatch):
    features, target, mask, *parameters = sample("cpu", torch.float32, 4, **DEFAULT)
    inputs = (features.requires_grad_(), target, mask, *parameters)
    (want,) = torch.autograd.grad(ours(4, GRID)(*inputs), features)
    monkeypatch.setattr(match_fused, "_KEEPS_GRAPH", None)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        loss = ours(4, GRID)(*inputs)
    (got,) = torch.autograd.grad(loss, features)
    assert torch.equal(got, want)
    assert got.data_ptr() not in kept


def test_without_gradients_none_are_made(device):
    features, target, mask, *parameters = sample(device, torch.float32, 4, **DEFAULT)
    want = ours(4, GRID)(features.requires_grad_(), target, mask, *parameters)
    with torch.no_grad():
        got = ours(4, GRID)(features, target, mask, *parameters)
    assert not got.requires_grad
    assert torch.equal(got, want)


def test_gradients_of_gradients_are_refused(device):
    features, target, mask, *parameters = sample(device, torch.float32, 4, **DEFAULT)
    loss = ours(4, GRID)(features.requires_grad_(), target, mask, *parameters)
    with pytest.raises(RuntimeError, match=r"^match_loss: no gradients of gradients here; BIMKERN_BACKEND=reference"):
        torch.autograd.grad(loss, features, create_graph=True)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(device, scale, dtype):
    features, target, mask, *parameters = sample(device, dtype, scale, **DEFAULT)
    layers = [None if p is None else p.requires_grad_() for p in named(scale, parameters)]
    denominator = torch.tensor(5.0, device=device)
    arguments = (features.requires_grad_(), layers, target, mask, scale, *GRID, False, denominator, dtype)
    torch.library.opcheck(torch.ops.bimkern.match_loss, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_compiles_without_graph_break(device, scale, dynamic):
    torch.compiler.reset()  # all cases share one function, and its recompilations are limited
    compiled = torch.compile(ours(scale, GRID), fullgraph=True, dynamic=dynamic, backend=compiler(scale))
    for B in (3, 5):
        features, target, mask, *parameters = sample(device, torch.float32, scale, **DEFAULT | {"B": B})
        leaves = [features.requires_grad_(), *(p.requires_grad_() for p in parameters)]
        got, want = (f(features, target, mask, *parameters) for f in (compiled, ours(scale, GRID)))
        torch.testing.assert_close(got, want)
        for a, b in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
            torch.testing.assert_close(a, b)
