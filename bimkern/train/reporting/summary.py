"""What a run is going to do, in words: one paragraph before it starts, and all of it for a dry run."""

import json
from collections.abc import Mapping

import torch

from bimkern.data.held_out import are_held_out
from bimkern.data.listing import Listing
from bimkern.data.source import title
from bimkern.data.step_layout import StepLayout
from bimkern.mim.recompute import described
from bimkern.mim.schedule import LayerGroup, WarmUp, resolve
from bimkern.train import network
from bimkern.train.config.finetuning import FinetuneConfig
from bimkern.train.config.run import Config, TrainingConfig, resolve_device
from bimkern.train.config.serialize import to_json
from bimkern.train.memory.estimate import live_activation_peak
from bimkern.train.optim.layer_decay import decayed
from bimkern.train.run_folder.dataset_manifest import FrozenDataset
from bimkern.units import human_bytes

_FEW_STEPS = 100


def describe_briefly(config: Config, images: FrozenDataset, loader: str) -> str:
    """Say what a run trains on, how long, and what loads its images."""
    teacher = "" if config.run.teacher is None else f"\nalso learns the features of {config.run.teacher}"
    held_out = _held_out(len(images.held_out)) if config.run.held_out else ""
    return _briefly(config, images, loader, held_out, _sizes(config)) + teacher


def describe_finetuning(config: FinetuneConfig, images: FrozenDataset, loader: str) -> str:
    """Say what a fine-tuning run learns, how long, and what loads its images."""
    held_out = f" of {config.num_classes} classes, {len(images.held_out)} more to evaluate on"
    return _briefly(config, images, loader, held_out, f"{config.image_size} px")


def describe_rates(config: FinetuneConfig, images: Listing, held_out: Listing | None) -> str:
    """Describe a fine-tuning run in full: its config as JSON, then images, steps and learning rates, layer by layer."""
    run, depth = config.run, config.known_encoder.depth
    kept = int(are_held_out(images.files, run.held_out).sum())
    layout = config.step_layout(len(images) - kept)
    evaluated = f"{kept or len(held_out or ())} to evaluate on"
    segment = layout.segments[0]
    peak = live_activation_peak(config, segment)
    factors = (decayed(config.layer_decay, LayerGroup(number), depth) for number in range(depth + 2))
    facts = {
        "images": f"{len(images) - kept} in {title(images.source)}, {evaluated}, not checked yet{_skipped(images)}",
        "classes": str(config.num_classes),
        "activations": f"{human_bytes(peak)} live at most, with {segment.micro_batch} images at a time",
        "device": str(resolve_device(run.device)),
        "steps": _steps(layout, f"{config.image_size} px"),
        "learning rate": f"{run.peak_lr:.3e} at its peak, = {run.base_lr:g} * {run.batch_size} / 256"
        f"{_warmup(config, layout, len(images) - kept)}",
        "by layer": f"times {' '.join(f'{factor:.4g}' for factor in factors)}, from the embedding to the last layer",
    }
    return "\n".join([json.dumps(to_json(config), indent=2), *(f"{name:13}  {fact}" for name, fact in facts.items())])


def _briefly(config: TrainingConfig, images: FrozenDataset, loader: str, held_out: str, sizes: str) -> str:
    run, num_images = config.run, len(images.images)
    layout = config.step_layout(num_images)
    few = f"; too few steps ({layout.num_steps}) to learn much" if layout.num_steps < _FEW_STEPS else ""
    return (
        f"{config.recipe}: {num_images} images from {title(images.images.source)}{held_out}{_skipped(images.listing)}; "
        f"steps: {_steps(layout, sizes)}, {run.precision} on {resolve_device(run.device)}, "
        f"peak learning rate {run.peak_lr:.2e}{_warmup(config, layout, num_images)}{few}\n"
        f"loader: {loader}"
    )


def describe(config: Config, images: Listing, loader: str) -> str:
    """Describe a run in full: its config as JSON, then parameters, memory, steps and learning rates."""
    run = config.run
    with torch.device("meta"):
        model = network.build(config)
    sizes = [sum(p.numel() for _, p in model.stage_parameters(k)) for k in range(model.num_stages)]
    num_images = len(images) - int(are_held_out(images.files, run.held_out).sum())
    layout = config.step_layout(num_images)
    peaks = {live_activation_peak(config, segment): segment for segment in layout.segments}
    largest, held_out = peaks[max(peaks)], _held_out(len(images) - num_images)
    facts = {
        "images": f"{num_images} in {title(images.source)}{held_out}, not checked yet{_skipped(images)}",
        "device": str(resolve_device(run.device)),
        "loader": loader,
        "parameters": f"{sum(sizes) / 1e6:.2f} M ({', '.join(f'{size / 1e6:.2f}' for size in sizes)} M per stage)",
        "activations": f"{human_bytes(max(peaks))} live at most, with {largest.micro_batch} images of "
        f"{largest.image_size} px at a time, decoded in slices: {run.slices}{described(run.recompute)}",
        "steps": _steps(layout, _sizes(config)),
        "learning rate": f"{run.peak_lr:.3e} at its peak, = {run.base_lr:g} * {run.batch_size} / 256"
        f"{_warmup(config, layout, num_images)}",
    }
    if config.phases:
        facts |= _phases(config, layout, num_images)
    return "\n".join([json.dumps(to_json(config), indent=2), *(f"{name:13}  {fact}" for name, fact in facts.items())])


def _sizes(config: Config) -> str:
    """Name the sizes of images where they change."""
    return ", then ".join(dict.fromkeys(f"{phase.image_size} px" for phase in config.phases))


def _steps(layout: StepLayout, sizes: str) -> str:
    """Say how many steps there are, of how many images, and of which sizes."""
    batches = ", then ".join(dict.fromkeys(str(segment.batch_size) for segment in layout.segments))
    return f"{layout.num_steps} of {batches} images{' of ' if sizes else ''}{sizes}"


def _warmup(config: TrainingConfig, layout: StepLayout, num_images: int) -> str:
    """Say when the peak of the learning rate is reached, where that follows from the schedule."""
    epochs = layout.num_images() / num_images
    schedule = resolve(config.schedule, epochs, config.run.peak_lr)
    return f", after {schedule.warmup * epochs:.4g} of {epochs:.4g} epochs" if isinstance(schedule, WarmUp) else ""


def _phases(config: Config, layout: StepLayout, num_images: int) -> Mapping[str, str]:
    return {
        f"phase {i + 1}": f"{length} steps of {segment.batch_size} images of {segment.image_size} px, "
        f"{segment.micro_batch} at a time, from epoch {segment.first_image / num_images:g}, "
        f"learning rate {config.run.peak_lr_of(segment.batch_size):.3e} at its peak"
        for i, (segment, length) in enumerate(zip(layout.segments, layout.lengths(), strict=True))
    }


def _held_out(num_images: int) -> str:
    return f", {num_images} more held out" if num_images else ""


def _skipped(listing: Listing) -> str:
    others, damaged = len(listing.other_files()), len(listing.damaged())
    skipped = f"; {others} non-image files skipped ({listing.count_others()})" if others else ""
    return skipped + (f"; damaged parts left out: {damaged}" if damaged else "")
