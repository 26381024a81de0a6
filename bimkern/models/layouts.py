"""Layouts: trained weights under the names that other programs give them.

Pure functions from our state dict to theirs. Values stay as they are; attention's joint projection is cut in three
where a layout wants it so. Fixed positions are not trained and so not among our weights: they are put in here.

Shapes: N patches, D width.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from bimkern.models.pos_embed import sincos_table

WEIGHTS = "model.safetensors"  # where timm and transformers look for weights in a folder
Weights = Mapping[str, Tensor]
_Rules = tuple[tuple[str, str], ...]

# Prefixes: the first that fits a name is replaced, and what none fits is left out. Our encoder has no last norm; the
# one with which the head begins takes that place.
_TIMM: _Rules = (
    ("encoder.patch_embed.", "patch_embed.proj."),
    ("encoder.", ""),
    ("head.in_norm.", "norm."),
)
_MAE_PROGRAM: _Rules = (
    *_TIMM,
    ("head.mask_token", "mask_token"),
    ("head.", "decoder_"),
)
_HF: _Rules = (
    ("encoder.patch_embed.", "vit.embeddings.patch_embeddings.projection."),
    ("encoder.blocks.", "vit.encoder.layer."),
    ("encoder.", "vit.embeddings."),
    ("head.in_norm.", "vit.layernorm."),
    ("head.mask_token", "decoder.mask_token"),
    ("head.blocks.", "decoder.decoder_layers."),
    ("head.", "decoder.decoder_"),
)
_HF_BLOCK = {
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.query.": ".attention.attention.query.",
    ".attn.key.": ".attention.attention.key.",
    ".attn.value.": ".attention.attention.value.",
    ".attn.proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}


def cut(weights: Weights, *, depth: int, head: int) -> dict[str, Tensor]:
    """Keep the first depth blocks of the encoder, as `encoder.`, and the head that reads them, as `head.`."""
    kept = {}
    for name, tensor in weights.items():
        block = re.match(r"encoder\.blocks\.(\d+)\.", name)
        if name.startswith("encoder.") and (block is None or int(block[1]) < depth):
            kept[name] = tensor
        elif name.startswith(f"heads.{head}."):
            kept["head." + name.removeprefix(f"heads.{head}.")] = tensor
    return kept


def to_timm(weights: Weights, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Name what cut() kept as timm's VisionTransformer does; the head is left out but for its first norm."""
    return _rename(weights, _TIMM) | {"pos_embed": _positions(weights["encoder.cls_token"], grid)}


def from_timm(weights: Weights) -> dict[str, Tensor]:
    """Name the weights of timm's VisionTransformer as our encoder does; its positions and last norm are left out."""
    return {
        name.replace("patch_embed.proj.", "patch_embed."): tensor
        for name, tensor in weights.items()
        if name.startswith(("patch_embed.", "blocks.", "cls_token"))
    }


def to_mae_program(weights: Weights, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Name what cut() kept as the program that He et al. 2022 published does: encoder and decoder."""
    return _rename(weights, _MAE_PROGRAM) | {
        "pos_embed": _positions(weights["encoder.cls_token"], grid),
        "decoder_pos_embed": _positions(weights["head.mask_token"], grid),
    }


def to_hf(weights: Weights, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Name what cut() kept as the published ViTMAE checkpoints of Hugging Face do: encoder and decoder.

    Those of its modules differ between releases of transformers, so load with `from_pretrained`: every release maps the
    published names to its own.
    """
    renamed = _rename(_split_attention(weights), _HF)
    pattern = re.compile("|".join(map(re.escape, _HF_BLOCK)))
    return {pattern.sub(lambda match: _HF_BLOCK[match[0]], name): tensor for name, tensor in renamed.items()} | {
        "vit.embeddings.position_embeddings": _positions(weights["encoder.cls_token"], grid),
        "decoder.decoder_pos_embed": _positions(weights["head.mask_token"], grid),
    }


def _rename(weights: Weights, rules: _Rules) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        for old, new in rules:
            if name.startswith(old):
                renamed[new + name.removeprefix(old)] = tensor
                break
    return renamed


def _split_attention(weights: Weights) -> dict[str, Tensor]:
    """Cut every joint projection [3 D, ...] into query, key and value, [D, ...] each."""
    split = {}
    for name, tensor in weights.items():
        if ".attn.qkv." not in name:
            split[name] = tensor
            continue
        for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            split[name.replace(".qkv.", f".{part}.")] = rows.clone()  # safetensors refuses views of one storage
    return split


def _positions(token: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the position table for tokens like the given one, [1, 1+N, D]; the row of cls is zero."""
    table = sincos_table(token.shape[-1], grid)
    return torch.cat([torch.zeros_like(table[:1]), table]).unsqueeze(0)
