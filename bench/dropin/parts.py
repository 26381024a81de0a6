"""`python -m bench dropin --parts`: what a patch replaces, alone, forward and backward, host's form and ours in turns.

Layers that a patch leaves are taken out of both. Both draw the same masks, and must agree in results and gradients.

Shapes: B images, N patches, K kept, D width, E width of a decoder, P values of a patch.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.dropin.cases import HOSTS
from bench.entry import Run
from bench.refcheck import equal_up_to_rounding
from bench.timing import clock_for, measure, summarize
from bimkern import dropin, optional
from bimkern.dropin import lightly as lightly_functions

_BUDGET = 2.0  # seconds for a part, unless rounds are given


@dataclass(frozen=True, kw_only=True)
class Part:
    """A call, of which gradients are taken.

    Args:
        of: takes a model, or the functions of one side, and returns the call.
        inputs: of the call that have gradients, besides the parameters of a model.
    """

    of: Callable[[Any], Run]
    inputs: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Two models, or two collections of functions, and the calls to compare."""

    host: Any
    ours: Any
    parts: Mapping[str, Part]


class Sizes:
    """Random inputs of the sizes of a host."""

    def __init__(self, name: str, device: torch.device, batch_size: int, tiny: bool) -> None:
        self.device, self.B = device, batch_size
        self.D, self.E = (16, 12) if tiny else (768, 512)
        self.patch = 8 if tiny else 16
        self.side = HOSTS[name].image_size(tiny)
        self.N = (self.side // self.patch) ** 2
        self.K, self.P = self.N // 4, 3 * self.patch**2
        self.images = torch.rand(batch_size, 3, self.side, self.side, device=device)
        self.order = self.ids(self.N)  # [B, N]: kept patches first

    def tokens(self, count: int, width: int) -> Tensor:
        """Draw [B, count, width]."""
        return torch.randn(self.B, count, width, device=self.device, requires_grad=True)

    def ids(self, count: int) -> Tensor:
        """Draw permutations [B, count]."""
        return torch.rand(self.B, count, device=self.device).argsort(dim=1)


def without(module: nn.Module, **stand_ins: nn.Module) -> Any:
    """Return a module of the same class and parameters with stand-ins for some of its children."""
    changed = copy.copy(module)
    changed._modules = {**module._modules, **stand_ins}
    return changed


def _identities(*names: str) -> dict[str, nn.Module]:
    return {name: nn.Identity() for name in names}


class _Returns(nn.Module):
    """Stands for a network whose result is known."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.result = SimpleNamespace(**values)

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.result


class _Width(nn.Module):
    """Stands for a linear layer: cuts or pads its input to a width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.width - x.shape[-1]))


def _patched(name: str, sizes: Sizes, tiny: bool) -> tuple[Any, nn.Module]:
    """Make a host, and its patched copy."""
    host = HOSTS[name].make(tiny).to(sizes.device).train()
    ours = copy.deepcopy(host)
    dropin.patch(ours)
    return host, ours


def _three_parts(embedding: Part, *others: tuple[Callable[[Any], Run], Tensor]) -> dict[str, Part]:
    """Name the parts of an MAE; the others come with the input that has a gradient."""
    decoder, loss = (Part(of=of, inputs=(x,)) for of, x in others)
    return {"masks and embedding": embedding, "decoder's input": decoder, "loss": loss}


def _mae(sizes: Sizes, tiny: bool) -> Sides:
    host, ours = _patched("mae", sizes, tiny)
    latent, pred = sizes.tokens(1 + sizes.K, host.mask_token.shape[2]), sizes.tokens(sizes.N, sizes.P)
    mask = (sizes.order >= sizes.K).float()
    no_layers = {"decoder_blocks": nn.ModuleList(), **_identities("decoder_embed", "decoder_norm", "decoder_pred")}

    def encoder(model: nn.Module) -> Run:
        alone = without(model, blocks=nn.ModuleList(), norm=nn.Identity())
        return lambda: alone.forward_encoder(sizes.images, 0.75)

    def decoder(model: nn.Module) -> Run:
        alone = without(model, **no_layers)
        return lambda: alone.forward_decoder(latent, sizes.order)

    def loss(model: Any) -> Run:
        return lambda: model.forward_loss(sizes.images, pred, mask)

    return Sides(host=host, ours=ours, parts=_three_parts(Part(of=encoder), (decoder, latent), (loss, pred)))


