"""A data set in COCO's format, as a detector of torchvision takes it, and its average precision.

Shapes: N instances, H W pixels.
"""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from bimkern import optional
from examples.transfer.errors import TransferError

Target = dict[str, Any]


class CocoImages(Dataset[Any]):
    """The images of a part of a data set: `PART*/`, and `annotations/instances_PART*.json` that describes them."""

    def __init__(self, folder: Path, part: str, transform: v2.Transform | None) -> None:
        """Find the part, "train" or "val", which may have a year in its names.

        Raises:
            TransferError: there is none, or several, or it cannot be trained or tested on.
            Unusable: pycocotools cannot be imported.
        """
        COCO = _pycocotools("coco").COCO
        found = folder.glob(f"annotations/instances_{part}*.json")
        files = sorted(file for file in found if re.fullmatch(rf"instances_{part}\d*", file.stem))
        if not files:
            raise TransferError(f"{folder} has no annotations/instances_{part}*.json")
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise TransferError(f"{folder / 'annotations'} must have one part {part}, got {names}; leave one there")
        self.folder = folder / files[0].stem.removeprefix("instances_")
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                self.coco = COCO(files[0])
            except (ValueError, KeyError, TypeError, AssertionError) as error:
                raise TransferError(f"{files[0]} is not in COCO's format ({error!r})") from error
        _check(self.coco, files[0])
        self.transform = transform
        self.categories = sorted(self.coco.getCatIds())  # a label is the place here, from 1
        images = sorted(self.coco.getImgIds())
        # An image without instances teaches a detector nothing.
        self.images = images if transform is None else [i for i in images if self.coco.getAnnIds(i, iscrowd=False)]
        for image in self.coco.loadImgs(self.images):
            if not (path := self.folder / image["file_name"]).is_file():
                raise TransferError(f"{files[0]} lists an image that is not there: {path}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return an image [3, H, W] float32 in [0, 1], and its instances: boxes [N, 4], labels [N], masks [N, H, W]."""
        record = self.coco.loadImgs(self.images[index])[0]
        image = tv_tensors.Image(TF.pil_to_tensor(Image.open(self.folder / record["file_name"]).convert("RGB")))
        found = self.coco.loadAnns(self.coco.getAnnIds(self.images[index], iscrowd=False))
        size = tuple(image.shape[1:])
        drawn = np.stack([self.coco.annToMask(one) for one in found]) if found else np.zeros((0, *size), np.uint8)
        boxes = torch.tensor([one["bbox"] for one in found], dtype=torch.float32).reshape(-1, 4)
        corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size),
            "labels": torch.tensor([self.categories.index(one["category_id"]) + 1 for one in found], dtype=torch.int64),
            "masks": tv_tensors.Mask(torch.from_numpy(drawn)),
        }
        if self.transform is not None:
            image, target = self.transform(image, target)
        return TF.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor), target

    def refuse_other_categories(self, other: "CocoImages") -> None:
        """Make sure that labels mean the same in another part: they are positions in the list of categories.

        Raises:
            TransferError: its categories have other ids.
        """
        if differing := sorted(set(self.categories) ^ set(other.categories)):
            raise TransferError(
                f"{self.folder.name} and {other.folder.name} must have the same categories; only one of them has "
                f"{', '.join(map(str, differing[:5]))}"
            )

    def names(self, labels: Tensor) -> list[str]:
        """Return the names of classes by their labels [N]."""
        return [self.coco.cats[self.categories[label - 1]]["name"] for label in labels.tolist()]

    def average_precision(self, predictions: list[Target]) -> dict[str, float]:
        """Return COCO's AP (and at an overlap of 0.5) of boxes and masks, from predictions for every image in order."""
        results, encode, evaluate = [], _pycocotools("mask").encode, _pycocotools("cocoeval").COCOeval
        for image, found in zip(self.images, predictions, strict=True):
            corners = found["boxes"].cpu().tolist()
            for box, label, score, mask in zip(corners, found["labels"], found["scores"], found["masks"], strict=True):
                code = encode(np.asfortranarray((mask[0] > 0.5).cpu().numpy()))
                results.append(
                    {
                        "image_id": image,
                        "category_id": self.categories[int(label) - 1],
                        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                        "score": float(score),
                        "segmentation": code,
                    }
                )
        if not results:
            return dict.fromkeys(("box_ap", "box_ap50", "mask_ap", "mask_ap50"), 0.0)
        metrics = {}
        with contextlib.redirect_stdout(io.StringIO()):
            detected = self.coco.loadRes(results)
            for kind, name in (("bbox", "box"), ("segm", "mask")):
                evaluation = evaluate(self.coco, detected, kind)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                metrics |= {f"{name}_ap": float(evaluation.stats[0]), f"{name}_ap50": float(evaluation.stats[1])}
        return metrics


def _check(coco: Any, file: Path) -> None:
    """Make sure that there are instances, with all that is needed of them and of their images."""
    for image in coco.imgs.values():
        _require(image, ("file_name", "height", "width"), f"{file}: image {image['id']}")
    for one in coco.anns.values():
        called = f"{file}: instance {one['id']}"
        one["iscrowd"] = int(one.get("iscrowd") or 0)  # pycocotools asks for it, and takes it so where it scores
        if not one["iscrowd"]:
            _require(one, ("category_id", "bbox", "segmentation"), called)
        for name, known in (("category_id", coco.cats), ("image_id", coco.imgs)):
            if one[name] not in known:
                raise TransferError(f"{called} has {name} {one[name]}, which is not listed")
        if one.get("area") is None and one.get("segmentation"):  # which scores by size take
            one["area"] = float(_pycocotools("mask").area(coco.annToRLE(one)))
    if all(one["iscrowd"] for one in coco.anns.values()):
        raise TransferError(f"{file} has no instances")


def _require(record: dict[str, Any], names: tuple[str, ...], called: str) -> None:
    for name in names:
        if record.get(name) in (None, [], {}):
            raise TransferError(f"{called} has no {name}, which a Mask R-CNN needs")


def _pycocotools(module: str) -> Any:
    try:
        return optional.load(f"pycocotools.{module}")
    except optional.Unusable as reason:
        raise optional.Unusable(f"detection needs pycocotools: {reason}; pip install 'bimkern[transfer]'") from reason
