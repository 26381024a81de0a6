"""timm's Swin with the weights of ours, and masked tokens kept out of every softmax.

Shapes: B images, H W rows and columns of tokens, C width, N tokens of a window.
"""

import torch
import torch.nn.functional as F
from interop import import_or_skip

from bimkern.models.swin_layers import resized_table


def like(ours, size):
    """Build timm's Swin for images of a size (rows, columns), with our weights; tables are resized where its differ."""
    timm = import_or_skip("timm")
    config = ours.config
    settings = config.layout("timm").settings["model_args"] | {"img_size": size}
    theirs = timm.models.SwinTransformer(**settings, num_classes=0, drop_path_rate=0.0).double().eval()
    weights = ours.state_dict()
    for stage, layers in enumerate(theirs.layers):
        for i, block in enumerate(layers.blocks):
            name = f"layers.{stage}.blocks.{i}.attn.relative_position_bias_table"
            weights[name] = resized_table(weights[name], config.table_window(stage), block.window_size)
    found = theirs.load_state_dict(weights, strict=False)
    assert (sorted(found.missing_keys), found.unexpected_keys) == (["norm.bias", "norm.weight"], [])
    return theirs


def taps(theirs, images):
    """Return what it computes behind every stage, merged but for the last one, [B, H, W, C] each."""
    x, found = theirs.patch_embed(images), []
    for i, stage in enumerate(theirs.layers):
        x = stage.downsample(x)
        if i:
            found.append(x)
        x = stage.blocks(x)
    return [*found, x]


def keep_out(theirs, visible):
    """Have tokens of masked patches [B, H, W], and those that pad windows, take part in no softmax."""
    factor = 1
    for stage in theirs.layers:
        for block in stage.blocks:
            block._attn = _attention(block, visible[:, ::factor, ::factor])
        factor *= 2


def _attention(block, visible):
    partition = import_or_skip("timm").models.swin_transformer.window_partition

    def attend(x):  # [B, H, W, C]
        _, H, W, C = x.shape
        window, shift = block.window_size, block.shift_size
        padding = (0, 0, 0, -W % window[1], 0, -H % window[0])

        def windows(tokens):
            """Cut them as the program of Swin's authors does; timm's pads behind the shift, not before it."""
            shifted = F.pad(tokens, padding).roll((-shift[0], -shift[1]), (1, 2))
            return partition(shifted, window).flatten(1, 2)  # [B * windows, N, C]

        rows, columns = H + padding[5], W + padding[3]
        brought = [torch.arange(side) < by for side, by in zip((rows, columns), shift, strict=True)]
        region = 2 * brought[0][:, None].int() + brought[1].int()  # what the shift brought to the far side
        region = windows(region[None, :H, :W, None].expand(len(x), -1, -1, -1))[..., 0]
        there = windows(visible[..., None])[..., 0]
        allowed = (region[:, :, None] == region[:, None]) & there[:, None]
        allowed |= torch.eye(allowed.shape[-1], dtype=torch.bool)  # those kept out attend to themselves
        attn = block.attn
        q, k, v = attn.qkv(windows(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = attn.scale * q @ k.mT + attn._get_rel_pos_bias()
        out = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1) @ v
        out = attn.proj(out.transpose(1, 2).flatten(2)).unflatten(1, window)
        grid = (len(x), rows // window[0], columns // window[1], *window, C)
        whole = out.view(grid).transpose(2, 3).reshape(len(x), rows, columns, C)
        return whole.roll(shift, (1, 2))[:, :H, :W]

    return attend
