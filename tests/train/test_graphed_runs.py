"""Runs whose steps are graphs, simulated on a CPU: they compute the same, and say why they cannot be had."""

from dataclasses import replace

import pytest
import torch
from growing import write_photos
from simulated_graphs import SimulatedGraphs

from bimkern.recipes import RECIPES
from bimkern.train import pretraining
from bimkern.train.config.run import ConfigError
from bimkern.train.graphs.steps import GraphedSteps
from bimkern.train.run import run

pytestmark = pytest.mark.usefixtures("without_pictures")

STAGES, STEPS, CAPTURED = 4, 8, 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("files") / "photos", count=6)


@pytest.fixture
def config(photos, tmp_path):
    recipe = RECIPES["bim_vit_test"].config
    options = {"data": photos, "out": tmp_path / "plain", "workers": 0, "steps": STEPS, "log_every": 1}
    return replace(recipe, run=replace(recipe.run, batch_size=4, micro_batch=3, arena="plan", **options))


def test_a_run_with_graphs_computes_the_same(config, tmp_path, monkeypatch):
    """Whatever else happens between its steps, such as checkpoints and held-out images."""
    config, graphs = replace(config, run=replace(config.run, save_every=3, held_out=0.2)), SimulatedGraphs()
    plain = run(config)
    monkeypatch.setattr(pretraining.graphs, "choose", lambda run, device: GraphedSteps(graphs))
    ours = run(replace(config, run=replace(config.run, out=tmp_path / "graphs")))
    captured = [*["captured"] * 2 * STAGES, *["captured", "replayed"] * STAGES]
    assert graphs.taken() == [*captured, *["replayed"] * STAGES * (STEPS - CAPTURED - 1)]
    torch.testing.assert_close(ours.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0)
    for name in ("loss_per_stage", "held_out_loss_per_stage"):
        assert [record.get(name) for record in ours.history] == [record.get(name) for record in plain.history]
    assert {record["diverged_steps"] for record in ours.history[CAPTURED + 1 :]} == {0}


def test_a_run_on_a_cpu_refuses_them_before_it_begins(config, tmp_path):
    with pytest.raises(ConfigError, match="--cuda-graphs: needs a GPU, got cpu; leave it out"):
        run(replace(config, run=replace(config.run, cuda_graphs=True)))
    assert not (tmp_path / "plain").exists()
