"""HOG layers in the structures of published programs, written from the papers: no package has them.

Source: Wei et al. 2022 (MaskFeat), section 3.2; Wang et al. 2023 (LocalMIM), section 3.3.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


def gaussian(side: int) -> Tensor:
    """Return weights [side, side] of a standard deviation of side / 2 that sum to 1."""
    line = torch.exp(-0.5 * ((torch.arange(side) - (side - 1) / 2) / (side // 2)) ** 2)
    plane = line[:, None] * line
    return plane / plane.sum()


class HOGLayerC(nn.Module):
    """MaskFeat's layer: images [B, C, H, W] to [B, C, bins, h, w].

    Args:
        nbins: of a histogram.
        pool: side of a cell.
        gaussian_window: side of a Gaussian that weighs the pixels; 0 for none.
        channels: of an image.
    """

    def __init__(self, nbins: int = 9, pool: int = 7, gaussian_window: int = 0, channels: int = 3) -> None:
        super().__init__()
        self.nbins, self.pool, self.gaussian_window = nbins, pool, gaussian_window
        kernel = torch.tensor(SOBEL).expand(channels, 1, 3, 3)
        self.register_buffer("weight_x", kernel.contiguous())
        self.register_buffer("weight_y", kernel.mT.contiguous())
        if gaussian_window:
            self.register_buffer("gkern", gaussian(gaussian_window))

    def kernel(self) -> Tensor:
        return self.gkern  # type: ignore[return-value]  # a buffer

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        C = x.shape[1]
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        gx = F.conv2d(x, self.weight_x, groups=C)  # type: ignore[arg-type]  # a buffer
        gy = F.conv2d(x, self.weight_y, groups=C)  # type: ignore[arg-type]
        length = torch.stack((gx, gy), dim=-1).norm(dim=-1)
        if self.gaussian_window:
            rows = length.shape[2]
            assert rows % self.gaussian_window == 0, f"{rows} rows, window {self.gaussian_window}"
            times = rows // self.gaussian_window
            length = length * self.kernel().repeat(times, times)
        angle = torch.atan2(gx, gy) / math.pi * self.nbins
        index = angle.floor().long().remainder(self.nbins)
        B, _, H, W = gx.shape
        maps = torch.zeros(B, C, self.nbins, H, W, device=x.device)
        maps.scatter_add_(2, index[:, :, None], length[:, :, None].float())
        cells = maps.unfold(3, self.pool, self.pool).unfold(4, self.pool, self.pool).sum((-2, -1))
        return F.normalize(cells, dim=2)


class FlatHOGLayerC(HOGLayerC):
    """FastMIM's layer: [B, C * bins, h, w], normalized only if asked for."""

    def __init__(
        self, nbins: int = 9, pool: int = 8, gaussian_window: int = 0, norm_pix_loss: bool = True, channels: int = 3
    ) -> None:
        super().__init__(nbins, pool, gaussian_window, channels)
        self.norm_pix_loss = norm_pix_loss

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        cells = super().forward(x)
        return (cells if self.norm_pix_loss else 100 * cells).flatten(1, 2)


class HOGGenerator(HOGLayerC):
    """mmselfsup's layer: vectors of 14 x 14 patches [B, 196, C * bins * u * u], and what is needed to draw them."""

    def __init__(self, nbins: int = 9, pool: int = 8, gaussian_window: int = 16, channels: int = 3) -> None:
        super().__init__(nbins, pool, 0, channels)
        self.gaussian_window = gaussian_window
        if gaussian_window:
            self.register_buffer("gaussian_kernel", gaussian(gaussian_window))

    def kernel(self) -> Tensor:
        return self.gaussian_kernel  # type: ignore[return-value]  # a buffer

    def _reshape(self, cells: Tensor) -> Tensor:
        maps = cells.flatten(1, 2)
        self.unfold_size = side = maps.shape[-1] // 14
        return maps.movedim(1, -1).unfold(1, side, side).unfold(2, side, side).flatten(1, 2).flatten(2)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self.h, self.w = x.shape[2:]
        self.out = super().forward(x)
        return self._reshape(self.out)

    def generate_hog_image(self, hog_out: Tensor) -> Tensor:
        return hog_out.mean(1).sum(1).view(-1, self.h // self.pool, self.w // self.pool)


class HOGLayer(nn.Module):
    """LocalMIM's layer: one channel [B, 1, H, W] to [B, bins, h, w].

    Args:
        nbins: of a histogram.
        pool: side of a cell.
        bias: draw a pair that is added to every gradient, and keep it.
    """

    def __init__(self, nbins: int, pool: int, bias: bool = False) -> None:
        super().__init__()
        self.nbins = nbins
        self.conv = nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect", bias=bias)
        kernel = torch.tensor(SOBEL)
        self.conv.weight.data = torch.stack((kernel, kernel.T))[:, None]
        self.conv.requires_grad_(False)
        self.pooler = nn.AvgPool2d(pool)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        gradients = self.conv(x)  # [B, 2, H, W]
        length = gradients.norm(dim=1, keepdim=True)
        angle = torch.atan2(gradients[:, :1], gradients[:, 1:]) / math.pi * self.nbins
        maps = torch.zeros(len(x), self.nbins, *gradients.shape[2:], device=x.device)
        maps.scatter_(1, angle.floor().long().remainder(self.nbins), length.float())
        return F.normalize(self.pooler(maps), dim=1)
