"""FastMIM on other backbones than ViT: its numbers, backbones by name on the command line, and runs from end to end."""

import json
import os
import shutil
import sys
from dataclasses import replace

import commands
import pytest
import torch
from growing import records, repeatable, train, write_photos
from interop import import_or_skip
from safetensors.torch import load_file
from small_backbones import KeepGradients, backbone, method, network, sample
from torch.nn.functional import layer_norm

from bimkern import plan
from bimkern.cli import command
from bimkern.cli.config_options import ConfigOptions, change_config, choose_config
from bimkern.exporters.own import write_own
from bimkern.exporters.timm import write_timm
from bimkern.exporters.trained import Trained
from bimkern.mim.model import MIM
from bimkern.mim.targets import Distillation
from bimkern.models.encoder import WEIGHTS_FILE, WholeImages
from bimkern.models.teacher import TeacherError, load_teacher
from bimkern.models.timm_backbone import TimmBackboneConfig
from bimkern.models.vit import ViTConfig
from bimkern.pretrain import Options, main
from bimkern.recipes import RECIPES, WITH_BACKBONE, Recipe
from bimkern.recipes.find import find_config
from bimkern.train.config.file import read_config
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import from_json

timm = import_or_skip("timm")
TABLE = {  # the last level's width, and millions of parameters as the backbones' papers have them, with a classifier
    "fastmim_pvt_v2_b2": (512, 25.4),
    "fastmim_pvt_v2_b5": (512, 82.0),
    "fastmim_convnext_tiny": (768, 28.6),
    "fastmim_convnext_base": (1024, 88.6),
    "fastmim_convnextv2_base": (1024, 88.7),
    "fastmim_twins_svt_large": (1024, 99.2),
    "fastmim_cmt_small": (512, None),
}
SMALL = ("fastmim_convnext_test", "fastmim_cmt_test")


@pytest.mark.parametrize(("name", "expected"), TABLE.items())
def test_numbers_are_those_of_the_paper(name, expected):
    config, (width, millions) = RECIPES[name].config, expected
    run, encoder = config.run, config.method.encoder
    assert (run.epochs, run.batch_size, run.base_lr, config.schedule.warmup_epochs) == (800, 2048, 1.5e-4, 10)
    assert (config.optim.betas, config.optim.weight_decay, config.augment.scale) == ((0.9, 0.95), 0.05, (0.2, 1.0))
    assert (encoder.image_size.height, config.method.masker.ratio) == (128, 0.75)
    assert (config.method.level(0).width, config.method.level(0).patch) == (width, 32)
    assert config.method.masker.mask_unit * encoder.level(0).patch == 32
    head = config.method.head(0)
    assert (head.depth, head.width, head.num_heads, head.positions) == (4, 256, 8, False)
    assert config.method.target(0).length(3, 32) == 432
    with torch.device("meta"):
        count = sum(p.numel() for p in encoder.module(encoder).parameters())
    if millions is not None:
        assert count / 1e6 + width * 1000 / 1e6 == pytest.approx(millions, rel=0.01)


def test_a_step_predicts_16_tokens_of_432_values():
    """Of images of 128 pixels, on every backbone whose last level has a stride of 32; four of them stay visible."""
    config = RECIPES["fastmim_cmt_small"].config
    with torch.device("meta"):
        model = MIM(config.method)
    images = torch.zeros(2, 3, 128, 128, dtype=torch.uint8)
    (view,) = config.method.views(torch.arange(2), (32, 32), 1)
    assert view.weights((4, 4)).sum(1).tolist() == [12, 12]
    tokens = model.encoder.embed(images.float().to("meta"))
    for layer in range(config.method.encoder.depth):
        tokens = model.encoder.run_layer(layer, tokens, view)
    assert tokens.shape == (2, 16, 512)
    assert model.heads[0](tokens, None, (4, 4)).shape == (2, 16, 432)


def test_a_recipe_is_the_family_with_its_backbone():
    assert find_config("fastmim", "convnext_tiny") == RECIPES["fastmim_convnext_tiny"].config
    growing = find_config("fastmim_p", "pvt_v2_b0")
    assert growing.recipe == "fastmim_p_pvt_v2_b0"
    assert [phase.image_size.height for phase in growing.phases] == [128, 160, 192]
    assert growing.method.encoder == TimmBackboneConfig(name="pvt_v2_b0", image_size=192)


def chosen(*given):
    """The config that arguments ask for."""
    arguments = list(given)
    base = choose_config(arguments)
    default = Options(recipe=ConfigOptions.of(base), run=base.run)
    options = command.parse(Options, arguments, usage="", description="", default=default)
    return change_config(base, options.recipe, options.run, arguments)


def shown(capsys, *arguments):
    main([*arguments, "--show"])
    return capsys.readouterr().out


