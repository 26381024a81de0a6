"""Hugging Face's ViTMAE: embeddings, decoder and loss, each a module of its own.

Shapes: B images, C channels, H W pixels, N patches, K kept, D width, P values of a patch.
"""

import copy
import inspect
import typing
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bimkern.dropin import layers, smaller
from bimkern.dropin.structure import Host, Part, Trial
from bimkern.dropin.trial import Affine, sample, stand_ins, twin

_PACKAGE, _TESTED = "transformers", ("5.23.0", "5.24.0")


def embed(
    self: Any, pixel_values: Tensor, noise: Tensor | None = None, interpolate_pos_encoding: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Embed the kept patches: tokens [B, 1+K, D], mask [B, N], ids_restore [B, N]."""
    pos = self.position_embeddings
    if interpolate_pos_encoding or tuple(pixel_values.shape[2:]) != tuple(self.image_size):
        return self._bimkern_host.forward(self, pixel_values, noise, interpolate_pos_encoding)
    num_kept = int((pos.shape[1] - 1) * (1 - self.config.mask_ratio))
    patch_embed = self.patch_embeddings
    return layers.encoder_input(self, patch_embed, patch_embed.projection, pixel_values, pos, num_kept, noise)


def random_masking(self: Any, sequence: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Keep some of the tokens [B, N, D]: kept [B, K, D], mask [B, N], ids_restore [B, N]."""
    B, N, _ = sequence.shape
    num_kept = int(N * (1 - self.config.mask_ratio))
    keep, mask, ids_restore = layers.draw_masks(self, B, N, num_kept, sequence.device, noise)
    return layers.gather(sequence, keep), mask, ids_restore


def decode(self: Any, hidden_states: Tensor, ids_restore: Tensor, interpolate_pos_encoding: bool = False) -> Any:
    """Predict all patches [B, N, P] from the encoded ones [B, 1+K, D]."""
    if interpolate_pos_encoding:
        return self._bimkern_host.forward(self, hidden_states, ids_restore, interpolate_pos_encoding)
    tokens = self.decoder_embed(hidden_states)
    tokens = layers.restore(tokens, ids_restore, self.mask_token, self.decoder_pos_embed)
    for layer in self.decoder_layers:
        tokens = layer(tokens)
    return self._bimkern_output(logits=self.decoder_pred(self.decoder_norm(tokens))[:, 1:, :])


def pretrain(
    self: Any,
    pixel_values: Tensor | None = None,
    noise: Tensor | None = None,
    interpolate_pos_encoding: bool | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """Reconstruct images and return the loss on masked patches with all that the host returns."""
    images = pixel_values
    if images is None or interpolate_pos_encoding or not _is_square(images) or not layers.can_be_target(images):
        host = self._bimkern_host.forward
        return host(self, pixel_values, noise, interpolate_pos_encoding, attention_mask, **kwargs)
    return_dict = kwargs.pop("return_dict", None)
    encoded = self.vit(
        images,
        noise=noise,
        interpolate_pos_encoding=interpolate_pos_encoding,
        attention_mask=attention_mask,
        **kwargs,
        return_dict=True,
    )
    logits = self.decoder(
        encoded.last_hidden_state, encoded.ids_restore, interpolate_pos_encoding=interpolate_pos_encoding
    ).logits
    config = self.config
    output = self._bimkern_output(
        loss=layers.pixel_loss(images, logits, encoded.mask, config.patch_size, config.norm_pix_loss),
        logits=logits,
        mask=encoded.mask,
        ids_restore=encoded.ids_restore,
        hidden_states=encoded.hidden_states,
        attentions=encoded.attentions,
    )
    wants_dict = getattr(config, "return_dict", True) if return_dict is None else return_dict
    return output if wants_dict else output.to_tuple()


def _is_square(images: Tensor) -> bool:
    return images.ndim == 4 and images.shape[2] == images.shape[3]


def _output(host_class: type) -> Mapping[str, Any]:
    """Find the class that the host's forward returns, which that of a subclass may not say."""
    forwards = (inspect.unwrap(vars(cls)["forward"]) for cls in host_class.__mro__ if "forward" in vars(cls))
    says = next(forward for forward in forwards if "return" in forward.__annotations__)
    return {"_bimkern_output": typing.get_type_hints(says)["return"]}


def _images(embeddings: Any) -> Tensor:
    weight = embeddings.patch_embeddings.projection.weight
    return sample(weight, 2, weight.shape[1], *embeddings.image_size)


def _try_embed(module: Any) -> Trial:
    return Trial(args=(_images(module),))


def _try_masking(module: Any) -> Trial:
    pos = module.position_embeddings
    return Trial(args=(sample(pos, 2, pos.shape[1] - 1, pos.shape[2]).requires_grad_(),))


def _try_decode(module: Any) -> Trial:
    weight = module.decoder_embed.weight
    N = module.decoder_pos_embed.shape[1] - 1
    hidden_states = sample(weight, 2, 1 + N // 8, weight.shape[1]).requires_grad_()
    ids_restore = torch.rand(2, N, device=weight.device).argsort(dim=1)
    return Trial(
        args=(hidden_states, ids_restore), children={"decoder_layers": stand_ins(), "decoder_pred": Affine(0.25)}
    )


class _Returns(nn.Module):
    """Stands for a network that returns what it was given beforehand."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.values = values

    def forward(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(**self.values)


def _try_pretrain(module: Any) -> Trial:
    images = _images(module.vit.embeddings)
    B, N = 2, module.vit.embeddings.position_embeddings.shape[1] - 1
    tokens = images.new_zeros(B, N, 1)  # which the decoder's stand-in does not read
    logits = sample(images, B, N, images[0].numel() // N).flip(0).requires_grad_()
    encoded = {
        "last_hidden_state": tokens,
        "mask": (torch.rand(B, N, device=images.device) < 0.7).float(),
        "ids_restore": torch.rand(B, N, device=images.device).argsort(dim=1),
        "hidden_states": None,
        "attentions": None,
    }
    return Trial(args=(images,), children={"vit": _Returns(**encoded), "decoder": _Returns(logits=logits)})


def _smaller_embeddings(module: Any) -> nn.Module:
    p = module.patch_embeddings.projection.kernel_size[0]
    return twin(
        module,
        patch_embeddings=smaller.embedding(module.patch_embeddings, "projection", "image_size"),
        image_size=smaller.scaled(module.image_size, p),
        cls_token=smaller.last(module.cls_token, smaller.WIDTH),
        position_embeddings=smaller.last(module.position_embeddings, smaller.WIDTH),
    )


def _smaller_decoder(module: Any) -> nn.Module:
    return twin(module, **smaller.decoder(module))


def _smaller_pretraining(module: Any) -> nn.Module:
    embeddings = _smaller_embeddings(module.vit.embeddings)
    p = module.vit.embeddings.patch_embeddings.projection.kernel_size[0]
    config = copy.copy(module.config)
    config.patch_size = smaller.scaled(config.patch_size, p)
    return twin(module, vit=twin(module.vit, embeddings=embeddings), config=config)


EMBEDDINGS = Host(
    name="Hugging Face ViTMAEEmbeddings",
    package=_PACKAGE,
    tested=_TESTED,
    attributes=("patch_embeddings.projection", "config.mask_ratio", "image_size"),
    tensors={"cls_token": "1 1 D", "position_embeddings": "1 1+N D"},
    parts=(
        Part(what="embedding of kept patches", method="forward", ours=embed, trial=_try_embed),
        Part(what="random masking", method="random_masking", ours=random_masking, trial=_try_masking),
    ),
    smaller=_smaller_embeddings,
)
DECODER = Host(
    name="Hugging Face ViTMAEDecoder",
    package=_PACKAGE,
    tested=_TESTED,
    attributes=("decoder_embed", "decoder_layers", "decoder_norm", "decoder_pred"),
    tensors={"mask_token": "1 1 D", "decoder_pos_embed": "1 1+N D"},
    parts=(Part(what="decoder's input", method="forward", ours=decode, trial=_try_decode),),
    constants=_output,
    smaller=_smaller_decoder,
)
PRETRAINING = Host(
    name="Hugging Face ViTMAEForPreTraining",
    package=_PACKAGE,
    tested=_TESTED,
    attributes=("vit.embeddings.position_embeddings", "decoder", "config.patch_size", "config.norm_pix_loss"),
    parts=(Part(what="loss", method="forward", ours=pretrain, trial=_try_pretrain),),
    constants=_output,
    smaller=_smaller_pretraining,
)
