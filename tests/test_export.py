"""The export command: what it writes loads as it says, and mistakes are short."""

import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import commands
import pytest
import torch
from interop import import_or_skip

from bimkern.export import main
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.store import Checkpoint
from bimkern.train.config.serialize import to_json
from bimkern.train.run_folder.folder import RunFolder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The name of a run folder in the current one, after 12 steps."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "run")
    config = RECIPES["bim_vit_test"].config
    folder.open(config)
    folder.record(config)
    saved = Checkpoint(12, MIM(config.method).state_dict(), {}, {"config": to_json(config)})
    checkpoints.save(folder.checkpoints, saved, best_step=12)
    return "run"


def test_help_lists_formats_examples_and_exactly_these_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    output = capsys.readouterr().out
    assert stop.value.code == 0
    assert "Formats:" in output
    assert "Examples:" in output
    found = re.findall(r"^\W*(?:-h, )?(--[a-z]+)", output, flags=re.MULTILINE)
    assert found == ["--help", "--depth", "--format", "--import", "--out"]


@pytest.mark.parametrize(
    ("name", "suffix", "module"),
    [("timm", "", "timm"), ("mae", ".pth", "torch"), ("hf", "", "transformers")],
)
def test_what_it_says_about_loading_works(run, capsys, name, suffix, module):
    import_or_skip(module)
    main([run, "--format", name])
    told, _, recipe = capsys.readouterr().out.partition("\n\nTo load it:\n")
    assert "# images: 32 px, bicubic, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)\n" in recipe
    assert told == f"Wrote run/exported/{name}-depth04-step00000012{suffix}"
    loaded = {}
    exec(textwrap.dedent(recipe), loaded)
    weights = loaded["weights"] if name == "mae" else loaded["model"].state_dict()
    expected = checkpoints.load_latest(Path(run) / "checkpoints").model
    assert any(torch.equal(tensor, expected["heads.3.mask_token"]) for tensor in weights.values()) == (name != "timm")
    assert any(torch.equal(tensor, expected["encoder.blocks.3.mlp.fc1.weight"]) for tensor in weights.values())


def test_transformers_is_told_to_keep_the_position_tables_fixed(run, capsys):
    transformers = import_or_skip("transformers")
    main([run, "--format", "hf", "--out", "hf"])
    recipe = capsys.readouterr().out.partition("\n\nTo load it:\n")[2]
    assert "# from_pretrained makes both position tables trainable" in recipe
    loaded = {}
    exec(textwrap.dedent(recipe), loaded)
    without = transformers.ViTMAEForPreTraining.from_pretrained("hf")
    fixed = [
        {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        for model in (loaded["model"], without)
    ]
    assert fixed == [{"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}, set()]


def test_our_own_layout_is_loaded_in_a_fresh_process_by_what_it_says(run, tmp_path, capsys):
    main([run, "--format", "bimkern", "--depth", "3"])
    recipe = textwrap.dedent(capsys.readouterr().out.partition("To load it:\n")[2])
    saved = tmp_path / "state.pt"
    code = f"{recipe}\nimport torch\ntorch.save(model.state_dict(), {str(saved)!r})"
    commands.run([sys.executable, "-c", code], check=True)
    found, trained = torch.load(saved, weights_only=True), checkpoints.load_latest(Path(run) / "checkpoints").model
    assert "blocks.2.norm1.bias" in found
    assert "blocks.3.norm1.bias" not in found
    assert all(torch.equal(tensor, trained[f"encoder.{name}"]) for name, tensor in found.items())


def test_a_closed_pipe_ends_it_without_a_word(run):
    command = commands.Command(
        [sys.executable, "-m", "bimkern.export", run], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    command.stdout.close()
    with command:
        assert command.stderr.read() == ""
    assert command.returncode == -signal.SIGPIPE


def test_depth_and_place_can_be_chosen(run, tmp_path):
    main([f"{run}/checkpoints/step-00000012", "--format", "mae", "--depth", "2", "--out", "deep/er/two.pth"])
    weights = torch.load(tmp_path / "deep/er/two.pth", weights_only=True)["model"]
    assert "blocks.1.norm1.bias" in weights
    assert "blocks.2.norm1.bias" not in weights


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--depth", "5"], "--depth must be one of 1, 2, 3, 4, got 5"),
        (
            ["run", "--format", "onnx"],
            "--format must be one of timm, mae, hf, detectron2, mmpretrain, bimkern, got 'onnx'",
        ),
        (["walk"], "walk is not a folder; give a run folder or one of its checkpoints"),
        ([], "CHECKPOINT is missing; see --help\n"),
        (["run/checkpoints/step-00000099"], "step-00000099 is not a folder"),
        (["run", "--out", "run"], "--out run is a run folder, or a checkpoint, and would be overwritten; choose"),
        (["run", "--format", "bimkern", "--out", "run/checkpoints/step-00000012"], "and would be overwritten; choose"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("python -m bimkern.export: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "run" / "exported").iterdir())


def test_a_config_that_cannot_be_read_is_one_line(tmp_path, capsys):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"python -m bimkern.export: {tmp_path / 'config.json'} cannot be read (Is a directory)\n"
    )
