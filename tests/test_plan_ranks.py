"""`python -m bimkern.plan --ranks N`: what every rank needs, before a run."""

import json
import re

import pytest

from bimkern.plan import main
from bimkern.recipes import RECIPES
from bimkern.train import network
from bimkern.train.config.stage import StageConfig
from bimkern.train.memory.budget import MemoryEstimator

BATCH = ("--batch-size", "12", "--micro-batch", "3")


def planned(capsys, *arguments):
    main([*arguments, *BATCH, "--json"])
    return json.loads(capsys.readouterr().out)


def parameter_bytes(recipe):
    return sum(parameter.nbytes for parameter in network.build(RECIPES[recipe].config).parameters())


def test_ranks_that_share_images(capsys):
    alone = planned(capsys, "mae_vit_test")
    (rank,) = planned(capsys, "mae_vit_test", "--ranks", "4", "--bandwidth", "1MiB")["shared"]["ranks"]
    gradients = parameter_bytes("mae_vit_test")
    assert rank["buffers"] == gradients
    assert rank["sent"] == 2 * 3 * gradients // 4
    assert rank["seconds"] == rank["sent"] / 2**20
    assert rank["memory"]["weights"] == alone["weights"]
    assert rank["memory"]["inputs"] == alone["inputs"] // 4
    assert rank["peak"] == rank["memory"]["peak"] + gradients


def layer_bytes(recipe):
    model = network.build(RECIPES[recipe].config)
    return sum(p.nbytes for part in (model.encoder, *model.heads) for layer in part.layers for p in layer.parameters())


