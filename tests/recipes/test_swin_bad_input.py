"""What a user of Swin may get wrong is one line that names the value and what would do; what is harmless just runs."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from bimkern.exporters.own import write_own
from bimkern.exporters.timm import write_timm
from bimkern.exporters.trained import Trained
from bimkern.mim.model import MIM
from bimkern.models.encoder import WEIGHTS_FILE
from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.train.config.overrides import with_overrides

SPARSE, DENSE, PAINTED = "greenmim_swin_tiny_test", "simmim_swin_tiny_test", "fastmim_swin_tiny_test"
VIT = "mae_vit_test"


def complaint(capsys, *arguments):
    """The one line with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--dry-run"])
    found = capsys.readouterr()
    assert (stop.value.code, found.out, found.err.strip().count("\n")) == (2, "", 0)
    return found.err.strip().removeprefix("python -m bimkern.pretrain: ")


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        *(
            (
                recipe,
                ["--image-size", "72"],
                "method.encoder: image_size must be a multiple of 16, the patches after 2 mergings, got 72",
            )
            for recipe in (SPARSE, DENSE, PAINTED, "localmim_swin_tiny_test", "bim_swin_tiny_test")
        ),
        (
            DENSE,
            ["--image-size", "80"],
            "method: TokenReplace: mask_unit must divide the 20 x 20 patches, got 8",
        ),
        *(
            (
                SPARSE,
                ["--set", f"method.masker.mask_unit={unit}"],
                f"method: SharedUnits leaves out mask units of {unit} x {unit} patches, but Swin merges 4 x 4 of them "
                f"into a token; take a masker whose mask_unit is a multiple of 4",
            )
            for unit in (2, 6)
        ),
        (SPARSE, ["--set", "method.encoder.window=0"], "method.encoder: window must be at least 1, got 0"),
        *(
            (
                recipe,
                ["--set", f"method.masker.ratio={ratio}"],
                f"method.masker: ratio must be in (0, 1), got {ratio}.0",
            )
            for recipe in (SPARSE, DENSE, PAINTED)
            for ratio in (0, 1)
        ),
        *(
            (
                recipe,
                ["--set", "method.masker.ratio=0.99"],
                f"method: {masker}: ratio must mask at least 1 and leave at least 1 of {units} mask units, got 0.99, "
                f"which masks {units}",
            )
            for recipe, masker, units in (
                (SPARSE, "SharedUnits", 16),
                (DENSE, "TokenReplace", 4),
                (PAINTED, "BlockPixels", 16),
            )
        ),
    ],
)
def test_a_value_that_cannot_be_is_one_line(capsys, recipe, arguments, message):
    assert complaint(capsys, recipe, *arguments) == message


def export(recipe, folder, write):
    config = RECIPES[recipe].config
    write(folder, Trained(config, 7, MIM(config.method).state_dict()), config.method.encoder.depth)


@pytest.mark.parametrize("write", [write_timm, write_own])
@pytest.mark.parametrize(("here", "there"), [((SPARSE, "Swin"), (VIT, "ViT")), ((VIT, "ViT"), (SPARSE, "Swin"))])
def test_weights_of_another_kind_of_encoder_are_one_line(tmp_path, capsys, here, there, write):
    export(there[0], tmp_path, write)
    message = f"--init {tmp_path}: the encoder differs: it is a {there[1]}Config instead of a {here[1]}Config"
    assert complaint(capsys, here[0], "--init", str(tmp_path)) == message


@pytest.mark.parametrize(
    ("here", "there", "message"),
    [
        (
            SPARSE,
            VIT,
            "it has 0 layers instead of 6; patch_embed.proj.weight is [32, 3, 8, 8] instead of [16, 3, 4, 4]",
        ),
        (
            VIT,
            SPARSE,
            "it has 0 layers instead of 4; patch_embed.proj.weight is [16, 3, 4, 4] instead of [32, 3, 8, 8]",
        ),
    ],
)
def test_weights_that_do_not_say_what_they_are_of_are_one_line_too(tmp_path, capsys, here, there, message):
    export(there, tmp_path, write_timm)
    path = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / WEIGHTS_FILE), path)
    (tmp_path / "config.json").unlink()
    assert complaint(capsys, here, "--init", str(path)) == f"--init {path}: the encoder differs: {message}"


def test_a_window_larger_than_every_grid_is_the_whole_grid():
    """It is clamped, whatever its size, so that the same network with the largest window computes the same."""
    methods = [
        with_overrides(RECIPES[SPARSE].config, {"method.encoder.window": window}).method for window in ("16", "1000")
    ]
    images, losses = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), []
    for method in methods:
        torch.manual_seed(0)
        model = MIM(method)
        (view,) = model.views(images, torch.arange(2), 0)
        losses.append(model.encode(0, images, view))
    assert torch.equal(*losses)
