"""How the ranks of a run share images, and with --shard full the layers of its network."""

from typing import Any

from bimkern.distributed.agree import agreed
from bimkern.distributed.ranks import Group, Ranks
from bimkern.train.config.run import TrainingConfig, resolve_device
from bimkern.train.loop.sharing import SharedImages, Sharing


def shared(config: TrainingConfig, ranks: Ranks) -> tuple[Sharing, dict[str, Any]]:
    """Return how ranks share the work, and what the task must know of it."""
    if not isinstance(ranks, Group) or config.run.shard != "full":
        return SharedImages(ranks), {"ranks": ranks}
    with ranks.patient(), agreed(ranks):  # torch's DTensor takes seconds to import
        from bimkern.train.loop.sharded_layers import SharedLayers
    layers = SharedLayers(ranks, resolve_device(config.run.device))
    return layers, {"ranks": ranks, "part": layers}
