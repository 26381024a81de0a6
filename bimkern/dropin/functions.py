"""Our ops under the names and signatures of other programs, for those who call rather than patch.

Their programs pass tokens [B, N, D], often a transposed view of a map, which is read as it lies: any strides will do.
Where a map [B, D, h, w] has one meaning only, it is taken too, row by row. [B, D, N] looks like [B, N, D]: pass x.mT.

Shapes: B images, C channels, H W pixels, p patch size, h w patches, N = h*w tokens, K kept, D width, P = p*p*C.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bimkern.dropin import layers, rounded_hog
from bimkern.dropin.hosts import patch_dropout
from bimkern.dropin.order import host_order, inverse
from bimkern.ops import _check as check
from bimkern.ops import hog, keep_to_mask
from bimkern.ops.hog import MAX_BINS, MAX_WINDOW


def random_masking(x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keep a random part of the tokens of each image, as MAE's method of this name: the same seed, the same masks.

    Args:
        x: tokens [B, N, D] or a map [B, D, h, w], float32, float16, bfloat16 or float64.
        mask_ratio: in [0, 1]; int(N * (1 - mask_ratio)) tokens are kept.

    Returns:
        Kept tokens [B, K, D] in shuffled order; mask [B, N], float32, 1 where masked; ids_restore [B, N], int64.

    Raises:
        ValueError, TypeError: a shape, a dtype or mask_ratio is off.

    Source: He et al. 2022 (MAE), section 3 "masking".
    """
    if not 0 <= mask_ratio <= 1:
        raise ValueError(f"random_masking: mask_ratio must be in [0, 1], got {mask_ratio}")
    x = _tokens("random_masking", x)
    B, N, _ = x.shape
    shuffled = torch.rand(B, N, device=x.device).argsort(dim=1)
    keep = shuffled[:, : int(N * (1 - mask_ratio))]
    return layers.gather(x, keep), keep_to_mask(keep, N), inverse(shuffled)


def unshuffle(x: Tensor, ids_restore: Tensor, mask_token: Tensor, pos_embed: Tensor) -> Tensor:
    """Put encoded tokens back in order, mask tokens between them, and add positions: the input of MAE's decoder.

    Args:
        x: [B, 1+K, D], the class token first, any floating dtype.
        ids_restore: [B, N], int64, as random_masking returns it.
        mask_token: [1, 1, D].
        pos_embed: [1, 1+N, D].

    Returns:
        [B, 1+N, D], in the dtype that the sum has.

    Raises:
        ValueError, TypeError: a shape or a dtype is off.

    Source: He et al. 2022 (MAE), section 3 "MAE decoder".
    """
    check.once(_check_unshuffle, (x, ids_restore, mask_token, pos_embed))
    return layers.restore(x, ids_restore, mask_token, pos_embed)


def patchify_loss(imgs: Tensor, pred: Tensor, mask: Tensor, norm_pix_loss: bool = False) -> Tensor:
    """Average the squared error over masked patches, as MAE's forward_loss; the images are never cut into patches.

    Args:
        imgs: [B, C, H, W], float or uint8 (then divided by 255). No gradient flows to them.
        pred: [B, N, P] or a map [B, P, h, w], values of a patch in the order row, column, channel. Its P gives the
            patch size.
        mask: [B, N] or [B, h, w], 1 where masked; bool or floating.
        norm_pix_loss: bring every patch to zero mean and unit variance.

    Returns:
        Scalar. Zero where nothing is masked, which is a division by zero in the original.

    Raises:
        ValueError, TypeError: a shape or a dtype is off, or the values of a patch are not those of a square.

    Source: He et al. 2022 (MAE), section 3 "reconstruction target".
    """
    patch = check.once(_check_loss, (imgs, pred, mask))
    return layers.pixel_loss(imgs, _tokens("patchify_loss", pred, "pred"), mask.flatten(1), patch, norm_pix_loss)


