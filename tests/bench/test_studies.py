"""Studies: what is left to run follows from the results, rates are searched for, and statements follow the table."""

import json
from dataclasses import replace

import pytest
import torch

from bench import __main__ as bench
from bench.results import ResultsError
from bench.studies import cli as studies
from bench.studies import results as files
from bench.studies.claims import CLAIMS, CRITERION, Claim, half_width, statements
from bench.studies.digits import Digits
from bench.studies.loop import InThisProcess, run
from bench.studies.methods import CHEAPER_BIMS, DEPTH, DEPTHS, SWIN_DEPTH, alone, methods
from bench.studies.rates import RateSearch, best_of
from bench.studies.study import PIXELS, STUDIES, FineTuning, Result, Study, Trial
from bench.studies.table import METRICS, at_limit, chosen_rates, lay_out, percent, table_of
from bench.studies.trial import run_config
from bimkern.mim.flow import EndToEnd, Local, MicroBatch
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.masking.units import BlockPixels
from bimkern.mim.model import MIM
from bimkern.mim.schedule import FreezeOut, resolve
from bimkern.train.optim.group import GroupOptimizer

MAE, BIM = ("MAE", DEPTH), ("BIM", DEPTH)
SEARCH = RateSearch(start=(1e-3, 2e-3), lowest=5e-4, highest=8e-3)
CHOSEN = ("scratch", "MAE", alone(2))
STUDY = Study(name="digits", source=Digits(count=60), chosen=CHOSEN, seeds=2, rates=SEARCH, fine_tuning_rates=SEARCH)
BEST = {"MAE": 4e-3, "scratch": 2e-3}  # rates of the scores below


def made_up(trial):
    """Return a result that is the better, the closer the rate is to the best of its method."""
    rate = trial.rate if trial.fine_tuning is None else trial.fine_tuning.rate
    score = 0.9 if rate is None else 0.9 - abs(rate - BEST[trial.method.partition(" ")[0]]) * 10
    facts = files.settings(STUDY) | {"commit": "abc", "device_name": "CPU", "torch": "2", "date": "now"}
    result = Result(trial=trial, validation=score, facts=facts | {"train": 60, "held_out": 60})
    accuracy = score + 0.01 * trial.seed
    if trial.fine_tuning is not None:
        return result if trial.fine_tuning.selects else replace(result, fine_tuned=accuracy)
    accuracies = dict.fromkeys({0} if trial.method == PIXELS else {2, DEPTH}, accuracy)
    return replace(result, knn=accuracies, linear=accuracies)


def finished(results=(), run_trial=made_up, at_a_time=1):
    results = list(results)
    found = list(run(STUDY, results, run_trial, InThisProcess(), at_a_time))
    return results, [result.trial for result in found]


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1e-3, [1e-3, 2e-3, 5e-4]),  # inside after one more
        (2e-3, [1e-3, 2e-3, 4e-3]),
        (4e-3, [1e-3, 2e-3, 4e-3, 8e-3]),
        (1.0, [1e-3, 2e-3, 4e-3, 8e-3]),  # at the limit
    ],
)
def test_the_grid_grows_until_the_best_rate_is_inside(best, tried):
    scores = {}
    while untried := SEARCH.untried(scores):
        scores |= {rate: -abs(rate - best) for rate in untried}
    assert list(scores) == tried
    assert best_of(scores) == min(best, 8e-3)
    assert SEARCH.at_limit(best_of(scores)) == (best > 4e-3)


def test_the_lowest_of_equal_rates_is_taken():
    assert best_of({4e-3: 0.5, 1e-3: 0.5, 2e-3: 0.4}) == 1e-3


def test_a_study_searches_rates_once_and_repeats_with_every_seed():
    _, trials = finished()
    trials = [trial for trial in trials if trial.fine_tuning is None]
    search = [Trial(method="MAE", rate=rate) for rate in (1e-3, 2e-3, 4e-3, 8e-3)]
    assert sorted(trials, key=str) == sorted(
        [
            Trial(method=PIXELS),
            *(Trial(method="scratch", seed=seed) for seed in (0, 1)),
            *search,
            Trial(method="MAE", rate=4e-3, seed=1),
            *(Trial(method=alone(2), rate=4e-3, seed=seed) for seed in (0, 1)),  # the rate of the whole MAE
        ],
        key=str,
    )
    assert len(set(trials)) == len(trials)


