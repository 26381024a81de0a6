"""Recipes of fine-tuning: each method's numbers for ImageNet-1K from its paper or published program.

A learning rate is given for 256 images; programs that give it for their whole batch, or for 512, are converted.
"""

from dataclasses import replace

from bimkern.data.augment import CenterCrop
from bimkern.data.label_mixing import LabelMixing
from bimkern.data.training_augment import TrainingAugment
from bimkern.mim.schedule import Cosine
from bimkern.models.encoder import EncoderConfig
from bimkern.models.swin import SWIN_BASE, SWIN_LARGE
from bimkern.models.vit import VIT_BASE, VIT_HUGE, VIT_LARGE
from bimkern.recipes.recipe import Recipe
from bimkern.train.config.finetuning import FinetuneConfig, FinetuneOptions
from bimkern.train.config.optimizer import AdamWConfig

_POSITIONS = ("positions.table", "cls_token")  # no_weight_decay() of timm's ViT
_BIASES = ("relative_position_bias_table",)  # of its Swin, and of SimMIM's program
_SWIN_BASE, _SWIN_LARGE = replace(SWIN_BASE, window=7), replace(SWIN_LARGE, window=14)  # at 224 pixels


def finetuning(
    name: str,
    encoder: EncoderConfig,
    *,
    base_lr: float,
    layer_decay: float,
    drop_path: float,
    epochs: int = 100,
    warmup_epochs: float = 5,
    batch_size: int = 1024,
    final_lr: float = 1e-6,
    norm_first: bool = False,
    undecayed: tuple[str, ...] = _POSITIONS,
    clip: float | None = None,
    micro_batch: int = 128,
) -> FinetuneConfig:
    """Fine-tune an encoder as all programs of the family do; what they differ in are the arguments.

    Source: He et al. 2022 (MAE), table 9.
    """
    return FinetuneConfig(
        recipe=name,
        encoder=encoder,
        norm_first=norm_first,
        augment=TrainingAugment(),  # RandAugment m9 std 0.5 inc1, erasing 0.25
        mixing=LabelMixing(),  # mixup 0.8, CutMix 1.0, smoothing 0.1
        crop=CenterCrop(),  # 224 of 256 pixels
        layer_decay=layer_decay,
        drop_path=drop_path,
        optim=AdamWConfig(betas=(0.9, 0.999), weight_decay=0.05, undecayed=undecayed, clip=clip),
        schedule=Cosine(warmup_epochs=warmup_epochs, final_lr=final_lr),
        run=FinetuneOptions(
            epochs=epochs,
            batch_size=batch_size,
            base_lr=base_lr,
            micro_batch=micro_batch,  # ours, for memory; mixup and CutMix draw once for each
            precision="bf16",  # ours: the programs take fp16
            save_every=500,
        ),
    )


def _recipe(summary: str, config: FinetuneConfig) -> Recipe[FinetuneConfig]:
    return Recipe(summary=summary, config=config)


def demo() -> FinetuneConfig:
    """Any small encoder on the digits, in a minute on two cores; the numbers are ours. Needs no timm."""
    return FinetuneConfig(
        recipe="demo",
        augment=TrainingAugment(scale=(0.5, 1.0), flip=0.0, rand_augment=None, erase_prob=0.0),  # a flipped 2 is none
        crop=CenterCrop(ratio=1.0),
        layer_decay=0.9,
        drop_path=0.0,
        optim=AdamWConfig(betas=(0.9, 0.999), weight_decay=0.05, undecayed=_POSITIONS),
        schedule=Cosine(warmup_epochs=2, final_lr=1e-6),
        run=FinetuneOptions(epochs=30, batch_size=64, base_lr=1.6e-2, eval_every=3, save_every=140),
    )


DEMO_FINETUNING = (_recipe("any encoder on small images, for a first look", demo()),)

# Published program efb2a80, FINETUNE.md.
MAE_FINETUNING = (
    _recipe(
        "MAE, ViT-B/16",
        finetuning("mae_vit_base", VIT_BASE, base_lr=5e-4, layer_decay=0.65, drop_path=0.1),
    ),
    _recipe(
        "MAE, ViT-L/16",
        finetuning("mae_vit_large", VIT_LARGE, base_lr=1e-3, layer_decay=0.75, drop_path=0.2, epochs=50),
    ),
    _recipe(
        "MAE, ViT-H/14",
        finetuning("mae_vit_huge", VIT_HUGE, base_lr=1e-3, layer_decay=0.75, drop_path=0.3, epochs=50, micro_batch=32),
    ),
)

