"""The table of host programs that `bimkern.dropin.patch` knows, one file per family."""

from bimkern.dropin.hosts import (
    hf_vitmae,
    hog,
    lightly,
    lightly_mae,
    localmim,
    mae,
    masked_error,
    patch_dropout,
    vit_pytorch,
)
from bimkern.dropin.structure import Host

HOSTS: dict[str, Host] = {
    host.name: host
    for host in (
        mae.MAE,
        localmim.LOCALMIM,
        hf_vitmae.EMBEDDINGS,
        hf_vitmae.DECODER,
        hf_vitmae.PRETRAINING,
        vit_pytorch.MAE,
        vit_pytorch.SIMMIM,
        lightly_mae.MAE,
        lightly.TRANSFORMER,
        patch_dropout.TIMM,
        patch_dropout.OPEN_CLIP,
        hog.GENERATOR,  # before MASKFEAT, which it is a kind of
        hog.MASKFEAT,
        hog.LOCALMIM,
        masked_error.SIMMIM,
        masked_error.MASKED_LOSS,
    )
}