def test_a_backbone_is_named_on_the_command_line(tmp_path, capsys):
    toml = shown(capsys, "fastmim", "--backbone", "convnextv2_atto", "--set", "method.encoder.depths=2,2,6,0")
    assert 'recipe = "fastmim_convnextv2_atto"' in toml
    assert "depths = [2, 2, 6, 0]" in toml
    (tmp_path / "mine.toml").write_text(toml)
    given = ("fastmim", "--backbone", "convnextv2_atto", "--set", "method.encoder.depths=2,2,6,0")
    assert read_config(tmp_path / "mine.toml") == chosen(*given)
    plan.main(["fastmim", "--backbone", "convnextv2_atto", "--batch-size", "4", "--json"])
    assert json.loads(capsys.readouterr().out)["activations"] > 0


def test_arguments_of_timms_network_are_set_by_name():
    values = {"depths": "[1,1,2,1]", "conv_bias": "false", "ls_init_value": "0.5", "kernel_sizes": "3"}
    settings = [f"--set=method.encoder.model_args.{name}={value}" for name, value in values.items()]
    encoder = chosen("fastmim", "--backbone", "convnext_atto", *settings).method.encoder
    assert encoder.model_args == {"depths": (1, 1, 2, 1), "conv_bias": False, "ls_init_value": 0.5, "kernel_sizes": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fastmim", "fastmim needs --backbone NAME, one of timm.list_models(), such as convnextv2_tiny"),
        ("mae_vit_base --backbone resnet18", "--backbone is for the recipes fastmim, fastmim_p, got mae_vit_base"),
        ("--backbone resnet18", "--backbone is for the recipes fastmim, fastmim_p, got demo"),
        (
            "fastmim --backbone convnxt_tiny",
            "--backbone convnxt_tiny: timm has no 'convnxt_tiny'; did you mean ",
        ),
        ("fastmim --backbone crossvit_9_240", "--backbone crossvit_9_240: image_size must be a multiple of 17 for "),
        (
            "fastmim_p --backbone beit_base_patch16_224",
            "does not take images of 192 pixels (Input height (192) ",
        ),
        (
            "--config x.toml --backbone resnet18",
            "--backbone resnet18 and --config x.toml both name an encoder; give one",
        ),
        ("fastmim_cmt_small --image-size 80", "method.encoder: image_size must be a multiple of 32, got 80"),
        ("fastmim_convnext_test --image-size 80", "image_size must be a multiple of 32 for convnext_atto, got 80"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main([*arguments.split(), "--show"])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_timm_is_imported_for_its_recipes_alone(tmp_path):
    """Neither by the package nor by a list of all recipes; without it, one line says what to install."""
    (tmp_path / "timm.py").write_text("raise ImportError('no timm here')")
    code = (
        "import sys\n"
        "from bimkern.recipes import RECIPES, FAMILIES\n"
        "from bimkern.recipes.find import find_config\n"
        "assert all(recipe.name and recipe.summary for recipe in RECIPES.values())\n"
        "find_config('fastmim_cmt_small')\n"
        "assert 'timm' not in sys.modules and 'torchvision' not in sys.modules\n"
        "find_config('fastmim_convnext_tiny')\n"
    )
    done = commands.run([sys.executable, "-c", code], env=environment(tmp_path))
    expected = (
        "ConfigError: fastmim_convnext_tiny: backbones by name need timm: cannot be imported: no timm here; "
        "pip install 'bimkern[timm]'"
    )
    assert done.stderr.splitlines()[-1].endswith(expected)


def environment(folder):
    return os.environ | {"PYTHONPATH": f"{folder}:{os.getcwd()}"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    runs = {}

    def folder(name):
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp(name) / "run"
            train(name, photos, runs[name], "--batch-size", "6", "--steps", "10", "--save-every", "5")
        return runs[name]

    return folder


every_run = pytest.mark.parametrize("name", SMALL)


@every_run
def test_it_resumes_bit_for_bit(photos, finished, tmp_path, capsys, name):
    shutil.copytree(finished(name), tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000010")
    train(name, photos, tmp_path / "resumed", "--batch-size", "6", "--steps", "10", "--save-every", "5")
    assert "at step 5 of 10" in capsys.readouterr().out
    assert repeatable(tmp_path / "resumed") == repeatable(finished(name))
    saved = json.loads((finished(name) / "config.json").read_text())
    assert from_json(saved).method == RECIPES[name].config.method


@every_run
def test_its_memory_is_planned_as_it_is_measured(finished, capsys, name):
    plan.main([name, "--batch-size", "6", "--json"])
    need = json.loads(capsys.readouterr().out)
    last = records(finished(name))[-1]
    assert need["activations"] == last["live_activation_bytes"]
    assert last["planned_bytes"] == last["planned_peak_bytes"]


def test_its_pictures_and_backbones_are_written(finished):
    out = finished("fastmim_convnext_test")
    assert (out / "pictures" / "reconstruction.png").stat().st_size > 10_000
    whole = timm.create_model(f"local-dir:{out / 'exported' / 'backbone-depth04'}", pretrained=True)
    assert whole(torch.zeros(1, 3, 64, 64)).shape == (1, 32)


def test_a_run_begins_with_the_weights_of_another(photos, finished, tmp_path, capsys):
    source = finished("fastmim_convnext_test") / "exported" / "backbone-depth04"
    train("fastmim_convnext_test", photos, tmp_path / "run", "--steps", "1", "--init", str(source))
    assert "(timm names); taken: encoder " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["fastmim_cmt_test", "--init", str(source), "--dry-run"])
    error = capsys.readouterr().err
    assert f"--init {source}: the encoder differs: it is a TimmBackboneConfig instead of a CMTConfig" in error
    assert error.count("\n") == 1


def test_evaluation_leaves_the_statistics_of_batch_norms(photos, tmp_path):
    """Held-out images are seen at each save, so how often it saves would change what is learned."""
    losses = []
    for every in ("2", "5"):
        train("fastmim_cmt_test", photos, tmp_path / every, "--steps", "5", "--batch-size", "6", "--save-every", every)
        losses.append([record["loss"] for record in records(tmp_path / every)])
        weights = torch_weights(tmp_path / every)
        counts = {tensor.item() for name, tensor in weights.items() if name.endswith("num_batches_tracked")}
        assert counts == {5}
    assert losses[0] == losses[1]


def torch_weights(run):
    return load_file(run / "checkpoints" / "step-00000005" / "model.safetensors")


def written(folder, config, write=write_own):
    config = backbone(config) if isinstance(config, str) else config
    model = network(method(config))
    base = replace(RECIPES["fastmim_vit_test"].config, method=model.method)
    write(folder, Trained(base, 1, model.state_dict()), config.depth)
    return folder, model.encoder.eval()


VIT = ViTConfig(image_size=64, patch=32, width=24, depth=2, num_heads=2)


@pytest.mark.parametrize(
    ("teacher", "layer", "student"),
    [("convnext", 3, VIT), ("twins", 0, backbone("pvt")), ("pvt", 2, backbone("cmt")), ("cmt", 3, backbone("vit"))],
    ids=["convnext-vit", "twins-pvt", "pvt-cmt", "cmt-vit"],
)
def test_an_encoder_of_another_kind_teaches(tmp_path, teacher, layer, student):
    folder, theirs = written(tmp_path, teacher, write_own if teacher == "cmt" else write_timm)
    model = MIM(method(student, distillation=Distillation(layers=(layer,))), load_teacher(folder))
    batch = sample(model)
    losses = model.method.flow.step(model, [batch], [KeepGradients()])
    assert losses.isfinite().all()
    assert model.projections[0].weight.grad.abs().sum() > 0
    found = model.targets([0], batch.images)[0].features
    tokens = theirs.embed(batch.images, model.mean, model.std)
    for i in range(layer + 1):
        tokens = theirs.run_layer(i, tokens, WholeImages(theirs.config.level(0).grid(64, 64)))
    torch.testing.assert_close(found, layer_norm(tokens, tokens.shape[-1:]))


def test_a_teacher_on_another_grid_or_of_other_images_is_one_line(tmp_path, capsys):
    write_timm_file, _ = written(tmp_path / "convnext", "convnext", write_timm)
    student = method(VIT, distillation=Distillation(layers=(2,)))
    with pytest.raises(TeacherError, match="the teacher's patches must be those of the student, 32, got 16"):
        MIM(student, load_teacher(write_timm_file))
    vit = backbone("vit")
    fixed = replace(vit, model_args=vit.model_args | {"dynamic_img_size": False})
    folder, _ = written(tmp_path / "fixed", fixed)
    larger = method(VIT.resized(128), distillation=Distillation(layers=(0,)))
    with pytest.raises(TeacherError, match=r"the teacher must take the images of the student \(vit_tiny"):
        MIM(larger, load_teacher(folder))
    recipe = "fastmim_vit_test_distilled"
    with pytest.raises(SystemExit):
        main([recipe, "--teacher", str(tmp_path / "convnext" / WEIGHTS_FILE), "--dry-run"])
    error = capsys.readouterr().err
    assert "the teacher's patches must be those of the student, 16, got 32" in error
    assert error.count("\n") == 1


def test_families_take_a_name():
    assert set(WITH_BACKBONE) == {"fastmim", "fastmim_p"}
    assert not WITH_BACKBONE.keys() & RECIPES.keys()
    with pytest.raises(ConfigError, match=r"unknown recipe 'fastmi' .*did you mean fastmim"):
        find_config("fastmi")
    assert isinstance(RECIPES["fastmim_cmt_small"], Recipe)
