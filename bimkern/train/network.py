"""The network of a run, with the teacher that its options name."""

from pathlib import Path

import torch

from bimkern.mim.model import MIM
from bimkern.models.attention import Mix, sdpa
from bimkern.models.layers import Block, set_attention, set_compute_dtype
from bimkern.models.teacher import Teacher, TeacherError, load_teacher, read_teacher_config
from bimkern.models.vit import ViT
from bimkern.train.config.run import Config, ConfigError


def build(config: Config) -> MIM:
    """Build the network of a run; under fake tensors its teacher has shapes alone.

    Raises:
        ConfigError: the method needs a teacher and none is named, or the other way round, or the two do not fit.
    """
    path, distills = config.run.teacher, config.method.distillation is not None
    if distills != (path is not None):
        need = "learns from a teacher; name an exported backbone by" if distills else "has no use for"
        raise ConfigError(f"{config.recipe} {need} --teacher")
    try:
        return MIM(config.method, None if path is None else _teacher(path))
    except TeacherError as error:
        raise ConfigError(f"--teacher {path}: {error}") from error


def compute_with(model: MIM, dtype: torch.dtype, mix: Mix = sdpa) -> None:
    """Have a network, and its teacher, multiply matrices in a dtype and mix tokens by an attention."""
    parts = [model] if model.teacher is None else [model, model.teacher.encoder]
    for part in parts:
        set_compute_dtype(part, dtype)
        set_attention(part, mix)


def _teacher(path: Path) -> Teacher:
    if type(torch.empty(0)) is torch.Tensor and torch.empty(0).device.type != "meta":
        return load_teacher(path)
    encoder = ViT(read_teacher_config(path))
    rows, columns = encoder.config.grid
    return Teacher(encoder, torch.empty(rows * columns, encoder.config.width))


def compile_blocks(model: MIM) -> None:
    """Compile every transformer block, of the encoder and of the heads, with torch.compile."""
    # All blocks share one code object; each width, token count and smaller last micro-batch is a variant of it.
    torch._dynamo.config.recompile_limit = 64
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()
