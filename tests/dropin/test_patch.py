"""What patch() does with what it is given: unknown models, models in use; and what it says."""

import sys

import commands
import pytest
import torch
from dropin_hosts import CASES, error_of
from torch import nn

from bench.hosts.mae import MaskedAutoencoderViT
from bimkern.dropin import DropinError, patch

ALL = {"forward_encoder", "random_masking", "forward_decoder", "forward_loss"}
IMAGES = torch.rand(3, 3, 32, 32)


def loss_of(model, images=IMAGES):
    torch.manual_seed(1)
    return model(images)[0]


def test_a_method_replaced_on_the_instance_stays():
    model = MaskedAutoencoderViT()
    model.random_masking = lambda x, mask_ratio: "mine"
    patched = patch(model)
    assert patched.left["random_masking"] == "random_masking is replaced on this instance already"
    assert model.random_masking(None, 0.5) == "mine"


def test_a_model_is_found_wherever_it_is():
    wrapper = nn.ModuleDict({"online": MaskedAutoencoderViT(), "other": nn.Linear(2, 2)})
    patched = patch(wrapper)
    assert set(patched.replaced) == {f"online.{method}" for method in ALL}
    assert type(wrapper) is nn.ModuleDict


def test_patching_again_changes_nothing():
    model = MaskedAutoencoderViT()
    first = patch(model)
    cls = type(model)
    again = patch(model)
    assert type(model) is cls
    assert again.replaced == first.replaced
    again.undo()
    assert type(model) is MaskedAutoencoderViT
    first.undo()
    assert type(model) is MaskedAutoencoderViT


def test_patching_again_replaces_what_can_be_replaced_now():
    model = MaskedAutoencoderViT()
    model.random_masking = MaskedAutoencoderViT().random_masking
    first = patch(model)
    assert type(model).random_masking is MaskedAutoencoderViT.random_masking
    del model.random_masking
    assert "random_masking" in patch(model).replaced
    assert type(model).random_masking is not MaskedAutoencoderViT.random_masking
    first.undo()
    assert type(model) is MaskedAutoencoderViT


def test_two_models_of_one_class_share_theirs():
    one, two = MaskedAutoencoderViT(), MaskedAutoencoderViT(width=8)
    patch(one)
    patch(two)
    assert type(one) is type(two)
    assert type(one).__name__ == "MaskedAutoencoderViT"
    assert repr(one) == repr(MaskedAutoencoderViT())


def test_hooks_on_the_embedding_are_called():
    model = MaskedAutoencoderViT()
    expected = loss_of(model)
    patch(model)
    seen = []
    handle = model.patch_embed.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    torch.testing.assert_close(loss_of(model), expected, rtol=1e-6, atol=0)
    assert seen == [(3, 16, 16)]
    handle.remove()
    loss_of(model)
    assert len(seen) == 1


@pytest.mark.parametrize("path", ["patch_embed", "patch_embed.proj"])
def test_a_forward_replaced_on_an_instance_is_called(path):
    model = MaskedAutoencoderViT()
    patch(model)
    before = loss_of(model)
    module = model.get_submodule(path)
    module.forward = lambda x: 2 * type(module).forward(module, x)
    expected = MaskedAutoencoderViT()
    expected.load_state_dict(model.state_dict())
    other = expected.get_submodule(path)
    other.forward = lambda x: 2 * type(other).forward(other, x)
    torch.testing.assert_close(loss_of(model), loss_of(expected), rtol=1e-6, atol=0)
    assert not torch.allclose(loss_of(model), before, rtol=1e-6)


@pytest.mark.parametrize("change", [lambda conv: conv.register_parameter("bias", None), lambda conv: conv.bfloat16()])
def test_an_embedding_that_is_no_plain_convolution_is_run_by_the_host(change):
    model = MaskedAutoencoderViT()
    change(model.patch_embed.proj)
    images = IMAGES.to(model.patch_embed.proj.weight.dtype)
    torch.manual_seed(1)
    expected = model.forward_encoder(images, 0.6)
    patched = patch(model)
    assert "forward_encoder" in patched.replaced
    torch.manual_seed(1)
    for theirs, ours in zip(expected, model.forward_encoder(images, 0.6), strict=True):
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("images", [torch.rand(2, 3, 16, 64), torch.rand(2, 4, 32, 32), IMAGES.byte(), IMAGES[0]])
def test_wrong_images_get_the_hosts_own_error(images):
    model = MaskedAutoencoderViT()
    expected = error_of(model, images)
    patch(model)
    got = error_of(model, images)
    assert type(got) is type(expected)
    assert str(got) == str(expected)


def test_images_that_need_a_gradient_get_it():
    model = MaskedAutoencoderViT()
    images = IMAGES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss_of(model, images), images)
    patch(model)
    (got,) = torch.autograd.grad(loss_of(model, images), images)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integers_are_a_target_as_in_the_host(dtype):
    model = MaskedAutoencoderViT(norm_pix_loss=False)
    args = torch.randint(256, (2, 3, 32, 32)).to(dtype), torch.randn(2, 16, 192), torch.ones(2, 16)
    expected = model.forward_loss(*args)
    patch(model)
    assert torch.equal(model.forward_loss(*args), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_masks_of_any_dtype(dtype):
    model = MaskedAutoencoderViT()
    args = torch.rand(2, 3, 32, 32), torch.randn(2, 16, 192), (torch.rand(2, 16) < 0.6).to(dtype)
    expected = model.forward_loss(*args)
    patch(model)
    torch.testing.assert_close(model.forward_loss(*args), expected, rtol=1e-6, atol=0)


def test_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        model = MaskedAutoencoderViT()
        loss_of(model).backward()
        expected = [p.grad for p in model.parameters()]
        model.zero_grad()
        wrapped = nn.parallel.DistributedDataParallel(model)
        patched = patch(wrapped)
        assert set(patched.replaced) == {f"module.{method}" for method in ALL}
        loss_of(wrapped).backward()
        for p, grad in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6)
    finally:
        torch.distributed.destroy_process_group()


