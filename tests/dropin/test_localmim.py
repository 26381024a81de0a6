"""LocalMIM-style networks: what their decoders may look like, and losses whose gradients are taken at once."""

import copy
import re

import pytest
import torch
from torch import nn

from bench.hosts.localmim import LocalMaskedAutoencoderViT
from bimkern.dropin import patch
from bimkern.train.memory.live_bytes import LiveBytes
from bimkern.train.memory.tracker import AllocationTracker

IMAGES = torch.rand(3, 3, 32, 32)


def loss_of(model, images=IMAGES):
    torch.manual_seed(1)
    return model(images)


def pair(*args, **options):
    torch.manual_seed(0)
    model = LocalMaskedAutoencoderViT(*args, **options)
    other = copy.deepcopy(model)
    return model, other, patch(other)


def grads_of(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_grads(got, expected, rtol=1e-4):
    assert got.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(got[name], grad, rtol=rtol, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_all_gradients_are_the_hosts():
    model, other, _ = pair()
    loss_of(model).backward()
    loss_of(other).backward()
    assert_same_grads(grads_of(other), grads_of(model))


def test_decoders_take_turns_in_memory():
    peaks = []
    images = IMAGES.repeat(6, 1, 1, 1)
    for model in pair(decoder_depth=8)[:2]:
        with AllocationTracker([p for p in model.parameters() if p.requires_grad], counter := LiveBytes()):
            loss_of(model, images).backward()
        peaks.append(counter.peak)
    assert peaks[1] < 0.5 * peaks[0]


def test_gradients_can_be_taken_twice():
    _, model, _ = pair()
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    once = {name: grad.clone() for name, grad in grads_of(model).items()}
    loss.backward()
    assert_same_grads(grads_of(model), {name: 2 * grad for name, grad in once.items()}, rtol=1e-6)


def test_a_second_derivative_is_refused():
    _, model, patched = pair()
    with pytest.raises(RuntimeError, match=r"^loss_at_once: gradients must be taken without create_graph, .* undo\(\)"):
        torch.autograd.grad(loss_of(model), model.norm[0].weight, create_graph=True)
    patched.undo()
    (grad,) = torch.autograd.grad(loss_of(model), model.norm[0].weight, create_graph=True)
    assert grad.requires_grad


def test_gradients_are_scaled_by_what_reaches_the_loss():
    _, model, _ = pair()
    loss_of(model).backward()
    once = grads_of(model)
    model.zero_grad()
    (loss_of(model) * 3).backward()
    assert_same_grads(grads_of(model), {name: 3 * grad for name, grad in once.items()})


def is_at_once(loss):
    """Return whether a node of the graph holds finished gradients."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "_AtOnce" in node.name():
            return True
        nodes += [following for following, _ in node.next_functions]
    return False


def test_gradients_in_float16_wait_for_their_scale():
    _, model, _ = pair()
    assert is_at_once(loss_of(model))
    with torch.autocast("cpu", torch.float16):
        assert not is_at_once(loss_of(model))
    with torch.autocast("cpu", torch.bfloat16):
        assert is_at_once(loss_of(model))


@pytest.mark.parametrize("listens_to", [lambda decoder: decoder, lambda decoder: decoder.decoder_norm])
def test_hooks_in_decoders_are_called(listens_to):
    model, other, _ = pair()
    seen = []
    listens_to(other.decoder[1]).register_full_backward_hook(lambda *args: seen.append("backward"))
    loss = loss_of(other)
    assert not seen
    torch.testing.assert_close(loss, loss_of(model), rtol=1e-6, atol=0)
    loss.backward()
    assert seen == ["backward"]


def test_a_hook_of_a_parameter_is_called_once():
    _, model, _ = pair()
    seen = []
    model.decoder[0].mask_token.register_hook(lambda grad: seen.append(grad.shape))
    loss_of(model).backward()
    assert len(seen) == 1


def test_frozen_decoders():
    model, other, _ = pair()
    for each in (model, other):
        each.decoder.requires_grad_(False)
        loss_of(each).backward()
    assert_same_grads(grads_of(other), grads_of(model))


def test_full_graph():
    _, model, _ = pair()
    expected = loss_of(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(loss_of(compiled), expected, rtol=1e-6, atol=0)
    loss_of(compiled).backward()


def test_modules_that_are_compiled_in_place_before_the_patch():
    model = LocalMaskedAutoencoderViT()
    for module in model.modules():
        module.compile(backend="eager")
    assert not patch(model).left


def test_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        model, other, _ = pair()
        loss_of(model).backward()
        loss_of(nn.parallel.DistributedDataParallel(other)).backward()
        assert_same_grads(grads_of(other), grads_of(model))
    finally:
        torch.distributed.destroy_process_group()


def test_rounded_hog_on_request():
    model, other, patched = pair(hog_nbins=18)
    patched.undo()
    patch(other, exact=False)
    images = torch.randint(256, (3, 3, 32, 32)) / 255
    torch.testing.assert_close(loss_of(other, images), loss_of(model, images), rtol=1e-6, atol=0)


class WeightsScales(LocalMaskedAutoencoderViT):
    def forward_loss(self, imgs, pred, mask):
        return super().forward_loss(imgs, pred, mask) + (pred[0] - self.HOG(imgs, 0)).square().mean()


class ReturnsMask(LocalMaskedAutoencoderViT):
    def forward(self, imgs, mask_ratio=0.75):
        return super().forward(imgs, mask_ratio), mask_ratio


class GrayTarget(LocalMaskedAutoencoderViT):
    def HOG(self, imgs, k):
        return super().HOG(imgs.mean(1, keepdim=True).expand_as(imgs), k)


OTHER = "computes other results than its replacement"
FORKS = [
    (WeightsScales, {"forward": OTHER, "forward_loss": OTHER}),
    (ReturnsMask, {"forward": OTHER}),
    (GrayTarget, {"HOG": OTHER}),
]


@pytest.mark.parametrize(("fork", "left"), FORKS, ids=[fork.__name__ for fork, _ in FORKS])
def test_what_a_fork_changed_stays(fork, left):
    torch.manual_seed(0)
    model = fork()
    expected = loss_of(model)
    assert patch(model).left == left
    torch.testing.assert_close(loss_of(model), expected, rtol=1e-6, atol=0)


class MasksHalf(LocalMaskedAutoencoderViT):
    def forward(self, imgs, mask_ratio=0.5):
        return super().forward(imgs, mask_ratio)


def test_the_ratio_of_masked_patches_stays_the_hosts():
    torch.manual_seed(0)
    model = MasksHalf()
    expected = loss_of(model)
    assert not patch(model).left
    torch.testing.assert_close(loss_of(model), expected, rtol=1e-6, atol=0)


def wider_convolution(model):
    model.decoder[2].decoder_pred[0] = nn.Conv2d(16, 27, 3, padding=1)


def without_bias(model):
    model.decoder[1].decoder_pred[0].register_parameter("bias", None)


def other_eps(model):
    model.decoder[0].decoder_pred[1].eps = 1e-5


def two_norms(model):
    model.decoder[3].decoder_embed_norm = nn.LayerNorm(16)


def other_scale(model):
    model.scale[1] = 8.0


@pytest.mark.parametrize("change", [wider_convolution, without_bias, two_norms])
def test_a_decoder_that_is_changed_after_the_patch_is_called(change):
    model, other, _ = pair()
    change(model)
    change(other)
    other.load_state_dict(model.state_dict())
    loss = loss_of(other)
    torch.testing.assert_close(loss, loss_of(model), rtol=1e-6, atol=0)
    loss.backward()


UNKNOWN = [
    (wider_convolution, r"the head of scale 1 must be Conv2d\(1\), got Conv2d"),
    (without_bias, r"the head of scale 2 must be ConvTranspose2d\(2, stride=2\), Conv2d\(1\), got ConvTr"),
    (other_eps, r"must be ConvTranspose2d\(2, stride=2\), a norm of channels, GELU, .*, got .*, ChannelNorm\(\), GELU"),
    (two_norms, "a decoder must hold one nn.LayerNorm, got 2"),
    (other_scale, "the scale of a decoder must be one of 4, 2, 1, 0.5, got 8"),
]


@pytest.mark.parametrize(("change", "reason"), UNKNOWN, ids=[change.__name__ for change, _ in UNKNOWN])
def test_a_decoder_without_a_fused_form_stays_and_the_reason_is_one_line(change, reason):
    model = LocalMaskedAutoencoderViT()
    change(model)
    left = patch(model).left["forward"]
    assert left.startswith("could not be tried: ValueError: ")
    assert "\n" not in left
    assert re.search(reason, left)
