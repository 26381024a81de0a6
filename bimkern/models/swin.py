"""The Swin Transformer encoder, on all patches or on the visible ones alone.

Both run through the same code: windows hold the tokens that are there. A layer is a Swin block, and the last layer of a
stage also merges, so that the tokens after it are those that the next stage begins with.

Shapes: B images, C channels, H W pixels, N patches, K visible ones, T tokens, D width.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bimkern import pieces
from bimkern.image_size import IMAGENET_SIZE, ImageSize
from bimkern.models.checks import check_counts, check_mlp_ratio, read_sizes
from bimkern.models.encoder import EncoderConfig, Grid, Layout, Level, Program, View, Weights
from bimkern.models.layers import fill_masked
from bimkern.models.random_weights import RandomWeights
from bimkern.models.swin_layers import NORM_EPS, NormedPatchEmbed, SwinStage, init_swin
from bimkern.models.windows import SwinPlan, plan_windows


class Swin(nn.Module):
    """A Swin without its last norm, which each head brings; parameter names are those of timm.

    Masked patches may be left out, as long as those that remain fill whole squares at every merging.

    Source: Liu et al. 2021 (Swin Transformer); Huang et al. 2022 (GreenMIM), section 3, for visible patches alone.
    """

    def __init__(self, config: "SwinConfig") -> None:
        super().__init__()
        self.config = config
        self.patch_embed = NormedPatchEmbed(config.channels, config.width, config.patch)
        self.layers = nn.ModuleList(
            SwinStage(
                config.width * 2**i,
                depth,
                num_heads,
                config.table_window(i),
                config.mlp_ratio,
                merges=i > 0,
            )
            for i, (depth, num_heads) in enumerate(zip(config.depths, config.num_heads, strict=True))
        )
        self.apply(init_swin)
        self._whole: dict[tuple[Grid, torch.device], SwinPlan] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_whole": {}}  # loaded, they may lie on another device than that of their keys

    def embed(self, images: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        rows, columns = self.config.level(0).grid(*images.shape[2:])
        everything = torch.arange(rows * columns, device=images.device).expand(len(images), -1)
        return self.embed_visible(images, everything, mean, std)

    def embed_visible(
        self, images: Tensor, keep: Tensor, mean: Tensor | None = None, std: Tensor | None = None
    ) -> Tensor:
        tokens: Tensor = self.patch_embed(images, keep, mean, std)
        return tokens

    def embed_filled(self, images: Tensor, view: View, token: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The token replaces what the norm behind the patch embedding puts out, as in SimMIM's program."""
        return fill_masked(self.patch_embed(images, view.keep, mean, std), view, token.flatten())

    def embed_painted(self, images: Tensor, view: View, color: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """A painted patch has the same embedding wherever it lies, so the image itself is never painted."""
        painted = self.patch_embed.norm(self.patch_embed.proj.painted(color))
        return self.embed_filled(images, view, painted, mean, std)

    def plan(self, grid: Grid, keep: Tensor) -> SwinPlan:
        """Find the windows and mergings of the visible patches keep [B, K], ascending, on the CPU.

        Raises:
            ValueError: a grid on the way cannot be merged.
        """
        shared = keep.stride(0) == 0
        return plan_windows(keep[:1] if shared else keep, grid, self.config.windows(grid))

    def run_layer(self, layer: int, tokens: Tensor, view: View) -> Tensor:
        return self.merge_after(layer, self.run_block(layer, tokens, view), view)

    def run_block(self, layer: int, tokens: Tensor, view: View) -> Tensor:
        """Run a layer as run_layer does, without the merging at the end of a stage."""
        stage, block = self.config.stage_and_block(layer)
        level = self._plan(tokens, view).levels[stage]
        here: Any = self.layers[stage]
        return here.blocks[block](tokens, level.groups(block), level.window)

    def merge_after(self, layer: int, tokens: Tensor, view: View) -> Tensor:
        """Merge what run_block put out, where the layer is the last of a stage that another follows."""
        stage, block = self.config.stage_and_block(layer)
        merge = self._plan(tokens, view).levels[stage].merge
        if block + 1 < self.config.depths[stage] or merge is None:
            return tokens
        following: Any = self.layers[stage + 1]
        return following.downsample(tokens, merge)

    def _plan(self, tokens: Tensor, view: View) -> SwinPlan:
        return self._plan_of_all(view.grid, tokens.device) if view.plan is None else view.plan

    def _plan_of_all(self, grid: Grid, device: torch.device) -> SwinPlan:
        """Return the plan for images of which no patch is left out."""
        key = (grid, device)
        if key not in self._whole:
            with torch.inference_mode(False):  # it may be kept for backward later
                everything = torch.arange(grid[0] * grid[1], device="cpu").unsqueeze(0)
                self._whole[key] = self.plan(grid, everything).map(lambda tensor: tensor.to(device))
        return self._whole[key]


@pieces.register(EncoderConfig)
@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Size of a Swin Transformer.

    Source: Liu et al. 2021 (Swin Transformer), section 3.3.
    """

    width: int  # of the first stage; each of the others has twice that of the one before
    depths: tuple[int, ...]  # layers of every stage; the last may have none, behind a merging
    num_heads: tuple[int, ...]  # of every stage
    window: int = 7  # tokens a side; on a side that is not longer, the side itself
    window_image_size: ImageSize | None = (
        None  # images of this size have such windows, others in proportion; None: all have
    )
    patch: int = 4
    image_size: ImageSize = IMAGENET_SIZE
    channels: int = 3
    mlp_ratio: float = 4.0
    whole_depths: tuple[int, ...] | None = None  # of the network that is exported; None: depths
    module: ClassVar[type[Swin]] = Swin
    num_prefix: ClassVar[int] = 0
    norm_eps: ClassVar[float] = NORM_EPS

    def __post_init__(self) -> None:
        check_counts(self, "width", "window", "patch", "channels")
        read_sizes(self, "image_size", "window_image_size")
        check_mlp_ratio(self, self.width)
        *before, last = self.depths or (0,)
        if not all(depth > 0 for depth in before) or last < (1 if not before else 0):
            raise ValueError(f"SwinConfig: depths must be at least 1, but for the last of several, got {self.depths}")
        if len(self.num_heads) != len(self.depths):
            raise ValueError(
                f"SwinConfig: num_heads must hold one value per stage ({len(self.depths)}), got {self.num_heads}"
            )
        for stage, heads in enumerate(self.num_heads):
            width = self.width * 2**stage
            if heads < 1 or width % heads:
                raise ValueError(f"SwinConfig: num_heads of stage {stage} must divide its width {width}, got {heads}")
        for name, size in (("image_size", self.image_size), ("window_image_size", self.window_image_size)):
            if size is not None and not size.is_multiple(self._last_patch):
                raise ValueError(
                    f"SwinConfig: {name} must be a multiple of {self._last_patch}, the patches after "
                    f"{len(self.depths) - 1} mergings, got {size}"
                )
        if self.whole_depths is not None and (
            self.whole_depths[:-1] != tuple(before) or self.whole_depths[-1:] < (last,)
        ):
            raise ValueError(
                f"SwinConfig: whole_depths must be depths={self.depths}, with more layers in the last stage at most, "
                f"got {self.whole_depths}"
            )

    @property
    def whole(self) -> "SwinConfig":
        """The config with the layers that are not trained here, but left to fine-tuning."""
        return replace(self, depths=self.whole_depths or self.depths, whole_depths=None)

    @property
    def depth(self) -> int:
        return sum(self.depths)

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """The last layer of every stage that has one, 0-based."""
        return tuple(end - 1 for end, depth in zip(self._ends, self.depths, strict=True) if depth)

    @property
    def _last_patch(self) -> int:
        return self.patch * 2 ** (len(self.depths) - 1)

    @property
    def _ends(self) -> list[int]:
        """Number of layers up to the end of every stage."""
        return list(accumulate(self.depths))

    def stage_and_block(self, layer: int) -> tuple[int, int]:
        """Return the stage of a layer, and its number there; all counted from 0."""
        stage = bisect_right(self._ends, layer)
        return stage, layer - (self._ends[stage - 1] if stage else 0)

    def windows(self, grid: Grid) -> tuple[int, ...]:
        """Return the window of every stage for images of a grid of patches; it may be longer than their sides."""
        window = self.window
        if self.window_image_size is not None:
            window = max(1, window * min(grid) * self.patch // min(self.window_image_size))
        return (window,) * len(self.depths)

    def table_window(self, stage: int) -> Grid:
        """Return the rows and columns of the windows for which a stage has its table of relative position biases."""
        size = self.window_image_size or self.image_size
        rows, columns = (min(self.window, side // self.patch // 2**stage) for side in size)
        return rows, columns

    def level(self, num_layers: int) -> Level:
        mergings = sum(end <= num_layers for end in self._ends[:-1])
        return Level(self.width * 2**mergings, self.patch * 2**mergings)

    def layer_group(self, name: str) -> int:
        part, *rest = name.split(".")
        if part != "layers":
            return 0
        stage = int(rest[0])
        first = self._ends[stage - 1] if stage else 0
        return first if rest[1] == "downsample" else first + int(rest[2]) + 1

    def cut(self, depth: int) -> "SwinConfig":
        """Return the config of the first layers; behind the last of a stage, of a further stage without layers."""
        if depth == self.depth:
            return self
        stage, block = self.stage_and_block(depth - 1)
        depths = (*self.depths[:stage], block + 1)
        if depth == self._ends[stage] and stage + 1 < len(self.depths):
            depths = (*depths, 0)
        return replace(self, depths=depths, num_heads=self.num_heads[: len(depths)], whole_depths=None)

    def resized(self, image_size: ImageSize) -> "SwinConfig":
        return replace(self, image_size=image_size)

    def embedding_flops(self, num_visible: int) -> int:
        return 2 * num_visible * self.width * self.channels * self.patch**2

    def layer_flops(self, layer: int, num_patches: int) -> int:
        """Count a layer as if the visible tokens were spread evenly over its windows."""
        before, after = self.level(layer), self.level(layer + 1)
        (rows, columns), width = before.grid(*self.image_size), before.width
        tokens = num_patches * self.patch**2 // before.patch**2
        window = self.windows(self.level(0).grid(*self.image_size))[0]
        together = tokens * min(window, rows) * min(window, columns) // (rows * columns)  # tokens that share a window
        merging = 2 * tokens * width * after.width if before.patch != after.patch else 0
        linear = 4 * width**2 + 2 * width * int(width * self.mlp_ratio)
        return 2 * tokens * linear + 4 * tokens * together * width + merging

    def layout(self, program: Program) -> Layout | None:
        if program == "mmpretrain":
            return self._mmpretrain_layout()
        if program != "timm":
            return None
        settings = {
            "architecture": "swin_base_patch4_window7_224",  # any SwinTransformer: model_args give every size
            "num_features": self.level(self.depth).width,
            "model_args": {
                "img_size": (self.window_image_size or self.image_size).as_argument,
                "patch_size": self.patch,
                "in_chans": self.channels,
                "embed_dim": self.width,
                "depths": self.whole.depths,
                "num_heads": self.num_heads,
                "window_size": self.window,
                "mlp_ratio": self.mlp_ratio,
            },
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
        }
        return Layout(names=(), norm="norm.", random=self._left_to_fine_tuning(), settings=settings)

    def _mmpretrain_layout(self) -> Layout:
        """Describe the network there: a merging ends the stage before it, and all windows have the same size."""
        merges = [(f"layers.{i}.downsample.", f"stages.{i - 1}.downsample.") for i in range(1, len(self.depths))]
        settings = {
            "type": "mmpretrain.SwinTransformer",
            "arch": {"embed_dims": self.width, "depths": list(self.whole.depths), "num_heads": list(self.num_heads)},
            "img_size": (self.window_image_size or self.image_size).as_argument,
            "patch_size": self.patch,
            "in_channels": self.channels,
            "window_size": self.window,
            "stage_cfgs": {"block_cfgs": {"ffn_ratio": self.mlp_ratio}},
        }
        return Layout(
            names=(*merges, ("layers.", "stages."), ("patch_embed.proj.", "patch_embed.projection.")),
            norm=f"norm{len(self.depths) - 1}.",
            settings=settings,
        )

    def _left_to_fine_tuning(self) -> RandomWeights:
        """Return the weights of the whole network's layers that are not here."""
        with torch.device("meta"):
            names = Swin(self.whole).state_dict().keys() - Swin(self).state_dict().keys()
        return RandomWeights(frozenset(names), lambda: Swin(self.whole).state_dict())

    def load(self, weights: Weights) -> Swin:
        """Build the encoder of a backbone; timm's names are our own."""
        encoder = Swin(self)
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
        return encoder


# Liu et al. 2021, section 3.3 (T, S, B, L).
SWIN_TINY = SwinConfig(width=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
SWIN_SMALL = SwinConfig(width=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
SWIN_BASE = SwinConfig(width=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
SWIN_LARGE = SwinConfig(width=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))
