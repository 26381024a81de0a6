"""Runs whose images change their size, on small files, and a teacher of larger ones."""

import json
from dataclasses import replace

import numpy as np
import torch
from options import filled
from PIL import Image

from bimkern.exporters.timm import write_timm
from bimkern.exporters.trained import Trained
from bimkern.mim.model import MIM
from bimkern.mim.targets import PixelTarget
from bimkern.models.encoder import WEIGHTS_FILE
from bimkern.pretrain import main
from bimkern.recipes import RECIPES, Recipe

MEMORY = (  # where steps are planned
    *("planned_bytes", "plan_gap", "planned_peak_bytes", "unplanned_peak_bytes"),
    *("upstream_calls", "diverged_steps", "plans", "reserved_bytes", "allocated_bytes", "segments"),
)
NOT_REPEATABLE = ("images_per_s", "data_wait", "held_bytes", "peak_bytes", "live_activation_bytes", *MEMORY)


def write_photos(folder, count=12):
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((60, 48), Image.Resampling.BICUBIC).save(folder / f"{i:02}.jpg")
    return folder


def write_teacher(folder, seed=0, image_size=128):
    """Write an untrained encoder to a folder, by default of images twice as large as the student's; return its file."""
    torch.manual_seed(seed)
    config = RECIPES["fastmim_vit_test"].config
    config = replace(
        config, method=replace(config.method, encoder=replace(config.method.encoder, image_size=image_size))
    )
    write_timm(folder, Trained(config, 1, MIM(config.method).state_dict()), 4)
    return folder / WEIGHTS_FILE


def register(monkeypatch, name, phases=None, *, base="fastmim_p_vit_test", **options):
    """Add a recipe like another one, with other phases, other options, that predicts pixels."""
    config = RECIPES[base].config
    method = replace(config.method, targets=(PixelTarget(normalize=False),))
    run = replace(config.run, **options)
    config = replace(config, recipe=name, method=method, run=run, phases=phases or config.phases)
    monkeypatch.setitem(RECIPES, name, Recipe(summary="for a test", config=config))
    return config


def train(recipe, photos, out, *options):
    main([recipe, "--data", str(photos), "--out", str(out), *filled(options, workers=0, log_every=1)])


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def repeatable(out):
    return [{name: value for name, value in line.items() if name not in NOT_REPEATABLE} for line in records(out)]