# Luo et al. 2023 (BIM), section 4.1, which gives neither warm-up nor floor: those of MAE.
BIM_FINETUNING = (
    _recipe("BIM, ViT-B/16", finetuning("bim_vit_base", VIT_BASE, base_lr=5e-4, layer_decay=0.75, drop_path=0.1)),
    _recipe(
        "BIM, ViT-L/16",
        finetuning("bim_vit_large", VIT_LARGE, base_lr=1e-3, layer_decay=0.75, drop_path=0.2, epochs=50),
    ),
    _recipe(
        "BIM, ViT-H/14",
        finetuning("bim_vit_huge", VIT_HUGE, base_lr=1e-3, layer_decay=0.75, drop_path=0.3, epochs=50, micro_batch=32),
    ),
)

# Published program of LocalMIM; rates there are those of the whole batch. Its Swin averages before the norm, and decays
# the tables of relative positions.
LOCALMIM_FINETUNING = (
    _recipe(
        "LocalMIM, ViT-B/16 after 100 epochs",
        finetuning("localmim_vit_base", VIT_BASE, base_lr=4e-3 / 4, layer_decay=0.75, drop_path=0.1, warmup_epochs=20),
    ),
    _recipe(
        "LocalMIM, ViT-B/16 after 1600 epochs",
        finetuning(
            "localmim_vit_base_1600",
            VIT_BASE,
            base_lr=2e-3 / 4,
            layer_decay=0.65,
            drop_path=0.1,
            warmup_epochs=20,
            final_lr=1e-5,
        ),
    ),
    _recipe(
        "LocalMIM, ViT-L/16",
        finetuning("localmim_vit_large", VIT_LARGE, base_lr=3e-3 / 4, layer_decay=0.75, drop_path=0.2, epochs=50),
    ),
    _recipe(
        "LocalMIM, Swin-B after 100 epochs",
        finetuning(
            "localmim_swin_base",
            _SWIN_BASE,
            base_lr=5e-3 / 8,
            batch_size=2048,
            layer_decay=0.9,
            drop_path=0.1,
            warmup_epochs=20,
            final_lr=2.5e-7,
            undecayed=(),
        ),
    ),
    _recipe(
        "LocalMIM, Swin-B after 400 epochs",
        finetuning(
            "localmim_swin_base_400",
            _SWIN_BASE,
            base_lr=4e-3 / 8,
            batch_size=2048,
            layer_decay=0.9,
            drop_path=0.1,
            warmup_epochs=20,
            final_lr=2.5e-7,
            undecayed=(),
        ),
    ),
    _recipe(
        "LocalMIM with pixels, Swin-B",
        finetuning(
            "localmim_swin_base_pixels",
            _SWIN_BASE,
            base_lr=4e-3 / 4,
            layer_decay=0.9,
            drop_path=0.1,
            warmup_epochs=20,
            final_lr=2.5e-7,
            undecayed=(),
        ),
    ),
    _recipe(
        "LocalMIM, Swin-L",
        finetuning(
            "localmim_swin_large",
            _SWIN_LARGE,
            base_lr=2e-3 / 8,
            batch_size=2048,
            layer_decay=0.8,
            drop_path=0.3,
            warmup_epochs=20,
            final_lr=2.5e-7,
            undecayed=(),
        ),
    ),
)

# Topcuoglu & Akbas 2023, section 4: as LocalMIM after 100 epochs.
VITFREEZE_FINETUNING = (
    _recipe(
        "ViTFreeze, ViT-B/16",
        finetuning("vitfreeze_vit_base", VIT_BASE, base_lr=4e-3 / 4, layer_decay=0.75, drop_path=0.1, warmup_epochs=20),
    ),
)

