"""`python -m bench scaling`: its parts without a slow cable, and its message where none can be made."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import __main__ as bench
from bench.scaling import command
from bench.scaling import methods as scaling_methods
from bench.scaling.measure import Measured
from bench.scaling.methods import BIM, BIM_AT_END, LARGER_IN_DDP, LARGER_MAE, MAE, NAMES, Ours, method
from bench.scaling.model import Link, Phase, typical
from bench.scaling.picture import draw, overlap
from bench.scaling.projection import RANKS, Device, lines
from bench.scaling.rank import Measurements, serve
from bimkern.distributed.ranks import ALONE
from bimkern.distributed.transfers import BUCKET_BYTES
from bimkern.recipes import RECIPES

LINK = Link(bytes_per_s=1e9, latency_s=1e-5)


@pytest.fixture(scope="module")
def measurements() -> Measurements:
    return Measurements(2, ALONE)


def test_a_rank_answers_every_order(measurements: Measurements) -> None:
    orders = [
        {"measure": "gradient_bytes", "name": BIM},
        {"measure": "compute", "name": BIM, "steps": 1},
        {"measure": "step", "name": MAE, "steps": 1},
        {"measure": "all_reduce", "num_bytes": 4},
        {"measure": "asleep", "phases": [{"compute_s": 0.001, "gradient_bytes": 8}], "at_end": True, "steps": 1},
        {"measure": "phases", "name": BIM_AT_END},
    ]
    answers = io.StringIO()
    serve(measurements, io.StringIO("".join(f"{json.dumps(order)}\n" for order in orders)), answers)
    found = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert len(found) == len(orders)
    assert found[0] > 0
    assert found[4] >= 0.001
    assert [phase["gradient_bytes"] > 0 for phase in found[5]] == [False, False, False, True]


@pytest.mark.parametrize("name", NAMES)
def test_phases_reduce_every_gradient(name: str) -> None:
    built = method(name, 2, ALONE)
    built.step()
    assert sum(phase.gradient_bytes for phase in built.phases()) == built.gradient_bytes


def test_the_network_that_ddp_wraps_takes_our_steps() -> None:
    ours, wrapped = (method(name, 2, ALONE) for name in (LARGER_MAE, LARGER_IN_DDP))
    assert ours.gradient_bytes == wrapped.gradient_bytes > 3 * BUCKET_BYTES
    for built in (ours, wrapped):
        built.step()
        built.finish()
    for one, other in zip(ours._model.parameters(), wrapped._network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_picture_shows_every_number_of_devices(tmp_path: Path) -> None:
    of_bim = [Phase(compute_s=1.0, gradient_bytes=1e7, waits_for=(i,)) for i in range(4)]
    of_mae = [Phase(compute_s=1.0, waits_for=(1,)), Phase(compute_s=1.0, gradient_bytes=4e7)]
    device = Device(link=LINK)
    found = lines({"bim_vit_base": of_bim, "mae_vit_base": of_mae}, device)
    assert [list(line.efficiencies) for line in found] == [list(RANKS), list(RANKS[2:]), list(RANKS)]
    assert all(0 < share <= 1 + 1e-9 for line in found for share in line.efficiencies.values())
    assert found[0].efficiencies[1] == pytest.approx(1)
    one = Measured(method=BIM, compute_s=1.0, wire_s=0.5, step_s=1.1, predicted_s=1.0, gradient_bytes=8, times=(1.1,))
    assert one.overlapped == pytest.approx(0.8)
    draw(tmp_path / "scaling.png", [one], "measured", {"a cable": (device, found)})
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_step_that_waits_for_everything_overlaps_with_none() -> None:
    one = Measured(method=BIM_AT_END, compute_s=1.0, wire_s=0.5, step_s=1.1, predicted_s=1.5, gradient_bytes=8)
    assert overlap(one) == "80%"
    assert [overlap(replace(one, step_s=seconds)) for seconds in (1.4976, 1.5, 1.56)] == ["none"] * 3


def test_buckets_are_those_of_the_trainer_where_the_model_is_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_methods, "BUCKET_BYTES", 2**18)
    built = Ours(RECIPES["mae_vit_test"].config, 2, ALONE)
    built.step()
    (_, *buckets) = built.phases()
    assert len(buckets) > 1
    assert all(phase.gradient_bytes >= 2**18 for phase in buckets[:-1])
    assert sum(phase.gradient_bytes for phase in buckets) == built.gradient_bytes


def test_a_phase_is_as_long_as_the_median_of_its_tries() -> None:
    tried = [[Phase(compute_s=seconds, gradient_bytes=8)] for seconds in (1.0, 9.0, 2.0)]
    assert typical(tried) == [Phase(compute_s=2.0, gradient_bytes=8)]


def test_rows_are_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"bim_vit_base": [Phase(compute_s=1.0, gradient_bytes=1e7, waits_for=(i,)) for i in range(4)]}
    monkeypatch.setattr(command, "measured_phases", lambda: found)
    rows = tmp_path / "scaling.csv"
    rows.write_text(command.RESULTS.read_text())
    assert bench.main(["scaling", "--redraw", "--out", str(rows)]) == 0
    assert rows.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert rows.read_text() == command.RESULTS.read_text()
    rows.write_text("method\nBIM\n")
    assert bench.main(["scaling", "--redraw", "--out", str(rows)]) == 2
    assert f"scaling: {rows} has no rows to draw" in capsys.readouterr().err


def test_without_root_it_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda tool: f"/sbin/{tool}")
    assert bench.main(["scaling", "--no-save"]) == 2
    assert capsys.readouterr().err == "bench: scaling: skipped, since network namespaces need root\n"


def test_without_iproute2_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None)
    assert bench.main(["scaling", "--no-save"]) == 2
    assert capsys.readouterr().err == "bench: scaling: skipped, since ip is not installed; install iproute2\n"


def test_refuses_a_share_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["scaling", "--share", "0"]) == 2
    assert "must be above 0, got '0'" in capsys.readouterr().err
