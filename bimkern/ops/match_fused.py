"""match_loss without predictions in memory: masked cells in chunks, error and gradients of each chunk at once.

Per chunk: gather its rows, multiply (x4: norm and GELU, multiply), take the error and its gradient, and go all the way
back, so that forward leaves finished gradients behind, which backward scales. Products are the library's; the stages
between them are kernels. The last deconvolution and the prediction have nothing between them: their weights are
multiplied instead of the tokens. In float32, scales 1 and 1/2 are one kernel instead: match_linear_loss.

What is allocated follows from shapes alone, so that the memory of a step can be planned, and counted on tensors without
values: buffers are those of CHUNK cells, whatever is masked, and chunks allocate nothing.

Shapes: B images, N = rows x columns cells, n masked ones, D width, E and F widths after the deconvolutions, C width
before the last product (E at x4, else D), P values predicted, S those of a 2x2 square (x1: of a cell) with padding.
"""

import functools
import inspect
from collections.abc import Callable
from operator import itemgetter
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from bimkern.ops import _backend
from bimkern.ops.match_linear import in_float32, pool, refuse_second_gradients

NORM_EPS = 1e-6
CHUNK = 1024  # cells; what a chunk makes stays in the caches, and its products are large enough
BLOCK = 32  # rows summed at a time: kMatchBlock of csrc/ops/match.h
NARROW = 128  # columns of a product up to which ours is faster than the library's
LANES = 16  # the product's columns are a multiple of this: faster, and the same bits from any number of threads

# Whether the backward pass under way keeps its graph: private in torch, so it may be missing.
_KEEPS_GRAPH = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)

_backend.schemas.define(
    "match_loss(Tensor features, Tensor?[] layers, Tensor target, Tensor mask, float scale, int rows, int columns,"
    " bool absolute, Tensor denominator, ScalarType dtype) -> Tensor"
)
_backend.schemas.define("match_masked(Tensor mask, bool every, Tensor(a!) ids) -> int")
_backend.schemas.define("match_rows(Tensor tokens, Tensor cells, Tensor(a!) out) -> ()")
_backend.schemas.define(
    "match_rows_bwd(Tensor grad_rows, Tensor cells, int begin, int end, Tensor(a!) grad_tokens) -> ()"
)
_backend.schemas.define(
    "match_norm(Tensor x, Tensor x_bias, Tensor weight, Tensor bias, float eps, Tensor(a!) out, Tensor(b!) slope,"
    " Tensor(c!) stats) -> ()"
)
_backend.schemas.define(
    "match_norm_bwd(Tensor x, Tensor x_bias, Tensor weight, Tensor slope, Tensor stats, Tensor(a!) grad,"
    " Tensor(b!) sums, Tensor(c!) scratch) -> ()"
)
_backend.schemas.define(
    "match_error(Tensor cells, Tensor weight, Tensor target, Tensor bias, int rows, int columns, int side,"
    " bool absolute, Tensor(a!) pred, Tensor(b!) sums, Tensor(c!) scratch) -> ()"
)