def apply_masks(x: Tensor, masks: Sequence[Tensor], concat: bool = True) -> Tensor | list[Tensor]:
    """Gather the tokens of several masks in one pass, as I-JEPA and V-JEPA do in several.

    Args:
        x: tokens [B, N, D] or a map [B, D, h, w], float32, float16, bfloat16 or float64.
        masks: of [B, K], int64 ids in [0, N) to keep, none twice within one row of one mask. With concat, of
            one size.
        concat: put the results behind each other along the batch.

    Returns:
        [len(masks) * B, K, D]; without concat a list of [B, K, D].

    Raises:
        ValueError, TypeError: there is no mask to concatenate, their sizes differ, or a shape or a dtype is off.

    Source: Assran et al. 2023 (I-JEPA), section 3.
    """
    x = _tokens("apply_masks", x)
    check.once(_check_masks, (x, *masks))
    if not concat:
        return [layers.gather(x, mask) for mask in masks]
    if not masks:
        raise ValueError("apply_masks: masks must hold at least one tensor, got none")
    if len({mask.shape for mask in masks}) > 1:
        raise ValueError(f"apply_masks: masks must have one shape [B, K], got {[list(mask.shape) for mask in masks]}")
    keep = masks[0] if len(masks) == 1 else torch.cat(list(masks))  # [M*B, K]
    return layers.gather(x, keep, num_masks=len(masks))


class PatchDropout(nn.Module):
    """Drop a random part of the tokens in training, as timm's module of this name: the same seed, the same tokens.

    Args:
        prob: part of the tokens to drop, in [0, 1).
        num_prefix_tokens: tokens in front that always stay.
        ordered: keep the order of the tokens.

    Source: Liu et al. 2022 (PatchDropout).
    """

    _bimkern_order = staticmethod(host_order)

    def __init__(self, prob: float = 0.5, num_prefix_tokens: int = 1, ordered: bool = False) -> None:
        super().__init__()
        if not 0 <= prob < 1:
            raise ValueError(f"PatchDropout: prob must be in [0, 1), got {prob}")
        self.prob = prob
        self.num_prefix_tokens = num_prefix_tokens
        self.ordered = ordered

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, R+K, D] of x [B, R+N, D]; all of them out of training."""
        if not self.training:
            return x
        check.once(_check_dropout, (x,), self.num_prefix_tokens)
        return patch_dropout.forward(self, x)


class HOGLayer(nn.Module):
    """Describe cells by the orientations of their gradients, in the layout of MaskFeat's layer.

    Args:
        nbins: of a histogram.
        pool: side of a cell in pixels.
        gaussian_window: side of a Gaussian that weighs the pixels; 0 for none.
        exact: compute bins without rounding. False repeats the rounding of MaskFeat's layer bit for bit, in plain torch
            and so not faster; images are then floating.

    Orientations on a bin's boundary, of which photographs are full, are exact here. The published layers round them,
    so on pixels divided by 255 some of their entries differ; give uint8 pixels here, and nothing is rounded.

    Source: Wei et al. 2022 (MaskFeat), section 3.2.
    """

    def __init__(self, nbins: int = 9, pool: int = 7, gaussian_window: int = 0, exact: bool = True) -> None:
        super().__init__()
        for name, value, most in (("nbins", nbins, MAX_BINS), ("gaussian_window", gaussian_window, MAX_WINDOW)):
            if exact and value > most:
                raise ValueError(f"HOGLayer: {name} must be at most {most} unless exact=False, got {value}")
        self.nbins = nbins
        self.pool = pool
        self.gaussian_window = gaussian_window
        self.exact = exact

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, nbins, H/pool, W/pool] of images [B, C, H, W], uint8 or float, whose sides pool divides."""
        if x.ndim != 4:
            raise ValueError(f"HOGLayer: x must be [B, C, H, W], got {list(x.shape)}")
        B, C, H, W = x.shape
        if not self.exact:
            self._check_rounded(x)
            return rounded_hog.maskfeat(x, self.nbins, self.pool, self.gaussian_window)
        cells = hog(x, self.pool, self.nbins, window=self.gaussian_window or None)  # [B, (H/pool)(W/pool), C*nbins]
        rows, columns = H // self.pool, W // self.pool
        return cells.view(B, rows, columns, C, self.nbins).permute(0, 3, 4, 1, 2)

    def _check_rounded(self, x: Tensor) -> None:
        side = self.gaussian_window or 1
        if not x.is_floating_point():
            raise TypeError(f"HOGLayer: x must be floating with exact=False, got {x.dtype}: divide by 255 first")
        if x.shape[2] % side or x.shape[3] % side:
            raise ValueError(f"HOGLayer: x must have sides that gaussian_window={side} divides, got {list(x.shape)}")


