"""A trained encoder whose features another one learns to predict.

Shapes: B images, C channels, H W pixels, N patches, D width of the teacher.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from bimkern.errors import BimkernError
from bimkern.models import layouts
from bimkern.models.vit import ViT, ViTConfig

_NUMBERS = ("width", "depth", "num_heads", "patch", "image_size")


class TeacherError(BimkernError, ValueError):
    """A file holds no encoder that can teach; the message says why."""


class Teacher:
    """A Vision Transformer that is read, never trained: not a module, so that no optimizer or checkpoint sees it."""

    def __init__(self, encoder: ViT, positions: Tensor, sha256: str = "") -> None:
        """Take an encoder, its positions [N, D] at its own image size, and the SHA-256 of the file it comes from."""
        self.sha256 = sha256
        self.encoder = encoder.eval().requires_grad_(False)
        self._positions = positions
        self._tables: dict[tuple[tuple[int, int], torch.device], Tensor] = {}

    @property
    def config(self) -> ViTConfig:
        return self.encoder.config

    @torch.no_grad()
    def features(self, images: Tensor, blocks: Sequence[int], mean: Tensor, std: Tensor) -> list[Tensor]:
        """Return what some blocks, 0-based, put out for every patch of whole images, each of mean 0 and variance 1.

        Args:
            images: [B, C, H, W] uint8, of any size that the patches divide: positions are interpolated.
            blocks: of the teacher.
            mean, std: [C], as for ViT.embed.

        Returns:
            [B, N, D] for each.
        """
        encoder = self.encoder
        if encoder.cls_token.device != images.device:
            encoder.to(images.device)
        grid = encoder.grid(images)
        everything = torch.arange(grid[0] * grid[1], device=images.device).expand(len(images), -1)
        pos = self._positions_on(grid, images.device)
        tokens = encoder.patch_embed(images, everything, pos, prefix=encoder.cls_token[0], mean=mean, std=std)
        found = {}
        for i, block in enumerate(encoder.blocks[: max(blocks) + 1]):
            tokens = block(tokens)
            if i in blocks:
                patches = tokens[:, encoder.num_prefix :]
                found[i] = F.layer_norm(patches, patches.shape[-1:])
        return [found[i] for i in blocks]

    def _positions_on(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Return the positions of a grid, [N, D], each table built once."""
        if (grid, device) not in self._tables:
            table = self._positions
            if grid != self.config.grid:
                own = table.T.reshape(1, -1, *self.config.grid)
                table = F.interpolate(own, grid, mode="bicubic", align_corners=False).flatten(2)[0].T.contiguous()
            self._tables[grid, device] = table.to(device)
        return self._tables[grid, device]


def read_teacher_config(path: Path) -> ViTConfig:
    """Read what encoder a backbone of `bimkern.export --format timm` says it holds, a folder or the file in it.

    Raises:
        TeacherError: the file cannot be read, or does not say it.
    """
    try:
        with safe_open(_weights_file(path), framework="pt") as file:
            numbers: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise TeacherError(f"it cannot be read ({error})") from error
    missing = [name for name in _NUMBERS if not numbers.get(name, "").isdecimal()]
    if missing:
        raise TeacherError(f"it does not say its {', '.join(missing)}; python -m bimkern.export writes files that do")
    try:
        return ViTConfig(**{name: int(numbers[name]) for name in _NUMBERS})
    except ValueError as error:
        raise TeacherError(f"what it says of itself is wrong ({error})") from error


def load_teacher(path: Path) -> Teacher:
    """Read a backbone that `bimkern.export --format timm` wrote, a folder or the file in it.

    Raises:
        TeacherError: the file cannot be read, or is no such backbone.
    """
    encoder = ViT(read_teacher_config(path))
    weights_file = _weights_file(path)
    try:
        with weights_file.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        weights = load_file(weights_file)
        encoder.load_state_dict(layouts.from_timm(weights))
        positions = weights["pos_embed"]
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise TeacherError(f"it is no such backbone ({' '.join(str(error).split())})") from error
    rows, columns = encoder.config.grid
    shape = [1, encoder.num_prefix + rows * columns, encoder.config.width]
    if list(positions.shape) != shape:
        raise TeacherError(f"it is no such backbone (pos_embed must be {shape}, got {list(positions.shape)})")
    return Teacher(encoder, positions[0, encoder.num_prefix :], sha256)


def _weights_file(path: Path) -> Path:
    return path / layouts.WEIGHTS if path.is_dir() else path
