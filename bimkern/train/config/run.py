"""The complete, typed config of a run: what is trained, and how this run goes.

Every task has a config and options of its own, which add to what all runs have; Config and RunConfig are those of
pre-training.
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch

import bimkern.mim.builtin  # noqa: F401  # registers our pieces, which configs name
from bimkern.data.augment import Cropping, RandomResizedCrop
from bimkern.data.decoding import Alpha, Decoding, Range
from bimkern.data.formats import MAX_PIXELS
from bimkern.data.loader import LoaderName
from bimkern.data.source import Source
from bimkern.data.step_layout import Phase, StepLayout, lay_out
from bimkern.distributed.launch import local_rank, world_size
from bimkern.errors import BimkernError
from bimkern.image_size import ImageSize
from bimkern.mim.model import Method
from bimkern.mim.recompute import NONE, check
from bimkern.mim.schedule import RATES, Schedule
from bimkern.models.attention import AttentionName
from bimkern.train.config.optimizer import AdamWConfig, OptimizerName

Precision = Literal["fp32", "bf16", "fp16"]
ArenaName = Literal["auto", "off", "pool", "plan"]
ShardName = Literal["none", "optimizer", "full"]
CacheName = Literal["none", "memory"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ConfigError(BimkernError, ValueError):
    """The options of a run contradict each other or the machine; the message names the value and the choices."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run of any task. Everything else belongs to the recipe."""

    # Those that may differ when a run is resumed: they change where and how it runs, not what it computes but for
    # rounding, as another kernel of the same attention does.
    free: ClassVar[tuple[str, ...]] = (
        *("data", "out", "device", "loader", "cache", "workers", "max_bad_ratio", "micro_batch", "deterministic"),
        *("compile", "arena", "attention", "log", "log_every", "save_every", "shard", "dist_timeout"),
        "extend",  # what it allows is checked with the checkpoint that it continues
    )

    data: Path | tuple[Path, ...] | None = None
    """Images: folders, a list (.txt, .csv, .tsv, .jsonl), tar shards ('x-{00..99}.tar'), arrays (.npy, .npz, .h5),
    .lmdb, .parquet or .arrow files, an address (s3://...), or a class of yours (module:Class). Default: the demo's
    photographs."""
    out: Path | None = None
    """Run folder. Running the same command again resumes it. Default: runs/RECIPE."""
    epochs: float = 1.0
    """Passes over the images. A warm-up in epochs stays as long; one that is a share of the run follows."""
    steps: int | None = None
    """Optimizer steps, instead of epochs. --epochs alone overrides the steps of a recipe."""
    extend: bool = False
    """Continue a finished run to more --epochs or --steps, in its folder, under the schedule of the longer run."""
    batch_size: int = 256
    """Images per optimizer step."""
    micro_batch: int | None = None
    """Images per forward and backward pass; gradients accumulate over the batch. Default: batch size."""
    base_lr: float = 1.5e-4
    """Learning rate for 256 images; the peak is base_lr * batch_size / 256."""
    optimizer: OptimizerName = "adamw"
    """adamw, or FusedAdam or FusedLAMB from NVIDIA's apex, which synchronize with the GPU at every update."""
    precision: Precision = "fp32"
    """Precision of matrix products. Parameters, norms, softmax and losses stay in float32."""
    attention: AttentionName = "sdpa"
    """Attention kernels: torch's (sdpa) or, on a GPU, those of xformers. Same result up to rounding."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N. auto uses a GPU if there is one."""
    seed: int = 0
    """Seed of weights, image order, crops, flips and masks."""
    loader: LoaderName = "auto"
    """Image loader. auto uses DALI on a GPU and PIL on a CPU. Both produce the same crops, up to rounding."""
    cache: CacheName = "none"
    """memory: decode every image once and keep the pixels in memory, where they fit. Batches stay the same."""
    jpeg_draft: float = 4.0
    """Decode large JPEGs at 1/2, 1/4 or 1/8 of their size, if a crop still has this many times the pixels of the image
    size per side. 4 changes pixels by 3 of 256 levels at most on noisy photographs; 0 is off. Not for DALI."""
    workers: int | None = None
    """Loader processes (PIL) or threads (DALI). Default: one per core, at most 16."""
    range: Range | None = None
    """Values that become 0 and 255 in images of more than 8 bits: two numbers, or dtype for all of their unsigned
    integers. Images of 8 bits stay as they are. none: images of more bits are refused."""
    held_out: float = 0.0
    """Share of the images to keep out of training, by name. Their loss is logged at every save."""
    max_bad_ratio: float = 0.1
    """Largest share of unreadable images. They are listed in quarantine.jsonl; a larger share ends the run."""
    max_pixels: int = MAX_PIXELS
    """Largest image to read, in pixels. A small file can decode to more than the memory holds."""
    deterministic: bool = False
    """On a GPU: use only kernels that repeat bit for bit. Runs on a CPU always do."""
    compile: bool = False
    """Compile every layer with torch.compile."""
    arena: ArenaName = "auto"
    """Memory of a step: torch's allocator (off), a pool (pool, GPU only), or planned (plan). auto uses plan on a CPU,
    pool on a GPU, and off with --compile."""
    shard: ShardName = "none"
    """What torchrun's ranks share out among them instead of holding it whole: nothing, the optimizer's state, or also
    weights and gradients of all layers (full)."""
    dist_timeout: float = 600.0
    """Seconds that a rank waits for the others, where torchrun starts several, before the run ends."""
    log: tuple[str, ...] = ()
    """Loggers besides metrics.jsonl and TensorBoard: csv, wandb, mlflow, or registered ones of your own, by name."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    save_every: int = 100
    """Steps between checkpoints, and between pictures."""

    def __post_init__(self) -> None:
        if self.data == ():
            raise ConfigError("--data must name a folder, got none")
        for name in ("batch_size", "micro_batch", "steps", "max_pixels", "log_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        for name in ("batch_size", "micro_batch"):
            if (getattr(self, name) or 0) >= 2**40:  # 64 bits do not count the bytes of many more images
                raise ConfigError(f"--{name.replace('_', '-')} must be below 2**40, got {getattr(self, name)}")
        for name in ("epochs", "base_lr", "dist_timeout"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0 and finite, got {value}")
        if not RATES[0] <= self.peak_lr <= RATES[1]:
            raise ConfigError(
                f"--base-lr {self.base_lr:g} with --batch-size {self.batch_size}: the peak, base_lr * batch_size / 256,"
                f" must be from {RATES[0]:.1e} to {RATES[1]:.1e}, got {self.peak_lr:.1e}"
            )
        if self.jpeg_draft and not 1 <= self.jpeg_draft < math.inf:
            raise ConfigError(f"--jpeg-draft must be 0 (off) or at least 1 and finite, got {self.jpeg_draft:g}")
        try:
            Decoding(range=self.range)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed must be in [0, 2**63), got {self.seed}")
        for name in ("max_bad_ratio", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be in [0, 1), got {getattr(self, name)}")
        if self.shard != "none" and self.optimizer == "apex_lamb":
            raise ConfigError(
                f"--shard {self.shard}: apex_lamb needs the norms of whole parameters; choose --shard none, or "
                f"--optimizer adamw or apex_adam"
            )
        if self.shard == "full":
            self._check_full()
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"--workers must be at least 0, got {self.workers}")

    def _check_full(self) -> None:
        """Refuse what does not go with layers that are gathered during a step."""
        for given, option, why in (
            (self.compile, "--compile", "compiled layers cannot be gathered and freed; leave it out"),
            (self.precision == "fp16", "--precision fp16", "ranks would scale their losses differently; choose bf16"),
            (self.arena in ("plan", "pool"), f"--arena {self.arena}", "gathered layers outlive a step; choose off"),
        ):
            if given:
                raise ConfigError(f"--shard full with {option}: {why}, or share out the optimizer's state alone")

    @property
    def gathers_layers(self) -> bool:
        """Whether layers are sharded over ranks, and gathered one by one when they are needed."""
        return self.shard == "full" and world_size() > 1

    @property
    def images_at_a_time(self) -> int:
        return min(self.micro_batch or self.batch_size, self.batch_size)

    @property
    def num_slices(self) -> int:
        """Parts in which heads decode a micro-batch."""
        return 1

    @property
    def recomputed(self) -> str:
        """Which layers run once more in the backward pass."""
        return NONE

    def in_slices(self, slices: int) -> Self:
        """Return the options with another number of slices, for tasks that have them."""
        assert slices == 1
        return self

    @property
    def peak_lr(self) -> float:
        return self.peak_lr_of(self.batch_size)

    def peak_lr_of(self, batch_size: int) -> float:
        return self.base_lr * batch_size / 256


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunOptions):
    """Options of a pre-training run."""

    slices: int = 1
    """Parts in which a head decodes a micro-batch, at most one per image. More parts use less memory."""
    recompute: str = NONE
    """Layers of the encoder that keep only their input, and run once more in the backward pass: none, layers (each), a
    number (so many of every stage), or stages (each at once). Less memory, for at most one more forward pass."""
    teacher: Path | None = None
    """Exported backbone to distill from, for recipes with distillation. Resuming needs the same one, at any path."""
    init: Path | None = None
    """Weights to start from: a run, an exported backbone, or a file or folder of timm, transformers or MAE. The encoder
    must have the same sizes; positions are interpolated. A checkpoint of the run itself takes precedence."""
    alpha: Alpha = "drop"
    """Alpha of images in gray or RGB: left out, with the colors as they are stored (drop), or the image is laid over
    white or black."""
    normalize: str | None = None
    """Mean and std by which images are normalized: imagenet, dataset (measured once, on 2000 of the images), or a JSON
    file with both. Default: those of the recipe."""
    cuda_graphs: bool = False
    """On a GPU, with --arena plan and one process: capture the kernels of a step as CUDA graphs, and replay them in
    later steps. It has not run on a GPU yet."""
    target_stream: bool = False
    """On a GPU, without --cuda-graphs: compute targets, such as HOG, on a stream of their own beside the encoder. It
    has not run on a GPU yet."""
    pipeline: bool = False
    """One stage per rank, for recipes whose stages learn alone; torchrun starts as many ranks as there are stages. The
    result is that of one process, bit for bit."""
    free: ClassVar[tuple[str, ...]] = (
        *RunOptions.free,
        *("slices", "recompute", "cuda_graphs", "target_stream", "pipeline"),
        *("teacher", "init"),  # their paths; a checkpoint knows their content
        "normalize",  # what it names is method.mean and method.std
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slices < 1:
            raise ConfigError(f"--slices must be at least 1, got {self.slices}")
        try:
            check(self.recompute)
        except ValueError as error:
            raise ConfigError(f"--recompute {error}") from error
        if self.pipeline and self.shard != "none":
            raise ConfigError(
                f"--pipeline with --shard {self.shard}: each rank has the optimizer's state of its own stage alone; "
                f"leave --shard out"
            )

    @property
    def num_slices(self) -> int:
        return self.slices

    @property
    def recomputed(self) -> str:
        return self.recompute

    def in_slices(self, slices: int) -> Self:
        return replace(self, slices=slices)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(ABC):
    """A complete run of any task, as far as the trainer knows it."""

    recipe: str
    augment: Cropping
    optim: AdamWConfig
    schedule: Schedule
    run: RunOptions
    source: Source | None = None  # of images, where run.data names no folder; None: those that come with the task

    @property
    @abstractmethod
    def image_size(self) -> ImageSize:
        """Height and width of the images at the end of the run."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels that images are decoded to."""

    @property
    @abstractmethod
    def alpha(self) -> Alpha:
        """What becomes of alpha."""

    @property
    def decoding(self) -> Decoding:
        """What images are decoded to.

        Raises:
            ConfigError: such images have no alpha to lose.
        """
        try:
            return Decoding(channels=self.channels, alpha=self.alpha, range=self.run.range)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def all_phases(self) -> tuple[Phase, ...]:
        """Return the phases of the run, one where nothing changes."""
        return (Phase(share=1.0, image_size=self.image_size),)

    def step_layout(self, num_images: int) -> StepLayout:
        """Return what the steps of the run are, over so many images; an incomplete last one is rounded."""
        run = self.run
        return lay_out(
            self.all_phases(),
            num_images=num_images,
            batch_size=run.batch_size,
            micro_batch=run.images_at_a_time,
            epochs=run.epochs,
            steps=run.steps,
        )


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """A complete pre-training run: the recipe's pieces and numbers, and the run's options."""

    method: Method
    augment: RandomResizedCrop
    run: RunConfig
    phases: tuple[Phase, ...] = ()  # none: the encoder's image size from the first step to the last

    def __post_init__(self) -> None:
        if not self.phases:
            return
        total, size = math.fsum(phase.share for phase in self.phases), self.method.encoder.image_size
        if not math.isclose(total, 1):
            raise ValueError(f"Config: the shares of the phases must add up to 1, got {total:g}")
        if (last := self.phases[-1].image_size) != size:
            # It is what pictures show and what exported files are made for.
            raise ValueError(
                f"Config: the last phase must have the encoder's image_size={size}, got {last}; set "
                f"phases.{len(self.phases) - 1}.image_size too"
            )
        for phase in self.phases:
            self.at_size(phase.image_size)
        if self.run.steps is not None and self.run.steps < len(self.phases):
            raise ConfigError(
                f"--steps must be at least {len(self.phases)}, one for every phase of {self.recipe}, "
                f"got {self.run.steps}"
            )

    @property
    def image_size(self) -> ImageSize:
        return self.method.encoder.image_size

    @property
    def channels(self) -> int:
        return self.method.encoder.channels

    @property
    def alpha(self) -> Alpha:
        return self.run.alpha

    def at_size(self, image_size: ImageSize) -> Method:
        """Return the method for another image size.

        Raises:
            ValueError: such images cannot be cut into patches, or masked.
        """
        return replace(self.method, encoder=self.method.encoder.resized(image_size))

    def all_phases(self) -> tuple[Phase, ...]:
        return self.phases or super().all_phases()


def resolve_device(name: str) -> torch.device:
    """Return the device that --device names; auto takes the GPU where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    available = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= available:
        raise ConfigError(f"--device {name}: this machine offers {available} CUDA devices to torch; use cpu or auto")
    if kind == "cpu" or world_size() == 1:
        return torch.device(name)
    if index:
        raise ConfigError(f"--device {name}: {world_size()} ranks take one GPU each; use cuda")
    if local_rank() >= available:
        raise ConfigError(
            f"--device {name}: this machine offers {available} CUDA devices to torch, and torchrun starts more ranks "
            f"here; choose --nproc-per-node {available}"
        )
    return torch.device("cuda", local_rank())
