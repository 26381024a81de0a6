"""What ranks other than the first have in place of checkpoints and metrics: nothing is written twice."""

from pathlib import Path
from typing import Any, Self

from bimkern.train.checkpoint.store import Checkpoint
from bimkern.train.reporting.history import History

Tensors = dict[str, Any]


class Unsaved:
    """A saver that saves nothing, with the interface of AsyncSaver."""

    def __init__(self) -> None:
        self.best: dict[str, Any] | None = None
        self.saved_step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def reserve(self, model: Tensors, optimizer: Tensors) -> None:
        pass

    def save(self, checkpoint: Checkpoint, loss: float, **options: Any) -> None:
        pass

    def written(self) -> list[tuple[int, Path]]:
        return []

    def wait(self) -> None:
        pass


class Unlogged:
    """Metrics that are not kept, with the interface of Metrics."""

    def __init__(self) -> None:
        self.history = History()

    def cut_back(self, after_step: int) -> None:
        pass

    def log(self, record: dict[str, Any]) -> None:
        pass

    def log_picture(self, step: int, path: Path) -> None:
        pass

    def publish(self, step: int) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass
