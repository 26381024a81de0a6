"""Targets on a stream of their own: who waits for whom on simulated streams, and the same losses on a GPU."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from bimkern.mim.flow import MicroBatch, StepOptions
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train import device as devices
from bimkern.train.config.run import ConfigError
from bimkern.train.device import TargetStream

BIM_HOG, LOCAL_MIM = "bim_hog_vit_test", "localmim_vit_test"


class Nothing:
    """An update that makes none."""

    def scale(self, loss):
        return loss

    def apply(self):
        pass


@pytest.fixture
def simulated(monkeypatch):
    """Note what is given to which stream."""
    done = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            done.append((self.name, "waits for", other.name))

    streams = [Stream("main")]

    @contextmanager
    def within(stream):
        streams.append(stream)
        yield
        streams.pop()

    def noted(what, call):
        def noting(*args, **options):
            done.append((streams[-1].name, what))
            return call(*args, **options)

        return noting

    monkeypatch.setattr(torch.cuda, "Stream", lambda place: Stream("targets"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda place: streams[-1])
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: done.append((stream.name, "uses")))
    for name in ("encode", "targets", "loss"):
        monkeypatch.setattr(MIM, name, noted(name, getattr(MIM, name)))
    return done


def step(recipe, place, **options):
    torch.manual_seed(0)
    model = MIM(RECIPES[recipe].config.method).to(place)
    side = model.method.encoder.image_size.height
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8).to(place)
    batch, flow = MicroBatch(images, model.views(images, torch.arange(2), 0)), model.method.flow
    losses = flow.step(model, [batch], [Nothing() for _ in flow.partition(model)], StepOptions(**options))
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_each_stream_waits_for_what_it_takes_over(simulated):
    step(BIM_HOG, "cpu", beside=TargetStream(torch.device("cuda", 0)))
    stages = len(RECIPES[BIM_HOG].config.method.taps)
    assert simulated == stages * [
        ("targets", "waits for", "main"),
        ("targets", "uses"),  # images
        ("targets", "targets"),
        ("main", "encode"),
        ("main", "waits for", "targets"),
        ("main", "uses"),  # targets
        ("main", "loss"),
    ]


def test_all_stages_of_a_network_are_encoded_meanwhile(simulated):
    step(LOCAL_MIM, "cpu", beside=TargetStream(torch.device("cuda", 0)))
    stages = len(RECIPES[LOCAL_MIM].config.method.taps)
    assert simulated == [
        ("targets", "waits for", "main"),
        ("targets", "uses"),
        ("targets", "targets"),
        *[("main", "encode")] * stages,
        ("main", "waits for", "targets"),
        *[("main", "uses")] * stages,
        *[("main", "loss")] * stages,
    ]


@pytest.mark.usefixtures("simulated")
def test_targets_are_not_kept():
    made = TargetStream(torch.device("cuda", 0))(dict, torch.empty(1))
    assert made() == {}
    with pytest.raises(IndexError):
        made()


@pytest.mark.parametrize("recipe", [BIM_HOG, LOCAL_MIM])
def test_the_losses_are_the_same(gpu, recipe):
    plain, ours = step(recipe, gpu), step(recipe, gpu, beside=TargetStream(gpu))
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "place", "message"),
    [
        ({}, "cpu", "--target-stream needs a GPU, got cpu; leave it out"),
        ({"cuda_graphs": True}, "cuda", "--target-stream with --cuda-graphs: a graph is captured from one stream"),
        (
            {"arena": "plan"},
            "cuda",
            "--target-stream with --arena plan: the plan is for one stream; use --arena pool or",
        ),
    ],
)
def test_where_there_is_no_such_stream_it_is_refused(options, place, message):
    run = RECIPES[BIM_HOG].config.run
    with pytest.raises(ConfigError, match=message):
        devices.target_stream(replace(run, target_stream=True, **options), torch.device(place))
