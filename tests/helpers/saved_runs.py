"""Run folders as a run leaves them, without training one."""

from dataclasses import replace

import torch

from bimkern.exporters.trained import Trained
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.store import Checkpoint
from bimkern.train.config.serialize import to_json
from bimkern.train.run_folder.folder import RunFolder


def make_run(path, recipe="bim_vit_test", **options):
    """Write a run folder whose norms are no longer those of the start, and return its weights."""
    config, folder = RECIPES[recipe].config, RunFolder(path)
    config = replace(config, run=replace(config.run, **options))
    folder.open(config)
    folder.record(config)
    weights = MIM(config.method).state_dict()
    weights |= {name: torch.rand_like(tensor) for name, tensor in weights.items() if ".in_norm." in name}
    checkpoints.save(folder.checkpoints, Checkpoint(12, weights, {}, {"config": to_json(config)}), best_step=12)
    folder.close()
    return Trained(config, 12, weights)
