"""`python -m bimkern.plan`: the memory of a run, estimated before it."""

import json
from itertools import combinations

import pytest
from PIL import Image

from bimkern import plan
from bimkern.plan import main
from bimkern.train.memory import extrapolate
from bimkern.units import human_bytes


def planned(capsys, *arguments):
    main(list(arguments))
    return capsys.readouterr().out


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    return stop.value.code, output


def test_one_object_in_bytes(capsys):
    need = json.loads(planned(capsys, "bim_vit_test", "--batch-size", "16", "--slices", "4", "--json"))
    parts = ("weights", "gradients", "optimizer", "inputs", "activations", "peak")
    assert set(parts) <= need.keys()
    assert all(isinstance(need[part], int) and need[part] > 0 for part in parts)
    assert need["weights"] + need["optimizer"] + need["inputs"] < need["peak"] < sum(need[part] for part in parts[:-1])
    assert "fits" not in need


def test_more_slices_and_smaller_micro_batches_need_less(capsys):
    plain, sliced, cut = (
        json.loads(planned(capsys, "bim_vit_test", "--batch-size", "64", "--json", *options))["peak"]
        for options in ((), ("--slices", "8"), ("--micro-batch", "8"))
    )
    assert plain > sliced > cut


def test_the_fewest_layers_that_fit_are_recomputed(capsys):
    words = ["mae_vit_test", "--batch-size", "256", "--slices", "8", "--json"]
    plain, one, all_of_them = (
        json.loads(planned(capsys, *words, "--recompute", choice))["peak"] for choice in ("none", "1", "layers")
    )
    assert plain > one > all_of_them
    found = json.loads(planned(capsys, *words, "--recompute", "auto", "--limit", f"{one} B"))
    assert (found["recompute"], found["peak"]) == ("1", one)
    text = planned(capsys, *words[:-1], "--recompute", "auto", "--limit", f"{all_of_them} B")
    assert "recomputed: layers" in text or "layers of every stage" in text
    assert refused(capsys, *words, "--recompute", "auto") == (
        2,
        "python -m bimkern.plan: --recompute auto fits a batch into a --limit; give one, such as 24GiB\n",
    )


@pytest.mark.parametrize("ranks", [(), ("--ranks", "2")], ids=["one", "two"])
def test_nothing_is_estimated_twice(capsys, monkeypatch, ranks):
    traced, planned_steps, step, plan_of = [], [], extrapolate._Step, extrapolate.plan_of
    monkeypatch.setattr(extrapolate, "_Step", lambda *args: traced.append(args) or step(*args))
    monkeypatch.setattr(extrapolate, "plan_of", lambda *args: planned_steps.append(args) or plan_of(*args))
    words = ("mae_vit_test", "--batch-size", "16", "--recompute", "auto", "--json", *ranks)
    planned(capsys, *words, "--limit", "1GiB")
    assert len(traced) == 1
    sizes = [[lifetime.bytes for lifetime in lifetimes] for _, lifetimes, *_ in planned_steps]
    assert all(one != other for one, other in combinations(sizes, 2))


def test_what_it_proposes_fits_and_no_more(capsys):
    wanted = {"--batch-size": 256, "--slices": 2}
    limit = 14 * 2**20

    def plan(options, *others):
        words = [str(word) for option in options.items() for word in option]
        return json.loads(planned(capsys, "mae_vit_test", *words, "--json", *others))

    fits = plan(wanted, "--limit", "14 MiB")["fits"]
    for option, value, beyond in (
        ("--batch-size", fits["batch_size"], fits["batch_size"] + 1),
        ("--micro-batch", fits["micro_batch"], fits["micro_batch"] + 1),
        ("--slices", fits["slices"], fits["slices"] - 1),
    ):
        within, above = (plan(wanted | {option: number})["peak"] for number in (value, beyond))
        assert within <= limit < above, option