def _fold(last: Tensor | None, last_bias: Tensor | None, pred: Tensor, pred_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Make one product of a deconvolution [C, E, 2, 2] (or none) and a prediction [P, E]: weight [C, S], bias [S]."""
    if last is None or last_bias is None:
        return _padded(pred.T), _padded(pred_bias)
    weight = (last.permute(0, 2, 3, 1) @ _padded(pred.T))[..., : len(pred)].flatten(1)  # [C, 4*P]
    return _padded(weight), _padded((pred_bias + pred @ last_bias).repeat(4))


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.shape[-1] % LANES))


def _loss(
    features: Tensor,
    layers: list[Tensor | None],
    target: Tensor,
    mask: Tensor,
    scale: float,
    rows: int,
    columns: int,
    absolute: bool,
    denominator: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    pred_weight, pred_bias, up1_weight, up1_bias, norm_weight, norm_bias, up2_weight, up2_bias = layers
    assert pred_weight is not None
    assert pred_bias is not None
    if scale <= 1 and dtype == torch.float32:
        layer = in_float32(features, pred_weight, pred_bias)
        with_grads = torch.is_grad_enabled() and any(x.requires_grad for x in layer)
        of_cells = target, mask, denominator, rows, columns, scale < 1, absolute
        return cast(Tensor, _backend.run("match_linear_loss", *layer, *of_cells, with_grads)[0])
    up = up_bias = None
    with torch.autocast(features.device.type, enabled=False):
        if scale < 1:
            mask = _backend.run("scale_mask", mask, rows, columns, 2, 1)
            # What does not count is not read: it may be NaN.
            features = pool(features, mask, rows, columns, dtype)
            rows, columns = rows // 2, columns // 2
        last, last_bias = up1_weight, up1_bias
        if scale == 4:
            assert up1_weight is not None
            up, up_bias = up1_weight.permute(0, 2, 3, 1).flatten(1), up1_bias  # [D, 4*E]
            last, last_bias = up2_weight, up2_bias
        weight, bias = _fold(last, last_bias, pred_weight.flatten(1), pred_bias)
        learned = (features, up, up_bias, norm_weight, norm_bias, weight, bias)
        with_grads = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in learned)
        side = int(max(scale, 1))
        # Of squares of tokens nearly all are masked, and how many depends on luck: products of all have one shape.
        total = _backend.run(
            "match_total", *learned, target, mask, rows, columns, side, absolute, NORM_EPS, dtype, scale < 1, with_grads
        )[0]
    return total / torch.where(denominator == 0, torch.inf, denominator)


_backend.decompose("match_loss", _loss)


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write left @ right, and allocate nothing."""
    if _is_narrow(left, right):
        torch.ops.bimkern.match_product(left, right, None, False, out)
    else:
        torch.mm(left, right, out=out)


def _is_narrow(left: Tensor, right: Tensor) -> bool:
    return left.dtype == torch.float32 and min(left.shape[1], right.shape[1]) <= NARROW


class _Sum:
    """A sum of products in a wider dtype than theirs, or in the same."""

    def __init__(self, rows: int, columns: int, like: Tensor, dtype: torch.dtype) -> None:
        wide = torch.promote_types(dtype, torch.float32)
        self.total = like.new_zeros(rows, columns, dtype=wide)
        widened = dtype != wide
        self._product = like.new_empty(rows, columns, dtype=dtype) if widened else None
        self._wide = like.new_empty(rows, columns, dtype=wide) if widened else None

    def add(self, rows: Tensor, columns: Tensor) -> None:
        """Add rows^T @ columns, and allocate nothing."""
        if self._product is None or self._wide is None:
            if columns.dtype == torch.float32 and columns.shape[1] <= NARROW:
                torch.ops.bimkern.match_product(rows.T, columns, None, True, self.total)
            else:
                torch.addmm(self.total, rows.T, columns, out=self.total)
        else:
            self.total += self._wide.copy_(torch.mm(rows.T, columns, out=self._product))


@torch.library.register_fake("bimkern::match_masked", lib=_backend.schemas)
def _(mask: Tensor, every: bool, ids: Tensor) -> int:
    """Find none: for who counts what match_total allocates, which is the same for any number."""
    return 0


_Totals = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _total(
    features: Tensor,
    up: Tensor | None,
    up_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    mask: Tensor,
    rows: int,
    columns: int,
    side: int,
    absolute: bool,
    eps: float,
    dtype: torch.dtype,
    every: bool,
    with_grads: bool,
) -> _Totals:
    """Return sum(weight * mean_P error) and, with_grads, what the gradients of all that learns are multiples of.

    Cells whose weight is zero are left out, or none, where every one is wanted.
    """
    ops = torch.ops.bimkern
    wide = torch.promote_types(dtype, torch.float32)
    features, target = (x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous() for x in (features, target))
    D, S = features.shape[2], weight.shape[1]

    def buffer(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return features.new_empty(shape, dtype=dtype)

    def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return features.new_zeros(shape, dtype=dtype)

    ids = buffer(mask.numel(), dtype=torch.int64)
    ids = ids[: ops.match_masked(mask, every, ids)]  # [n]
    num_chunks = max(1, -(-len(ids) // CHUNK))
    chunk = -(-len(ids) // num_chunks)

    around_norm = [None if p is None else p.to(wide).contiguous() for p in (up_bias, norm_weight, norm_bias)]
    bias = bias.to(wide)
    last = weight.to(dtype).contiguous()  # [C, S]; a transposed one where nothing was padded
    last_transposed = last.T.contiguous()
    first = None if up is None else up.to(dtype).contiguous()  # [D, 4*E]
    E = 0 if first is None else first.shape[1] // 4
    make = buffer if len(ids) else functools.partial(zeros, dtype=dtype)  # chunks write zeros too, where there are any
    grad_features = make(*features.shape) if with_grads else buffer(0)
    grad_last, grad_first = _Sum(last.shape[0], S, features, dtype), _Sum(D, 4 * E, features, dtype)
    error_sums, norm_sums = zeros(1 + S), zeros(3, E)
    gathered, pred = buffer(CHUNK, D, dtype=features.dtype), buffer(4 * CHUNK if E else CHUNK, S)
    converted = gathered if dtype == features.dtype else buffer(CHUNK, D)
    before_norm, active = buffer(CHUNK, 4 * E), buffer(4 * CHUNK, E)
    slope, stats = buffer(4 * CHUNK, E, dtype=wide), buffer(4 * CHUNK, 2, dtype=wide)
    blocks = -(-4 * CHUNK // BLOCK)
    error_scratch, norm_scratch = (buffer(blocks, width, dtype=torch.float64) for width in (1 + S, 3 * E))
    in_place = every and first is None and features.is_contiguous() and features.dtype == dtype  # rows lie as needed
    for begin in range(0, len(ids), max(1, chunk)):
        end = min(begin + chunk, len(ids))
        n = end - begin
        cells = ids[begin:end]
        if in_place:
            x = reaching = features.view(-1, D)[begin:end]
        else:
            ops.match_rows(features, cells, gathered[:n])
            x = reaching = converted[:n]  # [n, D]
        if x.dtype != gathered.dtype:
            x.copy_(gathered[:n])
        if first is not None:
            torch.mm(x, first, out=before_norm[:n])
            squares, reaching = before_norm[:n].view(4 * n, E), active[: 4 * n]
            ops.match_norm(squares, *around_norm, eps, reaching, slope[: 4 * n], stats[: 4 * n])
        error = pred[: len(reaching)]
        _multiply(reaching, last, error)
        ops.match_error(cells, mask, target, bias, rows, columns, side, absolute, error, error_sums, error_scratch)
        if not with_grads:
            continue
        grad_last.add(reaching, error)
        if in_place:
            _multiply(error, last_transposed, grad_features.view(-1, D)[begin:end])
            continue
        _multiply(error, last_transposed, reaching)
        if first is not None:
            of_norm = slope[: 4 * n], stats[: 4 * n], reaching, norm_sums, norm_scratch
            ops.match_norm_bwd(squares, *around_norm[:2], *of_norm)
            grad_squares = reaching.view(n, 4 * E)
            grad_first.add(x, grad_squares)
            torch.mm(grad_squares, first.T, out=x)
        ops.match_rows_bwd(x, ids, begin, end, grad_features)
    total = (error_sums[0] / target.shape[2]).to(wide)
    if not with_grads:
        return cast(_Totals, (total, *(features.new_empty(0) for _ in range(7))))
    grad_norm_weight, grad_norm_bias, grad_up_bias = norm_sums.to(wide).unbind()
    grads = grad_first.total, grad_up_bias.clone(), grad_norm_weight.clone(), grad_norm_bias.clone()
    return total, grad_features, *grads, grad_last.total, error_sums[1:].to(wide)


# The arguments of match_total are those of _total, written once. Its numbers are no symbols: a graph is for one grid.
_SCHEMA = torch.library.infer_schema(_total, op_name="match_total", mutates_args=()).replace("SymInt", "int")
_backend.schemas.define(_SCHEMA)
_ARGUMENTS = tuple(inspect.signature(_total).parameters)
_LEARNED = 7  # the first of them get gradients
_backend.compose("match_total", _total, "CPU")


def _pick(*names: str) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Return what takes these out of match_total's arguments."""
    return itemgetter(*map(_ARGUMENTS.index, names))


_of_fake = _pick("features", "up", "weight", "bias", "dtype", "with_grads")
_of_gradient = _pick("features", "up", "weight", "target", "absolute", "with_grads")


@torch.library.register_fake("bimkern::match_total", lib=_backend.schemas)
def _(*args: Any) -> tuple[Tensor, ...]:
    features, up, weight, bias, dtype, with_grads = _of_fake(args)
    wide = torch.promote_types(dtype, torch.float32)
    total = features.new_empty((), dtype=wide)
    if not with_grads:
        return total, *(features.new_empty(0) for _ in range(7))
    D, width = features.shape[2], 0 if up is None else up.shape[1]
    shapes = [(D, width), *[(width // 4,)] * 3, tuple(weight.shape), tuple(bias.shape)]
    grads = (features.new_empty(shape, dtype=wide) for shape in shapes)
    return total, features.new_empty(features.shape, dtype=dtype), *grads


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, up, weight, target, absolute, ctx.with_grads = _of_gradient(inputs)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.has_up = up is not None
    ctx.dtypes = features.dtype, weight.dtype
    ctx.factor = (1 if absolute else 2), target.shape[2]  # the derivative's, and that of the mean over P


def _is_last_use(saved: Tensor) -> bool:
    """Return whether what was saved may be overwritten: not under retain_graph, nor while a compiler traces."""
    return _KEEPS_GRAPH is not None and type(saved) in (Tensor, FakeTensor) and not _KEEPS_GRAPH()


def _backward(ctx: Any, grad_total: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    refuse_second_gradients("match_loss")
    if grad_total is None:
        return (None,) * len(_ARGUMENTS)
    assert ctx.with_grads
    features, parameters = ctx.dtypes
    times, length = ctx.factor
    scale = grad_total * times / length
    grad_features, *rest = ctx.saved_tensors
    grads = [grad.to(parameters) * scale.to(parameters) for grad in rest]
    first = grads[:4] if ctx.has_up else [None] * 4
    grad_features = grad_features.to(features)
    if _is_last_use(grad_features):
        grad_features *= scale
    else:
        grad_features = grad_features * scale
    return grad_features, *first, *grads[4:], *[None] * (len(_ARGUMENTS) - _LEARNED)


_backend.register_autograd("match_total", _backward, setup_context=_save)
