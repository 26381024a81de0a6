"""Fields of a config by their path, such as method.masker.ratios, set to other values.

A value is what the annotation of its field asks for, or text that is read as that: 0.6, none, [0.65, 0.7]. Where pieces
lie in a tuple, as in method.heads, a number names one, method.heads.0.depth; without a number all are meant. The word
type puts another piece in place of one, schedule.type=MultiStep; fields that both have keep their values.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from bimkern import pieces
from bimkern.annotations import choices, describe, origin, single, single_from_text
from bimkern.errors import closest
from bimkern.image_size import ImageSize
from bimkern.mim.stages import equal_stages
from bimkern.train.config.run import Config, ConfigError, TrainingConfig

__all__ = ["field", "parse_settings", "refuse_twice", "with_overrides"]

Hint = Any
C = TypeVar("C", bound=TrainingConfig)

_UNMEASURED = 0.5  # mean and std of a channel, of pixels in [0, 1]


def with_overrides(config: C, changes: Mapping[str, Any]) -> C:
    """Return a config with other values in some fields; all are set at once, and only then checked together.

    Some fields follow others, unless they are set as well: where run.epochs is, run.steps is none; where the depth of
    the encoder is, and its stages were equal, method.taps cut it into as many equal stages again; where its channels
    are, and run.normalize will say them, mean and std have a value for each.

    Args:
        config: what is changed.
        changes: values by the paths of their fields.

    Raises:
        ConfigError: there is no such field, it cannot hold the value, or values contradict each other; one line that
            names the field and the choices.
    """
    tree = _with_length(_nested(changes))
    if isinstance(config, Config):
        tree = _with_stages(config, _with_normalization(config, tree))
    changed: C = _changed(config, type(config), tree, "")
    return changed


def parse_settings(settings: Iterable[str]) -> dict[str, str]:
    """Split every "path=value".

    Raises:
        ConfigError: there is no "=", or a path is given twice.
    """
    found: dict[str, str] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {setting}: write a field and its value, as in --set method.encoder.depth=6")
        if path in found:
            raise ConfigError(f"--set {path} is given twice; give it once")
        found[path] = value
    return found


def refuse_twice(settings: Mapping[str, Any], by_option: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return all values by the paths of their fields: those of --set, and those of options, which have names.

    Raises:
        ConfigError: both set a field.
    """
    for path, (name, _) in by_option.items():
        if path in settings:
            raise ConfigError(f"--{name.replace('_', '-')} and --set {path} set the same field; give one of them")
    return {**settings, **{path: value for path, (_, value) in by_option.items()}}


def field(config: TrainingConfig, path: str) -> Any:
    """Return a field by its path, of the first where there are several; None where there is none."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value[0] if isinstance(value, tuple) else value, name, None)
    return value


def _nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Turn paths into a tree; a mapping in place of a value is a part of it."""
    tree: dict[str, Any] = {}
    for path, value in changes.items():
        *above, last = path.split(".")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{path} and a piece above it are both set; set one of them")
        if last in node:
            raise ConfigError(f"{path} and fields below it are both set; set one of them")
        node[last] = _nested(value) if isinstance(value, Mapping) else value
    return tree


def _with_stages(config: Config, tree: dict[str, Any]) -> dict[str, Any]:
    """Where the depth of the encoder changes, and its taps do not, cut stages that were equal equally again."""
    taps, was = config.method.taps, config.method.encoder.depth
    method: Any = tree.get("method")
    encoder: Any = method.get("encoder") if isinstance(method, dict) else None
    if not isinstance(encoder, dict) or "depth" not in encoder or "taps" in method:
        return tree
    depth = _value(encoder["depth"], int, "method.encoder.depth")
    if was % len(taps) or taps != equal_stages(was, len(taps)) or depth < 1:
        return tree  # and be refused, if they do not fit, by what checks the method
    if depth % len(taps):
        remedy = "set method.taps too"
        raise ConfigError(
            f"method.encoder.depth: must be a multiple of the {len(taps)} stages, got {depth}; or {remedy}"
        )
    return tree | {"method": method | {"taps": equal_stages(depth, len(taps))}}


def _with_normalization(config: Config, tree: dict[str, Any]) -> dict[str, Any]:
    """Where run.normalize will set mean and std, refuse others, and give other channels as many until then."""
    run, method = (part if isinstance(part := tree.get(name), dict) else {} for name in ("run", "method"))
    name = run.get("normalize", config.run.normalize)
    if name is None or str(name).lower() == "none":
        return tree
    if given := [field for field in ("mean", "std") if field in method]:
        raise ConfigError(
            f"--normalize {name} and method.{given[0]} both say how images are normalized; give one of them, or "
            f"--normalize none"
        )
    encoder = method.get("encoder")
    if not isinstance(encoder, dict) or "channels" not in encoder:
        return tree
    values = _value(encoder["channels"], int, "method.encoder.channels") * (_UNMEASURED,)
    return tree | {"method": method | {"mean": values, "std": values}}


def _with_length(tree: dict[str, Any]) -> dict[str, Any]:
    run = tree.get("run")
    if not isinstance(run, dict) or "epochs" not in run:
        return tree
    if run.get("steps") is not None:
        raise ConfigError("run.epochs and run.steps both say how long the run is; set one of them")
    return tree | {"run": run | {"steps": None}}


