"""The layers every model here is made of, and the one precision policy they follow.

Parameters stay float32. Matrix products run in the compute dtype. Normalization statistics, softmax and the residual
stream are float32. No autocast: its lists differ between devices, and memory could not be predicted.

Shapes: B images, T tokens (prefix and patches), D width, H heads, E width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimkern.models.attention import AttentionFn, sdpa
from bimkern.models.attention_maps import AttentionMaps, global_maps
from bimkern.models.drop_path import DropPath
from bimkern.models.encoder import View
from bimkern.models.product import multiply
from bimkern.ops import embed_visible, restore_tokens

LAYER_NORM_EPS = 1e-6
_PRODUCTS = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.modules.conv._ConvNd)  # layers of torch's own


class Linear(nn.Linear):
    """A linear layer whose product runs in compute_dtype (by default that of its weight)."""

    compute_dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        return multiply(x, self.weight, self.bias, self.compute_dtype)


class PatchEmbed(nn.Conv2d):
    """Project the kept patches of images to tokens: embed_visible with the parameters of a convolution.

    A convolution in name and layout, for the sake of published weights.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__(channels, width, kernel_size=patch, stride=patch)
        nn.init.xavier_uniform_(self.weight.view(width, -1))

    def forward(  # type: ignore[override]
        self,
        images: Tensor,
        keep: Tensor,
        pos: Tensor | None = None,
        *,
        prefix: Tensor | None = None,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> Tensor:
        assert self.bias is not None
        options = {"prefix": prefix, "mean": mean, "std": std}
        return embed_visible(images, self.weight, self.bias, keep, pos, **options, dtype=self.compute_dtype)

    def painted(self, color: Tensor) -> Tensor:
        """Return the token [D] of a patch that has one color [1, C, 1, 1] throughout, in normalized pixels."""
        assert self.bias is not None
        return self.weight.sum(dim=(2, 3)) @ color.flatten() + self.bias


def fill_masked(
    visible: Tensor, view: View, token: Tensor, pos: Tensor | None = None, *, num_prefix: int = 0
) -> Tensor:
    """Put visible tokens [B, R+K, D] at their positions among all N, a token [D] at the others, and add pos [N, D]."""
    assert view.keep is not None
    assert view.masked is not None
    token, num_tokens = token.to(visible.dtype), view.grid[0] * view.grid[1]
    if view.keep.shape[1] == num_tokens:  # as many as there are, where images differ in how many are masked
        prefix, patches = visible[:, :num_prefix], visible[:, num_prefix:]
        filled = torch.where(view.masked[..., None] > 0, token, patches)
        return torch.cat([prefix, filled if pos is None else filled + pos], dim=1)
    return restore_tokens(visible, view.keep, token, pos, num_tokens=num_tokens, num_prefix=num_prefix)


class LayerNorm(nn.LayerNorm):
    """Layer normalization in the dtype of its own parameters, whatever comes in."""

    def __init__(self, width: int, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_fn: AttentionFn = sdpa
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return what tokens [B, T, D] find among themselves, or in a context [B, S, D]."""
        return self.proj(self.attention_fn(*self._heads(x, context)).reshape(x.shape))

    def attention_maps(self, x: Tensor, context: Tensor | None = None) -> list[AttentionMaps]:
        """Return the weights by which forward averages values, for analysis."""
        q, k, _ = self._heads(x, context)
        return global_maps(q, k)

    def _heads(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return queries [B, T, H, E], keys and values, each [B, T, H, E] or, in a context, [B, S, H, E]."""
        if context is not None:
            return self._heads_between(x, context)
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)

    def _heads_between(self, x: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        """Return queries of x and keys and values of the context, by the same weights; hooks on qkv do not run."""
        sizes, weight, bias = [x.shape[-1], 2 * x.shape[-1]], self.qkv.weight, self.qkv.bias
        own, others = zip(weight.split(sizes), (None, None) if bias is None else bias.split(sizes), strict=True)
        dtype = getattr(self.qkv, "compute_dtype", None)  # a program's own layer may be in the place of ours
        queries = multiply(x, *own, dtype).unflatten(-1, (self.num_heads, -1))
        keys, values = multiply(context, *others, dtype).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return queries, keys, values


class CrossAttention(nn.Module):
    """Attention of some tokens to others."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_fn: AttentionFn = sdpa
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return what tokens [B, T, D] find in the context [B, K, D]: [B, T, D]."""
        q = self.q(x).unflatten(-1, (self.num_heads, -1))
        k, v = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return self.proj(self.attention_fn(q, k, v).reshape(x.shape))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerLayer(nn.Module):
    """A pre-norm transformer layer.

    Source: Dosovitskiy et al. 2021 (ViT), equations 2 and 3.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.drop_path1 = DropPath()
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path2 = DropPath()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Run tokens [B, T, D], which attend to each other, or to all tokens [B, S, D] of which they are some."""
        others = None if context is None else self.norm1(context)
        x = x + self.drop_path1(self.attn(self.norm1(x), others))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class CrossLayer(nn.Module):
    """A pre-norm transformer layer whose tokens attend to a context, and not to each other.

    Source: Fu et al. 2025, "Rethinking Patch Dependence for Masked Autoencoders" (CrossMAE), section 3.2.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = CrossAttention(width, num_heads)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), context)
        return x + self.mlp(self.norm2(x))


def init_linear(module: nn.Module) -> None:
    """Initialize linear layers as MAE does: Xavier-uniform weights, zero biases. Use with Module.apply."""
    if isinstance(module, Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def set_compute_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Run the matrix products of every module with a compute_dtype in dtype."""
    _set(model, "compute_dtype", dtype)


def set_attention(model: nn.Module, attention_fn: AttentionFn) -> None:
    """Compute attention by attention_fn in every module that has one."""
    _set(model, "attention_fn", attention_fn)


def other_dtype_layers(model: nn.Module) -> list[str]:
    """Name the layers of torch that multiply matrices neither with a compute_dtype nor inside a module that has one."""
    if hasattr(model, "compute_dtype"):
        return []
    names = []
    for name, child in model.named_children():
        inner = [f"{name}.{layer}" for layer in other_dtype_layers(child)]
        multiplies = isinstance(child, _PRODUCTS) and not hasattr(child, "compute_dtype")
        names += [name] if multiplies else inner
    return names


def _set(model: nn.Module, name: str, value: Any) -> None:
    for module in model.modules():
        if hasattr(module, name):
            setattr(module, name, value)


def cross_layer_flops(tokens: int, context: int, width: int, hidden: int) -> int:
    """Count the operations of a CrossLayer's matrix products, as layer_flops does."""
    products = 2 * tokens * (2 * width**2 + 2 * width * hidden) + 2 * context * 2 * width**2
    return products + 4 * tokens * context * width


def layer_flops(tokens: int, width: int, hidden: int) -> int:
    """Count the operations of a transformer layer's matrix products on the tokens of one image, a multiply-add as 2."""
    return 2 * tokens * (4 * width**2 + 2 * width * hidden) + 4 * tokens**2 * width