def test_text_and_picture(capsys, tmp_path):
    picture = tmp_path / "memory.png"
    text = planned(capsys, "bim_vit_test", "--batch-size", "16", "--limit", "1GiB", "--picture", str(picture))
    assert "bim_vit_test: steps of 16 images, 16 at a time, decoded in slices: 1, fp32" in text
    assert "stage3" in text
    assert "the batch fits into 1.00 GiB. Options that fit: --batch-size" in text
    with Image.open(picture) as image:
        assert image.width > 300


def test_the_largest_image_size_counts_and_every_phase_is_told(capsys):
    command = ("fastmim_p_vit_test", "--batch-size", "8")
    need = json.loads(planned(capsys, *command, "--json"))
    assert need["inputs"] == 8 * (3 * 64 * 64 + 8)
    assert need["image_size"] == 64
    assert [phase["image_size"] for phase in need["phases"]] == [32, 48, 64]
    peaks = [phase["peak"] for phase in need["phases"]]
    assert sorted(peaks) == peaks
    assert peaks[-1] == need["peak"]
    text = planned(capsys, *command)
    assert "all of this is for phase 3 of 3, 8 images of 64 px, " in text
    assert "with 8 images of 32 px, 8 at a time, " in text


def test_parts_of_a_recipe_are_cut_to_the_batch(capsys):
    assert "mae_vit_base: steps of 4 images, 4 at a time" in planned(capsys, "mae_vit_base", "--batch-size=4")


def test_a_limit_below_weights_and_optimizer_says_so(capsys):
    text = planned(capsys, "mae_vit_test", "--limit", "100KiB")
    assert "above 100 KiB: weights and optimizer alone take " in text
    assert "No option fits; choose a smaller recipe" in text


def test_what_parts_are_together(capsys):
    need = json.loads(planned(capsys, "mae_vit_test", "--json"))
    together = sum(need[part] for part in ("weights", "gradients", "optimizer", "inputs", "activations"))
    assert f"{human_bytes(together)} together: " in planned(capsys, "mae_vit_test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["byol"], "unknown recipe 'byol' (your own is named as "),
        (["mae_vit_bass"], "; did you mean mae_vit_base, "),
        (["mae_vit_test", "--limit", "24"], "--limit must be a number of B, KiB, MiB, GiB, TiB, like 24GiB, got '24'"),
        (["mae_vit_test", "--slices", "0"], "--slices must be at least 1, got 0"),
        (
            ["mae_vit_test", "--batch-size", "8", "--micro-batch=9"],
            "--micro-batch must be at most the images of a step, --batch-size 8, got 9",
        ),
        (["mae_vit_test", "--picture", "a.txt"], "--picture is written as PNG and must end in .png, got a.txt"),
        (["fastmim_vit_test_distilled"], "name an exported backbone by --teacher"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, arguments, message):
    code, output = refused(capsys, *arguments)
    assert code == 2
    assert message in output


def test_a_picture_without_a_folder_is_refused_before_anything_is_counted(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "MemoryEstimator", None)
    code, output = refused(capsys, "mae_vit_test", "--picture", str(tmp_path / "none" / "memory.png"))
    assert code == 2
    assert f"there is no folder {tmp_path / 'none'}" in output


def test_a_picture_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "memory.png").mkdir()
    code, output = refused(capsys, "mae_vit_test", "--picture", str(tmp_path / "memory.png"))
    assert code == 1
    assert "cannot be written" in output


@pytest.mark.parametrize("options", [[], ["--picture", "memory.png"]], ids=["text", "picture"])
def test_what_cannot_be_read_is_not_said_of_the_picture(capsys, monkeypatch, tmp_path, options):
    def fails(*given):
        raise PermissionError(13, "Permission denied", "weights")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan.MemoryEstimator, "estimate", fails)
    code, output = refused(capsys, "mae_vit_test", *options)
    assert code == 1
    assert output.endswith("plan: cannot continue ([Errno 13] Permission denied: 'weights')\n")
