"""One trial: pre-train by the product's own run, and probe the encoder at every depth."""

import math
import time
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.results import provenance
from bench.studies.data import StudyData, all_pixels, preprocessing, write_files
from bench.studies.fine_tuning import fine_tuned, write_layers
from bench.studies.methods import StudyMethod
from bench.studies.results import settings
from bench.studies.study import PIXELS, Result, Study, Trial
from bimkern.evaluate.backbone import Backbone, read_backbone
from bimkern.evaluate.depths import DepthResult, evaluate
from bimkern.evaluate.errors import ProbeDiverged
from bimkern.evaluate.labeled import Labeled
from bimkern.evaluate.linear import LinearProbe
from bimkern.evaluate.neighbors import knn_accuracies
from bimkern.files.atomic import remove_folder
from bimkern.train.config.run import Config, RunConfig
from bimkern.train.optim.divergence import Diverged
from bimkern.train.run import run

_CPU = torch.device("cpu")


@cache
def _load(study: Study) -> StudyData:
    return study.source.load()


def run_trial(study: Study, trial: Trial, work: Path) -> Result:
    """Run a trial from the start, or from where it was interrupted.

    Args:
        study: what the trial belongs to.
        trial: one that is pending.
        work: folder of the study for images and unfinished runs.
    """
    began, data = time.process_time(), _load(study)
    facts: dict[str, Any] = settings(study) | {"train": len(data.whole.train), "held_out": len(data.whole.test)}
    if trial.method == PIXELS:
        found = _pixels(study, trial, data)
    else:
        method = study.methods()[trial.method]
        found = _trained(study, trial, method, data, work)
    cpu_s = round(time.process_time() - began, 1)
    return replace(found, chance=data.whole.chance, cpu_s=cpu_s, facts=facts | provenance(_CPU))


def _trained(study: Study, trial: Trial, method: StudyMethod, data: StudyData, work: Path) -> Result:
    images, backbones = work / f"images-{method.encoder.image_size}", work / "backbones"
    write_files(images, data, preprocessing(method.encoder))
    pretraining = replace(trial, fine_tuning=None)
    layers = {depth: backbones / f"{pretraining.name}-{depth}-layers" for depth in method.depths}
    with (work / f"{trial.name}.log").open("w") as log, redirect_stdout(log):
        found = Result(trial=trial)
        if trial.fine_tuning is None or not layers[trial.fine_tuning.depth].exists():
            try:
                backbone = _pretrained(study, pretraining, method, images, work)
            except Diverged:
                return found
            for depth, path in layers.items():
                write_layers(path, backbone, depth)
            if trial.fine_tuning is None:
                found = _probed(study, trial, backbone, data)
        if trial.fine_tuning is not None:
            found = _fine_tuned(study, trial, layers[trial.fine_tuning.depth], images, work)
    return found


def _pretrained(study: Study, trial: Trial, method: StudyMethod, images: Path, work: Path) -> Backbone:
    if method.config is None:
        return _untrained(method, trial.seed)
    folder = work / trial.name
    run(run_config(study, trial, method.config, images / "whole" / "images-train", folder))
    backbone = read_backbone(folder)
    remove_folder(folder)
    return backbone


def _fine_tuned(study: Study, trial: Trial, layers: Path, images: Path, work: Path) -> Result:
    tuning = trial.fine_tuning
    assert tuning is not None
    split, accuracy = "selection" if tuning.selects else "whole", 0.0
    with suppress(Diverged):
        accuracy = fine_tuned(
            layers,
            images / split,
            work / f"{trial.name}-{split}",
            rate=tuning.rate,
            steps=study.fine_tuning_steps,
            batch_size=study.batch_size,
            seed=trial.seed,
        )
    found: dict[str, Any] = {"validation" if tuning.selects else "fine_tuned": accuracy}
    return Result(trial=trial, **found)


def run_config(study: Study, trial: Trial, config: Config, images: Path, out: Path) -> Config:
    """Return the config of a trial's run."""
    assert trial.rate is not None
    options = RunConfig(
        data=images,
        out=out,
        steps=study.steps,
        batch_size=study.batch_size,
        base_lr=trial.rate * 256 / study.batch_size,
        device="cpu",
        seed=trial.seed,
        workers=0,
        log_every=study.steps,
        save_every=study.steps,
    )
    return replace(config, run=options)


def _untrained(method: StudyMethod, seed: int) -> Backbone:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        encoder: Any = method.encoder.module(method.encoder)
    return Backbone(encoder=encoder.eval().requires_grad_(False), norms={}, images=preprocessing(method.encoder))


def _probed(study: Study, trial: Trial, backbone: Backbone, data: StudyData) -> Result:
    depth = backbone.config.depth

    def accuracies(images: Labeled, depths: Sequence[int]) -> list[DepthResult]:
        probe = LinearProbe(min_steps=study.probe_steps)
        found = evaluate(
            backbone, images, depths, neighbors=(study.neighbors,), probe=probe, batch_size=256, seed=trial.seed
        )
        if any(math.isnan(result.linear) for result in found):
            raise ProbeDiverged(f"{trial.name}: a linear probe diverges")
        return found

    (selecting,) = accuracies(data.selection, [depth])
    found = accuracies(data.whole, range(1, depth + 1))
    return Result(
        trial=trial,
        validation=selecting.linear,
        knn={result.depth: result.knn[study.neighbors] for result in found},
        linear={result.depth: result.linear for result in found},
    )


def _pixels(study: Study, trial: Trial, data: StudyData) -> Result:
    """Probe the images as they are, without an encoder: behind layer 0."""
    parts = data.whole.train, data.whole.test
    train, test = (all_pixels(part, study.source.side) for part in parts)
    labeled = (train, parts[0].labels, test, parts[1].labels)
    probe = LinearProbe(min_steps=study.probe_steps)
    return Result(
        trial=trial,
        knn={0: knn_accuracies(*labeled, (study.neighbors,))[study.neighbors]},
        linear={0: probe.accuracy(*labeled, seed=trial.seed)},
    )
