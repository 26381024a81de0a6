"""Fine-tuning of the first layers of an encoder, by the product's own run."""

import json
from pathlib import Path

from bench.studies.methods import WARMUP
from bimkern import pieces
from bimkern.data.augment import CenterCrop
from bimkern.data.training_augment import TrainingAugment
from bimkern.evaluate.backbone import Backbone
from bimkern.exporters.whole_file import write_weights
from bimkern.files.atomic import remove_folder
from bimkern.mim.schedule import Cosine
from bimkern.models.encoder import WEIGHTS_FILE
from bimkern.train.config.finetuning import FinetuneConfig, FinetuneOptions
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.finetuning.run import finetune


def write_layers(path: Path, backbone: Backbone, depth: int) -> None:
    """Write the first layers of an encoder as a folder to fine-tune."""
    config, images = backbone.config.cut(depth), backbone.images
    weights = backbone.encoder.state_dict()
    described = {
        "format": "pt",
        "encoder": json.dumps(pieces.to_json(config)),
        "interpolation": images.interpolation,
        "mean": json.dumps(images.mean),
        "std": json.dumps(images.std),
    }
    kept = {name: tensor for name, tensor in weights.items() if config.layer_group(name) <= depth}
    write_weights(path / WEIGHTS_FILE, kept, described)


def fine_tuned(backbone: Path, split: Path, out: Path, *, rate: float, steps: int, batch_size: int, seed: int) -> float:
    """Return the accuracy that an encoder reaches on a split's test images after fine-tuning on the others.

    Args:
        backbone: folder that write_layers wrote.
        split: folder of labeled images with train and val.
        out: run folder, which is removed at the end.
        rate: peak of the learning rate, the same for all layers.
        steps: of training.
        batch_size: images of a step.
        seed: of the classifier and the order of images.
    """
    config = FinetuneConfig(
        recipe="study",
        augment=TrainingAugment(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, rand_augment=None, erase_prob=0.0),
        crop=CenterCrop(ratio=1.0),
        optim=AdamWConfig(betas=(0.9, 0.999)),  # He et al. 2022 (MAE), table 9
        schedule=Cosine(warmup=WARMUP),
        run=FinetuneOptions(
            backbone=backbone,
            data=split,
            out=out,
            steps=steps,
            batch_size=batch_size,
            base_lr=rate * 256 / batch_size,
            device="cpu",
            seed=seed,
            workers=0,
            log_every=steps,
            save_every=steps,
            eval_every=steps,  # in epochs: at the end alone
        ),
    )
    accuracy = finetune(config).held_out.top1
    remove_folder(out)
    return accuracy
