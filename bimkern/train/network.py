"""The network of a run, with the teacher that its options name."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from bimkern.mim.model import MIM
from bimkern.mim.reconstruction.renderers import renderer_class
from bimkern.models.attention import AttentionFn, sdpa
from bimkern.models.classifier import Classifier
from bimkern.models.drop_path import set_drop_path
from bimkern.models.encoder import PartlyTrained
from bimkern.models.exported import BackboneError, read_encoder_config
from bimkern.models.layers import other_dtype_layers, set_attention, set_compute_dtype
from bimkern.models.teacher import Teacher, TeacherError, load_teacher
from bimkern.pieces import PieceError
from bimkern.train.config.finetuning import FinetuneConfig
from bimkern.train.config.run import Config, ConfigError, RunOptions

_DROPS = ("drop_prob", "dropout")  # rates of modules that are no dropouts: timm's DropPath, torch's attention


def build(config: Config) -> MIM:
    """Build the network of a run; under fake tensors its teacher has shapes alone.

    Raises:
        ConfigError: the method needs a teacher and none is named, or the other way round, or the two do not fit; or
            nothing is registered that draws one of its targets; or a piece would ignore one of its options, or drops at
            random what a resumed run would not.
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
        model = MIM(config.method, None if path is None else _teacher(path))
        model.recompute = config.run.recompute
    except TeacherError as error:
        raise ConfigError(f"--teacher {path}: {error}") from error
    except BackboneError as error:
        raise ConfigError(f"--teacher {error}") from error
    refuse_ignored([model.encoder, *model.heads], config.run, [] if model.teacher is None else [model.teacher.encoder])
    _refuse_drawing([model.encoder, *model.heads], config.recipe)
    return model


def build_classifier(config: FinetuneConfig) -> Classifier:
    """Build the network of a resolved config; layers that were left out of pre-training are added.

    Raises:
        ConfigError: the encoder would ignore one of the options.
    """
    assert config.mean is not None
    assert config.std is not None
    assert config.num_classes is not None
    encoder = config.known_encoder
    whole = encoder.whole if isinstance(encoder, PartlyTrained) else encoder
    model = Classifier(whole, config.num_classes, norm_first=config.norm_first, mean=config.mean, std=config.std)
    try:
        set_drop_path(model.encoder, config.drop_path)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    refuse_ignored([model.encoder], config.run)
    return model


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
    """Compile every layer, of the encoder and of the heads, with torch.compile."""
    compile_each([model.encoder, *model.heads])


def compile_each(parts: Iterable[nn.Module]) -> None:
    """Compile every layer of some parts of a network with torch.compile."""
    # All layers share one code object; each width, token count and smaller last micro-batch is a variant of it.
    torch._dynamo.config.recompile_limit = 64
    for part in parts:
        layers: Any = part.layers
        for layer in layers:
            layer.compile()


def parts(model: Any) -> list[nn.Module]:
    """Return the parts of a network that have layers: its encoder and the heads of pre-training."""
    return [model.encoder, *getattr(model, "heads", ())]


def called_layers(part: Any) -> Iterator[nn.Module]:
    """Yield the modules that a part of a network calls for its layers: a level of layers is called one by one."""
    for layer in part.layers:
        yield from getattr(layer, "called", (layer,))


def refuse_ignored(trained: Sequence[nn.Module], run: RunOptions, teacher: Sequence[nn.Module] = ()) -> None:
    """Make sure that a network, its encoder first, does what options ask for.

    Args:
        trained: its parts.
        run: the options.
        teacher: the encoder of its teacher, which is not compiled.

    Raises:
        ConfigError: a part would ignore one of them.
    """
    for part in (*trained, *teacher):
        name, modules = type(part).__name__, list(part.modules())
        if run.precision != "fp32" and (others := _other_dtype(part)):
            raise ConfigError(
                f"--precision {run.precision}: {name} has no compute_dtype in {others}; choose fp32, or add it as the "
                f"layers of bimkern.models.layers do"
            )
        theirs = any(isinstance(module, nn.MultiheadAttention) for module in modules)
        ours = any(hasattr(module, "attention_fn") for module in modules)
        if run.attention != "sdpa" and (theirs or (part is trained[0] and not ours)):
            raise ConfigError(
                f"--attention {run.attention}: {name} has no attention_fn; choose sdpa, or add it as the layers of "
                f"bimkern.models.layers do"
            )
    for part in trained:
        if run.compile and not hasattr(part, "layers"):
            raise ConfigError(f"--compile: {type(part).__name__} has no `layers`, an iterable of modules to compile")
        if run.shard == "full" and not hasattr(part, "layers"):
            raise ConfigError(f"--shard full: {type(part).__name__} has no `layers`, an iterable of modules to shard")


def _refuse_drawing(trained: Iterable[nn.Module], recipe: str) -> None:
    """Make sure that what is pre-trained draws nothing from torch's generators, which no checkpoint has.

    A resumed run would draw otherwise, and so would layers that --recompute runs once more.

    Raises:
        ConfigError: a part has a dropout, or drops paths.
    """
    for part in trained:
        name = dropping(part)
        if name is not None:
            raise ConfigError(
                f"{recipe}: {name or type(part).__name__} of the {type(part).__name__} drops at random, which neither "
                f"a resumed run nor --recompute can repeat; set its rate to 0, for a network of timm in "
                f"method.encoder.model_args"
            )


def dropping(part: nn.Module) -> str | None:
    """Return the name of a module that drops something at random, by torch's generators; None where none does."""
    for name, module in part.named_modules():
        rates = [module.p] if isinstance(module, _DropoutNd) else []
        rates += [getattr(module, rate, 0.0) for rate in _DROPS]
        if any(isinstance(rate, float) and rate > 0 for rate in rates):
            return name
    return None


def _other_dtype(part: nn.Module) -> str:
    """Name what in a part cannot follow --precision; nothing if all of it can."""
    if not any(hasattr(module, "compute_dtype") for module in part.modules()):
        return "any layer"
    names = other_dtype_layers(part)
    return ", ".join([*names[:3], *([f"{len(names) - 3} more layers"] if len(names) > 3 else [])])
