"""The Encoder protocol: all that the rest of the package asks of a network that is pre-trained; vit.py is one.

An encoder is two things: a config, a frozen dataclass of numbers that is registered as a piece, and the module that the
config names. It embeds the patches of images as tokens and runs them through layers, which may change their width and
merge them into a coarser grid. Layers are numbered from 0, as taps are; layer groups from 1, since group 0 is the
embedding.

Shapes: B images, C channels, H W pixels, N patches, K visible ones, R prefix tokens, T tokens, D width.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from bimkern.image_size import ImageSize

__all__ = [
    "EmbedsFilled",
    "EmbedsPainted",
    "EmbedsVisible",
    "Encoder",
    "EncoderConfig",
    "Layout",
    "Level",
    "NormalizesOtherwise",
    "PartlyTrained",
    "PlansViews",
    "View",
    "ViewPlan",
    "WholeImages",
    "grid_after",
]

Grid = tuple[int, int]
Weights = Mapping[str, Tensor]
WEIGHTS_FILE = "model.safetensors"  # where timm, transformers and we look for weights in a folder
Program = Literal["timm", "mae-program", "hf-vit-mae", "detectron2", "mmpretrain"]  # whose layouts an encoder may know


@dataclass(frozen=True)
class Level:
    """The tokens after a layer."""

    width: int
    patch: int  # pixels a side of the square that a token stands for

    def grid(self, height: int, width: int) -> Grid:
        """Return the rows and columns of tokens of images [B, C, height, width]."""
        return height // self.patch, width // self.patch


class ViewPlan(Protocol):
    """What an encoder computed of a view before its first layer: tensors with a row for each image, or one for all."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "ViewPlan":
        """Return the plan with each of its tensors changed."""


class View(Protocol):
    """Which patches of a batch an encoder sees."""

    @property
    def grid(self) -> Grid:
        """Rows and columns of the N patches of the embedding."""

    @property
    def keep(self) -> Tensor | None:
        """The visible patches, [B, K] int64; all N where images differ in how many are masked. None: all."""

    @property
    def masked(self) -> Tensor | None:
        """Which patches are masked, [B, N] of 0 and 1. None: no patch is."""

    @property
    def plan(self) -> Any:
        """What the encoder planned for the patches that enter it; None where it has not."""


@dataclass(frozen=True)
class WholeImages:
    """The view of images of which nothing is masked."""

    grid: Grid
    keep: None = None
    masked: None = None
    plan: None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """An encoder in the terms of another program: names of its weights, fixed tables, and its settings.

    Settings, by program:

    - `timm`: `architecture`, the name of a model of this class; `model_args`, which it is built with; `num_features`,
      its width; `first_conv` and `classifier`, prefixes of the weights of its first convolution and its classifier.
    - `hf-vit-mae`: the fields of transformers' ViTMAEConfig that describe the encoder, such as `hidden_size`.
    - `mae-program`: none.
    - `detectron2`: arguments of the ViT of ViTDet.
    - `mmpretrain`: `type` and arguments of the backbone, as in a config of mmdet or mmsegmentation.
    """

    names: tuple[tuple[str, str], ...]  # prefixes, ours and theirs; the first that fits a name is replaced
    norm: str | None  # prefix of the last norm, which our heads begin with; None where it has none
    tables: Mapping[str, Tensor] = field(default_factory=dict)  # fixed ones, which are not among our weights
    random: Mapping[str, Tensor] = field(default_factory=dict)  # what only the program's whole network has
    settings: Mapping[str, Any] = field(default_factory=dict)

    def name(self, ours: str) -> str:
        """Return the program's name of one of the encoder's weights."""
        for old, new in self.names:
            if ours.startswith(old):
                return new + ours.removeprefix(old)
        return ours


OWN_LAYOUT = Layout(names=(), norm="norm.")


