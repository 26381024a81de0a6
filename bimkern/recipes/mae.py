"""MAE: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377."""

from bimkern.data.augment import RandomResizedCrop
from bimkern.mim.flow import EndToEnd
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.model import Method
from bimkern.mim.schedule import Cosine
from bimkern.mim.targets import PixelTarget
from bimkern.models.heads import DecoderConfig
from bimkern.models.vit import VIT_BASE, VIT_HUGE, VIT_LARGE, ViTConfig
from bimkern.recipes.recipe import Recipe
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.config.run import Config, RunConfig

_EPOCHS = 800  # table 1 and table 8
_LONG = 1600  # table 3


def mae(name: str, encoder: ViTConfig, micro_batch: int = 256, *, epochs: int = _EPOCHS) -> Config:
    method = Method(
        encoder=encoder,
        taps=(encoder.depth - 1,),
        masker=RandomDrop(ratios=(0.75,)),  # section 4.1
        heads=(DecoderConfig(width=512, depth=8, num_heads=16),),  # tables 1a, 1b
        targets=(PixelTarget(normalize=True),),  # table 1d
        flow=EndToEnd(),
    )
    return trained_as_mae(name, method, micro_batch, epochs=epochs)


def trained_as_mae(name: str, method: Method, micro_batch: int = 256, *, epochs: int = _EPOCHS) -> Config:
    """Train any method with MAE's numbers, which most of the others take over."""
    return Config(
        recipe=name,
        method=method,
        augment=RandomResizedCrop(scale=(0.2, 1.0)),  # table 8; scale from the published program
        optim=AdamWConfig(betas=(0.9, 0.95), weight_decay=0.05),  # table 8
        schedule=Cosine(warmup_epochs=40),  # table 8
        run=RunConfig(
            epochs=epochs,
            batch_size=4096,  # table 8
            base_lr=1.5e-4,  # table 8
            micro_batch=micro_batch,  # ours: below 13 GiB of activations; the mathematics does not depend on it
            slices=8,  # ours, likewise
            precision="bf16",  # ours: fp16, which the published program takes, ends in NaN on long schedules
        ),
    )


MAE_RECIPES = (
    Recipe(summary="MAE, ViT-B/16, end to end", config=mae("mae_vit_base", VIT_BASE)),
    Recipe(summary="MAE, ViT-L/16, end to end", config=mae("mae_vit_large", VIT_LARGE)),
    Recipe(summary="MAE, ViT-H/14, end to end", config=mae("mae_vit_huge", VIT_HUGE, micro_batch=64)),
    Recipe(summary="MAE, ViT-B/16, 1600 epochs", config=mae("mae_vit_base_1600", VIT_BASE, epochs=_LONG)),
    Recipe(summary="MAE, ViT-L/16, 1600 epochs", config=mae("mae_vit_large_1600", VIT_LARGE, epochs=_LONG)),
)
