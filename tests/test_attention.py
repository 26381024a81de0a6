"""The attention command: tables, JSON and a picture, for several runs, and mistakes in a line."""

import json
import re

import pytest
from PIL import Image
from saved_runs import make_run

from bimkern.attention import main

MEASURES = {"distance_px", "entropy_nats", "nmi", "kl_heads_nats"}


@pytest.fixture
def photos(tmp_path):
    """A folder of images without classes."""
    (tmp_path / "photos").mkdir()
    for number in range(9):
        Image.effect_noise((40, 50), 10 + 20 * number).save(tmp_path / "photos" / f"{number}.png")
    return "photos"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Names of two run folders in the current one."""
    monkeypatch.chdir(tmp_path)
    for name, recipe in (("mae", "mae_vit_test"), ("swin", "bim_swin_tiny_test")):
        make_run(tmp_path / name, recipe)
    return ["mae", "swin"]


def test_help_lists_exactly_these_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    found = re.findall(r"^\W*(?:-h, )?(--[a-z][a-z-]*)", capsys.readouterr().out, flags=re.MULTILINE)
    shown = ["--help", "--data", "--images", "--batch-size", "--alpha", "--range", "--max-pixels", "--device"]
    shown += ["--import", "--json", "--picture"]
    assert found == shown


def test_two_runs_are_compared(runs, photos, capsys, tmp_path):
    main([*runs, "--data", photos])
    head, _, columns, *rows, _, undefined, _, wrote = capsys.readouterr().out.splitlines()
    assert head == "photos: 9 images; means over heads, queries and images"
    shown = ["run", "layer", "distance", "entropy", "NMI", "KL heads", "KL previous", "CKA previous", "CKA mae"]
    assert re.split(r"  +", columns) == shown
    assert [row.split()[:2] for row in rows] == [["mae", f"{i}"] for i in (1, 2, 3, 4)] + [
        ["swin", f"{i}"] for i in range(1, 7)
    ]
    assert rows[0].split()[-3:] == ["-", "-", "1.00"]
    assert rows[-1].split()[-1] == "-"  # mae has no layer 6
    assert undefined.startswith("KL is undefined (-) between layers whose queries attend to different keys")
    assert wrote == "Wrote mae/pictures/attention.png"
    with Image.open(tmp_path / "mae/pictures/attention.png") as picture:
        assert picture.width > picture.height > 300


def test_json_has_an_object_for_every_layer(runs, photos, capsys):
    main([*runs, "--data", photos, "--json", "--picture", "own.png"])
    found = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    assert [(one["run"], one["layer"]) for one in found] == [("mae", i) for i in (1, 2, 3, 4)] + [
        ("swin", i) for i in range(1, 7)
    ]
    for one in found:
        assert one.keys() == {"run", "layer", *MEASURES, *(f"{m}_by_head" for m in MEASURES), "kl_layers_nats", "cka"}
        assert one["distance_px"] == pytest.approx(sum(one["distance_px_by_head"]) / len(one["distance_px_by_head"]))
        assert {run: len(row) for run, row in one["cka"].items()} == {"mae": 4, "swin": 6}
        assert one["cka"][one["run"]][one["layer"] - 1] == pytest.approx(1)
        assert one["kl_layers_nats"][one["layer"] - 1] == 0
    assert found[4]["kl_heads_nats"] is None  # the first stage has one head
    assert found[4]["kl_layers_nats"] == [0] + [None] * 5


def test_without_data_it_reads_digits_of_every_class(runs, capsys):
    main([runs[0], "--images", "20"])
    out = capsys.readouterr().out
    assert out.startswith("scikit-learn's digits: 20 images; ")
    assert "undefined" not in out


def test_a_backbone_has_no_folder_for_a_picture(runs, photos, capsys, tmp_path):
    main(["mae/checkpoints/step-00000012", "--data", photos])
    assert "Wrote" not in capsys.readouterr().out


def test_the_largest_image_is_that_of_the_training_or_as_asked(runs, photos, capsys, tmp_path):
    def refused(*arguments):
        with pytest.raises(SystemExit):
            main([*arguments, "--data", photos])
        return capsys.readouterr().err

    message = "40 x 50 pixels, more than --max-pixels 1999 in all"
    make_run(tmp_path / "small", "mae_vit_test", max_pixels=1999)
    assert message in refused("small")
    assert message in refused("mae", "--max-pixels", "1999")
    main(["small", "--data", photos, "--max-pixels", "2000"])
    main(["small", "mae", "--data", photos])  # of several, the largest
    assert Image.MAX_IMAGE_PIXELS > 2000  # as before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUN is missing; see --help"),
        (["walk"], "walk holds no encoder; give a run folder"),
        (["mae", "mae"], "a RUN is given twice; give it once"),
        (["mae", "--images", "7"], "--images must be at least 8, for CKA, got 7"),
        (["mae", "--batch-size", "7"], "--batch-size must be at least 8, for CKA, got 7"),
        (["mae", "--data", "nowhere"], "nowhere is not a folder"),
        (["mae", "--data", "photos", "--max-pixels", "0"], "--max-pixels must be at least 1, got 0"),
        (["mae", "--picture", "a.jpg"], "--picture is written as PNG and must end in .png, got a.jpg"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(runs, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert error.startswith(f"python -m bimkern.attention: {message}")
