"""An encoder whose stages differ in width and grid is trained, frozen, planned, resumed and exported like ViT."""

import json
import shutil
import textwrap
from dataclasses import replace

import pytest
import torch
from growing import records, repeatable, train, write_photos
from PIL import Image
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from two_stages import TwoStagesConfig

from bench.flops import head_flops, step_flops
from bimkern import export, pieces, plan
from bimkern.exporters.own import write_own
from bimkern.exporters.trained import Trained
from bimkern.mim.flow import EndToEnd, Local, MicroBatch, StepOptions
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.masking.units import BlockPixels, TokenReplace
from bimkern.mim.model import MIM, Method
from bimkern.mim.schedule import FreezeOut
from bimkern.mim.targets import Distillation, HogTarget, PixelTarget
from bimkern.models.encoder import EncoderConfig, WholeImages
from bimkern.models.heads import DecoderConfig, LinearConfig
from bimkern.models.layers import set_compute_dtype
from bimkern.models.teacher import TeacherError, load_teacher
from bimkern.models.vit import ViTConfig
from bimkern.ops import hog, masked_loss
from bimkern.recipes import RECIPES, Recipe
from bimkern.train.config.serialize import from_json, to_json
from bimkern.train.optim.group import GroupOptimizer

ENCODER = TwoStagesConfig()
END_TO_END = Method(
    encoder=ENCODER,
    taps=(3,),
    masker=TokenReplace(ratio=0.5, mask_unit=2),
    heads=(LinearConfig(),),
    targets=(PixelTarget(normalize=False, kind="l1"),),
    flow=EndToEnd(),
)
STAGE_LOCAL = Method(
    encoder=ENCODER,
    taps=(1, 3),
    masker=BlockPixels(ratio=0.75, mask_unit=2),
    heads=(DecoderConfig(width=16, depth=1, num_heads=2), LinearConfig()),
    targets=(HogTarget(),),
    flow=Local(),
)
BASE = RECIPES["simmim_vit_test"].config
CONFIGS = {
    name: replace(BASE, recipe=name, method=method, run=replace(BASE.run, steps=20))
    for name, method in (("two_stages", END_TO_END), ("two_stages_local", STAGE_LOCAL))
}
every_run = pytest.mark.parametrize("name", CONFIGS)
every_method = pytest.mark.parametrize("method", [END_TO_END, STAGE_LOCAL, replace(STAGE_LOCAL, flow=EndToEnd())])


def build(method):
    torch.manual_seed(0)
    model = MIM(method).double()
    set_compute_dtype(model, torch.float64)
    return model


def sample(model, size=32, count=3):
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return MicroBatch(images, model.views(images, torch.arange(count), 1))


class KeepGradients:
    """An update that does nothing."""

    def scale(self, loss):
        return loss

    def apply(self):
        pass


def step(model, batch, **options):
    updates = [KeepGradients() for _ in model.method.flow.partition(model)]
    return model.method.flow.step(model, [batch], updates, StepOptions(**options))


