"""The pack command: options, what it prints, and mistakes in a line."""

import re

import pytest
from source_forms import write_folder

from bimkern import pretrain
from bimkern.pack import main


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").touch()
    return write_folder(tmp_path / "photos")


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code, capsys.readouterr().err


def test_help_lists_exactly_these_options(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    found = re.findall(r"^\W*(?:-h, )?(--[a-z][a-z-]*)", capsys.readouterr().out, flags=re.MULTILINE)
    shown = ["--help", "--size", "--side", "--quality", "--keep", "--channels", "--alpha", "--range"]
    assert found == [*shown, "--shard-images", "--workers", "--max-bad-ratio", "--max-pixels"]


def test_a_packed_set_is_pretrained_on(photos, capsys):
    (photos / "ant" / "damaged.png").write_bytes(b"")
    main(["photos", "packed", "--size", "20", "--workers", "0", "--max-bad-ratio", "0.2"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("packed: 12 images, 30 KiB, in 1 shard (")
    assert printed[1:3] == [
        "left out 1 file that is no image or cannot be read:",
        "  ant/damaged.png: empty",
    ]
    assert printed[-1] == "Next: python -m bimkern.pretrain --data packed"
    pretrain.main(["mae_vit_test", "--data", "packed", "--steps", "1", "--batch-size", "4", "--workers", "0"])
    assert "12 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SOURCE is missing; see --help"),
        (["photos"], "OUT is missing; see --help"),
        (["missing", "out"], "missing is not a folder"),
        (["photos", "photos/out"], "OUT photos/out lies inside SOURCE "),
        (["photos", "s3://bucket/out"], "OUT must be a folder of this machine, got s3://bucket/out"),
        (["photos", "photo.jpg/out"], "out cannot be written (Not a directory); the same command continues"),
        (["photos", "out", "--size", "0"], "--size must be at least 1, got 0"),
        (["photos", "out", "--quality", "101"], "--quality must be in [1, 100], got 101"),
        (["photos", "out", "--workers", "-1"], "--workers must be at least 0, got -1"),
        (["photos", "out", "--max-bad-ratio", "1"], "--max-bad-ratio must be in [0, 1), got 1.0"),
        (["photos", "out", "--range", "9", "1"], "--range must be dtype, or two finite numbers, the smaller one first"),
        (
            ["photos", "out", "--channels", "5", "--alpha", "white"],
            "--alpha white is for gray and RGB: the encoder takes 5",
        ),
        (["photos", "out", "--side", "both"], "--side must be one of shortest, longest, got 'both'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    code, printed = refused(arguments, capsys)
    assert code in (1, 2)
    assert printed.count("\n") == 1
    assert message in printed


def test_a_name_that_is_too_long_is_a_wrong_argument(capsys):
    code, printed = refused(["photos", "x" * 300], capsys)
    assert code == 2
    assert printed.endswith("x is longer than a name may be; choose another\n")


def test_too_many_bad_images_are_one_line(photos, capsys):
    (photos / "ant" / "damaged.png").write_bytes(b"")
    code, printed = refused(["photos", "packed", "--workers", "0", "--max-bad-ratio", "0.05"], capsys)
    assert (code, printed.count("\n")) == (2, 1)
    assert "1 of 13 images cannot be read (the last one is ant/damaged.png: empty), more than --max-bad-ra" in printed
