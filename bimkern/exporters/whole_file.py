"""Files that are written whole or not at all, in a folder that is made if need be.

Every function raises ConfigError where its path cannot be written.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimkern.files import atomic
from bimkern.train.checkpoint import safetensors_writer
from bimkern.train.config.run import ConfigError


def write_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors."""
    with whole(path) as scratch:
        safetensors_writer.write(scratch, weights, metadata=metadata)


def write_pickled(path: Path, content: dict[str, Any]) -> None:
    """Write a file of torch.save."""
    buffer = io.BytesIO()  # written to a full disk, torch.save speaks of an internal check instead
    torch.save(content, buffer)
    with whole(path) as scratch:
        scratch.write_bytes(buffer.getbuffer())


def write_json(path: Path, content: dict[str, Any]) -> None:
    with _writable(path):
        atomic.write_json(path, content)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, as atomic.replaced does."""
    with _writable(path), atomic.replaced(path) as scratch:
        yield scratch


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error})") from error
