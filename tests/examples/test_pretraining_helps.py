"""What pre-training is worth on the drawn shapes: equal steps and rates, with and without it, over three seeds."""

import json
import os
import statistics
import subprocess
import sys

import manual_pages
import pytest
from interop import import_or_skip

import_or_skip("torchvision")
import_or_skip("pycocotools")
pytestmark = pytest.mark.skipif("BIMKERN_STRESS" not in os.environ, reason="an hour of CPU time is for make stress")
SEEDS = range(3)


def command(*words):
    subprocess.run([sys.executable, "-m", *map(str, words)], cwd=manual_pages.ROOT, check=True, timeout=3600)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    command("examples.transfer.shapes", folder / "unlabeled")
    where = ("--data", folder / "unlabeled", "--out", folder / "run")
    command("bimkern.pretrain", "examples/transfer/recipe.py:shapes", *where, "--workers", "0", "--log-every", "500")
    return folder / "run"


def scores(example, metric, backbone, folder, *options):
    found = []
    for seed in SEEDS:
        out = folder / f"{seed}{''.join(options)}"
        command(
            f"examples.{example}", "--backbone", backbone, "--data", "shapes", "--out", out, "--seed", seed, *options
        )
        found.append(json.loads((out / "metrics.json").read_text())[metric])
    return found


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("example", "metric", "margin"), [("segmentation", "mean_iou", 0.1), ("detection", "box_ap", 0.02)]
)
def test_a_pretrained_encoder_beats_the_same_one_from_scratch(pretrained, tmp_path, example, metric, margin):
    learned = scores(example, metric, pretrained, tmp_path)
    scratch = scores(example, metric, pretrained, tmp_path, "--scratch")
    print(f"{example}, {metric}: pre-trained {learned}, from scratch {scratch}")
    assert statistics.mean(learned) > statistics.mean(scratch) + margin
    assert min(learned) > max(scratch)
