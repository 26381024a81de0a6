"""Whole runs on images in other forms: the same numbers, and one run that resumes in another form."""

import pytest
from source_forms import write_folder, write_tars

from bimkern.api import pretrain
from bimkern.files import jsonl


class Killed(Exception):
    pass


def train(data, out, stop_at=None):
    def on_step(step):
        if step.step == stop_at:
            raise Killed

    options = {"steps": 6, "batch_size": 5, "save_every": 2, "log_every": 1, "workers": 0}
    return pretrain("mae_vit_test", data=data, out=out, on_step=on_step, **options)


def losses(out):
    return [(record["step"], record["loss_per_stage"]) for record in jsonl.read(out / "metrics.jsonl")]


def test_a_run_on_shards_is_the_run_on_their_folder_also_when_it_resumes_in_mid_epoch(tmp_path):
    root = write_folder(tmp_path / "photos")
    shards = write_tars(root, tmp_path / "shards")
    pattern = tmp_path / "shards" / "part-{0000..0002}.tar"
    train(root, tmp_path / "folder")
    for first, second, out in ((pattern, shards, tmp_path / "shard_run"), (root, pattern, tmp_path / "moved")):
        with pytest.raises(Killed):
            train(first, out, stop_at=3)
        train(second, out)
        assert losses(out) == losses(tmp_path / "folder") != []
        assert (out / "images.jsonl").read_bytes() == (tmp_path / "folder" / "images.jsonl").read_bytes()
