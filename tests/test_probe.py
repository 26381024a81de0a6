"""The probe command: tables, JSON and a picture, for several runs, and mistakes in a line."""

import json
import re
from dataclasses import replace

import pytest
from PIL import Image
from saved_runs import make_run

from bimkern.cli import evaluation
from bimkern.evaluate import depths
from bimkern.evaluate.errors import NotFinite, ProbeDiverged
from bimkern.evaluate.linear import LinearProbe
from bimkern.probe import main

QUICK = ("--epochs", "9", "--k", "3", "1")


@pytest.fixture
def stripes(tmp_path):
    """A folder of two classes that any encoder tells apart."""
    for part, count in (("train", 8), ("val", 4)):
        for kind, size in (("across", (1, 8)), ("down", (8, 1))):
            for number in range(count):
                image = Image.new("L", size)
                image.putdata([(0, 200 + number)[i % 2] for i in range(8)])
                path = tmp_path / "data" / part / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.resize((40, 40), Image.Resampling.NEAREST).save(path)
    return str(tmp_path / "data")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Names of two run folders in the current one."""
    monkeypatch.chdir(tmp_path)
    for name, recipe in (("bim", "bim_vit_test"), ("mae", "mae_vit_test")):
        make_run(tmp_path / name, recipe)
    return ["bim", "mae"]


def test_help_lists_exactly_these_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    found = re.findall(r"^\W*(?:-h, )?(--[a-z][a-z-]*)", capsys.readouterr().out, flags=re.MULTILINE)
    shown = ["--help", "--data", "--depth", "--pool", "--k", "--base-lr", "--epochs", "--crops"]
    shown += ["--max-bad-ratio", "--batch-size", "--alpha", "--range", "--max-pixels", "--device"]
    assert found == [*shown, "--seed", "--import", "--json", "--picture"]


def test_two_runs_are_compared(runs, stripes, capsys, tmp_path):
    main([*runs, "--data", stripes, *QUICK, "--depth", "4,1"])
    head, _, columns, *rows, _, wrote = capsys.readouterr().out.splitlines()
    assert head == f"{stripes}: 2 classes, 16 training and 8 test images; features: mean of the patch tokens of " + (
        "frozen layers"
    )
    assert columns.split() == ["run", "depth", "parameters", "latency", "kNN", "k=3", "kNN", "k=1", "linear", "chance"]
    assert [row.split()[:2] for row in rows] == [[run, str(depth)] for run in runs for depth in (1, 4)]
    assert all(row.split()[-2:] == ["100.0%", "50.0%"] for row in rows)
    assert wrote == "Wrote bim/pictures/probe.png"
    with Image.open(tmp_path / "bim/pictures/probe.png") as picture:
        assert picture.width > picture.height > 300


def test_json_has_an_object_for_every_depth(runs, stripes, capsys):
    main([runs[1], "--data", stripes, *QUICK, "--json", "--pool", "cls", "--picture", "own.png"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["run"], one["depth"]) for one in found] == [("mae", depth) for depth in range(1, 5)]
    for one in found:
        assert one.keys() == {
            *("run", "depth", "parameters", "latency_ms", "knn", "knn_by_k", "linear", "chance"),
        }
        assert one["knn"] == one["knn_by_k"]["3"]
        assert one["latency_ms"] > 0
        assert one["chance"] == 0.5


def test_the_linear_probe_learns_from_random_crops_and_neighbors_do_not(runs, stripes, capsys):
    def found(*options):
        main([runs[0], "--data", stripes, *QUICK, "--depth", "2", "--json", *options])
        return json.loads(capsys.readouterr().out)

    plain, cropped, again = found(), found("--crops", "3"), found("--crops", "3")
    assert cropped["knn_by_k"] == plain["knn_by_k"]
    assert cropped["linear"] == again["linear"] > 0.8  # crops of stripes are stripes


def test_without_data_it_reads_digits(runs, capsys):
    main([runs[0], "--depth", "2", "--json"])
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert found["chance"] == pytest.approx(0.1, abs=0.01)
    assert found["linear"] > 0.5  # even random weights keep much of a digit
    assert found["knn_by_k"].keys() == {"20", "10", "1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUN is missing; see --help"),
        (["walk"], "walk holds no encoder; give a run folder"),
        (["bim", "bim"], "a RUN is given twice; give it once"),
        (["bim", "--depth", "5"], "--depth must be all or numbers from 1 to 4 with commas for bim, got '5'"),
        (["bim", "--depth", "first"], "--depth must be all or numbers from 1 to 4 with commas for bim, got 'first'"),
        (["bim", "--pool", "max"], "--pool must be one of mean, cls, got 'max'"),
        (["bim", "--k", "0"], "--k must be numbers of at least 1, got 0"),
        (["bim", "--k"], "--k must be numbers of at least 1, got none"),
        (["bim", "--k", "17", "--data", "DATA"], "neighbors must be in [1, 16], the number of training images, got 17"),
        (["bim", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["bim", "--base-lr", "0"], "--base-lr must be above 0 and finite, got 0.0"),
        (["bim", "--crops", "-1"], "--crops must be at least 0, got -1"),
        (["bim", "--crops", "2"], "--crops needs --data: the digits are no files, and too small to be cropped"),
        (["bim", "--max-bad-ratio", "1"], "--max-bad-ratio must be in [0, 1), got 1.0"),
        (["bim", "--seed", "18446744073709551616"], "--seed must be in [0, 2**63), got 18446744073709551616"),
        (["bim", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["bim", "--data", "nowhere"], "nowhere is not a folder"),
        (["bim", "--picture", "a.jpg"], "--picture is written as PNG and must end in .png, got a.jpg"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(runs, stripes, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main([stripes if word == "DATA" else word for word in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert error.startswith(f"python -m bimkern.probe: {message}")


def test_an_image_that_is_trained_and_tested_on_is_refused(runs, stripes, capsys, tmp_path):
    (tmp_path / "data/val/down/linked.png").symlink_to(tmp_path / "data/train/down/0.png")
    with pytest.raises(SystemExit) as stop:
        main([*runs, "--data", stripes])
    assert stop.value.code == 2
    said = "1 of 9 images to evaluate on, in data/val, are also trained on ('down/linked.png'); evaluate on others"
    assert capsys.readouterr().err.replace(str(tmp_path) + "/", "") == f"python -m bimkern.probe: {said}\n"


def test_too_many_neighbors_are_refused_before_the_features(runs, stripes, capsys, monkeypatch):
    monkeypatch.setattr(depths, "cached_features", None)
    with pytest.raises(SystemExit) as stop:
        main(["bim", "--data", stripes, "--k", "5", "17"])
    assert stop.value.code == 2
    assert "neighbors must be in [1, 16]" in capsys.readouterr().err


@pytest.fixture
def diverging(monkeypatch):
    """Have the second linear probe of a command diverge."""
    calls, plain = [], LinearProbe.accuracy

    def accuracy(probe, *given, **options):
        calls.append(probe)
        if len(calls) == 2:
            raise ProbeDiverged("the weights are not finite")
        return plain(probe, *given, **options)

    monkeypatch.setattr(LinearProbe, "accuracy", accuracy)


@pytest.mark.usefixtures("diverging")
def test_a_depth_whose_probe_diverges_keeps_no_other_result_back(runs, stripes, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([*runs, "--data", stripes, *QUICK, "--depth", "1,3"])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    rows = [line.split() for line in out.splitlines()[3:7]]
    assert [row[:2] for row in rows] == [[run, depth] for run in runs for depth in "13"]
    assert [row[-2] for row in rows] == ["100.0%", "diverged", "100.0%", "100.0%"]
    assert all(row[-3].endswith("%") for row in rows)  # neighbors
    assert (tmp_path / "bim/pictures/probe.png").is_file()
    assert err == (
        "python -m bimkern.probe: the linear probe diverges at --base-lr 0.1 at depth 3 of bim; choose a smaller one\n"
    )


def test_the_run_of_features_that_are_not_finite_is_named(runs, stripes, capsys, monkeypatch):
    def features(*given):
        raise NotFinite("the features behind layer 3 are not finite")

    monkeypatch.setattr(depths, "cached_features", features)
    with pytest.raises(SystemExit) as stop:
        main([*runs, "--data", stripes, *QUICK])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "python -m bimkern.probe: bim: the features behind layer 3 are not finite\n"


@pytest.mark.usefixtures("diverging")
def test_a_probe_that_diverges_is_null(runs, stripes, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bim", "--data", stripes, *QUICK, "--json"])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    found = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert [one["linear"] for one in found] == [1, None, 1, 1]
    assert all(0 <= one["knn"] <= 1 for one in found)
    assert "at depth 2 of bim; choose a smaller one" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pool", "cls"], "pool cls: SwinConfig has no class token; choose mean"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--crops", "2"], "--crops needs --data: the digits are no files"),
    ],
)
def test_what_cannot_be_is_refused_before_any_run_is_evaluated(runs, tmp_path, capsys, monkeypatch, options, message):
    make_run(tmp_path / "swin", "bim_swin_tiny_test")
    monkeypatch.setattr(depths, "cached_features", None)
    with pytest.raises(SystemExit) as stop:
        main(["bim", "swin", *options])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"python -m bimkern.probe: {message}")


def test_runs_of_different_channels_are_refused(runs, stripes, capsys, monkeypatch):
    read = evaluation.read_backbone

    def with_gray(path):
        backbone = read(path)
        if path.name == "mae":
            backbone.encoder.config = replace(backbone.config, channels=1)
        return backbone

    monkeypatch.setattr(evaluation, "read_backbone", with_gray)
    with pytest.raises(SystemExit):
        main([*runs, "--data", stripes])
    assert "every RUN must take the same images, got 3 channels of bim, 1 channel of mae" in capsys.readouterr().err


def test_a_run_folder_of_another_keeps_no_result_back(runs, stripes, capsys, tmp_path, caplog):
    (tmp_path / "bim/pictures/probe.png").mkdir(parents=True)
    main(["bim", "--data", stripes, *QUICK, "--depth", "4"])
    assert "Wrote" not in (out := capsys.readouterr().out)
    assert out.splitlines()[-1].startswith("bim ")
    assert re.search(r"bim/pictures/probe.png cannot be written .*; name another file with --picture$", caplog.text)


def test_a_picture_that_is_asked_for_and_cannot_be_written_is_an_error_behind_the_results(
    runs, stripes, capsys, tmp_path
):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SystemExit) as stop:
        main(["bim", "--data", stripes, *QUICK, "--depth", "4", "--json", "--picture", "file/probe.png"])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert json.loads(out)["depth"] == 4
    assert "file/probe.png cannot be written" in err
