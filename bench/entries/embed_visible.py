"""embed_visible against a convolution of the whole image, and against its own matrix products alone."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import inputs, shapes
from bench.entry import Case, Measure, entry
from bench.refcheck import equal_up_to_rounding
from bimkern.ops.embed_visible import embed_visible, embed_visible_reference


class Embedding:
    """Parameters and inputs of one case, uint8 images, and what its rivals make of them."""

    def __init__(self, case: Case) -> None:
        self.dtype, self.device = case.torch_dtype, case.device
        B, N, D, p = (case.dims[letter] for letter in "BNDp")
        side = math.isqrt(N) * p
        self.patch = p
        self.images = torch.randint(0, 256, (B, 3, side, side), dtype=torch.uint8, device=case.device)
        self.keep = inputs.keep(case)
        self.weight, self.bias, self.cls = self.draw(D, 3, p, p), self.draw(D), self.draw(1, D)
        self.pos = self.draw(N, D).detach()
        self.mean, self.std = self.draw(3).detach(), self.draw(3).detach().abs() + 0.2

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, requires_grad=True)  # parameters are float32

    def normalized(self, pixels: Tensor) -> Tensor:
        """Normalize [..., C, rows, columns]."""
        return ((pixels / 255 - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)).to(self.dtype)

    def finished(self, kept: Tensor) -> Tensor:
        tokens = kept.to(self.weight.dtype) + self.bias + self.pos[self.keep]
        return torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)

    def ours(self) -> Tensor:
        options: Any = {"prefix": self.cls, "mean": self.mean, "std": self.std, "dtype": self.dtype}
        return embed_visible(self.images, self.weight, self.bias, self.keep, self.pos, **options)

    def convolve_and_gather(self) -> Tensor:
        """The usual form: everything is normalized and projected, then most of it dropped."""
        grid = F.conv2d(self.normalized(self.images), self.weight.to(self.dtype), stride=self.patch)
        tokens = grid.flatten(2).mT
        return self.finished(tokens.gather(1, self.keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])))

    def visible(self) -> Tensor:
        """The best form in plain torch: visible patches are picked first."""
        B, p, side = len(self.images), self.patch, self.images.shape[-1] // self.patch
        cells = self.images.view(B, 3, side, p, side, p).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [B, N, C, p, p]
        rows = self.normalized(cells[torch.arange(B, device=self.device)[:, None], self.keep]).flatten(2)
        return self.finished(F.linear(rows, self.weight.flatten(1).to(self.dtype)))

    def reference_arguments(self) -> tuple[Any, ...]:
        parameters = (self.weight, self.bias, self.keep, self.pos, self.cls)
        return self.images, *parameters, self.mean, self.std, self.dtype


class Products(torch.autograd.Function):
    """The products of an embedding, forward and for the weight, on rows that are there; its result has a shape only."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _weight, bias, cls, kernel, rows, grad, shape = inputs
        ctx.operands = bias, cls, rows, grad
        return F.linear(rows, kernel).new_zeros(1).expand(shape)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        bias, cls, rows, grad = ctx.operands
        return grad.T @ rows, torch.zeros_like(bias), torch.zeros_like(cls), None, None, None, None


@entry("embed_visible", shapes=shapes.EMBED)
def measure(case: Case) -> Measure:
    """Embed the kept patches of uint8 images; "products" is its ceiling, the matrix products alone."""
    B, K, D, p = (case.dims[letter] for letter in "BKDp")
    length = 3 * p * p
    embedding = Embedding(case)
    kernel, rows, grad = (
        inputs.floats(case, *shape, grad=False) for shape in (("D", length), (B * K, length), (B * K, "D"))
    )
    compiled = case.compiled(embed_visible_reference)

    def products() -> Tensor:
        weight = embedding.weight.flatten(1)
        return Products.apply(weight, embedding.bias, embedding.cls, kernel, rows, grad, (B, 1 + K, D))

    def rounded(output: Any) -> list[Tensor]:
        """Everything is float32 but the products, so their dtype says how exact a result can be."""
        return [x.to(case.torch_dtype) for x in (output if isinstance(output, tuple) else (output,))]

    def check(provider: str, got: Any, expected: Any) -> None:
        if provider != "products":
            equal_up_to_rounding(provider, rounded(got), rounded(expected))

    # Kept pixels and weight in, tokens out; back: gradients of tokens and kept pixels in, gradient of the weight out.
    one_way = B * K * length + 4 * D * length + 4 * B * (1 + K) * D
    passes = 1 if case.pass_name == "fwd" else 2
    return Measure(
        ours=embedding.ours,
        rivals={
            "conv+gather": embedding.convolve_and_gather,
            "visible": embedding.visible,
            "compile": lambda: compiled(*embedding.reference_arguments()),
            "products": products,
        },
        reference=lambda: embed_visible_reference(*embedding.reference_arguments()),
        check=check,
        leaves=[embedding.weight, embedding.bias, embedding.cls],
        bytes=passes * one_way,
        matrix_flops=passes * 2 * B * K * length * D,
    )