def _tokens(op: str, x: Tensor, name: str = "x") -> Tensor:
    """Return tokens [B, N, D], which a map [B, D, h, w] holds row by row."""
    if x.ndim not in (3, 4):
        raise ValueError(f"{op}: {name} must be tokens [B, N, D] or a map [B, D, h, w], got {list(x.shape)}")
    check.dtypes(op, **{name: (x, check.FLOATS)})
    return x.flatten(2).mT if x.ndim == 4 else x


def _check_unshuffle(x: Tensor, ids_restore: Tensor, mask_token: Tensor, pos_embed: Tensor) -> None:
    op, known = "unshuffle", check.shapes("unshuffle", ids_restore=(ids_restore, "B N"))
    dims = check.shapes(op, known, x=(x, "B 1+K D"), mask_token=(mask_token, "1 1 D"), pos_embed=(pos_embed, "1 1+N D"))
    if dims["K"] > dims["N"]:
        raise ValueError(f"{op}: x must hold at most 1+N={1 + dims['N']} tokens, got {list(x.shape)}")
    floats = {"x": x, "mask_token": mask_token, "pos_embed": pos_embed}
    check.dtypes(op, ids_restore=(ids_restore, torch.int64), **{key: (y, check.FLOATS) for key, y in floats.items()})


def _check_loss(imgs: Tensor, pred: Tensor, mask: Tensor) -> int:
    """Check what patchify_loss takes and return the side of a patch."""
    op, tokens = "patchify_loss", _tokens("patchify_loss", pred, "pred")
    dims = check.shapes(op, imgs=(imgs, "B C H W"), pred=(tokens, "B N P"))
    C, H, W, P = (dims[letter] for letter in "CHWP")
    p = math.isqrt(P // max(C, 1))
    if p * p * C != P or p == 0:
        raise ValueError(f"{op}: pred must hold p*p*C={C} values per patch for a whole p, got {list(pred.shape)}")
    if H % p or W % p or (H // p) * (W // p) != dims["N"]:
        raise ValueError(f"{op}: imgs must be cut into N={dims['N']} patches by p={p}, got {list(imgs.shape)}")
    dims |= {"h": H // p, "w": W // p}
    check.shapes(op, dims, pred=(pred, "B P h w" if pred.ndim == 4 else "B N P"))
    check.shapes(op, dims, mask=(mask, "B h w" if mask.ndim == 3 else "B N"))
    check.dtypes(op, imgs=(imgs, (torch.uint8, *check.FLOATS)), mask=(mask, check.MASKS))
    return p


def _check_masks(x: Tensor, *masks: Tensor) -> None:
    op = "apply_masks"
    B, N, _ = x.shape
    for mask in masks:
        K = check.shapes(op, {"B": B}, masks=(mask, "B K"))["K"]
        if K > N:
            raise ValueError(f"{op}: masks must hold at most N={N} ids per image, got K={K}")
        check.dtypes(op, masks=(mask, torch.int64))


def _check_dropout(x: Tensor, num_prefix_tokens: int) -> None:
    check.shapes("PatchDropout", {"R": num_prefix_tokens}, x=(x, "B R+N D"))
    check.dtypes("PatchDropout", x=(x, check.FLOATS))