def test_ranks_that_share_out_what_they_train(capsys):
    name, alone = "mae_vit_test", planned(capsys, "mae_vit_test")
    found = [
        planned(capsys, name, "--ranks", "4", "--shard", shard)["shared"]["ranks"][0]
        for shard in ("none", "optimizer", "full")
    ]
    weights, layers = parameter_bytes(name), layer_bytes(name)
    here = alone["weights"] - layers * 3 // 4
    assert [rank["memory"]["weights"] for rank in found] == [alone["weights"], alone["weights"], here]
    assert [rank["memory"]["optimizer"] for rank in found] == [alone["optimizer"], *[alone["optimizer"] // 4] * 2]
    assert [rank["sent"] for rank in found] == [weights * 6 // 4, weights * 9 // 4, weights * 9 // 4]
    assert [rank["exposed"] for rank in found] == [weights * 6 // 4, *[weights * 9 // 4] * 2]  # of a single bucket
    assert found[0]["peak"] > found[1]["peak"] > found[2]["peak"]


def test_what_can_overlap_with_stages_that_learn_alone(capsys):
    found = [
        planned(capsys, "bim_vit_test", "--ranks", "2", "--shard", shard, "--slices", "3")["shared"]["ranks"][0]
        for shard in ("none", "optimizer", "full")
    ]
    assert found[0]["exposed"] == 0
    assert 0 < found[1]["exposed"] < 0.5 * parameter_bytes("bim_vit_test")  # what the first stage has updated
    assert layer_bytes("bim_vit_test") < found[2]["exposed"] < found[2]["sent"]
    assert found[2]["sent"] > found[1]["sent"] > found[0]["sent"]  # two micro-batches, whose heads decode three slices


@pytest.mark.parametrize("options", [("--shard", "full"), ("--pipeline",)], ids=" ".join)
def test_swins(capsys, options):
    assert planned(capsys, "bim_swin_tiny_test", "--ranks", "3", *options)["shared"]["ranks"][0]["peak"] > 0


def test_a_pipeline(capsys):
    alone = planned(capsys, "bim_vit_test")
    shared = planned(capsys, "bim_vit_test", "--ranks", "4", "--pipeline")["shared"]
    ranks, encoder = shared["ranks"], RECIPES["bim_vit_test"].config.method.encoder
    buffers = alone["weights"] - parameter_bytes("bim_vit_test")  # not trained, and so on every rank
    assert sum(rank["memory"]["optimizer"] for rank in ranks) == alone["optimizer"]
    assert sum(rank["memory"]["weights"] for rank in ranks) <= alone["weights"] + 3 * buffers
    assert max(rank["memory"]["weights"] for rank in ranks) < 0.5 * alone["weights"]
    visible = (encoder.image_size.height // encoder.patch) ** 2 // 4
    assert [rank["sent"] for rank in ranks] == [12 * (visible + encoder.num_prefix) * encoder.width * 4] * 3 + [0]
    assert all(rank["peak"] < alone["peak"] for rank in ranks)
    assert shared["balance"]["taps"] == [*RECIPES["bim_vit_test"].config.method.taps]


def test_text(capsys):
    main(["bim_vit_test_growing", "--ranks", "4", "--pipeline", "--bandwidth", "10GiB", *BATCH])
    text = capsys.readouterr().out
    assert "rank 3" in text
    assert "sends 0 B a step, of which 0 B cannot overlap with computing: 0 ms without overlap, 0 ms with it" in text
    assert "of a step's operations" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mae_vit_test", "--ranks", "0"], "--ranks must be at least 1, got 0"),
        (["mae_vit_test", "--ranks", "13"], "--ranks 13: steps of 12 images cannot be shared by so many; choose fewer"),
        (["mae_vit_test", "--ranks", "2", "--pipeline"], "the stages of mae_vit_test learn together, by EndToEnd"),
        (["bim_vit_test", "--ranks", "2", "--pipeline"], "got 2 ranks; choose 4 ranks, or --set method.taps=1,3, or"),
        (["mae_vit_test", "--shard", "full"], "--shard full is for several ranks; say how many by --ranks"),
        (["mae_vit_test", "--bandwidth", "1GiB"], "--bandwidth is for several ranks; say how many by --ranks"),
        (["mae_vit_test", "--ranks", "8", "--slices", "2", "--shard", "full"], "gather layers 2 times and others 1;"),
        (["bim_vit_test", "--ranks", "4", "--pipeline", "--shard", "full"], "--pipeline with --shard full: each rank"),
        (["bim_vit_test", "--ranks", "2", "--bandwidth", "fast"], "--bandwidth must be a number of B, KiB, "),
        (["bim_vit_test", "--ranks", "2", "--bandwidth", "0B"], "--bandwidth must be above 0, got 0B"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *BATCH])
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert stop.value.code == 2
    assert message in output


@pytest.mark.parametrize("options", [("--shard", "full"), ("--pipeline",)], ids=" ".join)
def test_a_limit_is_that_of_each_rank(capsys, options):
    name = "bim_vit_test" if options == ("--pipeline",) else "mae_vit_test"
    words = (name, "--ranks", "4", *options, "--limit")
    peak = max(rank["peak"] for rank in planned(capsys, *words, "1GiB")["shared"]["ranks"])
    for limit, verdict in ((peak, "every rank fits into"), (peak - 1, "rank .*is above|every rank is above")):
        main([*words, f"{limit} B", *BATCH])
        assert re.search(f"limit +({verdict})", capsys.readouterr().out)
    found = planned(capsys, *words, f"{peak - 1} B")["fits"]
    fits = {option: value for option, value in found.items() if value is not None}
    assert fits["batch_size"] < 12
    for option, value in fits.items():
        given = {"batch_size": 12, "micro_batch": 3} | {option: value}
        changed = [word for key, number in given.items() for word in (f"--{key.replace('_', '-')}", str(number))]
        main([*words[:-1], *changed, "--json"])
        assert max(rank["peak"] for rank in json.loads(capsys.readouterr().out)["shared"]["ranks"]) < peak, option


def test_every_stage_is_estimated_for_itself_by_one_estimator():
    config = RECIPES["bim_vit_test"].config
    estimator, stages = MemoryEstimator(), [StageConfig.of(config, stage) for stage in range(2)]
    found = [estimator.peak(each) for each in (config, *stages)]
    assert found == [MemoryEstimator().peak(each) for each in (config, *stages)]
    assert len(set(found)) == 3


def test_recomputation_is_chosen_for_the_memory_of_each_rank(capsys):
    words = ("mae_vit_test", "--ranks", "4", "--recompute", "auto", "--limit")
    (rank,) = planned(capsys, *words[:3])["shared"]["ranks"]
    assert planned(capsys, *words, f"{rank['peak']} B")["recompute"] == "none"
    assert planned(capsys, *words, f"{rank['peak'] - 1} B")["recompute"] != "none"