def _hf(sizes: Sizes, tiny: bool) -> Sides:
    host, ours = _patched("hf", sizes, tiny)
    latent, pred = sizes.tokens(1 + sizes.K, host.decoder.mask_token.shape[2]), sizes.tokens(sizes.N, sizes.P)
    encoded = {"last_hidden_state": latent, "mask": (sizes.order >= sizes.K).float(), "ids_restore": sizes.order}
    no_layers = {"decoder_layers": nn.ModuleList(), **_identities("decoder_embed", "decoder_norm", "decoder_pred")}

    def embeddings(model: Any) -> Run:
        return lambda: model.vit.embeddings(sizes.images)

    def decoder(model: Any) -> Run:
        alone = without(model.decoder, **no_layers)
        return lambda: alone(latent, sizes.order).logits

    def loss(model: Any) -> Run:
        vit = _Returns(**encoded, hidden_states=None, attentions=None)
        alone = without(model, vit=vit, decoder=_Returns(logits=pred))
        return lambda: alone(sizes.images).loss

    return Sides(host=host, ours=ours, parts=_three_parts(Part(of=embeddings), (decoder, latent), (loss, pred)))


def _vit_pytorch(sizes: Sizes, tiny: bool) -> Sides:
    host, ours = _patched("vit_pytorch", sizes, tiny)

    def forward(model: Any) -> Run:
        encoder = without(model.encoder, transformer=nn.Identity())
        linear = {"enc_to_dec": _Width(len(model.mask_token)), "to_pixels": _Width(sizes.P)}
        alone = without(model, encoder=encoder, decoder=nn.Identity(), **linear)
        return lambda: alone(sizes.images)

    parts = {"masks, embedding, decoder's input and loss": Part(of=forward)}
    return Sides(host=host, ours=ours, parts=parts)


def _lightly(sizes: Sizes, tiny: bool) -> Sides:
    host, ours = _patched("lightly", sizes, tiny)
    order = F.pad(sizes.order + 1, (1, 0))  # [B, 1+N], the class token first
    keep, masked = order[:, : 1 + sizes.K], order[:, 1 + sizes.K :]
    tokens, latent = sizes.tokens(1 + sizes.N, sizes.D), sizes.tokens(1 + sizes.K, host.decoder.mask_token.shape[2])
    pred = sizes.tokens(sizes.N - sizes.K, sizes.P).detach()

    def gather(model: Any) -> Run:
        alone = without(model.backbone)
        alone.images_to_tokens = lambda images: tokens
        alone.prepend_prefix_tokens = alone.add_pos_embed = lambda x: x
        return lambda: alone.preprocess(sizes.images, idx_keep=keep)

    def decoder(model: Any) -> Run:
        layers = _identities("decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred")
        alone = without(model, decoder=without(model.decoder, **layers))
        return lambda: alone.forward_decoder(latent, keep, masked)

    def target(model: Any) -> Run:
        alone = without(model)
        alone.forward_encoder = alone.forward_decoder = lambda **_: pred
        return lambda: alone(sizes.images)

    parts = {
        "kept tokens": Part(of=gather, inputs=(tokens,)),
        "decoder's input, its masked tokens": Part(of=decoder, inputs=(latent,)),
        "masks and target": Part(of=target),
    }
    return Sides(host=host, ours=ours, parts=parts)


def _lightly_functions(sizes: Sizes, tiny: bool) -> Sides:
    utils = optional.load("lightly.models.utils")
    keep, masked = sizes.order[:, : sizes.K], sizes.order[:, sizes.K :]
    tokens, latent = sizes.tokens(sizes.N, sizes.E), sizes.tokens(sizes.K, sizes.E)
    pred = sizes.tokens(sizes.N - sizes.K, sizes.P)
    mask_token = torch.randn(1, 1, sizes.E, device=sizes.device, requires_grad=True)
    size = sizes.B, sizes.N

    def restore(mask_token: Tensor, size: tuple[int, int], index: Tensor, value: Tensor) -> Any:
        return utils.set_at_index(utils.repeat_token(mask_token, size), index, value)

    def loss(pred: Tensor, images: Tensor, patch_size: int, index: Tensor) -> Tensor:
        return F.mse_loss(pred, utils.get_at_index(utils.patchify(images, patch_size), index))

    host = SimpleNamespace(get_at_index=utils.get_at_index, restore_at_index=restore, patch_mse_loss=loss)
    parts = {
        "restore_at_index": Part(
            of=lambda side: lambda: side.restore_at_index(mask_token, size, keep, latent), inputs=(mask_token, latent)
        ),
        "get_at_index": Part(of=lambda side: lambda: side.get_at_index(tokens, masked), inputs=(tokens,)),
        "patch_mse_loss": Part(
            of=lambda side: lambda: side.patch_mse_loss(pred, sizes.images, sizes.patch, masked), inputs=(pred,)
        ),
    }
    return Sides(host=host, ours=lightly_functions, parts=parts)