# Guo et al. 2022 (FastMIM), at 224 pixels whatever it was pre-trained at. The published program leaves out of weight
# decay what is named in full, so not the tables of relative positions.
FASTMIM_FINETUNING = (
    _recipe(
        "FastMIM, ViT-B/16", finetuning("fastmim_vit_base", VIT_BASE, base_lr=6e-4, layer_decay=0.7, drop_path=0.1)
    ),
    _recipe(
        "FastMIM, Swin-B",
        finetuning(
            "fastmim_swin_base",
            _SWIN_BASE,
            base_lr=1e-3,
            layer_decay=0.8,
            drop_path=0.1,
            norm_first=True,
            undecayed=(),
        ),
    ),
    _recipe(
        "FastMIM, Swin-L",
        finetuning(
            "fastmim_swin_large",
            _SWIN_LARGE,
            base_lr=1e-3,
            layer_decay=0.75,
            drop_path=0.3,
            norm_first=True,
            undecayed=(),
        ),
    ),
)


def _simmim(
    name: str,
    encoder: EncoderConfig,
    *,
    layer_decay: float,
    drop_path: float,
    lr: float = 1.25e-3,
    final_lr: float = 2.5e-7,
    batch_size: int = 2048,
    norm_first: bool = True,
) -> FinetuneConfig:
    """Fine-tune as the published program of SimMIM does: its rates are those of 512 images, the floor as well."""
    config = finetuning(
        name,
        encoder,
        base_lr=lr / 2,
        batch_size=batch_size,
        layer_decay=layer_decay,
        drop_path=drop_path,
        norm_first=norm_first,
        undecayed=_BIASES if norm_first else _POSITIONS,
        clip=5.0,
    )
    return replace(config, schedule=Cosine(warmup_epochs=20, final=final_lr / lr))


SIMMIM_FINETUNING = (
    _recipe(
        "SimMIM, ViT-B/16",
        _simmim("simmim_vit_base", VIT_BASE, layer_decay=0.65, drop_path=0.1, norm_first=False),
    ),
    _recipe(
        "SimMIM, Swin-B after 100 epochs",
        _simmim("simmim_swin_base", _SWIN_BASE, layer_decay=0.9, drop_path=0.1),
    ),
    _recipe(
        "SimMIM, Swin-B after 800 epochs",
        _simmim("simmim_swin_base_800", _SWIN_BASE, layer_decay=0.8, drop_path=0.1),
    ),
    _recipe("SimMIM, Swin-L", _simmim("simmim_swin_large", _SWIN_LARGE, layer_decay=0.7, drop_path=0.2)),
)

# Huang et al. 2022 (GreenMIM), who fine-tune with the program of SimMIM.
GREENMIM_FINETUNING = (
    _recipe(
        "GreenMIM, Swin-B",
        _simmim("greenmim_swin_base", _SWIN_BASE, layer_decay=0.9, drop_path=0.1, batch_size=1024),
    ),
    _recipe(
        "GreenMIM, Swin-L",
        _simmim(
            "greenmim_swin_large",
            _SWIN_LARGE,
            layer_decay=0.8,
            drop_path=0.3,
            lr=1e-3,
            final_lr=3.5e-7,
            batch_size=768,
        ),
    ),
)

# Wei et al. 2022 (MaskFeat), PySlowFast configs: rates are those of one shard's batch, and positions and class token
# decay.
MASKFEAT_FINETUNING = (
    _recipe(
        "MaskFeat, ViT-B/16",
        finetuning(
            "maskfeat_vit_base",
            VIT_BASE,
            base_lr=2e-3 / 2,
            batch_size=512,
            layer_decay=0.65,
            drop_path=0.1,
            warmup_epochs=20,
            undecayed=(),
        ),
    ),
    _recipe(
        "MaskFeat, ViT-L/16",
        finetuning(
            "maskfeat_vit_large",
            VIT_LARGE,
            base_lr=1e-3,
            batch_size=256,
            layer_decay=0.75,
            drop_path=0.1,
            epochs=50,
            undecayed=(),
        ),
    ),
)

FINETUNE_FAMILIES: dict[str, tuple[Recipe[FinetuneConfig], ...]] = {  # as --help lists them
    "For a first look": DEMO_FINETUNING,
    "BIM": BIM_FINETUNING,
    "LocalMIM": LOCALMIM_FINETUNING,
    "ViTFreeze": VITFREEZE_FINETUNING,
    "FastMIM": FASTMIM_FINETUNING,
    "Baselines": (*MAE_FINETUNING, *SIMMIM_FINETUNING, *MASKFEAT_FINETUNING, *GREENMIM_FINETUNING),
}

FINETUNE_RECIPES = {recipe.name: recipe for members in FINETUNE_FAMILIES.values() for recipe in members}