class EncoderConfig(Protocol):
    """The numbers of an encoder, and what follows from them alone."""

    @property
    def module(self) -> Any:
        """The class of the encoder, an nn.Module and Encoder; called with a config it builds one."""

    @property
    def image_size(self) -> ImageSize:
        """Height and width of the images that it is made for; it takes others too."""

    @property
    def channels(self) -> int:
        """C."""

    @property
    def depth(self) -> int:
        """Number of layers."""

    @property
    def num_prefix(self) -> int:
        """R, the tokens before those of the patches."""

    def level(self, num_layers: int) -> Level:
        """Describe the tokens after the first num_layers layers, 0 for the embedding."""

    def layer_group(self, name: str) -> int:
        """Return the layer group of a parameter or buffer, by its name in the module.

        0 for the embedding, i + 1 for layer i.
        """

    def cut(self, depth: int) -> Self:
        """Return the config of the first layers alone."""

    def resized(self, image_size: ImageSize) -> Self:
        """Return the config for another image size.

        Raises:
            ValueError: such images cannot be cut into patches.
        """

    def layout(self, program: Program) -> Layout | None:
        """Return the encoder in the terms of another program; None where it has no such network."""

    def load(self, weights: Weights) -> nn.Module:
        """Build an encoder from the weights of a backbone under our own names, or in timm's layout where it has one.

        Raises:
            KeyError, RuntimeError, ValueError: they are not those of such an encoder.
        """


def grid_after(config: EncoderConfig, num_layers: int, patches: Grid) -> Grid:
    """Return the rows and columns of the tokens after the first num_layers layers, of images with a grid of patches."""
    patch = config.level(0).patch
    return config.level(num_layers).grid(patches[0] * patch, patches[1] * patch)


@runtime_checkable
class CountsOperations(Protocol):
    """An encoder config that says how many operations its layers take, for benchmarks."""

    def embedding_flops(self, num_visible: int) -> int:
        """Count the operations of embedding an image of image_size with num_visible visible patches."""

    def layer_flops(self, layer: int, num_patches: int) -> int:
        """Count the operations of a layer's matrix products on an image with num_patches patches in the encoder."""


@runtime_checkable
class PartlyTrained(Protocol):
    """An encoder config whose last layers may be left out of pre-training, which reads none of them."""

    @property
    def whole(self) -> EncoderConfig:
        """The config with all layers."""


@runtime_checkable
class NormalizesOtherwise(Protocol):
    """An encoder config whose last norm, with which a head begins, adds another number to the variance than ViT's."""

    @property
    def norm_eps(self) -> float:
        """What its layer norms add to the variance."""


class Encoder(Protocol):
    """The module. One that can mask patches has at least one of the methods of the three protocols below.

    Its matrix products follow --precision where a module has the attribute `compute_dtype`, and its attention follows
    --attention where one has `attention_fn`: those are set, as in layers.py. An option that a module could only ignore
    is refused.
    """

    @property
    def config(self) -> Any:
        """Its EncoderConfig."""

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The modules that run_layer calls, which --compile compiles and --shard full shards one by one.

        One that only holds the modules that are called has them in the attribute `called`, and a `compile` of its own.
        """

    def embed(self, images: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """Embed all patches of images, with their positions, behind the prefix tokens: [B, R+N, D].

        Args:
            images: [B, C, H, W], uint8 or floating; any H and W that the patches divide.
            mean, std: [C], to normalize with (uint8 first goes to [0, 1]); None where the images are already.
        """

    def run_layer(self, layer: int, tokens: Tensor, view: View) -> Tensor:
        """Run a layer on the tokens [B, T, D] that the one before put out."""


class EmbedsVisible(Encoder, Protocol):
    """An encoder into which masked patches need not enter."""

    def embed_visible(
        self, images: Tensor, keep: Tensor, mean: Tensor | None = None, std: Tensor | None = None
    ) -> Tensor:
        """Embed the patches keep [B, K] alone, as embed does: [B, R+K, D]."""


@runtime_checkable
class PlansViews(Protocol):
    """An encoder that plans on the host how masked images pass it, since the sizes of the plan depend on the mask."""

    def plan(self, grid: Grid, keep: Tensor) -> ViewPlan:
        """Plan for the patches keep [B, K] of a grid, on the CPU; rows that are views of one row are a shared mask."""


class EmbedsFilled(Encoder, Protocol):
    """An encoder in which a token can replace masked patches."""

    def embed_filled(self, images: Tensor, view: View, token: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Embed all patches, the masked ones as token [1, 1, D] plus their position: [B, R+N, D]."""


class EmbedsPainted(Encoder, Protocol):
    """An encoder whose images can be painted over."""

    def embed_painted(self, images: Tensor, view: View, color: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Embed images whose masked patches have one color [1, C, 1, 1], in normalized pixels: [B, R+N, D]."""