def _apply_masks(x: Tensor, masks: list[Tensor]) -> Tensor:
    """Gather as I-JEPA's program does (Assran et al. 2023)."""
    index = [mask[:, :, None].repeat(1, 1, x.shape[2]) for mask in masks]
    return torch.cat([x.gather(1, each) for each in index])


def _functions(sizes: Sizes, tiny: bool) -> Sides:
    timm_layers = optional.load("timm.layers")
    tokens, with_class = sizes.tokens(sizes.N, sizes.D), sizes.tokens(1 + sizes.N, sizes.D)
    masks = [sizes.ids(sizes.N)[:, : sizes.N // 5] for _ in range(4)]
    host = SimpleNamespace(apply_masks=_apply_masks, PatchDropout=timm_layers.PatchDropout)

    def dropout(side: Any) -> Run:
        module = side.PatchDropout(0.5)
        return lambda: module(with_class)

    parts = {
        "apply_masks, 4 masks": Part(of=lambda side: lambda: side.apply_masks(tokens, masks), inputs=(tokens,)),
        "PatchDropout, a half": Part(of=dropout, inputs=(with_class,)),
    }
    return Sides(host=host, ours=dropin, parts=parts)


# name -> the host that gives it its sizes, and what makes it
SIDES: dict[str, tuple[str, Callable[[Sizes, bool], Sides]]] = {
    "mae": ("mae", _mae),
    "hf": ("hf", _hf),
    "vit_pytorch": ("vit_pytorch", _vit_pytorch),
    "lightly": ("lightly", _lightly),
    "lightly_functions": ("lightly", _lightly_functions),
    "functions": ("timm", _functions),
}


def report(name: str, device: torch.device, batch_size: int, rounds: int | None, tiny: bool) -> str:
    """Time the parts of a host one by one, and return a line for each and one for their sum.

    Raises:
        WrongResult: a part has other results or gradients than the host's.
    """
    like, make = SIDES[name]
    torch.manual_seed(0)
    sides = make(Sizes(like, device, batch_size, tiny), tiny)
    rows = {part: _seconds(f"{name}, {part}", sides, sides.parts[part], device, rounds) for part in sides.parts}
    rows["together"] = (sum(before for before, _ in rows.values()), sum(after for _, after in rows.values()))
    width = max(map(len, rows))
    lines = [
        f"  {part:<{width}}  host {before * 1e3:7.3f} ms  ours {after * 1e3:7.3f} ms  {before / after:.1f}x"
        for part, (before, after) in rows.items()
    ]
    return "\n".join([f"{name}, parts alone: batch {batch_size}, forward and backward", *lines])


def _seconds(name: str, sides: Sides, part: Part, device: torch.device, rounds: int | None) -> tuple[float, float]:
    """Return the medians of the host's form and ours."""
    host, ours = (_call(part, side) for side in (sides.host, sides.ours))
    torch.manual_seed(0)
    expected = host()
    torch.manual_seed(0)
    equal_up_to_rounding(name, ours(), expected)
    clock = clock_for(device, process_time=device.type == "cpu")
    runs = {"host": host, "ours": ours}
    before = dict.fromkeys(runs, lambda: torch.manual_seed(0))
    seconds = measure(runs, clock, budget=_BUDGET, rounds=rounds, before=before)
    theirs, own = (summarize(seconds[side]).median for side in runs)
    return theirs, own


def _call(part: Part, side: Any) -> Callable[[], list[Tensor]]:
    """Return what calls a part and takes its gradients, in those leaves that have one."""
    run = part.of(side)
    leaves = [*part.inputs, *(side.parameters() if isinstance(side, nn.Module) else ())]
    torch.manual_seed(0)
    first = tensors(run())
    cotangents = [torch.randn_like(x) for x in first if x.requires_grad]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]

    def call(leaves: list[Tensor]) -> list[Any]:
        results = tensors(run())
        roots = [x for x in results if x.requires_grad]
        return [
            *(x.detach() for x in results),
            *(torch.autograd.grad(roots, leaves, cotangents, allow_unused=True) if roots else ()),
        ]

    slopes = call(leaves)[len(first) :]
    leaves = [leaf for leaf, slope in zip(leaves, slopes, strict=bool(slopes)) if slope is not None]
    return lambda: call(leaves)


def tensors(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)
