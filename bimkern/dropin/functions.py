"""Our ops under the names and signatures of other programs, for those who call rather than patch.

Shapes: B images, C channels, H W pixels, p patch size, N tokens, K kept, D width, P = p*p*C.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bimkern.dropin import layers, rounded_hog
from bimkern.dropin.hosts import patch_dropout
from bimkern.dropin.order import host_order, inverse
from bimkern.ops import hog, keep_to_mask


def random_masking(x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keep a random part of the tokens of each image, as MAE's method of this name: the same seed, the same masks.

    Args:
        x: [B, N, D], float32, float16, bfloat16 or float64.
        mask_ratio: int(N * (1 - mask_ratio)) tokens are kept.

    Returns:
        Kept tokens [B, K, D] in shuffled order; mask [B, N], float32, 1 where masked; ids_restore [B, N], int64.

    Source: He et al. 2022 (MAE), section 3 "masking".
    """
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

    Source: He et al. 2022 (MAE), section 3 "MAE decoder".
    """
    return layers.restore(x, ids_restore, mask_token, pos_embed)


def patchify_loss(imgs: Tensor, pred: Tensor, mask: Tensor, norm_pix_loss: bool = False) -> Tensor:
    """Average the squared error over masked patches, as MAE's forward_loss; the images are never cut into patches.

    Args:
        imgs: [B, C, H, W], float or uint8 (then divided by 255). No gradient flows to them.
        pred: [B, N, P], values of a patch in the order row, column, channel. Its P gives the patch size.
        mask: [B, N], 1 where masked.
        norm_pix_loss: bring every patch to zero mean and unit variance.

    Returns:
        Scalar. Zero where nothing is masked, which is a division by zero in the original.

    Raises:
        ValueError: the values of a patch are not those of a square.

    Source: He et al. 2022 (MAE), section 3 "reconstruction target".
    """
    channels, values = imgs.shape[1], pred.shape[-1]
    patch = math.isqrt(values // max(channels, 1))
    if patch * patch * channels != values or patch == 0:
        raise ValueError(
            f"patchify_loss: pred must hold p*p*C={channels} values per patch for a whole p, got {list(pred.shape)}"
        )
    return layers.pixel_loss(imgs, pred, mask, patch, norm_pix_loss)


def apply_masks(x: Tensor, masks: Sequence[Tensor], concat: bool = True) -> Tensor | list[Tensor]:
    """Gather the tokens of several masks in one pass, as I-JEPA and V-JEPA do in several.

    Args:
        x: [B, N, D], float32, float16, bfloat16 or float64.
        masks: of [B, K], int64 ids in [0, N) to keep, none twice within one row of one mask. With concat, of
            one size.
        concat: put the results behind each other along the batch.

    Returns:
        [len(masks) * B, K, D]; without concat a list of [B, K, D].

    Raises:
        ValueError: there is no mask to concatenate, or their sizes differ.

    Source: Assran et al. 2023 (I-JEPA), section 3.
    """
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
        return patch_dropout.forward(self, x)


class HOGLayer(nn.Module):
    """Describe cells by the orientations of their gradients, in the layout of MaskFeat's layer.

    Args:
        nbins: of a histogram.
        pool: side of a cell in pixels.
        gaussian_window: side of a Gaussian that weighs the pixels; 0 for none.
        exact: compute bins without rounding. False repeats the rounding of MaskFeat's layer bit for bit, in plain torch
            and so not faster; images are then float32.

    Orientations on a bin's boundary, of which photographs are full, are exact here. The published layers round them,
    so on pixels divided by 255 some of their entries differ; give uint8 pixels here, and nothing is rounded.

    Source: Wei et al. 2022 (MaskFeat), section 3.2.
    """

    def __init__(self, nbins: int = 9, pool: int = 7, gaussian_window: int = 0, exact: bool = True) -> None:
        super().__init__()
        self.nbins = nbins
        self.pool = pool
        self.gaussian_window = gaussian_window
        self.exact = exact

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, nbins, H/pool, W/pool] of images [B, C, H, W], uint8 or float, whose sides pool divides."""
        B, C, H, W = x.shape
        if not self.exact:
            return rounded_hog.maskfeat(x, self.nbins, self.pool, self.gaussian_window)
        cells = hog(x, self.pool, self.nbins, window=self.gaussian_window or None)  # [B, (H/pool)(W/pool), C*nbins]
        rows, columns = H // self.pool, W // self.pool
        return cells.view(B, rows, columns, C, self.nbins).permute(0, 3, 4, 1, 2)
