"""embed_visible: patch embedding of the kept patches alone, straight from uint8 or float images.

Two kernels and the library's matrix product between them: `visible_patches` cuts the kept patches out, normalizes them
and makes rows of them; `add_embeddings` turns the product of these rows and the weight into tokens. Backward cuts the
patches again, which costs less than keeping them.

Shapes: B images, C channels, H W pixels, p patch size, R prefix tokens, N patches, K kept patches, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check
from bimkern.ops.gather_tokens import gather_tokens_reference

_backend.schemas.define(
    "embed_visible(Tensor images, Tensor weight, Tensor bias, Tensor keep, Tensor? pos, Tensor? prefix, Tensor? mean,"
    " Tensor? std, ScalarType dtype) -> Tensor"
)
_backend.schemas.define(
    "visible_patches(Tensor images, Tensor keep, Tensor? mean, Tensor? std, int patch, ScalarType dtype) -> Tensor"
)
_backend.schemas.define(
    "add_embeddings(Tensor product, Tensor bias, Tensor keep, Tensor? pos, Tensor? prefix) -> Tensor"
)
_backend.declare("embed_visible", kernels={"cpu": "native", "cuda": "native"})

PARAMETERS = (torch.float32, torch.float64)


def _no_autocast(images: Tensor) -> torch.autocast:
    """Keep the products in the dtype that was asked for."""
    return torch.autocast(images.device.type, enabled=False)


def embed_visible_reference(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    keep: Tensor,
    pos: Tensor | None,
    prefix: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Dosovitskiy et al. 2021 (ViT), equation 1, then a subset of the patches as in He et al. 2022 (MAE), section 3.

    The convolution is written as a product: on a GPU, torch's convolutions in float32 run in TF32.
    """
    B, C, H, W = images.shape
    p = weight.shape[-1]
    pixels = images.to(torch.promote_types(dtype, torch.float32))
    if images.dtype == torch.uint8:
        pixels = pixels / 255
    if mean is not None:
        pixels = pixels - mean.view(-1, 1, 1)
    if std is not None:
        pixels = pixels / std.view(-1, 1, 1)
    cells = pixels.to(dtype).reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)
    patches = cells.flatten(3).flatten(1, 2)  # [B, N, C*p*p]
    with _no_autocast(images):
        product = F.linear(patches, weight.flatten(1).to(dtype))
    tokens = product.to(weight.dtype) + bias  # [B, N, D]
    kept = gather_tokens_reference(tokens, keep, pos)  # [B, K, D]
    return kept if prefix is None else torch.cat([prefix.expand(B, -1, -1), kept], dim=1)  # [B, R+K, D]