def test_encoders_are_fine_tuned_at_the_depths_that_are_compared():
    _, trials = finished()
    tuned = [trial for trial in trials if trial.fine_tuning is not None]
    assert {trial.rate for trial in tuned if trial.method == "MAE"} == {4e-3}

    def selecting(method):
        return [t.fine_tuning.rate for t in tuned if t.method == method and t.fine_tuning.selects]

    def found(method):
        chosen = [trial for trial in tuned if trial.method == method and not trial.fine_tuning.selects]
        return {(t.seed, t.fine_tuning.depth, t.fine_tuning.rate) for t in chosen}

    assert selecting("scratch") == [1e-3, 2e-3, 4e-3]
    assert selecting("MAE") == [1e-3, 2e-3, 4e-3, 8e-3]
    assert found("scratch") == {(seed, DEPTH, 2e-3) for seed in (0, 1)}
    assert found("MAE") == {(seed, depth, 4e-3) for seed in (0, 1) for depth in DEPTHS}
    assert selecting(alone(2)) == []
    assert found(alone(2)) == {(0, 2, 4e-3), (1, 2, 4e-3)}  # the rates of the whole MAE


def test_rates_of_pre_training_may_be_chosen_by_fine_tuning():
    """A probe is best at 4e-3 here, and fine-tuning at 1e-3."""
    study = replace(STUDY, searched_by=2e-3, chosen=("MAE",))

    def tuned_best_at_low_rates(trial):
        result = made_up(trial)
        return result if trial.fine_tuning is None else replace(result, validation=1 - trial.rate)

    results = []
    trials = [result.trial for result in run(study, results, tuned_best_at_low_rates, InThisProcess(), 1)]
    assert chosen_rates(study, results)["MAE"] == 5e-4
    searched = [t for t in trials if t.rate and t.seed == 0 and not (t.fine_tuning and not t.fine_tuning.selects)]
    assert [(t.rate, t.fine_tuning and t.fine_tuning.rate) for t in searched] == [
        *[(rate, tuned_at) for rate in (1e-3, 2e-3, 5e-4) for tuned_at in (None, 2e-3)],
        *[(5e-4, rate) for rate in (1e-3, 5e-4)],  # equals: the lowest is the best, at the limit
    ]
    assert len(set(trials)) == len(trials)
    assert table_of(study, results)[MAE]["fine_tuned"]


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_a_study_continues_from_the_results_there_are(at_a_time):
    whole, trials = finished()
    for done in (1, 4, len(whole)):
        results, later = finished(whole[:done], at_a_time=at_a_time)
        assert not set(later) & set(trials[:done])
        assert sorted(map(str, results)) == sorted(map(str, whole))


def test_a_rate_that_diverges_is_never_chosen():
    def run_trial(trial):
        return Result(trial=trial) if trial.rate == 8e-3 else made_up(trial)

    results, _ = finished(run_trial=run_trial)
    assert chosen_rates(STUDY, results)["MAE"] == 4e-3


def test_an_error_of_a_trial_ends_the_study():
    def run_trial(trial):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        finished(run_trial=run_trial)


def test_the_table_holds_the_chosen_rates_alone():
    results, _ = finished()
    table = table_of(STUDY, results)
    assert table["MAE", DEPTH]["linear"] == [pytest.approx(0.9), pytest.approx(0.91)]
    assert table["MAE", 3]["fine_tuned"] == table["scratch", DEPTH]["fine_tuned"] == table["MAE", DEPTH]["linear"]
    compared = {("MAE", 1), ("MAE", 3), *((name, depth) for name in STUDY.chosen for depth in (2, DEPTH))}
    assert set(table) == {(PIXELS, 0), *compared}
    lines = lay_out(STUDY, results).splitlines()
    assert lines[0].split() == ["layers", "rate", "kNN", "linear", "fine-tuned"]
    assert [line.split()[0] for line in lines[1:]] == ["pixels", "scratch", *["MAE"] * 5]
    assert lines[3].split()[1:3] == [str(DEPTH), "0.004"]
    assert lines[3].endswith("90.5 ± 0.7")
    assert at_limit(STUDY, results) == []
    narrow = replace(STUDY, rates=replace(SEARCH, highest=4e-3))
    assert at_limit(narrow, results) == ["MAE (0.004)", f"{alone(2)} (0.004)"]


def test_results_are_read_back(tmp_path):
    results, _ = finished()
    path = tmp_path / "made" / "results.jsonl"
    for result in results:
        files.append(path, [result])
    assert files.read(path, STUDY) == results
    assert set(json.loads(path.read_text().splitlines()[0])) >= {"method", "seed", "rate", "knn", "linear", "cpu_s"}
    assert files.read(tmp_path / "none.jsonl", STUDY) == []


def test_results_of_other_settings_are_not_continued(tmp_path):
    path = tmp_path / "results.jsonl"
    files.append(path, [made_up(Trial(method="scratch"))])
    message = rf"^{path}: holds results of other settings \(steps 800, now 7\); choose another --out$"
    with pytest.raises(ResultsError, match=message):
        files.read(path, replace(STUDY, steps=7))
    path.write_text('{"op": "hog"}\n')
    message = rf"^{path}: holds rows of another kind \(KeyError\('method'\)\); choose another --out$"
    with pytest.raises(ResultsError, match=message):
        files.read(path, STUDY)