def _changed(value: Any, hint: Hint, change: Any, where: str) -> Any:
    """Return what a change makes of a value: another, or one in which fields differ."""
    if not isinstance(change, dict):
        return _value(change, hint, where)
    if isinstance(value, (tuple, list)) and not isinstance(value, ImageSize):
        return _changed_items(value, hint, change, where)
    types = pieces.types_of(hint)
    if isinstance(value, dict) or (value is None and not types and dict in map(origin, choices(hint))):
        _, item = _arguments(hint, dict)
        value = value or {}
        return value | {
            name: _changed(value.get(name), item, inner, f"{where}.{name}") for name, inner in change.items()
        }
    if is_dataclass(value):
        types |= {type(value).__name__: type(value)}
    if not types:
        raise ConfigError(f"{where}.{next(iter(change))}: {where} has no fields, it is {describe(hint)}")
    return _changed_piece(value, types, change, where)


def _changed_piece(value: Any, types: Mapping[str, type], change: Mapping[str, Any], where: str) -> Any:
    kind = _kind(value, types, change, where)
    known, hints = {field.name: field for field in fields(kind) if field.init}, get_type_hints(kind)
    before = {} if value is None else {field.name: getattr(value, field.name) for field in fields(value)}
    values = {name: before[name] for name in known if name in before}
    for name in change:
        path = f"{where}.{name}" if where else name
        if name == "type":
            continue
        if name not in known:
            raise ConfigError(f"{path}: {kind.__name__} has no field {name!r}; {closest(name, known)}")
        values[name] = _changed(values.get(name), hints[name], change[name], path)
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{where}: {kind.__name__} needs {name}; set {where}.{name} too")
    try:
        return kind(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        fault = str(error).removeprefix(f"{kind.__name__}: ")
        raise ConfigError(f"{where}: {fault}" if where else fault) from error


def _kind(value: Any, types: Mapping[str, type], change: Mapping[str, Any], where: str) -> type:
    """Return the type that a changed piece is of: the one that is named, that it was of, or the only one possible."""
    name = change.get("type")
    if name is None and value is None:
        if len(types) > 1:
            raise ConfigError(f"{where} is none so far; set {where}.type too, to one of {', '.join(types)}")
        return next(iter(types.values()))
    if name is None:
        return type(value)
    if name not in types:
        raise ConfigError(f"{where}.type: there is no {name!r}; {closest(str(name), types)}")
    return types[name]


def _changed_items(value: Any, hint: Hint, change: Mapping[str, Any], where: str) -> Any:
    """Return a tuple or list in which the numbered items differ, or all."""
    numbered = any(name.isdecimal() for name in change)
    if numbered and (unknown := [name for name in change if not name.isdecimal() or int(name) >= len(value)]):
        raise ConfigError(f"{where}.{unknown[0]}: {where} holds {len(value)} values, counted from 0; name one of them")
    hints = _item_hints(_arguments(hint, type(value)), len(value))
    items = list(value)
    for i, item in enumerate(items):
        if not numbered or str(i) in change:
            inner = change[str(i)] if numbered else change
            items[i] = _changed(item, hints[i], inner, f"{where}.{i}")
    return type(value)(items)


def _value(value: Any, hint: Hint, where: str) -> Any:
    """Return a value as an annotation has it, from text or from what a program gives.

    Raises:
        ConfigError: it allows no such value.
    """
    types = pieces.types_of(hint)
    sequence = next((choice for choice in choices(hint) if origin(choice) in (tuple, list)), None)
    plain = [choice for choice in choices(hint) if choice is not sequence and not pieces.types_of(choice)]
    with suppress(ValueError):
        if not isinstance(value, str):
            return value if pieces.fits(value, hint) else single(value, plain)
        if sequence is None or not value.startswith(("(", "[")):
            return single_from_text(value, plain)
    if sequence is not None and value is not None:
        return _sequence(_items(value), sequence, where)
    remedy = "; set its fields" if types else ""
    if len(types) > 1:
        remedy += f", or {where}.type to one of {', '.join(types)}"
    raise ConfigError(f"{where}: must be {describe(hint)}, got {value!r}{remedy}")


def _items(value: Any) -> Sequence[Any]:
    """Return the values of a sequence; one value stands for a sequence of it alone, as in text."""
    if isinstance(value, str):
        return _split(value)
    return value if isinstance(value, (tuple, list)) else [value]


def _sequence(values: Sequence[Any], hint: Hint, where: str) -> Any:
    kind, arguments = origin(hint), get_args(hint)
    hints = _item_hints(arguments, len(values))
    if len(hints) != len(values):
        raise ConfigError(f"{where}: must be {describe(hint)}, got {len(values)}")
    items = [_nested(value) if isinstance(value, Mapping) else value for value in values]
    return kind(
        _changed(None, item, value, f"{where}.{i}") for i, (item, value) in enumerate(zip(hints, items, strict=True))
    )


def _item_hints(arguments: Sequence[Hint], length: int) -> Sequence[Hint]:
    """Return the annotation of every item of a tuple or list."""
    variadic = len(arguments) == 1 or arguments[1:] == (...,)
    return [arguments[0]] * length if variadic else arguments


def _arguments(hint: Hint, kind: type) -> tuple[Hint, ...]:
    """Return what an annotation says about the items of a tuple, list or dict: anything, if it says nothing."""
    found = (get_args(choice) for choice in choices(hint) if origin(choice) is kind)
    return next(found, (str, Any) if kind is dict else (Any, ...))


def _split(text: str) -> list[str]:
    """Split "[0.65, 0.7]", with or without brackets, at commas outside inner brackets."""
    if text.startswith(("(", "[")) and text.endswith((")", "]")):
        text = text[1:-1]
    items, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    items = [item.strip() for item in items]
    return items if items[-1] else items[:-1]  # a comma may end them