def embed_visible(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    keep: Tensor,
    pos: Tensor | None = None,
    *,
    prefix: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Normalize and project the kept patches of each image, add their positions, and put prefix tokens in front.

    Args:
        images: [B, C, H, W], uint8, float32, float16, bfloat16 or float64, H and W multiples of p; any strides, fastest
            with W contiguous. uint8 is divided by 255.
        weight: [D, C, p, p], float32 or float64, as that of a convolution with stride p.
        bias: [D], dtype of weight.
        keep: [B, K], int64 ids in [0, N), in any order, none twice in an image; 0 <= K <= N. On a CPU the values are
            checked; on a GPU with BIMKERN_DEBUG=1. Otherwise the CUDA kernels wait for no check: an id out of
            range makes NaN of its row, and of the gradients of weight, pos and all pixels of its image; a repeated id
            of the gradients of pos and its patch. Those of bias and prefix stay finite. The reference is plain torch
            there: it asserts on the device, and adds up the gradients of a repeated id.
        pos: [N, D], dtype of weight. None adds nothing.
        prefix: [R, D], dtype of weight, the same for every image; gets no position. None: R is 0.
        mean, std: [C], dtype of weight, of pixels in [0, 1] for uint8. Pixels become (pixel - mean) / std in float32
            (float64 where dtype is). None stands for 0 and 1. They get no gradient, and must not require one.
        dtype: of the matrix product, under torch.autocast too: that of weight by default, or float32, float16,
            bfloat16, float64. Positions, bias and prefix are added in the dtype of weight.

    Returns:
        [B, R+K, D], dtype of weight. Differentiable in weight, bias, pos, prefix and floating images.

    Raises:
        ValueError: a shape, a size or a device is off, or mean or std requires a gradient; the message names it.
        TypeError: a dtype is off.
        RuntimeError: an id is out of range or repeated (on a CPU, or with BIMKERN_DEBUG=1).

    Same as: embed_visible_reference.
    Source: Dosovitskiy et al. 2021 (ViT), equation 1; He et al. 2022 (MAE), section 3 "MAE encoder".
    """
    dtype = weight.dtype if dtype is None else dtype
    num_tokens = check.once(_check, (images, weight, bias, keep, pos, prefix, mean, std), dtype)
    normal = torch.promote_types(dtype, torch.float32)
    mean, std = (None if values is None else values.to(normal) for values in (mean, std))
    args = images, weight, bias, keep, pos, prefix, mean, std, dtype
    return _backend.call("embed_visible", embed_visible_reference, *args, ids=("keep", keep, num_tokens))


def _check(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    keep: Tensor,
    pos: Tensor | None,
    prefix: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
) -> int:
    """Check what embed_visible takes and return N."""
    op = "embed_visible"
    dims = check.shapes(op, weight=(weight, "D C p p"), images=(images, "B C H W"), keep=(keep, "B K"))
    patch, height, width = dims["p"], dims["H"], dims["W"]
    if patch < 1 or height % patch or width % patch:
        raise ValueError(
            f"{op}: images must be [B, C, H, W] with H and W multiples of patch={patch}, got {list(images.shape)}"
        )
    num_tokens = (height // patch) * (width // patch)
    known = {"N": num_tokens, "C": dims["C"], "D": dims["D"]}
    check.shapes(
        op, known, bias=(bias, "D"), pos=(pos, "N D"), prefix=(prefix, "R D"), mean=(mean, "C"), std=(std, "C")
    )
    if dims["K"] > num_tokens:
        raise ValueError(f"{op}: keep must hold at most N={num_tokens} ids per image, got K={dims['K']}")
    own = weight.dtype
    check.dtypes(op, images=(images, (torch.uint8, *check.FLOATS)), weight=(weight, PARAMETERS))
    check.dtypes(op, bias=(bias, own), keep=(keep, torch.int64), pos=(pos, own), prefix=(prefix, own))
    check.dtypes(op, mean=(mean, own), std=(std, own))
    if dtype not in check.FLOATS:
        raise TypeError(f"{op}: dtype must be float32, float16, bfloat16 or float64, got {dtype}")
    check.same_device(
        op, images=images, weight=weight, bias=bias, keep=keep, pos=pos, prefix=prefix, mean=mean, std=std
    )
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and values.requires_grad:
            raise ValueError(f"{op}: {name} must not require a gradient, got requires_grad=True")
    return num_tokens


def _forward(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    keep: Tensor,
    pos: Tensor | None,
    prefix: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    patches = torch.ops.bimkern.visible_patches(images, keep, mean, std, weight.shape[-1], dtype)  # [B, K, C*p*p]
    with _no_autocast(images):
        product = F.linear(patches, weight.flatten(1).to(dtype))  # [B, K, D]
    return torch.ops.bimkern.add_embeddings(product, bias, keep, pos, prefix)  # [B, R+K, D]


_backend.compose("embed_visible", _forward, "CPU", "CUDA")


@torch.library.register_fake("bimkern::embed_visible", lib=_backend.schemas)
def _(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    keep: Tensor,
    pos: Tensor | None,
    prefix: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    num_prefix = 0 if prefix is None else prefix.shape[0]
    return weight.new_empty(images.shape[0], num_prefix + keep.shape[1], weight.shape[0])


@torch.library.register_fake("bimkern::visible_patches", lib=_backend.schemas)
def _(
    images: Tensor,
    keep: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    patch: int,
    dtype: torch.dtype,
) -> Tensor:
    return images.new_empty(*keep.shape, images.shape[1] * patch * patch, dtype=dtype)


@torch.library.register_fake("bimkern::add_embeddings", lib=_backend.schemas)
def _(product: Tensor, bias: Tensor, keep: Tensor, pos: Tensor | None, prefix: Tensor | None) -> Tensor:
    num_prefix = 0 if prefix is None else prefix.shape[0]
    return bias.new_empty(product.shape[0], num_prefix + keep.shape[1], product.shape[2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, weight, _bias, keep, pos, prefix, mean, std, dtype = inputs
    ctx.save_for_backward(images, weight, keep, mean, std)
    ctx.num_tokens = None if pos is None else pos.shape[0]
    ctx.num_prefix = 0 if prefix is None else prefix.shape[0]
    ctx.dtype = dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    images, weight, keep, mean, std = ctx.saved_tensors
    R, patch = ctx.num_prefix, weight.shape[-1]
    wants_images, wants_weight, wants_bias, _, wants_pos, wants_prefix, *_ = ctx.needs_input_grad
    grad_images = grad_weight = grad_bias = grad_pos = grad_prefix = None
    rows = grad[:, R:].to(ctx.dtype).flatten(0, 1)  # [B*K, D]
    if wants_weight:
        patches = _backend.run("visible_patches", images, keep, mean, std, patch, ctx.dtype)
        with _no_autocast(images):
            product = rows.T @ patches.flatten(0, 1)  # [D, C*p*p]
        grad_weight = product.to(weight.dtype).view_as(weight)
    if wants_images:
        with _no_autocast(images):
            grad_patches = (rows @ weight.flatten(1).to(ctx.dtype)).unflatten(0, keep.shape)
        grad_images = _lay_out(grad_patches, keep, patch, images, std)
    if wants_pos:
        grad_pos = _backend.run("gather_tokens_bwd_pos", grad, keep, ctx.num_tokens, R)
    if wants_bias or wants_prefix:
        sums = grad.sum(0)  # [R+K, D]; whole, since sums over slices of a tensor are many times slower
        grad_bias, grad_prefix = sums[R:].sum(0), sums[:R].clone()
    return grad_images, grad_weight, grad_bias, None, grad_pos, grad_prefix if wants_prefix else None, None, None, None


def _lay_out(grad_patches: Tensor, keep: Tensor, patch: int, images: Tensor, std: Tensor | None) -> Tensor:
    """Put the gradients of normalized patches [B, K, C*p*p] where their pixels are; zero elsewhere."""
    B, C, H, W = images.shape
    rows, columns = H // patch, W // patch
    cells = _backend.run("gather_tokens_bwd", grad_patches, keep, rows * columns, 0, 1)  # [B, N, C*p*p]
    pixels = cells.view(B, rows, columns, C, patch, patch).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)
    return (pixels if std is None else pixels / std.view(-1, 1, 1)).to(images.dtype)


_backend.register_autograd("embed_visible", _backward, setup_context=_save)


# Backward cuts the patches again: without this the second backward pass would take them for constants.
def _save_patches(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, keep, _mean, std, ctx.patch, _dtype = inputs
    ctx.save_for_backward(images, keep, std)


def _backward_patches(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    images, keep, std = ctx.saved_tensors
    return _lay_out(grad, keep, ctx.patch, images, std), None, None, None, None, None


_backend.register_autograd("visible_patches", _backward_patches, setup_context=_save_patches)