def test_studies_of_other_settings_or_images_share_no_folder():
    others = (replace(STUDY, steps=7), replace(STUDY, source=Digits(count=61)), replace(STUDY, name="photographs"))
    assert len({files.digest(study) for study in (STUDY, *others)}) == 4
    assert files.digest(replace(STUDY, seeds=5, chosen=())) == files.digest(STUDY)  # which a study may add


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Run a study in its quick form; return its arguments and what it printed."""
    folder = tmp_path_factory.mktemp("study")
    arguments = ["digits", "--quick", "--methods", "LocalMIM", "--out", str(folder / "digits.jsonl")]
    assert bench.main([*arguments, "--work", str(folder / "work")]) == 0
    return folder, arguments


def test_a_quick_run_fills_the_table_and_draws_it(quick):
    folder, _ = quick
    results = files.read(folder / "digits.jsonl")
    pixels, probed, selecting, tuned = results
    assert [result.trial.method for result in results] == [PIXELS, *["LocalMIM"] * 3]
    assert selecting.trial.fine_tuning == FineTuning(depth=DEPTH, rate=2e-3, selects=True)
    assert 0 < selecting.validation < 1
    assert tuned.trial.fine_tuning == FineTuning(depth=DEPTH, rate=2e-3)
    assert 0 < tuned.fine_tuned < 1
    assert pixels.linear[0] > 0.5
    assert list(probed.linear) == list(probed.knn) == list(range(1, DEPTH + 1))
    # Even an encoder that has learned next to nothing keeps some of an image; chance is a tenth.
    assert max(probed.linear.values()) > 0.15
    assert probed.facts["steps"] == 2
    assert {"torch", "commit", "device_name", "date"} <= probed.facts.keys()
    assert (folder / "digits.png").stat().st_size > 10_000
    kept = sorted(path.name for path in (folder / "work").glob("*/*") if path.is_dir())
    assert kept == ["backbones", "images-32"]  # runs are removed


def test_a_finished_study_runs_nothing_again(quick, capsys, monkeypatch):
    folder, arguments = quick
    monkeypatch.setattr(studies, "run_trial", lambda *arguments, **options: pytest.fail("a trial was run"))
    before = (folder / "digits.jsonl").read_bytes()
    assert bench.main([*arguments, "--work", str(folder / "work")]) == 0
    printed = capsys.readouterr().out
    assert "digits: 2 steps of 8 images on 60, fine-tuned for 2; 60 held out, chance " in printed
    limited = "LocalMIM (0.002); LocalMIM, fine-tuned (0.002)"
    assert f"No rate beyond these was tried, so that others may be better: {limited}." in printed
    assert f"Of {len(CLAIMS)} statements: {len(CLAIMS)} not evaluated." in printed
    assert (folder / "digits.jsonl").read_bytes() == before


def test_an_unfinished_study_is_shown_as_far_as_it_came(quick, tmp_path, capsys):
    folder, arguments = quick
    path = tmp_path / "short.jsonl"
    path.write_text("".join((folder / "digits.jsonl").read_text().splitlines(keepends=True)[:2]))
    assert bench.main([*arguments[:-1], str(path), "--show"]) == 0
    printed = capsys.readouterr().out
    assert "Not finished: at least 1 trials are left" in printed
    assert "LocalMIM" in printed


def test_wrong_command_lines(tmp_path, capsys):
    missing = tmp_path / "none.jsonl"
    nothing = f"{missing}: holds no results; `python -m bench digits` writes some"
    for arguments, message in (
        (["digits", "--show", "--out", str(missing)], nothing),
        (["digits", "--methods", "DINO"], f"no method is named 'DINO'; choose from {'; '.join(methods(32))}"),
        (["digits", "--data", "photos"], "unrecognized arguments: --data photos"),
        (["photographs", "--seeds", "0"], "argument --seeds: must be a whole number of at least 1, got '0'"),
    ):
        assert bench.main(arguments) == 2
        assert capsys.readouterr().err == f"bench: {message}\n"


@pytest.mark.parametrize("name", [name for name, method in methods(32).items() if method.config])
@pytest.mark.parametrize("study", STUDIES)
def test_every_method_takes_a_step_in_every_study(study, name):
    study = STUDIES[study]
    method = study.methods()[name]
    config = run_config(study, Trial(method=name, rate=1e-3), method.config, "images", "out")
    side = config.method.encoder.image_size.height
    assert config.method.encoder.depth == max(method.depths)
    assert resolve(config.schedule, 1.0, 1e-3).warmup == 0.1
    assert config.run.peak_lr == pytest.approx(1e-3)
    if name.endswith("Swin") and study.name == "photographs":
        return  # the same as for the digits
    torch.manual_seed(0)
    model = MIM(config.method)
    updates = [
        GroupOptimizer(name, group, config.optim, device=torch.device("cpu"), fp16=False)
        for name, group in config.method.flow.partition(model).items()
    ]
    images, ids = torch.randint(256, (2, 3, side, side), dtype=torch.uint8), torch.arange(2)
    losses = config.method.flow.step(model, [MicroBatch(images, model.views(images, ids, 0))], updates)
    assert torch.isfinite(losses).all()


def test_methods_are_what_their_names_say():
    known = methods(32)
    of = {name: method.config.method for name, method in known.items() if method.config}
    local = {name for name, method in of.items() if isinstance(method.flow, Local)}
    assert local == {"BIM", *CHEAPER_BIMS, "BIM, growing mask", "LocalMIM, isolated", "BIM, Swin"}
    shapes = [(head.depth, head.share, head.attends) for name in ("BIM", *CHEAPER_BIMS) for head in of[name].heads]
    assert shapes == [(2, 1, "all"), (2, 0.25, "all"), (2, 0.25, "visible"), (1, 1, "all")]
    assert {known[name].rates_of for name in CHEAPER_BIMS} == {"BIM"}
    assert isinstance(of["LocalMIM"].flow, EndToEnd)
    assert isinstance(of["FastMIM"].masker, BlockPixels)
    assert of["BIM, growing mask"].masker == RandomDrop(ratios=(0.65, 0.70, 0.80, 0.85))
    assert of["BIM, growing mask"].masker.entering((4, 4), 4) == [5, 4, 3, 2]
    assert of["SimMIM"].masker.mask_unit == 1
    assert [head.match_scale for head in of["LocalMIM"].heads] == [4, 2, 1, 0.5]
    for name in ("ViTFreeze", "ViTFreeze, Swin"):
        schedule = known[name].config.schedule
        assert isinstance(schedule, FreezeOut)
        assert (schedule.t0, schedule.power, schedule.rate, schedule.heads) == (0.8, 3, "scaled", "global")
    assert of["BIM"].taps == tuple(depth - 1 for depth in DEPTHS)
    assert {alone(depth) for depth in DEPTHS[:-1]} < known.keys()
    assert known["GreenMIM, Swin"].depths == (SWIN_DEPTH,)


def table_with(**accuracies):
    """Make a table of three seeds; methods that are not given have the same accuracies everywhere."""
    keys = {key for claim in CLAIMS for key in (claim.first, claim.second)}
    table = {key: {metric: [0.5, 0.51, 0.52] for metric in METRICS} for key in keys}
    return table | {(name, DEPTH): dict.fromkeys(METRICS, values) for name, values in accuracies.items()}


@pytest.mark.parametrize(
    ("relation", "bim", "verdict"),
    [
        ("above", [0.90, 0.91, 0.92], "shows"),
        ("above", [0.70, 0.71, 0.72], "is reversed"),
        ("above", [0.79, 0.81, 0.83], "within noise"),
        ("above", [0.90], "not evaluated"),
        ("level with", [0.79, 0.81, 0.83], "not contradicted"),
        ("level with", [0.90, 0.91, 0.92], "contradicted"),
        ("no worse than", [0.806, 0.807, 0.808], "shows"),
        ("no worse than", [0.77, 0.79, 0.81], "within noise"),
        ("no worse than", [0.70, 0.71, 0.72], "is reversed"),
    ],
)
def test_verdicts_follow_the_table(relation, bim, verdict):
    table = table_with(MAE=[0.80, 0.81, 0.80], BIM=bim)
    claim = Claim(first=BIM, second=MAE, relation=relation, metric="linear", source="a paper")
    assert claim.verdict(table) == verdict
    text = f"BIM {relation} MAE, linear: {percent(bim)} against 80.3 ± 0.6  [a paper]"
    assert claim.statement(table) == f"{verdict:16}  {text}"


def test_statements_count_the_verdicts():
    level = [claim for claim in CLAIMS if claim.relation == "level with"]
    text = statements(table_with())
    assert f"{len(CLAIMS) - len(level)} within noise" in text
    assert f"{len(level)} not contradicted" in text
    assert text.count("\n") == len(CLAIMS) + CRITERION.count("\n") + 1
    assert "BIM, first 3 layers above MAE, first 3 layers, fine-tuned: " in text


def test_half_the_interval_of_a_difference():
    # Two samples of three with the same variance: Student's t of 4 degrees of freedom is 2.776.
    assert half_width([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]) == pytest.approx(2.776 * (2 * 0.01 / 3) ** 0.5, rel=1e-3)
    assert half_width([0.1, 0.1], [0.2, 0.2]) == 0
