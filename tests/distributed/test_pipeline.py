"""A pipeline of two ranks learns, bit for bit, what one process learns."""

import pytest
from pipeline_runs import train
from rank_processes import RankProcesses
from shared_runs import records

NAMES = ["bim_vit_test"]
STEPS = 12


def files(folder):
    """Return the content of what a run leaves for others, by its path."""
    kinds = ("checkpoints/*/*.safetensors", "exported/**/*.safetensors")
    return {path.relative_to(folder): path.read_bytes() for kind in kinds for path in folder.glob(kind)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folders of runs of one process and of a pipeline."""
    folder = tmp_path_factory.mktemp("trained")
    pipeline = RankProcesses(train, 2, folder / "output", NAMES, folder / "two", {"steps": STEPS, "pipeline": True})
    train(NAMES, folder / "one", {"steps": STEPS})
    pipeline.results()
    return folder / "one", folder / "two"


@pytest.mark.parametrize("name", NAMES)
def test_files_and_losses_are_those_of_one_process(trained, name):
    one, two = (folder / name for folder in trained)
    assert len(files(one)) > 4
    assert files(one) == files(two)
    for alone, piped in zip(records(one), records(two), strict=True):
        for same in ("step", "loss_per_stage", "skipped_updates", "lr", "image_size", "held_out_loss_per_stage"):
            assert alone.get(same) == piped.get(same)
