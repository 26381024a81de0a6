"""SimMIM: Xie et al. 2022, "SimMIM: A Simple Framework for Masked Image Modeling", arXiv 2111.09886.

The encoder is the ViT or Swin of every other recipe, with its initial weights: no drop path, and for ViT fixed
positions in place of the published relative position bias and no LayerScale, so that methods are compared and not
encoders.
"""

from dataclasses import replace

from bimkern.data.augment import RandomResizedCrop
from bimkern.image_size import ImageSize
from bimkern.mim.flow import EndToEnd
from bimkern.mim.masking.units import TokenReplace
from bimkern.mim.model import Method
from bimkern.mim.schedule import MultiStep
from bimkern.mim.targets import PixelTarget
from bimkern.models.heads import LinearConfig
from bimkern.models.swin import SWIN_BASE, SWIN_LARGE, SwinConfig
from bimkern.models.vit import VIT_BASE, ViTConfig
from bimkern.recipes.bim import local
from bimkern.recipes.mae import trained_as_mae
from bimkern.recipes.recipe import Recipe
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.config.run import Config

_EPOCHS = 800  # section 4.2, ViT-B
_UNIT = 32  # pixels, section 4.1.1
_SWIN_SIZE = ImageSize.square(192)  # pixels of an image, section 4.1

# Of the published program: its ViT decays the mask token, its Swin does not.
_UNDECAYED: dict[type, tuple[str, ...]] = {
    ViTConfig: ("cls_token",),
    SwinConfig: ("mask_token", "relative_position_bias_table"),
}


def simmim(name: str, encoder: ViTConfig | SwinConfig) -> Config:
    """Predict raw pixels under an L1 loss from mask tokens that pass the whole encoder, by one linear layer."""
    method = Method(
        encoder=encoder,
        taps=(encoder.depth - 1,),
        masker=TokenReplace(ratio=0.6, mask_unit=max(1, _UNIT // encoder.patch)),  # section 4.1.1
        heads=(LinearConfig(),),  # section 3.3
        targets=(PixelTarget(normalize=False, kind="l1"),),  # section 3.4
        flow=EndToEnd(),
    )
    base = trained_as_mae(name, method)
    return replace(
        base,
        # section 4.1; bilinear, which is torchvision's default, in the published program
        augment=RandomResizedCrop(scale=(0.67, 1.0), interpolation="bilinear"),
        optim=AdamWConfig(
            betas=(0.9, 0.999),  # section 4.1
            weight_decay=0.05,  # section 4.1
            clip=5.0,  # of the published program
            undecayed=_UNDECAYED[type(encoder)],
        ),
        # of the published program, for 800 epochs; its 100 epochs have another peak and a cosine
        schedule=MultiStep(warmup_epochs=10, milestones=(700 / _EPOCHS,), gamma=0.1),
        run=replace(base.run, epochs=_EPOCHS, batch_size=2048, base_lr=0.5e-4, slices=1),  # 1e-4 for 512 images
    )


_BASE = simmim("simmim_vit_base", VIT_BASE)

SIMMIM_RECIPES = (
    Recipe(summary="SimMIM, ViT-B/16", config=_BASE),
    Recipe(
        summary="SimMIM, Swin-B at 192 pixels",
        config=simmim("simmim_swin_base", replace(SWIN_BASE, image_size=_SWIN_SIZE, window=6)),  # published program
    ),
    Recipe(
        summary="SimMIM, Swin-L at 192 pixels",
        config=simmim("simmim_swin_large", replace(SWIN_LARGE, image_size=_SWIN_SIZE, window=12)),  # likewise
    ),
    Recipe(summary="BIM over SimMIM, ViT-B/16, four local stages", config=local(_BASE, "bim_simmim_vit_base")),
)
