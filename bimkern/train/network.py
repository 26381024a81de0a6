"""The network of a run, with the teacher that its options name."""

from pathlib import Path

import torch

from bimkern.mim.model import MIM
from bimkern.mim.reconstruction.renderers import renderer_class
from bimkern.models.attention import AttentionFn, sdpa
from bimkern.models.exported import BackboneError, read_encoder_config
from bimkern.models.layers import TransformerLayer, set_attention, set_compute_dtype
from bimkern.models.teacher import Teacher, TeacherError, load_teacher
from bimkern.pieces import PieceError
from bimkern.train.config.run import Config, ConfigError


def build(config: Config) -> MIM:
    """Build the network of a run; under fake tensors its teacher has shapes alone.

    Raises:
        ConfigError: the method needs a teacher and none is named, or the other way round, or the two do not fit; or
            nothing is registered that draws one of its targets.
    """
    try:
        for target in config.method.targets:
            renderer_class(target)
    except PieceError as error:
        raise ConfigError(f"{config.recipe}: {error}") from error
    path, distills = config.run.teacher, config.method.distillation is not None
    if distills != (path is not None):
        need = "learns from a teacher; name an exported backbone by" if distills else "has no use for"
        raise ConfigError(f"{config.recipe} {need} --teacher")
    try:
        return MIM(config.method, None if path is None else _teacher(path))
    except TeacherError as error:
        raise ConfigError(f"--teacher {path}: {error}") from error
    except BackboneError as error:
        raise ConfigError(f"--teacher {error}") from error


def set_compute(model: MIM, dtype: torch.dtype, attention_fn: AttentionFn = sdpa) -> None:
    """Have a network, and its teacher, multiply matrices in a dtype and compute attention by a function."""
    parts = [model] if model.teacher is None else [model, model.teacher.encoder]
    for part in parts:
        set_compute_dtype(part, dtype)
        set_attention(part, attention_fn)


def _teacher(path: Path) -> Teacher:
    if type(torch.empty(0)) is torch.Tensor and torch.empty(0).device.type != "meta":
        return load_teacher(path)
    config = read_encoder_config(path)
    return Teacher(config.module(config))


def compile_layers(model: MIM) -> None:
    """Compile every transformer layer, of the encoder and of the heads, with torch.compile."""
    # All layers share one code object; each width, token count and smaller last micro-batch is a variant of it.
    torch._dynamo.config.recompile_limit = 64
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            module.compile()
