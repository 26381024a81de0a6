"""Start a run from weights: find them in what was saved, make them fit, and report what became of each.

A network's encoder is taken as a whole; its other parts where they are the same there.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from bimkern.abridged import some
from bimkern.errors import BimkernError
from bimkern.image_size import ImageSize
from bimkern.importers.layouts import Names, Naming, in_published_names, namings, part_of
from bimkern.importers.weights_file import SavedWeights, WeightsError, read_weights
from bimkern.models.encoder import EncoderConfig, Grid, Program
from bimkern.models.normalization import Statistics, is_alike
from bimkern.models.pos_embed import Positions
from bimkern.models.swin import SwinConfig
from bimkern.models.swin_layers import BIASES, WindowAttention
from bimkern.pieces import to_json
from bimkern.train.config.run import Config, ConfigError
from bimkern.train.network import build

_ENCODER = "encoder."
_FITTED = ("image_size", "img_size", "window", "window_size", "window_image_size")  # settings that may differ


@dataclass(frozen=True)
class Network:
    """What weights are fitted to."""

    encoder: Any  # an nn.Module that follows Encoder
    state: Mapping[str, Tensor]  # by name; those of the encoder begin with "encoder."
    taps: tuple[int, ...]  # the last layer of the encoder that each head reads

    @property
    def config(self) -> EncoderConfig:
        config: EncoderConfig = self.encoder.config
        return config


class _Table(NamedTuple):
    """A table of positions, or of biases in a window, as it was found, or computed for the grid of the weights."""

    names: Names  # there; none where it was computed
    fitted: Tensor | None  # to the grid or window here; None where that is computed as well
    old: Grid
    new: Grid


@dataclass(frozen=True)
class InitialWeights:
    """What a run starts from, and an account of it."""

    tensors: Mapping[str, Tensor]  # by the names of the network's state_dict
    sha256: str  # of all that was found, names and values
    report: Mapping[
        str, Any
    ]  # JSON: where from; the names that were taken, resized and left there, and those still random
    summary: str  # in a line
    statistics: Statistics | None = None  # mean and std by which images were normalized in training, where it is known

    def note(self, mean: tuple[float, ...], std: tuple[float, ...]) -> str | None:
        """Say that they were trained on images normalized in another way than these; None: they were not."""
        there, here = self.statistics, (mean, std)
        if there is None or (len(there[0]) == len(there[1]) == len(mean) and is_alike(there, here)):
            return None
        return (
            f"{self.report['path']} was trained on images normalized by mean {there[0]} and std {there[1]}; this run "
            f"normalizes by mean {mean} and std {std}"
        )


def read_initial_weights(config: Config, path: Path) -> InitialWeights:
    """Read the weights that --init names, for the network of a run.

    The encoder is taken as a whole, with its last norm; other parts are taken where all their names and shapes are
    those of the run. Positions are resized bicubically where the grid differs.

    Raises:
        ConfigError: there are none, or their encoder is another; the message names the differing sizes.
    """
    with torch.device("meta"):
        model = build(config)
    try:
        return fit(Network(model.encoder, model.state_dict(), config.method.taps), read_weights(path), path)
    except BimkernError as error:
        raise ConfigError(f"--init {error}") from error


def fit(network: Network, saved: SavedWeights, path: Path) -> InitialWeights:
    """Take the weights for a network out of those that were read from a path.

    Raises:
        WeightsError: their encoder is another.
    """
    weights, state = in_published_names(saved.tensors), network.state
    ours = [name for name in state if name.startswith(_ENCODER)]
    naming = max(
        namings(network.config, network.taps, weights, saved.taps),
        key=lambda naming: sum(theirs in weights for name in ours for theirs in naming.theirs(name) or ()),
    )
    taken = {name: naming.theirs(name) or () for name in ours}
    if not any(theirs in weights for names in taken.values() for theirs in names):
        if kind := _other_kind(saved, network.config):
            raise WeightsError(f"{path}: the encoder differs: {kind}")
        raise WeightsError(f"{path} holds no weights of such an encoder; it names {some(weights)}")
    layout = network.config.layout("timm")
    untrained = {} if layout is None else layout.random  # what a whole network has besides
    _refuse_other(network, saved, {name: weights[name] for name in weights if name not in untrained}, taken, path)
    tables = dict(_tables(network, saved, weights, naming, path))
    taken |= _other_parts(state, weights, naming)
    found = {
        name: _stacked([weights[theirs] for theirs in names]).to(state[name].dtype) for name, names in taken.items()
    }
    found |= {name: table.fitted for name, table in tables.items() if table.fitted is not None}
    taken |= {name: table.names for name, table in tables.items() if table.names}
    used = {theirs for names in taken.values() for theirs in names}
    sha256 = _digest(saved.tensors)
    report = {
        "path": str(path),
        "layout": naming.program,
        "sha256": sha256,
        "taken": {name: list(names) for name, names in taken.items()},
        "resized": {
            name: {"from": list(table.old), "to": list(table.new)}
            for name, table in tables.items()
            if table.old != table.new
        },
        "left": [name for name in weights if name not in used],
        "random": [name for name in state if name not in found],
    }
    return InitialWeights(found, sha256, report, summarize(report), saved.statistics)


def _refuse_other(
    network: Network, saved: SavedWeights, weights: Mapping[str, Tensor], taken: Mapping[str, Names], path: Path
) -> None:
    """Make sure that the encoder in a file is that of the network.

    Raises:
        WeightsError: it is not; the message names the differences.
    """
    encoder, state = network.config, network.state
    missing = [theirs for names in taken.values() for theirs in names if theirs not in weights]
    fixed = [item for item in taken.items() if not item[0].endswith(f".{BIASES}")]  # those are resized
    shapes = [
        f"{names[0]} is {shape} instead of {list(state[name].shape)}"
        for name, names in sorted(fixed, key=lambda item: -state[item[0]].dim())
        if (shape := _shape(weights, names)) not in (None, list(state[name].shape))
    ]
    layers, expected, more = _layers(encoder, weights, taken)
    depth = [] if layers == expected else [f"it has {layers} layers instead of {expected}"]
    differences = (
        _differing_settings(saved, encoder)
        or depth + shapes[:1]
        or [f"it {what} {some(names)}" for what, names in (("lacks", missing), ("also has", more)) if names]
    )
    if differences:
        kind = _other_kind(saved, encoder)
        raise WeightsError(f"{path}: the encoder differs: {kind or '; '.join(differences)}")


def _other_kind(saved: SavedWeights, encoder: EncoderConfig) -> str | None:
    """Name the kinds of the encoder that the weights say they are of, and of that here, where they differ."""
    here, there = type(encoder), type(saved.encoder)
    if saved.encoder is None or here is there:
        return None
    return f"it is a {there.__name__} instead of a {here.__name__}"


def _differing_settings(saved: SavedWeights, encoder: EncoderConfig) -> list[str]:
    """List what a description of the weights says of the encoder and is otherwise here, as far as there is one."""
    if saved.encoder is not None:
        there, here = _numbers(to_json(saved.encoder)), _numbers(to_json(encoder))
    else:
        there, here = _numbers(saved.settings), {}
        for layout in map(encoder.layout, get_args(Program)):
            here |= {} if layout is None else _numbers(layout.settings)
    return [
        f"{name} is {there[name]:g} instead of {here[name]:g}"
        for name in here
        if name in there and there[name] != here[name] and name not in _FITTED
    ]


def _numbers(settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among settings, by their names, on all levels."""
    found: dict[str, float] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _numbers(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[name] = value
    return found


def _layers(
    encoder: EncoderConfig, weights: Mapping[str, Tensor], taken: Mapping[str, Names]
) -> tuple[int, int, list[str]]:
    """Count the layers in a file that are numbered like the encoder's first one, and those here.

    An encoder that is a single layer may have numbers inside it, or none. List as well what the layers in the file hold
    that is not taken.
    """
    of_first = (names[0] for name, names in taken.items() if encoder.layer_group(name.removeprefix(_ENCODER)) == 1)
    known = {theirs for names in taken.values() for theirs in names}
    here: dict[str, list[str]] = {}
    there: dict[str, list[str]] = {}
    for pattern in next(filter(None, map(_numbered, of_first)), []):
        here, there = _matches(pattern, known), _matches(pattern, weights)
        if len(here) == encoder.depth:  # so it is what every layer is named by
            break
    return len(there), len(here), [name for names in there.values() for name in names if name not in known]


def _numbered(name: str) -> list[re.Pattern[str]]:
    """Return patterns of the beginnings of a name that end in a number, the shortest first; a number stands for any."""
    pattern, found = "", []
    for part in name.split("."):
        pattern += r"\d+\." if part.isdigit() else re.escape(f"{part}.")
        if part.isdigit():
            found.append(re.compile(pattern))
    return found


def _matches(pattern: re.Pattern[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Sort names by how they begin, where that matches a pattern."""
    found: dict[str, list[str]] = {}
    for name in names:
        if match := pattern.match(name):
            found.setdefault(match[0], []).append(name)
    return found


def _stacked(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)  # a count of batches has no dimension


def _shape(weights: Mapping[str, Tensor], names: Names) -> list[int] | None:
    """Return the shape of what some tensors, stacked, make; None where one of them is missing."""
    if not all(name in weights for name in names):
        return None
    first = list(weights[names[0]].shape)
    return first if len(names) == 1 else [sum(weights[name].shape[0] for name in names), *first[1:]]


def _tables(
    network: Network, saved: SavedWeights, weights: Mapping[str, Tensor], naming: Naming, path: Path
) -> Iterator[tuple[str, "_Table"]]:
    """Yield by its name every table that depends on the size of images or windows, fitted to those here."""
    size, level = _said_size(saved), network.config.level(0)
    for module_name, module in network.encoder.named_modules():
        if not isinstance(module, Positions):
            continue
        name = f"{_ENCODER}{module_name}.table"
        (theirs,) = naming.theirs(name) or (name,)
        if theirs in weights:
            table = weights[theirs]
        elif naming.stores_positions:
            raise WeightsError(f"{path}: the encoder differs: it lacks {theirs}")
        else:
            table = module.computed(level.grid(*(size or network.config.image_size)))
        try:
            fitted, grid = module.fit(table.float(), None if size is None else level.grid(*size))
        except ValueError as error:
            raise WeightsError(f"{path}: {theirs}: {error}") from error
        yield name, _Table((theirs,) if theirs in weights else (), fitted, grid, module.grid)
    for module_name, module in network.encoder.named_modules():
        if isinstance(module, WindowAttention):
            name = f"{_ENCODER}{module_name}.{BIASES}"
            (theirs,) = naming.theirs(name) or (name,)
            try:
                fitted, window = module.fit(weights[theirs].float(), _said_window(saved, module_name))
            except ValueError as error:
                raise WeightsError(f"{path}: {theirs}: {error}") from error
            yield name, _Table((theirs,), fitted, window, module.window)


def _said_size(saved: SavedWeights) -> ImageSize | None:
    """Return the size of the images that weights are said to be for; None where nothing says it."""
    if saved.encoder is not None:
        return saved.encoder.image_size
    inner = saved.settings.get("model_args")
    for settings in (saved.settings, inner if isinstance(inner, Mapping) else {}):
        for name in ("image_size", "img_size"):
            with suppress(ValueError):
                return ImageSize.read(settings.get(name, ""))
    return None


def _said_window(saved: SavedWeights, module: str) -> Grid | None:
    """Return the window that the biases of a module are said to be for; None where nothing says it."""
    if not isinstance(saved.encoder, SwinConfig):
        return None
    return saved.encoder.table_window(int(module.split(".")[1]))


def _other_parts(
    state: Mapping[str, Tensor], weights: Mapping[str, Tensor], naming: Naming
) -> Iterator[tuple[str, Names]]:
    """Yield the weights outside the encoder, and their names there, of all parts that are the same there."""
    parts: dict[str, list[str]] = {}
    for name in state:
        if not name.startswith(_ENCODER):
            parts.setdefault(part_of(name), []).append(name)
    for part, members in parts.items():
        names = {name: naming.theirs(name) or ("",) for name in members}
        known = {theirs for found in names.values() for theirs in found}
        same = all(_shape(weights, found) == list(state[name].shape) for name, found in names.items())
        if same and not any(naming.belongs(name, part) for name in weights if name not in known):
            yield from names.items()


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Hash names, dtypes, shapes and values."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def summarize(report: Mapping[str, Any]) -> str:
    """Say in a line what a report lists."""
    resized = [
        f"; {name} resized from {' x '.join(map(str, sizes['from']))} to {' x '.join(map(str, sizes['to']))}"
        for name, sizes in report["resized"].items()
    ]
    taken, left, random = (_counts(report[key]) for key in ("taken", "left", "random"))
    source = f"initialized from {report['path']} ({report['layout']} names); taken: {taken}"
    return f"{source}{''.join(resized)}; left there: {left}; still random: {random}"


def _counts(names: Iterable[str]) -> str:
    """Count names by their first word."""
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{part} {count}" for part, count in counts.items()) or "nothing"