def test_full_graph():
    model = MaskedAutoencoderViT()
    patch(model)
    expected = loss_of(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(loss_of(compiled), expected, rtol=1e-6, atol=0)
    loss_of(compiled).backward()


def test_counter_masks_keep_as_many_tokens_and_name_them_in_order():
    model = MaskedAutoencoderViT()
    patch(model, masks="counter")
    tokens = torch.arange(16.0).expand(2, 16)[:, :, None]
    torch.manual_seed(3)
    kept, mask, ids_restore = model.random_masking(tokens, 0.7)
    assert kept.shape == (2, 4, 1)
    assert torch.equal(kept.squeeze(2), kept.squeeze(2).sort(dim=1)[0])
    assert torch.equal(mask.gather(1, kept.squeeze(2).long()), torch.zeros(2, 4))
    assert torch.equal(ids_restore.gather(1, kept.squeeze(2).long()), torch.arange(4).expand(2, 4))
    assert mask.sum() == 24


def test_counter_masks_are_drawn_on_the_cpu_under_another_default_device():
    model = MaskedAutoencoderViT()
    patch(model, masks="counter")
    expected = loss_of(model)
    torch.manual_seed(1)
    with torch.device("meta"):
        assert torch.equal(model(IMAGES)[0], expected)


@pytest.mark.parametrize("name", ["mae", "maskfeat", "localmim", "hf", "vit-pytorch simmim", "lightly mae", "timm"])
def test_a_model_is_patched_alike_under_another_default_device(name):
    model = CASES[name].make()
    expected = patch(CASES[name].make())
    with torch.device("meta"):
        patched = patch(model)
    assert patched.replaced == expected.replaced
    assert patched.left == expected.left


def test_an_unknown_model():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(DropinError, match=r"^patch: no known structure in Sequential; looked for MAE-style .*, timm"):
        patch(model)


def test_a_model_that_is_nearly_known():
    model = MaskedAutoencoderViT()
    del model.mask_token
    with pytest.raises(
        DropinError, match=r"; it is nearest to MAE-style MaskedAutoencoderViT but has no mask_token \[1, 1, E\]$"
    ):
        patch(model)


def test_a_shape_that_does_not_fit():
    model = MaskedAutoencoderViT()
    model.pos_embed = nn.Parameter(torch.zeros(1, 4, 16))
    with pytest.raises(DropinError, match=r"but has another shape: decoder_pos_embed must be \[1, 1\+N=4, E=12\], got"):
        patch(model)


def test_a_model_of_which_nothing_can_be_replaced():
    model = MaskedAutoencoderViT()
    for method in ALL:
        setattr(model, method, None)
    with pytest.raises(DropinError, match=r"^patch: nothing in MaskedAutoencoderViT can be replaced: forward_encoder"):
        patch(model)
    assert type(model) is MaskedAutoencoderViT


def test_other_masks_than_before():
    model = MaskedAutoencoderViT()
    patch(model)
    with pytest.raises(DropinError, match=r"MaskedAutoencoderViT is patched with masks='host' already, got 'counter'"):
        patch(model, masks="counter")


def test_a_device_without_kernels():
    with torch.device("meta"):
        model = MaskedAutoencoderViT()
    with pytest.raises(DropinError, match=r"^patch: model must be on cpu or cuda, where our kernels run, got meta$"):
        patch(model)


def test_no_module():
    with pytest.raises(TypeError, match=r"^patch: model must be a torch.nn.Module, got function$"):
        patch(patch)


def test_unknown_masks():
    with pytest.raises(ValueError, match=r"^patch: masks must be 'host' or 'counter', got 'own'$"):
        patch(MaskedAutoencoderViT(), masks="own")


def test_a_class_changed_since_is_not_taken_back():
    model = MaskedAutoencoderViT()
    patched = patch(model)
    derived = type("Sharded", (type(model),), {})
    model.__class__ = derived
    with pytest.raises(DropinError, match=r"^undo: the model got another class since it was patched: undo that first$"):
        patched.undo()
    assert type(model) is derived


def test_a_method_wrapped_since_is_not_taken_back():
    model = MaskedAutoencoderViT()
    patched = patch(model)
    expected, ours = loss_of(model), model.forward_encoder
    model.forward_encoder = lambda *args: ours(*args)  # as accelerate wraps a forward
    text = "^undo: forward_encoder was replaced on this instance since it was patched: undo that first$"
    with pytest.raises(DropinError, match=text):
        patched.undo()
    assert torch.equal(loss_of(model), expected)
    del model.forward_encoder
    patched.undo()
    assert type(model) is MaskedAutoencoderViT


def test_no_host_is_imported():
    code = (
        "import sys, bimkern.dropin;"
        "print([m for m in ('transformers', 'timm', 'lightly', 'vit_pytorch', 'open_clip') if m in sys.modules])"
    )
    result = commands.run([sys.executable, "-c", code], check=True)
    assert result.stdout.strip() == "[]"


def test_patching_imports_nothing_large():
    code = (
        "import sys; from bench.hosts.mae import MaskedAutoencoderViT; from bimkern.dropin import patch;"
        "before = set(sys.modules); patch(MaskedAutoencoderViT());"
        "print({'sympy', 'torch._dynamo'} & (set(sys.modules) - before))"
    )
    result = commands.run([sys.executable, "-c", code], check=True)
    assert result.stdout.strip() == "set()"
