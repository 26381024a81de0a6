"""group_attention and its gradients, one head of a group at a time, in tiles that tensor cores multiply.

forward: parallel over images, groups, heads and blocks of queries, with a running softmax over blocks of keys.
backward: parallel over blocks of queries, for their gradients, over blocks of keys, for those of keys and values, and
over blocks of queries, for that of the table; each computes the weights again from the logsumexp.
The table's gradient is a sum of integers, multiples of a share of the largest sum there can be: the same bits in any
order of the atomic additions.

16-bit types are multiplied in TF32, which holds them exactly.

Shapes: B images, T tokens, H heads, d channels a head, S plans, G groups of g members, R relative positions.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bimkern.ops._triton.launch import launch, power_of_2
from bimkern.ops._triton.masked_loss import WIDE
from bimkern.ops._triton.rows import alignment, row_starts, row_strides, with_contiguous_rows

_MAX_BLOCK = 32  # queries or keys: with more, or with fewer warps, kernels spill registers
_MIN_BLOCK = 16  # what tl.dot takes at least; of wide heads and of float64 for the same reason


@triton.jit
def place_of(program, sizes, BLOCK: tl.constexpr):
    """Return image, group and head of a program, and the first slot of its block."""
    _, groups, size, _, heads, _, _ = sizes
    blocks = tl.cdiv(size, BLOCK)
    head = program // blocks % heads
    group = program // (blocks * heads) % groups
    return (program // (blocks * heads * groups), group, head), program % blocks * BLOCK


@triton.jit
def slots_of(plan, sizes, place, first, BLOCK: tl.constexpr):
    """Return token, window and position of slots; -1, -1 and 0 of what pads the group."""
    members, windows, positions = plan
    plans, groups, size, tokens, _, _, _ = sizes
    image, group, _ = place
    s = tl.where(plans == 1, 0, image)
    slot = first + tl.arange(0, BLOCK)
    token = tl.load(members + (s * groups + group) * size + slot, mask=slot < size, other=-1)
    window = tl.load(windows + s * tokens + token, mask=token >= 0, other=-1)
    position = tl.load(positions + s * tokens + token, mask=token >= 0, other=0)
    return token, window, position


@triton.jit
def load_tile(rows, strides, image, token, width, DIM: tl.constexpr, ALIGNMENT: tl.constexpr, WIDE: tl.constexpr):
    """Load rows of one head, [BLOCK, DIM], zero where there are none."""
    starts = row_starts(rows, strides, image.to(tl.int64), token.to(tl.int64), ALIGNMENT)
    columns = tl.arange(0, DIM)
    inside = (token >= 0)[:, None] & (columns < width)[None, :]
    return tl.load(starts[:, None] + columns[None, :], mask=inside, other=0).to(WIDE)


@triton.jit
def store_tile(rows, strides, image, token, width, values, DIM: tl.constexpr, ALIGNMENT: tl.constexpr):
    starts = row_starts(rows, strides, image.to(tl.int64), token.to(tl.int64), ALIGNMENT)
    columns = tl.arange(0, DIM)
    inside = (token >= 0)[:, None] & (columns < width)[None, :]
    tl.store(starts[:, None] + columns[None, :], values.to(rows.dtype.element_ty), mask=inside)


@triton.jit
def load_keys(
    qkv, plan, sizes, strides, place, first,
    BLOCK: tl.constexpr, DIM: tl.constexpr, ALIGNMENT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return the slots of a block, and their keys and values."""
    _, _, _, _, heads, width, _ = sizes
    image, _, head = place
    slots = slots_of(plan, sizes, place, first, BLOCK)
    keys, values = qkv + (heads + head) * width, qkv + (2 * heads + head) * width
    k = load_tile(keys, strides, image, slots[0], width, DIM, ALIGNMENT, WIDE)
    v = load_tile(values, strides, image, slots[0], width, DIM, ALIGNMENT, WIDE)
    return slots, k, v


