"""The step of a fine-tuning recipe, by the task that a run trains with, and the inputs that it has.

Images are random uint8, so that no loader is measured. The learning rate is next to zero: the arithmetic is the same,
and since no weight moves, losses can be compared at any step.

Shapes: B images, C channels, S pixels a side, K classes.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.entry import Case
from bimkern.data.batches import Batch
from bimkern.data.digits import digit_images
from bimkern.data.images import Images
from bimkern.data.labels import Labels
from bimkern.data.listing import Listing
from bimkern.data.names import Names
from bimkern.data.pil import PilLoader
from bimkern.data.step_layout import StepLayout
from bimkern.train.config.finetuning import FinetuneConfig
from bimkern.train.finetuning.task import Finetuning
from bimkern.train.memory.allocator import TorchMemory
from bimkern.train.run_folder.dataset_manifest import FrozenDataset, Quarantine

NUM_CLASSES = 1000
_NO_RATE = 1e-30  # far below the spacing of all weights
_PRECISION = {"float32": "fp32", "bfloat16": "bf16"}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FinetuneStep:
    """The task of fine-tuning with random weights, and one batch."""

    def __init__(self, config: FinetuneConfig, case: Case, base_lr: float = _NO_RATE) -> None:
        B = case.dims["B"]
        options = {"batch_size": B, "micro_batch": B, "precision": _PRECISION[case.dtype], "base_lr": base_lr}
        run = replace(config.run, **options)
        self.config = replace(config, run=run, mean=_MEAN, std=_STD, num_classes=NUM_CLASSES)
        shape, device = (B, self.config.channels, *self.config.image_size), case.device
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        ids = torch.arange(B)
        self.batch, self.labels = Batch(images, draw_ids=ids, sample_ids=ids), torch.randint(0, NUM_CLASSES, (B,))
        self.task = self._task(device)
        nn.init.normal_(self.task.model.head.weight, std=0.02)  # or the first losses of all networks are the same

    def _task(self, device: torch.device) -> Finetuning:
        files = Names.of(f"{i:06d}.png" for i in range(len(self.labels)))  # nothing reads them
        labels = Labels(tuple(map(str, range(NUM_CLASSES))), files, self.labels.numpy())
        sizes, zeros = np.ones((len(files), 2), dtype=np.int64), np.zeros(len(files), dtype=np.int64)
        digests = zeros.astype(np.uint64)
        images = Images(digit_images(), files, sizes, zeros, pil_only=zeros.astype(bool), digests=digests)
        listing = Listing(images.source, files)
        quarantine = Quarantine(Path("quarantine.jsonl"), files, max_ratio=0.0)
        batch_size = self.config.run.batch_size
        layout = StepLayout.uniform(image_size=self.config.image_size, batch_size=batch_size, micro_batch=batch_size)
        return Finetuning(
            self.config,
            layout,
            images=FrozenDataset(listing, images, images, quarantine, fingerprint=""),
            labels=labels,
            held_out_labels=labels,
            loader=PilLoader(workers=0),
            pictures=Path("pictures"),
            device=device,
        )

    def step(self) -> Tensor:
        """Run the step and return its loss, [1]."""
        return self.task.step(0, [self.batch], TorchMemory()).losses

    def augmented(self) -> tuple[Tensor, Tensor]:
        """Return the images that the step trains on, and their targets [B, K]."""
        config, seed = self.config, self.config.run.seed
        assert config.mixing is not None
        images = self.task.model.normalized(self.batch.images)
        images = config.augment.erase(images, self.batch.draw_ids, seed=seed)
        labels = self.labels.to(images.device)
        return config.mixing.mix(images, labels, NUM_CLASSES, seed=seed, step=0)
