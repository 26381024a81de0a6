"""A fine-tuning step against timm's own of the same network, `python -m bench finetune RECIPE...`.

Both normalize uint8 images, erase, mix and drop paths. timm draws from its own generators, so that its losses are held
to a wider bound; in the reference, its network has our augmented images, and drops the paths that ours drops.
"""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bench.eager.timm_loop import TimmLoop, timm_network
from bench.entry import FLOATS, STEP_ROUNDS, Case, Entry, Measure, register
from bench.finetune_step import NUM_CLASSES, FinetuneStep
from bench.flops import classifier_step_flops
from bench.training import hold
from bimkern.image_size import ImageSize
from bimkern.models.drop_path import draw_paths
from bimkern.models.vit import ViT, ViTConfig
from bimkern.recipes.finetuning import FINETUNE_RECIPES, finetuning

NAME = "finetune"
_TEST = "vit_test"
_TEST_ENCODER = ViTConfig(width=32, depth=2, num_heads=2, patch=8, image_size=ImageSize.square(32))
RECIPES = {name: recipe.config for name, recipe in FINETUNE_RECIPES.items() if "_vit_" in name} | {
    _TEST: finetuning(_TEST, _TEST_ENCODER, base_lr=1e-3, layer_decay=0.75, drop_path=0.1)
}
_BATCH = {"cpu": 4, "cuda": 128}
_OTHER_DRAWS = 5e-2  # relative error of losses; likewise
_SAME_DRAWS = {"float32": 1e-5, "bfloat16": 2e-3}


def finetune_entry(recipes: tuple[str, ...], batch_size: int | None) -> Entry:
    """Make the entry for some recipes; without any, for MAE's ViT-B, and a tiny one for a quick look."""

    def cases(device: torch.device, quick: bool) -> Iterable[Case]:
        for recipe in recipes or (_TEST if quick else "mae_vit_base",):
            for dtype in FLOATS:
                dims = {"recipe": recipe, "B": batch_size or _BATCH[device.type]}
                yield Case(device=device, dims=dims, dtype=dtype, pass_name="step")

    return Entry(
        name=NAME,
        summary="A whole fine-tuning step, against timm's own step of the same network.",
        cases=cases,
        measure=measure,
        arguments=(*recipes, *(["--batch-size", str(batch_size)] if batch_size else [])),
    )


def measure(case: Case) -> Measure:
    config = RECIPES[case.dims["recipe"]]
    ours = FinetuneStep(config, case)
    with TemporaryDirectory() as folder:
        ours.task.export(Path(folder))
        network, reference = (timm_network(Path(folder), rate).to(case.device) for rate in (config.drop_path, 0.0))
    timm, truth = (TimmLoop(model, ours.config, NUM_CLASSES, case.torch_dtype) for model in (network, reference))
    share_paths(ours.task.model.encoder, reference)
    images, labels = ours.batch.images, ours.labels.to(case.device)

    def true_loss() -> Tensor:
        draw_paths(ours.task.model.encoder, ours.batch.draw_ids, ours.config.run.seed, case.device)
        return truth.train(*ours.augmented())

    def check(provider: str, got: Tensor, expected: Tensor) -> None:
        hold(provider, got, expected, _SAME_DRAWS[case.dtype] if provider == "ours" else _OTHER_DRAWS)

    return Measure(
        ours=ours.step,
        rivals={"timm": lambda: timm.step(images, labels)},
        reference=true_loss,
        check=check,
        parameters={"ours": list(ours.task.model.parameters()), "timm": list(network.parameters())},
        matrix_flops=case.dims["B"] * classifier_step_flops(ours.config),
        items=case.dims["B"],
        min_rounds=STEP_ROUNDS,
        process_too=True,
    )


def share_paths(encoder: ViT, network: Any) -> None:
    """Have timm's network, which drops no paths of its own, drop those that an encoder drops."""
    for ours, theirs in zip(encoder.blocks.children(), network.blocks.children(), strict=True):
        theirs.drop_path1, theirs.drop_path2 = ours.drop_path1, ours.drop_path2


register(finetune_entry((), None))
