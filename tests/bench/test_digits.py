"""Quality on digits: the quick form runs, probes tell classes apart, and statements follow the table."""

import csv

import numpy as np
import pytest
import torch

from bench.digits import orderings, probe, study
from bench.digits.__main__ import main
from bench.digits.images import load
from bench.digits.learn import cut, finetune, pooled, pretrain
from bench.digits.methods import DEPTHS, ENCODER, METHODS, alone
from bench.digits.orderings import CLAIMS, Claim, half_width, statements
from bench.digits.table import COLUMNS, METRICS, PIXELS, at_the_edge, lay_out, percent, read
from bimkern.mim.flow import EndToEnd, Local
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.masking.units import BlockPixels
from bimkern.mim.schedule import Cosine, FreezeOut
from bimkern.models.vit import ViT

WHOLE = ENCODER.depth
ALL_KEYS = {(name, depth) for name, method in METHODS.items() for depth in method.depths}
MAE, BIM = ("MAE", WHOLE), ("BIM", WHOLE)


def made_up(**accuracies):
    """Make a table of fine-tuned accuracies of three seeds; methods that are not given have the same everywhere."""
    table = {key: {metric: [0.5, 0.51, 0.52] for metric in METRICS} for key in ALL_KEYS}
    for name, values in accuracies.items():
        table[name, WHOLE] = dict.fromkeys(METRICS, values)
    return table


def test_rates_at_an_edge_are_named():
    rows = [
        {"method": name, "rate": rate} for name, rate in (("a", "0.002"), ("b", "0.001"), ("a", "0.002"), ("c", ""))
    ]
    assert at_the_edge(rows, "rate", (5e-4, 1e-3, 2e-3)) == ["a"]
    assert at_the_edge(rows, "rate", (1e-3, 2e-3)) == ["a", "b"]


