"""Fine-tuning runs: they learn, resume bit for bit, refuse what they did not begin with, and export what they are."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from growing import repeatable
from interop import import_or_skip
from labeled_stripes import CLASSES, write_stripes
from PIL import Image
from safetensors.torch import save_file
from saved_runs import make_run

from bimkern.data.augment import CenterCrop
from bimkern.data.label_mixing import LabelMixing
from bimkern.data.training_augment import TrainingAugment
from bimkern.evaluate.backbone import read_backbone
from bimkern.exporters.own import write_backbones
from bimkern.exporters.trained import read_trained
from bimkern.importers.backbone import read_pretrained
from bimkern.mim.schedule import Cosine
from bimkern.models.exported import BackboneError, load_classifier, load_encoder
from bimkern.recipes import RECIPES
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.config.finetuning import FinetuneConfig, FinetuneOptions
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import from_json, to_json
from bimkern.train.finetuning.run import finetune
from bimkern.train.finetuning.task import Finetuning
from bimkern.train.memory import budget
from bimkern.train.memory.estimate import live_activation_peak
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.reporting import classified

pytestmark = pytest.mark.usefixtures("pictures_on_request")

PLAIN = TrainingAugment(scale=(0.6, 1.0), flip=0.0, rand_augment=None, erase_prob=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finetuning")


@pytest.fixture(scope="module")
def data(folder):
    return write_stripes(folder / "data")


@pytest.fixture(scope="module")
def backbone(folder):
    """Return a function that gives the folder of an untrained run of a recipe."""

    def make(recipe="mae_vit_test"):
        path = folder / recipe
        if not path.exists():
            make_run(path, recipe)
        return path

    return make


@pytest.fixture
def configure(data, backbone, tmp_path):
    """Return a function that makes the config of a short run; the rest of its arguments are options of the run."""

    def make(recipe="mae_vit_test", changes=(), **options):
        own = {"data": data, "backbone": backbone(recipe), "out": tmp_path / "out", "workers": 0, "log_every": 1}
        own |= {"epochs": 4, "batch_size": 8, "base_lr": 3e-2, "save_every": 5, "eval_every": 2} | options
        config = FinetuneConfig(
            recipe="test",
            augment=PLAIN,
            crop=CenterCrop(ratio=1.0),
            layer_decay=0.8,
            optim=AdamWConfig(betas=(0.9, 0.999), undecayed=("positions.table", "cls_token")),
            schedule=Cosine(warmup=0.1),
            run=FinetuneOptions(**own),
        )
        return replace(config, **dict(changes))

    return make


def model_of(out):
    return checkpoints.load_latest(out / "checkpoints").model


def cut_back(out, step):
    """Leave a finished run as one that was killed after its checkpoint of a step."""
    for path in (out / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


@pytest.mark.parametrize("recipe", ["mae_vit_test", "localmim_swin_tiny_test"])
def test_a_run_learns_and_is_evaluated(configure, pictures, recipe):
    outcome = finetune(configure(recipe, epochs=8))
    assert outcome.classes == CLASSES
    assert outcome.held_out.top1 == 1.0
    assert outcome.held_out.confusion.tolist() == [[6, 0], [0, 6]]
    evaluated = [record["step"] for record in outcome.history if "held_out_top1" in record]
    assert evaluated == [6, 12, 18, 24]  # every second epoch of three steps
    assert outcome.history[-1]["held_out_top1"] == 1.0
    for name in ("confusion", "errors", "curves", "memory"):
        with Image.open(outcome.folder.pictures / f"{name}.png") as picture:
            picture.verify()
    assert outcome.history[-1]["planned_bytes"] > 0
    assert outcome.history[-1]["diverged_steps"] == 0


def test_layers_learn_at_rates_that_fall_downward(configure, monkeypatch):
    rates, set_rates = [], GroupOptimizer.set_rates

    def watch(self, rate):
        set_rates(self, rate)
        rates.append({group["layer_group"]: group["lr"] for group in self._optimizer.inner.param_groups})

    monkeypatch.setattr(GroupOptimizer, "set_rates", watch)
    outcome = finetune(configure(epochs=1))
    for record, by_group in zip(outcome.history, rates, strict=True):
        assert {group.number for group in by_group} == set(range(6))  # embedding, four layers, norm and last layer
        for group, lr in by_group.items():
            assert lr == pytest.approx(record["lr"] * 0.8 ** (5 - group.number))


HARD = {
    "augment": TrainingAugment(),
    "mixing": LabelMixing(),
    "drop_path": 0.3,
    "ema": 0.9,
}


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_run_resumes_bit_for_bit_with_all_that_is_random(configure, tmp_path, micro_batch):
    import_or_skip("timm")
    config = configure(changes=HARD, micro_batch=micro_batch)
    finetune(config)
    whole = shutil.copytree(tmp_path / "out", tmp_path / "whole")
    cut_back(tmp_path / "out", 5)
    finetune(config)
    assert repeatable(tmp_path / "out") == repeatable(whole)
    ours, theirs = model_of(tmp_path / "out"), model_of(whole)
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("ema.") for name in ours)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_layers_that_drop_on_their_own_resume_bit_for_bit(configure, tmp_path):
    import_or_skip("timm")
    encoder = RECIPES["fastmim_convnext_test"].config.method.encoder
    encoder = replace(encoder, model_args=encoder.model_args | {"drop_path_rate": 0.5})
    config = configure("fastmim_convnext_test", changes={"encoder": encoder}, steps=4, save_every=2, from_scratch=True)
    finetune(config)
    whole = shutil.copytree(tmp_path / "out", tmp_path / "whole")
    cut_back(tmp_path / "out", 2)
    torch.manual_seed(1)
    finetune(config)
    assert repeatable(tmp_path / "out") == repeatable(whole)


@pytest.mark.parametrize("recipe", ["mae_vit_test", "simmim_swin_tiny_test"])
@pytest.mark.parametrize("changes", [{}, {"drop_path": 0.3}], ids=["plain", "drop path"])
def test_live_activations_are_those_that_a_trace_counts(configure, recipe, changes):
    outcome = finetune(configure(recipe, changes=changes, steps=2))
    segment = outcome.config.step_layout(24).at(0)
    assert outcome.history[-1]["live_activation_bytes"] == live_activation_peak(outcome.config, segment)


def test_a_step_that_memory_cannot_hold_is_refused_with_options_that_fit(configure, monkeypatch):
    monkeypatch.setattr(budget, "available_memory", lambda device: 40 * 2**20)
    config = configure("mae_vit_test", batch_size=4096)
    with pytest.raises(
        ConfigError, match=r"^test needs at least .* 4096 at a time; 40 MiB .*: --micro-batch \d+, or --ba"
    ):
        finetune(config)


def test_the_average_follows_and_is_what_is_evaluated(configure, tmp_path):
    outcome = finetune(configure(changes={"ema": 0.9}))
    state = model_of(tmp_path / "out")
    assert not torch.equal(state["head.weight"], state["ema.head.weight"])
    assert torch.equal(outcome.model.head.weight, state["ema.head.weight"])


def test_images_that_come_one_at_a_time_cannot_be_mixed_and_it_says_so(configure, caplog, tmp_path):
    import_or_skip("timm")
    for micro_batch, mixing, warned in (
        (1, LabelMixing(), True),
        (1, LabelMixing(prob=0.0), False),
        (2, LabelMixing(), False),
    ):
        caplog.clear()
        out = tmp_path / f"{micro_batch}-{mixing.prob}"
        finetune(configure(changes={"mixing": mixing}, micro_batch=micro_batch, batch_size=4, steps=1, out=out))
        assert ("mixup and CutMix change nothing" in caplog.text) == warned


@pytest.mark.parametrize(("ema", "share"), [(0.99, "98"), (0.4, "16"), (0.3, None), (None, None)])
def test_an_average_that_hardly_leaves_the_first_weights_is_named(configure, caplog, ema, share):
    finetune(configure(changes={"ema": ema}, steps=2))
    said = f"--ema {ema}: at the end, the average is {share} % what the weights were before the first of 2 steps"
    found = [text.partition(";")[0] for text in caplog.messages if "--ema" in text]
    assert found == ([] if share is None else [said])


@pytest.mark.usefixtures("pictures")
def test_a_picture_is_of_the_step_that_was_evaluated_and_drawn_once(configure, monkeypatch):
    drawn, tasks = [], []
    monkeypatch.setattr(classified, "draw_errors", lambda *given: None)
    monkeypatch.setattr(
        classified, "draw_confusion", lambda path, found, classes, title: (path.touch(), drawn.append(title))
    )
    monkeypatch.setattr(Finetuning, "export", lambda task, folder: tasks.append(task))
    outcome = finetune(configure(eval_every=1, save_every=2))  # evaluated after each third of 12 steps
    assert drawn == ["test, step 3", "test, step 6", "test, step 9", "test, step 12"]
    kept = sorted(path.name for path in outcome.folder.pictures.glob("confusion-*.png"))
    assert kept == [f"confusion-{step:08d}.png" for step in (4, 6, 10, 12)]
    (task,) = tasks
    task.load_state(task.state())  # as a run does that returns to a checkpoint: what it found later stands no more
    assert task.snapshot(10, [], None)() is None
    assert len(drawn) == 4


def test_other_labels_or_another_backbone_are_refused(configure, data, backbone, tmp_path):
    config = configure(epochs=1)
    finetune(config)
    with pytest.raises(
        ConfigError, match=r"began with other weights than --backbone .* holds now; choose another --out"
    ):
        finetune(configure(epochs=1, from_scratch=False, backbone=backbone("bim_vit_test")))
    files = sorted((data / "train").rglob("*.png"))

    def listed(swapped):
        lines = [
            f"train/{path.parent.name}/{path.name},{'ab'[(path.parent.name == 'down') ^ swapped]}" for path in files
        ]
        (data / "list.csv").write_text("\n".join(["path,label", *lines]))

    listed(swapped=False)
    config = configure(epochs=1, data=data / "list.csv", held_out=0.3, out=tmp_path / "listed")
    finetune(config)
    listed(swapped=True)
    with pytest.raises(ConfigError, match=r"was trained with other labels than --data has now; choose another --out"):
        finetune(config)


def test_what_an_encoder_cannot_do_is_refused_before_anything_is_written(configure, tmp_path):
    with pytest.raises(ConfigError, match=r"^drop_path must be 0, as CMT has no DropPath in its layers, got 0\.1$"):
        finetune(configure("fastmim_cmt_test", changes={"drop_path": 0.1}))
    import_or_skip("timm")
    gray = replace(RECIPES["mae_vit_test"].config.method.encoder, channels=1)
    changes = {"encoder": gray, "mean": (0.5,), "std": (0.5,), "augment": TrainingAugment()}
    torch.save(gray.module(gray).state_dict(), tmp_path / "gray.pth")
    with pytest.raises(ConfigError, match=r"RandAugment needs images of 3 channels, got 1; set rand_augment to None"):
        finetune(configure(changes=changes, backbone=tmp_path / "gray.pth"))
    assert not (tmp_path / "out").exists()


def test_an_encoder_without_drop_path_is_fine_tuned(configure):
    assert finetune(configure("fastmim_cmt_test", epochs=1)).held_out.loss > 0


def test_from_scratch_takes_the_sizes_alone(configure, backbone, tmp_path):
    outcome = finetune(configure(epochs=1, base_lr=1e-30, from_scratch=True))
    theirs = model_of(backbone())
    assert not torch.equal(outcome.model.encoder.blocks[0].attn.qkv.weight, theirs["encoder.blocks.0.attn.qkv.weight"])
    assert not outcome.folder.init_report.exists()


def test_images_are_normalized_as_timm_says_of_its_weights_unless_the_config_does(configure, tmp_path):
    encoder = RECIPES["mae_vit_test"].config.method.encoder
    layout, state = encoder.layout("timm"), encoder.module(encoder).state_dict()
    named = {layout.name(name): tensor for name, tensor in state.items()}
    save_file(dict(layout.tables) | named, tmp_path / "model.safetensors")
    said = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5]}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": said}))
    config = configure("mae_vit_test", {"encoder": encoder}, backbone=tmp_path)
    found, init = read_pretrained(config)
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    assert init.note(found.mean, found.std) is None
    found, init = read_pretrained(replace(config, mean=(0.5, 0.5, 0.4)))
    assert found.mean == (0.5, 0.5, 0.4)
    assert "normalized by mean (0.5, 0.5, 0.5) and std (0.5, 0.25, 0.5); this run" in init.note(found.mean, found.std)
    for std in ([0.5, 0, 0.5], [0.5, math.nan, 0.5], [-0.5, 0.5, 0.5]):
        (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": said | {"std": std}}))
        with pytest.raises(ConfigError, match=r"config\.json beside the weights: its mean and std must be finite"):
            read_pretrained(config)


def test_the_config_of_a_run_knows_its_encoder(configure, tmp_path):
    config = configure(epochs=1)
    outcome = finetune(config)
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert from_json(saved, FinetuneConfig).encoder == outcome.config.encoder
    assert from_json(json.loads(json.dumps(to_json(config))), FinetuneConfig) == config


@pytest.mark.parametrize(
    ("recipe", "norm_first"), [("mae_vit_test", False), ("mae_vit_test", True), ("simmim_swin_tiny_test", True)]
)
def test_timm_classifies_the_same(configure, data, recipe, norm_first):
    timm = import_or_skip("timm")
    outcome = finetune(configure(recipe, epochs=2, changes={"norm_first": norm_first}))
    theirs = timm.create_model(f"local-dir:{outcome.folder.exported}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    files = sorted((data / "val").rglob("*.png"))
    images = torch.stack([transform(Image.open(file)) for file in files])
    labels = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    with torch.no_grad():
        found = theirs(images)
        ours = outcome.model(images)
    torch.testing.assert_close(found, ours, rtol=1e-4, atol=1e-4)
    assert (found.argmax(dim=1) == labels).double().mean() == outcome.held_out.top1
    assert json.loads((outcome.folder.exported / "config.json").read_text())["label_names"] == list(CLASSES)


def test_a_fine_tuned_encoder_is_probed_and_fine_tuned_again(configure, tmp_path):
    outcome = finetune(configure(epochs=1))
    with pytest.raises(
        ConfigError, match=r"is no pre-training run, but one of FinetuneConfig; take what is in .*exported"
    ):
        read_backbone(outcome.folder.path)
    probed = read_backbone(outcome.folder.exported).encoder.state_dict()
    for name, tensor in outcome.model.encoder.state_dict().items():
        assert torch.equal(probed[name], tensor)
    again = finetune(configure(epochs=1, base_lr=1e-30, backbone=outcome.folder.exported, out=tmp_path / "again"))
    for name, tensor in again.model.encoder.state_dict().items():
        torch.testing.assert_close(tensor, outcome.model.encoder.state_dict()[name])


def test_what_timm_has_not_is_exported_under_our_names(configure, tmp_path):
    outcome = finetune(configure("localmim_swin_tiny_test", epochs=1))  # averages, then normalizes
    exported = outcome.folder.exported
    saved = json.loads((exported / "config.json").read_text())
    assert not outcome.for_timm
    assert saved["norm_first"] is False
    assert saved["label_names"] == list(CLASSES)
    for encoder in (load_encoder(exported), read_backbone(exported).encoder):
        for name, tensor in outcome.model.encoder.state_dict().items():
            assert torch.equal(encoder.state_dict()[name], tensor)
    again = configure("localmim_swin_tiny_test", epochs=1, base_lr=1e-30, backbone=exported, out=tmp_path / "again")
    for name, tensor in finetune(again).model.encoder.state_dict().items():
        torch.testing.assert_close(tensor, outcome.model.encoder.state_dict()[name])


@pytest.mark.parametrize(
    ("recipe", "norm_first"),
    [("mae_vit_test", False), ("mae_vit_test", True), ("simmim_swin_tiny_test", True), ("fastmim_cmt_test", False)],
)
def test_an_exported_classifier_is_read_back(configure, recipe, norm_first):
    outcome = finetune(configure(recipe, epochs=1, changes={"norm_first": norm_first}))
    loaded = load_classifier(outcome.folder.exported)
    size = loaded.encoder.config.image_size.height
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), outcome.model(images))


def test_a_backbone_is_no_classifier(configure):
    run = configure("mae_vit_test").run.backbone
    write_backbones(run / "exported", read_trained(run)[1])
    with pytest.raises(BackboneError, match=r"backbone-depth04: it holds no classifier; give what is in exported/"):
        load_classifier(run / "exported" / "backbone-depth04")
