"""group_attention: attention within windows of which only some tokens are there, with relative position bias.

Shapes: B images, T tokens, H heads, d channels a head, S plans (1 for all images, or B), G groups of g members, R
relative positions.
"""

from typing import Any

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check
from bimkern.ops.group_windows import WindowGroups

_INPUTS = "Tensor qkv, Tensor table, Tensor members, Tensor windows, Tensor positions, SymInt num_heads, float scale"
_backend.schemas.define(f"group_attention({_INPUTS}) -> Tensor")
_backend.schemas.define(f"group_attention_fwd({_INPUTS}) -> (Tensor, Tensor)")
_backend.schemas.define(f"group_attention_bwd(Tensor grad, Tensor logsumexp, {_INPUTS}) -> (Tensor, Tensor)")
_backend.declare("group_attention", kernels={"cpu": "native", "cuda": "triton"})
_backend.run_by_triton("group_attention_fwd", "group_attention_bwd", module="group_attention")


def group_attention_reference(
    qkv: Tensor, table: Tensor, members: Tensor, windows: Tensor, positions: Tensor, num_heads: int, scale: float
) -> Tensor:
    """Huang et al. 2022 (GreenMIM), section 3.2, with the relative position bias of Liu et al. 2021 (Swin)."""
    B, T, _ = qkv.shape
    real = members >= 0  # [S, G, g]
    ids = members.clamp(min=0).long().flatten(1)  # [S, G*g]
    window, position = (x.gather(1, ids).view_as(members) for x in (windows, positions))
    window = torch.where(real, window, -1)  # what pads a group attends to what pads it: no softmax over nothing
    together = window[..., None] == window[..., None, :]  # [S, G, g, g]
    difference = torch.where(together, position[..., None] - position[..., None, :], 0)
    bias = table[difference + len(table) // 2].movedim(-1, 2)  # [S, G, H, g, g]
    with torch.autocast(qkv.device.type, enabled=False):
        grouped = qkv.gather(1, ids.expand(B, -1)[..., None].expand(-1, -1, qkv.shape[2])).to(table.dtype)
        heads = grouped.unflatten(1, members.shape[1:]).unflatten(-1, (3, num_heads, -1))
        q, k, v = heads.permute(3, 0, 1, 4, 2, 5)  # [B, G, H, g, d] each
        logits = (q @ k.mT * scale + bias).masked_fill(~together[:, :, None], -torch.inf)
        out = (logits.softmax(dim=-1) @ v).transpose(2, 3).flatten(3).flatten(1, 2)  # [B, G*g, H*d]
    slot = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    token = torch.where(real, members, T).flatten(1).long()
    slots = ids.new_zeros(len(ids), T + 1).scatter(1, token, slot)[:, :T]  # of every token
    return out.gather(1, slots.expand(B, -1)[..., None].expand(-1, -1, out.shape[-1])).to(qkv.dtype)


def group_attention(
    qkv: Tensor, table: Tensor, groups: WindowGroups, num_heads: int, *, scale: float | None = None
) -> Tensor:
    """Attend among the tokens of a window, of which any number may be missing.

    No matrix of group x group x heads is kept: the backward pass computes it again, window by window. On a CPU the
    gradients have the same bits for any number of threads, and what pads a group costs nothing.

    Args:
        qkv: [B, T, 3*H*d], float32, float16, bfloat16 or float64: queries, keys and values of the heads, in this order,
            as Swin's linear layer makes them; any strides, fastest with the last dimension contiguous.
        table: [R, H], float32, or float64 where qkv is: bias of each relative position, R = (2*h-1)*(2*w-1) of windows
            of h x w tokens. The arithmetic is done in its dtype.
        groups: which tokens share a window and where they are in it, on the device of qkv, made by group_windows for
            all images (S = 1) or for each (S = B).
        num_heads: H.
        scale: factor of the products of queries and keys; d**-0.5 by default.

    Returns:
        [B, T, H*d], dtype of qkv. Differentiable in qkv and table.

    Raises:
        ValueError, TypeError: a shape, dtype, device or number is off; the message names it.
        RuntimeError: on a CPU, the members are not every token once, or a position is not of the table's window.

    Same as: group_attention_reference.
    Source: Huang et al. 2022 (GreenMIM), section 3.2; Liu et al. 2021 (Swin Transformer), section 3.2.
    """
    plan = groups.members, groups.windows, groups.positions
    width = check.once(_check, (qkv, table, *plan), num_heads)
    factor = width**-0.5 if scale is None else float(scale)
    return _backend.call("group_attention", group_attention_reference, qkv, table, *plan, num_heads, factor)


def _check(qkv: Tensor, table: Tensor, members: Tensor, windows: Tensor, positions: Tensor, num_heads: int) -> int:
    """Check what is given and return the channels of a head."""
    op = "group_attention"
    dims = check.shapes(op, qkv=(qkv, "B T C"))
    if num_heads < 1 or dims["C"] == 0 or dims["C"] % (3 * num_heads):
        raise ValueError(
            f"{op}: qkv must be [B, T, 3*H*d] with H={num_heads} heads of d >= 1 channels, got {list(qkv.shape)}"
        )
    known = {"T": dims["T"], "H": num_heads}
    plan = {"members": (members, "S G g"), "windows": (windows, "S T"), "positions": (positions, "S T")}
    sizes = check.shapes(op, known, table=(table, "R H"), **plan)
    if sizes["R"] % 2 == 0:
        raise ValueError(f"{op}: table must have (2*h-1)*(2*w-1) rows, got {sizes['R']}")
    if sizes["S"] not in (1, dims["B"]):
        raise ValueError(f"{op}: groups must hold 1 plan or B={dims['B']}, got {sizes['S']}")
    if sizes["S"] and sizes["G"] * sizes["g"] < dims["T"]:
        raise ValueError(f"{op}: members must hold all T={dims['T']} tokens, got {list(members.shape)}")
    check.dtypes(op, qkv=(qkv, check.FLOATS))
    check.dtypes(op, table=(table, torch.promote_types(qkv.dtype, torch.float32)))
    check.dtypes(op, **{name: (tensor, torch.int32) for name, (tensor, _) in plan.items()})
    check.same_device(op, qkv=qkv, table=table, **{name: tensor for name, (tensor, _) in plan.items()})
    return dims["C"] // (3 * num_heads)


def _attention(
    qkv: Tensor, table: Tensor, members: Tensor, windows: Tensor, positions: Tensor, num_heads: int, scale: float
) -> Tensor:
    return _backend.run("group_attention_fwd", qkv, table, members, windows, positions, num_heads, scale)[0]


_backend.decompose("group_attention", _attention)


@torch.library.register_fake("bimkern::group_attention_fwd", lib=_backend.schemas)
def _(
    qkv: Tensor, table: Tensor, members: Tensor, windows: Tensor, positions: Tensor, num_heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    B, T, C = qkv.shape
    return qkv.new_empty(B, T, C // 3), table.new_empty(B, num_heads, T)


@torch.library.register_fake("bimkern::group_attention_bwd", lib=_backend.schemas)
def _(grad: Tensor, logsumexp: Tensor, qkv: Tensor, table: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), table.new_empty(table.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.num_heads, ctx.scale = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], *tensors)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("group_attention: no gradients of gradients here; BIMKERN_BACKEND=reference has them")
    if grad is None:
        return (None,) * 7
    grads = _backend.run("group_attention_bwd", grad, *ctx.saved_tensors, ctx.num_heads, ctx.scale)
    return *grads, None, None, None, None, None


_backend.register_autograd("group_attention_fwd", _backward, setup_context=_save)