@pytest.mark.parametrize("size", [32, 48])
def test_stages_differ_in_width_and_grid(size):
    model = build(STAGE_LOCAL)
    batch = sample(model, size)
    first = model.encode(0, batch.images, batch.views[0])
    second = model.encode(1, first, batch.views[1])
    fine, coarse = (size // 4) ** 2, (size // 8) ** 2
    assert (first.shape, second.shape) == ((3, fine, 16), (3, coarse, 32))
    assert model.predict(0, first, batch.views[0]).shape == (3, fine, 27)
    assert model.predict(1, second, batch.views[1]).shape == (3, coarse, 27)


@every_method
def test_the_loss_of_a_stage_is_that_of_its_own_grid(method):
    """With masks of 8 pixels every token is masked as a whole, on both grids."""
    model = build(method)
    batch = sample(model)
    losses = step(model, batch)
    tokens = batch.images
    for stage, view in enumerate(batch.views):
        tokens = model.encode(stage, tokens, view)
        patch = method.level(stage).patch
        fine = view.masked.unflatten(1, (8, 8))
        masked = fine[:, :: patch // 4, :: patch // 4].flatten(1)
        target = method.target(stage).vectors(batch.images, patch, 1.0, model.colors).double()
        if isinstance(method.target(stage), HogTarget):
            torch.testing.assert_close(target, hog(batch.images, patch).double())
        kind = method.target(stage).kind
        torch.testing.assert_close(losses[stage], masked_loss(model.predict(stage, tokens, view), target, masked, kind))


def test_a_token_that_is_masked_in_part_weighs_in_part():
    model = build(replace(END_TO_END, masker=TokenReplace(ratio=0.5)))
    batch = sample(model)
    (view,) = batch.views
    weights = view.weights((4, 4))
    assert torch.equal(weights, view.masked.unflatten(1, (4, 2, 4, 2)).mean((2, 4)).flatten(1))
    assert not ((weights == 0) | (weights == 1)).all()
    prediction = model.predict(0, model.encode(0, batch.images, view), view)
    target = END_TO_END.target(0).vectors(batch.images, 8, 1.0, model.colors)
    torch.testing.assert_close(step(model, batch)[0], masked_loss(prediction, target, weights, "l1"))


@every_method
@pytest.mark.parametrize("slices", [1, 2, 3])
def test_slices_and_micro_batches_change_nothing(method, slices):
    model = build(method)
    batch = sample(model, count=4)
    losses = step(model, batch)
    whole = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None for grad in whole.values())
    model.zero_grad()
    parts = [MicroBatch(batch.images[r], [v.rows(r) for v in batch.views]) for r in (slice(0, 3), slice(3, 4))]
    updates = [KeepGradients() for _ in method.flow.partition(model)]
    torch.testing.assert_close(method.flow.step(model, parts, updates, StepOptions(slices=slices)), losses)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, whole[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [END_TO_END, STAGE_LOCAL])
def test_what_is_masked_does_not_reach_the_encoder(method):
    model = build(method)
    batch = sample(model)
    view = batch.views[0]
    masked = view.masked_share((32, 32)).expand_as(batch.images) > 0
    altered = torch.where(masked, 255 - batch.images, batch.images)
    assert torch.equal(model.encode(0, altered, view), model.encode(0, batch.images, view))


@every_method
@pytest.mark.parametrize("frozen_groups", range(5))
def test_exactly_the_groups_that_learn_have_gradients(method, frozen_groups):
    model = build(method)
    losses = step(model, sample(model), frozen_groups=frozen_groups)
    assert losses.isnan().tolist() == [tap + 1 < frozen_groups for tap in method.taps]
    groups = model.layer_groups()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {name for name, group in groups.items() if group.number >= frozen_groups}


@every_method
def test_its_operations_are_those_that_torch_counts(method):
    """Forward; of a grouped convolution torch miscounts the way back."""
    model = MIM(method)
    batch = sample(model)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tokens = batch.images
        for stage, view in enumerate(batch.views):
            tokens = model.encode(stage, tokens, view)
            model.predict(stage, tokens, view)
    layers = sum(ENCODER.layer_flops(layer, 64) for layer in range(4))
    heads = sum(head_flops(method, stage, view.rows(slice(1))) for stage, view in enumerate(batch.views))
    assert counter.get_total_flops() == 3 * (ENCODER.embedding_flops(64) + layers + heads)
    assert step_flops(method, 3) < step_flops(method) == 3 * (layers + heads) + 2 * ENCODER.embedding_flops(64)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


def run(name, photos, out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, name, Recipe(summary="for a test", config=CONFIGS[name]))
        train(name, photos, out, "--batch-size", "6", "--save-every", "10")


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    runs = {}

    def folder(name):
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp(name) / "run"
            run(name, photos, runs[name])
        return runs[name]

    return folder


@every_method
def test_it_learns_a_batch_by_heart(method):
    torch.manual_seed(0)
    model = MIM(method)
    batch = sample(model)
    groups = method.flow.partition(model).items()
    updates = [GroupOptimizer(*group, BASE.optim, device=torch.device("cpu"), fp16=False) for group in groups]
    for update in updates:
        update.set_rates(lambda group: 1e-2)
    losses = [method.flow.step(model, [batch], updates, StepOptions(slices=2)) for _ in range(60)]
    assert (losses[-1] < 0.7 * losses[0]).all(), (losses[0], losses[-1])


@every_run
def test_it_runs_to_its_end_and_is_drawn(finished, name):
    assert [record["step"] for record in records(finished(name))] == list(range(1, 21))
    with Image.open(finished(name) / "pictures" / "reconstruction.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24)) > 10


@every_run
def test_it_resumes_bit_for_bit(photos, finished, tmp_path, capsys, name):
    shutil.copytree(finished(name), tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000020")
    run(name, photos, tmp_path / "resumed")
    assert "at step 10 of 20" in capsys.readouterr().out
    assert repeatable(tmp_path / "resumed") == repeatable(finished(name))
    assert from_json(json.loads((finished(name) / "config.json").read_text())).method == CONFIGS[name].method


@every_run
def test_its_memory_is_planned_as_it_is_measured(finished, monkeypatch, capsys, name):
    monkeypatch.setitem(RECIPES, name, Recipe(summary="for a test", config=CONFIGS[name]))
    plan.main([name, "--batch-size", "6", "--json"])
    need = json.loads(capsys.readouterr().out)
    last = records(finished(name))[-1]
    assert need["activations"] == last["live_activation_bytes"]
    assert need["bound"] <= need["peak"]
    assert last["planned_bytes"] == last["planned_peak_bytes"]


def test_the_command_says_in_which_layout_its_backbones_are(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "two_stages", Recipe(summary="for a test", config=CONFIGS["two_stages"]))
    for name, layout in (("two_stages", "in our own layout"), ("simmim_vit_test", "for timm")):
        train(name, photos, tmp_path / name, "--batch-size", "6", "--steps", "1")
        assert f"the encoder up to each head, {layout}\n" in capsys.readouterr().out


def test_its_layers_freeze_by_a_schedule(photos, tmp_path, monkeypatch):
    schedule = FreezeOut(warmup=0.1, t0=0.5, power=3)
    config = replace(CONFIGS["two_stages_local"], recipe="two_stages_frozen", schedule=schedule)
    monkeypatch.setitem(RECIPES, config.recipe, Recipe(summary="for a test", config=config))
    train(config.recipe, photos, tmp_path / "run", "--batch-size", "6", "--steps", "8")
    frozen = [record["loss_per_stage"].count(None) for record in records(tmp_path / "run")]
    assert frozen == sorted(frozen)
    assert frozen[-1] == 1


def test_its_backbones_are_exported_under_our_own_names(finished, capsys):
    out = finished("two_stages_local")
    names = [path.name for path in sorted((out / "exported").iterdir())]
    assert names == ["backbone-depth02", "backbone-depth04"]
    capsys.readouterr()
    export.main([str(out), "--format", "bimkern", "--depth", "2", "--out", str(out / "exported" / "again")])
    told = capsys.readouterr().out
    trained = load_file(out / "checkpoints" / "step-00000020" / "model.safetensors")
    for folder in (out / "exported" / "backbone-depth02", out / "exported" / "again"):
        saved = json.loads((folder / "config.json").read_text())
        config = pieces.from_json(saved, EncoderConfig, "encoder")
        assert config == ENCODER.cut(2)
        weights = load_file(folder / "model.safetensors")
        assert "layers.2.norm.weight" not in weights
        assert torch.equal(weights["norm.weight"], trained["heads.0.in_norm.weight"])
        encoder = config.load(weights)
        tokens = encoder.embed(torch.zeros(1, 3, 32, 32))
        assert encoder.run_layer(1, tokens, WholeImages((8, 8))).shape == (1, 64, 16)
    loaded = {}
    exec(textwrap.dedent(told.partition("To load it:\n")[2]), loaded)
    assert loaded["model"].config == ENCODER.cut(2)
    assert torch.equal(loaded["model"].state_dict()["layers.1.norm.weight"], trained["encoder.layers.1.norm.weight"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm", "timm has no network for TwoStagesConfig; --format bimkern takes every encoder"),
        ("mae", "two_stages has encoder TwoStagesConfig after layer 4; --format bimkern takes its encoder"),
        ("hf", "two_stages has encoder TwoStagesConfig after layer 4; --format bimkern takes its encoder"),
    ],
)
def test_programs_that_have_no_such_encoder_are_named(finished, capsys, name, message):
    with pytest.raises(SystemExit):
        export.main([str(finished("two_stages")), "--format", name])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_it_teaches_and_learns(tmp_path):
    """Grids must be the same where widths differ: its second stage and a ViT with patches of 8 pixels."""
    write_own(tmp_path / "ours", Trained(CONFIGS["two_stages"], 1, MIM(END_TO_END).state_dict()), 4)
    teacher = load_teacher(tmp_path / "ours")
    vit = ViTConfig(image_size=32, patch=8, width=24, depth=2, num_heads=2)
    student = replace(
        RECIPES["fastmim_vit_test_distilled"].config.method,
        encoder=vit,
        taps=(1,),
        masker=BlockPixels(ratio=0.75),
        targets=(HogTarget(),),
        distillation=Distillation(layers=(3,)),
    )
    model = MIM(student, teacher)
    assert list(model.projections[0].weight.shape) == [32, 24]
    assert step(model, sample(model)).isfinite().all()
    assert model.projections[0].weight.grad.abs().sum() > 0
    with pytest.raises(TeacherError, match="the teacher's patches must be those of the student, 8, got 4"):
        MIM(replace(student, distillation=Distillation(layers=(1,))), teacher)


def test_what_it_cannot_do_is_one_line():
    with pytest.raises(
        ValueError, match=r"Method: RandomDrop needs an encoder with embed_visible\(\), which TwoStages"
    ):
        replace(END_TO_END, masker=RandomDrop(ratios=(0.75,)))
    with pytest.raises(ValueError, match="TwoStagesConfig: image_size must be a multiple of 8, got 36"):
        ENCODER.resized(36)
    coarse = DecoderConfig(width=16, depth=1, num_heads=2, match_scale=0.5)
    with pytest.raises(ValueError, match="Method: image_size=24 with patch=8 makes 3 x 3 patches, which head 0 cannot"):
        replace(END_TO_END, encoder=ENCODER.resized(24), heads=(coarse,))
    assert to_json(ENCODER)["from"] == "two_stages"