@triton.jit
def load_queries(
    qkv, plan, grad, logsumexp, sizes, strides, grad_strides, place, first,
    BLOCK: tl.constexpr, DIM: tl.constexpr, ALIGNMENT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return the slots of a block, and their queries, gradients and logsumexp."""
    _, _, _, _, _, width, _ = sizes
    image, _, head = place
    slots = slots_of(plan, sizes, place, first, BLOCK)
    q = load_tile(qkv + head * width, strides, image, slots[0], width, DIM, ALIGNMENT, WIDE)
    g = load_tile(grad + head * width, grad_strides, image, slots[0], width, DIM, ALIGNMENT, WIDE)
    return slots, q, g, load_per_query(logsumexp, sizes, place, slots)


@triton.jit
def load_per_query(numbers, sizes, place, slots):
    """Load numbers of [B, H, T], 0 of what pads the group."""
    _, _, _, tokens, heads, _, _ = sizes
    image, _, head = place
    return tl.load(numbers + (image * heads + head).to(tl.int64) * tokens + slots[0], mask=slots[0] >= 0, other=0)


@triton.jit
def store_per_query(numbers, sizes, place, slots, values):
    _, _, _, tokens, heads, _, _ = sizes
    image, _, head = place
    tl.store(numbers + (image * heads + head).to(tl.int64) * tokens + slots[0], values, mask=slots[0] >= 0)


@triton.jit
def product(a, b, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=WIDE)


@triton.jit
def logits_of(queries, keys, q, k, table, sizes, head, scale, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """Return scaled products plus bias, -inf between windows, and which row of the table each bias is."""
    _, _, _, _, heads, _, relative = sizes
    _, query_windows, query_positions = queries
    _, key_windows, key_positions = keys
    together = query_windows[:, None] == key_windows[None, :]
    index = query_positions[:, None] - key_positions[None, :] + relative // 2
    bias = tl.load(table + index * heads + head, mask=together, other=float("-inf"))
    return product(q, tl.trans(k), PRECISION, WIDE) * scale + bias, index


@triton.jit
def slopes_of(
    queries, keys, q, k, v, g, logsumexp, along, table, sizes, head, scale,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return the weights of the softmax, the gradients of the logits, and which row of the table each bias is.

    along [BLOCK]: of a query, the mean gradient of its weights, weighted by them.
    """
    logits, index = logits_of(queries, keys, q, k, table, sizes, head, scale, PRECISION, WIDE)
    weights = tl.exp(logits - logsumexp[:, None])
    return weights, weights * (product(g, tl.trans(v), PRECISION, WIDE) - along[:, None]), index


@triton.jit
def attend(
    qkv, table, plan, out, logsumexp, sizes, strides, scale, BLOCK: tl.constexpr, DIM: tl.constexpr,
    ALIGNMENT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    _, _, size, tokens, heads, width, _ = sizes
    place, first = place_of(tl.program_id(0), sizes, BLOCK)
    image, _, head = place
    queries = slots_of(plan, sizes, place, first, BLOCK)
    q = load_tile(qkv + head * width, strides, image, queries[0], width, DIM, ALIGNMENT, WIDE)
    largest = tl.full([BLOCK], float("-inf"), WIDE)
    total = tl.zeros([BLOCK], WIDE)
    mixed = tl.zeros([BLOCK, DIM], WIDE)
    for start in range(0, size, BLOCK):
        keys, k, v = load_keys(qkv, plan, sizes, strides, place, start, BLOCK, DIM, ALIGNMENT, WIDE)
        logits, _index = logits_of(queries, keys, q, k, table, sizes, head, scale, PRECISION, WIDE)
        now_largest = tl.maximum(largest, tl.max(logits, axis=1))
        subtracted = tl.where(now_largest == float("-inf"), 0, now_largest)  # a block without the query's window
        weights = tl.exp(logits - subtracted[:, None])
        faded = tl.exp(largest - subtracted)
        total = total * faded + tl.sum(weights, axis=1)
        mixed = mixed * faded[:, None] + product(weights, v, PRECISION, WIDE)
        largest = now_largest
    store_per_query(logsumexp, sizes, place, queries, largest + tl.log(total))
    out_strides = tokens * heads * width, heads * width
    store_tile(out + head * width, out_strides, image, queries[0], width, mixed / total[:, None], DIM, ALIGNMENT)


@triton.jit
def query_grads(
    qkv, table, plan, grad, logsumexp, grad_queries, along_rows, sizes, strides, grad_strides, scale,
    BLOCK: tl.constexpr, DIM: tl.constexpr, ALIGNMENT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store along_rows too, which the other gradients need: see slopes_of."""
    _, _, size, tokens, heads, width, _ = sizes
    place, first = place_of(tl.program_id(0), sizes, BLOCK)
    image, _, head = place
    queries, q, g, total = load_queries(
        qkv, plan, grad, logsumexp, sizes, strides, grad_strides, place, first, BLOCK, DIM, ALIGNMENT, WIDE
    )
    none = tl.zeros([BLOCK], WIDE)
    along = none
    all_weights = none
    # Loads ahead of their iteration would spill registers in float32.
    for start in tl.range(0, size, BLOCK, num_stages=1):
        keys, k, v = load_keys(qkv, plan, sizes, strides, place, start, BLOCK, DIM, ALIGNMENT, WIDE)
        weights, slopes, _index = slopes_of(
            queries, keys, q, k, v, g, total, none, table, sizes, head, scale, PRECISION, WIDE
        )
        along += tl.sum(slopes, axis=1)
        all_weights += tl.sum(weights, axis=1)
    # The weights of a query share the rounding of a large logsumexp, so that their sum is not quite one.
    # It is 0 of what pads the group.
    along = along / tl.where(all_weights == 0, 1, all_weights)
    store_per_query(along_rows, sizes, place, queries, along)
    dq = tl.zeros([BLOCK, DIM], WIDE)
    for start in tl.range(0, size, BLOCK, num_stages=1):
        keys, k, v = load_keys(qkv, plan, sizes, strides, place, start, BLOCK, DIM, ALIGNMENT, WIDE)
        _weights, slopes, _index = slopes_of(
            queries, keys, q, k, v, g, total, along, table, sizes, head, scale, PRECISION, WIDE
        )
        dq += product(slopes, k, PRECISION, WIDE)
    out_strides = tokens * 3 * heads * width, 3 * heads * width
    store_tile(grad_queries + head * width, out_strides, image, queries[0], width, dq * scale, DIM, ALIGNMENT)


@triton.jit
def key_grads(
    qkv, table, plan, grad, logsumexp, along_rows, grad_keys_values, sizes, strides, grad_strides, scale,
    BLOCK: tl.constexpr, DIM: tl.constexpr, ALIGNMENT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    _, _, size, tokens, heads, width, _ = sizes
    place, first = place_of(tl.program_id(0), sizes, BLOCK)
    image, _, head = place
    keys, k, v = load_keys(qkv, plan, sizes, strides, place, first, BLOCK, DIM, ALIGNMENT, WIDE)
    dk = tl.zeros([BLOCK, DIM], WIDE)
    dv = tl.zeros([BLOCK, DIM], WIDE)
    for start in range(0, size, BLOCK):
        queries, q, g, total = load_queries(
            qkv, plan, grad, logsumexp, sizes, strides, grad_strides, place, start, BLOCK, DIM, ALIGNMENT, WIDE
        )
        along = load_per_query(along_rows, sizes, place, queries)
        weights, slopes, _index = slopes_of(
            queries, keys, q, k, v, g, total, along, table, sizes, head, scale, PRECISION, WIDE
        )
        dk += product(tl.trans(slopes), q, PRECISION, WIDE)
        dv += product(tl.trans(weights), g, PRECISION, WIDE)
    out_strides = tokens * 3 * heads * width, 3 * heads * width
    rows = grad_keys_values + head * width
    store_tile(rows, out_strides, image, keys[0], width, dk * scale, DIM, ALIGNMENT)
    store_tile(rows + heads * width, out_strides, image, keys[0], width, dv, DIM, ALIGNMENT)


@triton.jit
def add_to_table(
    qkv, table, plan, grad, logsumexp, along_rows, factor, table_sums, sizes, strides, grad_strides, scale,
    BLOCK: tl.constexpr, DIM: tl.constexpr, ALIGNMENT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    _, _, size, _, _, _, relative = sizes
    place, first = place_of(tl.program_id(0), sizes, BLOCK)
    _, _, head = place
    queries, q, g, total = load_queries(
        qkv, plan, grad, logsumexp, sizes, strides, grad_strides, place, first, BLOCK, DIM, ALIGNMENT, WIDE
    )
    along = load_per_query(along_rows, sizes, place, queries)
    times = tl.load(factor)
    for start in range(0, size, BLOCK):
        keys, k, v = load_keys(qkv, plan, sizes, strides, place, start, BLOCK, DIM, ALIGNMENT, WIDE)
        _weights, slopes, index = slopes_of(
            queries, keys, q, k, v, g, total, along, table, sizes, head, scale, PRECISION, WIDE
        )
        counts = (queries[1][:, None] == keys[1][None, :]) & (queries[0] >= 0)[:, None]
        shares = (slopes.to(tl.float64) * times).to(tl.int64)
        tl.atomic_add(table_sums + head * relative + index, shares, mask=counts, sem="relaxed")


def group_attention_fwd(
    qkv: Tensor, table: Tensor, members: Tensor, windows: Tensor, positions: Tensor, num_heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    qkv, table = with_contiguous_rows(qkv), table.contiguous()
    plan = members.contiguous(), windows.contiguous(), positions.contiguous()
    B, T, C = qkv.shape
    out, logsumexp = qkv.new_empty(B, T, C // 3), table.new_empty(B, num_heads, T)
    programs, sizes, constants = _tiles(members, table, qkv, out)
    if programs:
        launch(attend, programs, qkv, table, plan, out, logsumexp, sizes, row_strides(qkv), scale, **constants)
    return out, logsumexp


def group_attention_bwd(
    grad: Tensor,
    logsumexp: Tensor,
    qkv: Tensor,
    table: Tensor,
    members: Tensor,
    windows: Tensor,
    positions: Tensor,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    qkv, grad, table = with_contiguous_rows(qkv), with_contiguous_rows(grad), table.contiguous()
    plan = members.contiguous(), windows.contiguous(), positions.contiguous()
    grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    programs, sizes, constants = _tiles(members, table, qkv, grad)
    if not programs:
        return grad_qkv, torch.zeros_like(table)
    along_rows = torch.empty_like(logsumexp)
    table_sums = torch.zeros(num_heads, len(table), dtype=torch.int64, device=qkv.device)
    factor = _integers_per_unit(grad, qkv, grad.shape[-1] // num_heads)
    inputs, numbers = (qkv, table, plan, grad, logsumexp), (sizes, row_strides(qkv), row_strides(grad), scale)
    of_queries, of_keys_values = grad_qkv.split((grad.shape[-1], 2 * grad.shape[-1]), dim=-1)
    launch(query_grads, programs, *inputs, of_queries, along_rows, *numbers, **constants)
    launch(key_grads, programs, *inputs, along_rows, of_keys_values, *numbers, **constants)
    launch(add_to_table, programs, *inputs, along_rows, factor, table_sums, *numbers, **constants)
    return grad_qkv, (table_sums.T / factor).to(table.dtype)


def _integers_per_unit(grad: Tensor, qkv: Tensor, width: int) -> Tensor:
    """Return how many integers make 1 in the sums of the table: no sum can reach 2**62. NaN where an input has one.

    A gradient of a logit is weight * (p - sum of weight * p), where p is a product of a row of grad and a row of
    values, and the weights of a query add up to 1.
    """
    largest = torch.linalg.vector_norm(grad, torch.inf).double() * torch.linalg.vector_norm(qkv, torch.inf).double()
    return 2.0**61 / (2 * width * grad.shape[0] * grad.shape[1] * largest).clamp(min=1e-100)


def _tiles(members: Tensor, table: Tensor, qkv: Tensor, rows: Tensor) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """Return how many programs there are, and the sizes and constants of a kernel; rows: [B, T, H*d]."""
    (S, G, g), (R, H), (B, T, C) = members.shape, table.shape, rows.shape
    d = C // H
    dim = max(_MIN_BLOCK, triton.next_power_of_2(d))
    wide = dim > 32 or table.dtype == torch.float64
    block = _MIN_BLOCK if wide else max(_MIN_BLOCK, power_of_2(g, _MAX_BLOCK))
    constants = {
        "BLOCK": block,
        "DIM": dim,
        "ALIGNMENT": alignment(qkv.unflatten(-1, (3, H, d)), rows.unflatten(-1, (H, d))),
        "PRECISION": "tf32" if qkv.itemsize == 2 else "ieee",
        "WIDE": WIDE[table.dtype],
        "num_warps": 8,
    }
    return B * G * H * triton.cdiv(g, block) if T else 0, (S, G, g, T, H, d, R), constants
