"""patch() takes little time: what it computes is counted, for hosts of base size with fewer layers."""

import pytest
import torch
from interop import import_or_skip
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.hosts.hog import HOGGenerator
from bench.hosts.lightly import MAE as LightlyMAE
from bench.hosts.localmim import LocalMaskedAutoencoderViT
from bench.hosts.mae import MaskedAutoencoderViT
from bench.hosts.simmim import MaskedViT, MaskFeat
from bimkern.dropin import patch, structure

ELEMENTS = 5e6  # two images at base size are 0.3e6, their tokens as many
PRODUCTS = 5e6


class Cost(TorchDispatchMode):
    """Counts the elements of what ops return, and the multiplications of convolutions and matrix products."""

    elements = products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
            self.elements += sum(sizes)
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                self.products += sizes[0] * args[-1].shape[0]
            if func is torch.ops.aten.convolution.default:
                self.products += sizes[0] * args[1][0].numel()
        return result


def mae():
    return MaskedAutoencoderViT((224, 224), 16, width=768, depth=1, heads=12, decoder_width=512, decoder_heads=16)


def localmim():
    return LocalMaskedAutoencoderViT(224, 16, width=768, depth=4, heads=12, decoder_width=256, decoder_heads=8)


def maskfeat():
    return MaskFeat(MaskedViT(224, 16, 3, width=768, depth=1, heads=12), HOGGenerator())


def hf():
    transformers = import_or_skip("transformers")
    return transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(num_hidden_layers=1, decoder_num_hidden_layers=1, norm_pix_loss=True)
    )


def vit_pytorch_encoder(pool):
    vit = import_or_skip("vit_pytorch.vit")
    encoder = vit.ViT(image_size=224, patch_size=16, num_classes=0, dim=768, depth=1, heads=12, mlp_dim=3072, pool=pool)
    encoder.pos_embedding = torch.nn.Parameter(encoder.pos_embedding.detach()[None])
    return encoder


def vit_pytorch_mae():
    return import_or_skip("vit_pytorch.mae").MAE(encoder=vit_pytorch_encoder("cls"), decoder_dim=512)


def vit_pytorch_simmim():
    return import_or_skip("vit_pytorch.simmim").SimMIM(encoder=vit_pytorch_encoder("cls"))


def timm_vit(**options):
    return import_or_skip("timm").create_model("vit_base_patch16_224", depth=1, **options)


def lightly_timm():
    import_or_skip("lightly.models.modules")
    return LightlyMAE(timm_vit(num_classes=0), 512, 1, 16)


def lightly_torchvision():
    modules = import_or_skip("lightly.models.modules")
    vit = import_or_skip("torchvision.models").VisionTransformer(224, 16, 1, 12, 768, 3072)
    return modules.MaskedVisionTransformerTorchvision(vit)


def timm_patch_dropout():
    return timm_vit(patch_drop_rate=0.5)


HOSTS = [
    mae,
    localmim,
    maskfeat,
    hf,
    vit_pytorch_mae,
    vit_pytorch_simmim,
    lightly_timm,
    lightly_torchvision,
    timm_patch_dropout,
]


@pytest.mark.parametrize("make", HOSTS, ids=[make.__name__ for make in HOSTS])
def test_trials_at_base_size(make):
    model = make()
    with Cost() as cost:
        patched = patch(model)
    assert not patched.left
    assert cost.elements < ELEMENTS
    assert cost.products < PRODUCTS


def test_attributes_are_looked_up_in_few_modules(monkeypatch):
    model, found = MaskedAutoencoderViT(depth=12), []
    get = structure._get
    monkeypatch.setattr(structure, "_get", lambda module, name: found.append(module) or get(module, name))
    patch(model)
    assert all(module is model for module in found)
