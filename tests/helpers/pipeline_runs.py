"""Runs of two stages, as functions that ranks import."""

from dataclasses import replace

from shared_runs import config_of

from bimkern.mim.stages import equal_stages
from bimkern.train.run import run

OPTIONS = {"micro_batch": 2, "log_every": 5, "save_every": 6, "dist_timeout": 20}


def two_stages(name, out, **options):
    """Return the config of a small recipe, cut into two stages."""
    config = config_of(name, out, **(OPTIONS | options))
    method = config.method
    one = {field: getattr(method, field)[:1] for field in ("heads", "targets")}
    return replace(config, method=replace(method, taps=equal_stages(method.encoder.depth, 2), **one))


def train(names, folder, options):
    """Train some recipes, one after the other."""
    for name in names:
        run(two_stages(name, folder / name, **options))