@pytest.fixture(scope="module")
def digits():
    return load()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Run the command in its quick form and return the file that it wrote."""
    path = tmp_path_factory.mktemp("digits") / "digits.csv"
    assert main(["--quick", "--out", str(path)]) == 0
    return path


def test_a_quick_run_fills_the_table_and_draws_it(quick):
    table, rows = read(quick)
    assert table.keys() == ALL_KEYS | {(PIXELS, 0)}
    assert all(0 <= value <= 1 for accuracies in table.values() for values in accuracies.values() for value in values)
    # Even an encoder that was not trained keeps enough of an image for a linear model; chance is a tenth.
    assert min(accuracies["linear"][0] for accuracies in table.values()) > 0.4
    assert all(len(accuracies["finetuned"]) == 1 for key, accuracies in table.items() if key != (PIXELS, 0))
    assert {row["steps"] for row in rows if row["method"] == "BIM"} == {str(study.QUICK.steps)}
    assert quick.with_suffix(".png").stat().st_size > 10_000


def test_what_is_kept_can_be_shown_again(quick, capsys):
    assert main(["--show", "--out", str(quick)]) == 0
    printed = capsys.readouterr().out
    assert "2 steps of 64 images on 150, fine-tuned for 2; 150 held out; seeds: 1" in printed
    assert f"Of {len(CLAIMS)} findings of the papers: {len(CLAIMS)} not evaluated." in printed


def test_nothing_to_show(tmp_path, capsys):
    missing = tmp_path / "none.csv"
    assert main(["--show", "--out", str(missing)]) == 2
    assert capsys.readouterr().err == f"bench.digits: {missing}: no such file; `python -m bench.digits` writes one\n"
    missing.write_text(",".join(COLUMNS) + "\n")
    assert main(["--show", "--out", str(missing)]) == 2
    assert capsys.readouterr().err == f"bench.digits: {missing}: holds no rows\n"


def test_a_run_cut_short_is_shown_as_far_as_it_came(quick, tmp_path, capsys):
    lines = quick.read_text().splitlines(keepends=True)
    path = tmp_path / "short.csv"
    path.write_text("".join(line for line in lines if not line.startswith("MAE")))
    assert main(["--show", "--out", str(path)]) == 0
    assert " against none  [BIM, ViT-B: 82.98 and 83.01]" in capsys.readouterr().out
    path.write_text("".join(lines[:2]))
    assert main(["--show", "--out", str(path)]) == 0
    assert "pixels" in capsys.readouterr().out


def test_a_wrong_number_of_seeds(capsys):
    with pytest.raises(SystemExit):
        main(["--seeds", "0"])
    assert "argument --seeds: must be a whole number of at least 1, got '0'" in capsys.readouterr().err


def test_parts_do_not_overlap_and_hold_every_class(digits):
    assert np.array_equal(np.sort(np.concatenate([digits.train, digits.held_out])), np.arange(1797))
    assert np.array_equal(np.sort(np.concatenate([digits.fit, digits.validation])), np.sort(digits.train))
    for part in (digits.fit, digits.validation, digits.held_out):
        assert np.bincount(digits.labels[part]).min() > len(part) / 12
    again = load()
    assert np.array_equal(again.held_out, digits.held_out)


def test_images_are_the_scans_enlarged(digits):
    assert digits.images.shape == (1797, 3, 32, 32)
    assert digits.images.dtype == torch.uint8
    assert torch.equal(digits.images[:, 0], digits.images[:, 2])
    means = digits.images.float().mean(dim=(1, 2, 3)) / 255
    torch.testing.assert_close(means, torch.from_numpy(digits.scans).float().mean(1) / 16, rtol=0.1, atol=0)


def test_all_have_the_same_encoder_and_run():
    for name, method in METHODS.items():
        if method.config is not None:
            encoder = method.config.method.encoder
            assert encoder.depth == max(method.depths), name
            assert (encoder.width, encoder.patch, encoder.image_size) == (ENCODER.width, ENCODER.patch, 32)
            assert method.config.schedule.warmup == 0.1


def test_methods_are_what_their_names_say():
    methods = {name: method.config.method for name, method in METHODS.items() if method.config}
    local = {name for name, method in methods.items() if isinstance(method.flow, Local)}
    assert local == {"BIM", "BIM, growing mask", "LocalMIM, isolated"}
    assert isinstance(methods["LocalMIM"].flow, EndToEnd)
    assert isinstance(methods["FastMIM"].masker, BlockPixels)
    assert methods["BIM, growing mask"].masker == RandomDrop(ratios=(0.65, 0.70, 0.80, 0.85))
    assert methods["BIM, growing mask"].masker.entering((4, 4), 4) == [5, 4, 3, 2]
    assert [head.match_scale for head in methods["LocalMIM"].heads] == [4, 2, 1, 0.5]
    assert isinstance(METHODS["ViTFreeze"].config.schedule, FreezeOut)
    assert isinstance(METHODS["LocalMIM"].config.schedule, Cosine)
    assert methods["BIM"].taps == methods["LocalMIM"].taps == tuple(depth - 1 for depth in DEPTHS)
    assert {alone(depth) for depth in DEPTHS[:-1]} < METHODS.keys()


@pytest.mark.parametrize("name", ["MAE", "BIM", "ViTFreeze"])
def test_pretraining_repeats_and_learns(digits, name):
    config, images = METHODS[name].config, digits.images[:64]
    start, once, again = (pretrain(config, images, rate=1e-3, steps=steps, seed=3) for steps in (0, 2, 2))
    before, after, repeated = (dict(encoder.named_parameters()) for encoder in (start, once, again))
    assert all(torch.equal(value, repeated[key]) for key, value in after.items())
    assert not any(torch.equal(value, before[key]) for key, value in after.items() if key.endswith("weight"))
    other = dict(pretrain(config, images, rate=1e-3, steps=2, seed=4).named_parameters())
    assert not torch.equal(after["cls_token"], other["cls_token"])


def test_a_cut_encoder_gives_what_its_layers_gave(digits):
    encoder, images = ViT(ENCODER), digits.images[:4]
    seen = []
    encoder.blocks[3].register_forward_hook(lambda module, inputs, tokens: seen.append(tokens[:, 1:].mean(1)))
    whole = pooled(encoder, images)
    shallow = pooled(cut(encoder, 4), images)
    assert torch.equal(shallow, seen[0])
    assert not torch.equal(shallow, whole)
    assert len(encoder.blocks) == WHOLE


def test_probes_read_pixels(digits):
    parts = (digits.fit, digits.validation)
    assert probe.linear(digits.scans, digits, *parts) > 0.9
    assert probe.knn(digits.scans, digits, *parts) > 0.9
    noise = np.random.default_rng(0).normal(size=(len(digits.labels), 16))
    assert probe.linear(noise, digits, *parts) < 0.2


def test_fine_tuning_learns_and_leaves_the_encoder_as_it_is(digits):
    torch.manual_seed(0)
    encoder = ViT(ENCODER)
    before = encoder.cls_token.detach().clone()
    few = digits.train[:64]
    assert finetune(cut(encoder, 2), digits, few, few, rate=3e-3, steps=30, seed=0) > 0.5
    assert torch.equal(encoder.cls_token, before)


def test_the_best_rates_are_taken(digits, monkeypatch):
    scores = {1e-3: 0.5, 2e-3: 0.7, 4e-3: 0.6}
    monkeypatch.setattr(study, "pretrain", lambda config, images, *, rate, steps, seed: rate)
    monkeypatch.setattr(probe, "features", lambda encoder, digits: encoder)
    monkeypatch.setattr(probe, "linear", lambda values, digits, train, test: scores[values])
    monkeypatch.setattr(study, "finetune", lambda encoder, *parts, rate, steps, seed: scores[rate] + encoder)
    plan = study.Plan(rates=tuple(scores), finetune_rates=(1e-3, 4e-3))
    assert study._search(METHODS["MAE"], digits, 0, plan) == (study.Rates(2e-3, 4e-3), 2e-3)


def test_rates_are_searched_for_once():
    plan = study.Plan(seeds=2)
    row = dict.fromkeys(COLUMNS) | {"method": "MAE", "seed": 0}
    followers = study._followers(study.Row(**row), plan)
    assert followers == [("MAE", 1), *((alone(depth), seed) for depth in DEPTHS[:-1] for seed in (0, 1))]
    assert study._followers(study.Row(**row | {"seed": 1}), plan) == []
    assert study._followers(study.Row(**row | {"method": alone(2)}), plan) == []


@pytest.mark.parametrize(
    ("relation", "bim", "verdict"),
    [
        ("above", [0.90, 0.91, 0.92], "shows"),
        ("above", [0.70, 0.71, 0.72], "is reversed"),
        ("above", [0.79, 0.81, 0.83], "within noise"),
        ("above", [0.90], "not evaluated"),
        ("level with", [0.79, 0.81, 0.83], "not contradicted"),
        ("level with", [0.90, 0.91, 0.92], "contradicted"),
    ],
)
def test_verdicts_follow_the_table(relation, bim, verdict):
    table = made_up(MAE=[0.80, 0.81, 0.80], BIM=bim)
    claim = Claim(first=BIM, second=MAE, relation=relation, metric="finetuned", source="a paper")
    assert claim.verdict(table) == verdict
    text = f"BIM {relation} MAE, fine-tuned: {percent(bim)} against 80.3 ± 0.6  [a paper]"
    assert claim.statement(table) == f"{verdict:16}  {text}"


def test_statements_count_the_verdicts():
    level = [claim for claim in CLAIMS if claim.relation == "level with"]
    text = statements(made_up())
    assert f"{len(CLAIMS) - len(level)} within noise" in text
    assert f"{len(level)} not contradicted" in text
    assert text.count("\n") == len(CLAIMS) + orderings.CRITERION.count("\n") + 1


def test_half_the_interval_of_a_difference():
    # Two samples of three with the same variance: Student's t of 4 degrees of freedom is 2.776.
    assert half_width([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]) == pytest.approx(2.776 * (2 * 0.01 / 3) ** 0.5, rel=1e-3)
    assert half_width([0.1, 0.1], [0.2, 0.2]) == 0


def test_the_table_is_laid_out_as_methods_are_declared():
    lines = lay_out(made_up() | {(PIXELS, 0): {"knn": [0.9], "linear": [0.8], "finetuned": []}}).splitlines()
    assert lines[0].split() == ["layers", "kNN", "linear", "fine-tuned"]
    assert lines[1].split() == ["pixels", "90.0", "80.0"]
    assert [line.split()[0] for line in lines[2:5]] == ["scratch", "MAE", "MAE"]
    assert lines[2].endswith("51.0 ± 1.0")


def test_rows_carry_what_their_figures_depend_on(quick):
    with quick.open() as file:
        (first, *_) = csv.DictReader(file)
    assert list(first)[: len(COLUMNS)] == COLUMNS
    assert {"torch", "commit", "device_name", "date"} <= first.keys()
