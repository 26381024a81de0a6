"""`python -m examples.detection --backbone RUN_OR_EXPORT --data FOLDER --out FOLDER`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bimkern.torchvision_compat  # where torchvision was built for CUDA
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.transforms import v2
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from bimkern.figures import new_figure, plain
from bimkern.models.pyramid import last_map_pyramid
from bimkern.models.swin import SwinConfig
from examples.detection.coco import CocoImages
from examples.detection.model import Sizes, build_mask_rcnn
from examples.detection.operators import replace_missing
from examples.transfer.command import Options, run
from examples.transfer.encoder import pyramid_of, read_encoder
from examples.transfer.shapes import draw_coco
from examples.transfer.training import Recipe, train

_VITDET = {
    "image_size": 1024,
    "batch_size": 64,
    "lr": 1e-4,
    "weight_decay": 0.1,
    "epochs": 100,
    "warmup": 250,
    "lr_drops": (8 / 9, 26 / 27),
    "clip": 1.0,
}
# Luo et al. 2023 (BIM), COCO as in ViTDet; layer decay, and the drop path of the largest, of Li et al. 2022 (ViTDet).
VIT = {
    12: Recipe(**_VITDET, layer_decay=0.7, drop_path=0.1),
    24: Recipe(**_VITDET, layer_decay=0.8, drop_path=0.4),
    32: Recipe(**_VITDET, layer_decay=0.9, drop_path=0.5),
}
# Wang et al. 2023 (LocalMIM), COCO; batch, warm-up and drop path of Liu et al. 2021 (Swin).
SWIN = Recipe(
    image_size=1024,
    batch_size=16,
    lr=1e-4,
    weight_decay=0.05,
    drop_path=0.3,
    epochs=36,
    warmup=1000,
    lr_drops=(27 / 36, 33 / 36),
)
SCALES = (0.1, 2.0)  # of large-scale jitter
# Ours, for the drawn data set.
SHAPES = Recipe(image_size=64, batch_size=4, lr=1e-3, weight_decay=0.05, drop_path=0.0, steps=400, warmup=40, clip=1.0)
SHAPES_SIZES, SHAPES_SCALES = Sizes(width=32, anchor=2, proposals=100, regions=32), (0.7, 1.4)
SURE = 0.5  # least score of what is drawn

HELP = """Train torchvision's Mask R-CNN on a trained encoder, and print COCO's AP of boxes and masks.

FOLDER is a data set in COCO's format: annotations/instances_train*.json and instances_val*.json, and folders train*
and val* with the images.

  python -m examples.detection --backbone runs/mine --data coco --out runs/mine-detection --micro-batch 4

The numbers are those of BIM with ViTDet for a ViT, 100 epochs of 64 images at 1024 pixels, and those of LocalMIM for a
Swin, 36 epochs. All layers of a ViT attend to the whole image; ViTDet does so in four and in windows elsewhere. Needs
pycocotools."""


def detection(options: Options) -> None:
    """Train, test, and write the results."""
    folder, shapes = options.folder(draw_coco), options.data == "shapes"
    backbone = read_encoder(options.backbone, scratch=options.scratch)
    if isinstance(backbone.config, SwinConfig):
        published = SWIN
    else:
        published = next((recipe for depth, recipe in VIT.items() if backbone.config.depth <= depth), VIT[32])
    recipe = options.changed(SHAPES if shapes else published)
    scales = SHAPES_SCALES if shapes else SCALES
    training, tested = (
        CocoImages(folder, part, transform)
        for part, transform in (("train", crops(recipe.image_size, scales)), ("val", None))
    )
    training.refuse_other_categories(tested)
    replace_missing()
    pyramid = pyramid_of(backbone, last_map_pyramid)
    model = build_mask_rcnn(
        pyramid,
        len(training.categories),
        recipe.image_size,
        backbone.images.mean,
        backbone.images.std,
        SHAPES_SIZES if shapes else Sizes(),
    ).to(options.device)

    def loss_of(samples: list[tuple[Tensor, dict[str, Any]]]) -> Tensor:
        images = [image.to(options.device) for image, _ in samples]
        targets = [{name: value.to(options.device) for name, value in target.items()} for _, target in samples]
        return sum(model(images, targets).values(), start=torch.zeros((), device=options.device))

    losses = train(
        model,
        pyramid.encoder,
        training,
        loss_of,
        recipe,
        micro_batch=options.micro_batch,
        workers=options.workers,
        seed=options.seed,
    )
    metrics = tested.average_precision(list(predict(model, tested)))
    options.save(model, {**metrics, "loss": losses})
    draw(model, tested, options.out / "predictions.png")
    print(f"box AP {metrics['box_ap']:.1%}  mask AP {metrics['mask_ap']:.1%}")


def crops(side: int, scales: tuple[float, float]) -> v2.Transform:
    """Return large-scale jitter: images at random scales of a square, cropped or padded to it."""
    return v2.Compose(
        [
            v2.ScaleJitter((side, side), scales),
            v2.RandomCrop(side, pad_if_needed=True),
            v2.RandomHorizontalFlip(),
            v2.SanitizeBoundingBoxes(),
        ]
    )


@torch.no_grad()
def predict(model: MaskRCNN, images: CocoImages, count: int | None = None) -> Iterator[dict[str, Tensor]]:
    """Yield what is found in the first images: boxes, labels, scores and masks."""
    model.eval()
    device = next(model.parameters()).device
    for index in range(len(images) if count is None else min(count, len(images))):
        yield model([images[index][0].to(device)])[0]


def draw(model: MaskRCNN, images: CocoImages, path: Path, count: int = 8) -> None:
    """Draw what is found in some test images."""
    count = min(count, len(images))
    figure = new_figure(2.2 * count / 2, 4.6)
    places = list(figure.subplots(2, -(-count // 2), squeeze=False).flat)
    for axes in places:  # of an odd number, one stays empty
        axes.set_axis_off()
    for index, (axes, found) in enumerate(zip(places, predict(model, images, count), strict=False)):
        sure = found["scores"] > SURE
        names = images.names(found["labels"][sure])
        picture = (255 * images[index][0]).to(torch.uint8)
        if sure.any():
            picture = draw_segmentation_masks(picture, found["masks"][sure, 0].cpu() > 0.5, alpha=0.5)
            picture = draw_bounding_boxes(picture, found["boxes"][sure].cpu())
        axes.imshow(picture.permute(1, 2, 0))
        axes.set_title(plain(", ".join(names)), fontsize=6)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run("examples.detection", Options, detection, HELP)
