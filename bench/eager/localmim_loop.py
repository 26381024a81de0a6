"""LocalMIM's step in the structure of its published program: all tokens embedded and decoded, four layers of HOG.

The network is that of `python -m bench dropin`; the optimizer is the usual one. Source: Wang et al. 2023 (LocalMIM).

Shapes: B images, N patches, K kept patches, D width.
"""

import re

import torch
from torch import Tensor, nn

from bench.eager.loop import adamw, update
from bench.hosts.localmim import SCALES, LocalMaskedAutoencoderViT
from bimkern.mim.model import MIM, Method
from bimkern.mim.targets import HogTarget
from bimkern.models.heads import DecoderConfig
from bimkern.models.layers import LAYER_NORM_EPS
from bimkern.models.pos_embed import sincos_table, with_prefix
from bimkern.models.vit import ViTConfig
from bimkern.recipes.localmim import localmim, taps
from bimkern.train.config.run import Config

_PARTS = (  # of names, ours and theirs
    (r"^encoder\.patch_embed\.", "patch_embed.proj."),
    (r"^encoder\.", ""),
    (r"^heads\.(\d)\.in_norm\.", r"norm.\1."),
    (r"^heads\.(\d)\.pred\.", r"decoder.\1.decoder_pred."),
    (r"^heads\.(\d)\.mask_token", r"decoder.\1.mask_token"),
    (r"^heads\.(\d)\.", r"decoder.\1.decoder_"),
    (r"\.attn\.qkv\.", ".self_attn.in_proj_"),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.fc(\d)\.", r".linear\1."),
)
_INDEXES = {  # of layers behind a decoder
    4.0: {"up1": 0, "norm": 1, "up2": 3, "pred": 4},
    2.0: {"up1": 0, "pred": 1},
    1.0: {"pred": 0},
    0.5: {"pred": 1},
}


def has_program(method: Method) -> bool:
    """Return whether a method is the published one: HOG at four scales on a ViT, without a bias."""
    encoder, head, target = method.encoder, method.heads[0], method.targets[0]
    if not (isinstance(encoder, ViTConfig) and isinstance(head, DecoderConfig) and isinstance(target, HogTarget)):
        return False
    if encoder.depth <= 6 or encoder.channels != 3 or encoder.mlp_ratio != 4 or method.taps != taps(encoder.depth):
        return False
    if not encoder.image_size.is_square:
        return False
    plain = localmim("", encoder, epochs=100, batch_size=256, bins=target.bins).method
    heads = tuple(
        DecoderConfig(width=head.width, depth=head.depth, num_heads=head.num_heads, match_scale=scale)
        for scale in SCALES
    )
    return method == Method(
        encoder=encoder,
        taps=plain.taps,
        masker=plain.masker,
        heads=heads,
        targets=plain.targets,
        flow=plain.flow,
    )


class _Network(LocalMaskedAutoencoderViT):
    """The host, whose noise can be given."""

    noise: Tensor | None = None

    def random_masking(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        B, N, D = x.shape
        noise = torch.rand(B, N, device=x.device) if self.noise is None else self.noise
        order = noise.argsort(dim=1, stable=True)
        kept, restoring = int(N * (1 - mask_ratio)), order.argsort(dim=1)
        mask = torch.ones(B, N, device=x.device)
        mask[:, :kept] = 0
        visible = x.gather(1, order[:, :kept, None].expand(-1, -1, D))
        return visible, mask.gather(1, restoring), restoring


class LocalMimLoop:
    """Train the network from the weights of ours; the learning rate is zero."""

    def __init__(self, config: Config, model: MIM, dtype: torch.dtype) -> None:
        """Take a config whose method has_program, its network, and the dtype of matrix products."""
        encoder, head, target = config.method.encoder, config.method.heads[0], config.method.targets[0]
        assert isinstance(encoder, ViTConfig)
        assert isinstance(head, DecoderConfig)
        assert isinstance(target, HogTarget)
        self._dtype, self._colors = dtype, model.colors
        self.network = _Network(
            encoder.image_size.height,
            encoder.patch,
            width=encoder.width,
            depth=encoder.depth,
            heads=encoder.num_heads,
            decoder_width=head.width,
            decoder_depth=head.depth,
            decoder_heads=head.num_heads,
            hog_nbins=target.bins,
        )
        for module in self.network.modules():
            if isinstance(module, nn.LayerNorm | nn.TransformerEncoderLayer):
                module.eps = LAYER_NORM_EPS
        found = self.network.load_state_dict(_named(model, encoder, head), strict=False)
        assert not found.unexpected_keys
        assert all(name.startswith("hog_enc.") for name in found.missing_keys), found.missing_keys
        self.network.to(model.mean.device).train()
        learned = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self._optimizer = adamw(learned, config.optim)

    def step(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Train on uint8 images [B, C, H, W] and return the sum of the losses, [1]; noise [B, N] chooses the mask."""
        self.network.noise = noise
        with torch.autocast(images.device.type, self._dtype, enabled=self._dtype != torch.float32):
            loss = self.network(self._colors.normalize(images))
        loss.backward()
        update(self._optimizer)
        return loss.detach()[None]


def _named(model: MIM, encoder: ViTConfig, head: DecoderConfig) -> dict[str, Tensor]:
    """Return the weights of ours under the names of the published structure."""
    named = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in _PARTS:
            name = re.sub(ours, theirs, name)
        for stage, scale in enumerate(SCALES):
            for layer, index in _INDEXES[scale].items():
                before = f"decoder.{stage}.decoder_pred."
                if name.startswith(f"{before}{layer}."):
                    name = f"{before}{index}.{name.removeprefix(f'{before}{layer}.')}"
        named[name] = tensor
    named["pos_embed"] = with_prefix(sincos_table(encoder.width, encoder.grid))
    decoded = with_prefix(sincos_table(head.width, encoder.grid))
    return named | {f"decoder.{stage}.decoder_pos_embed": decoded for stage in range(len(SCALES))}
