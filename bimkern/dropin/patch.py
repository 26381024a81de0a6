"""Replace what bimkern does faster inside a model of another program, and take it back."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from bimkern.dropin import swap, trial
from bimkern.dropin.hosts import HOSTS
from bimkern.dropin.order import ORDERS
from bimkern.dropin.structure import Host, recognize
from bimkern.errors import BimkernError

_DEVICES = ("cpu", "cuda")


class DropinError(BimkernError, ValueError):
    """A model cannot be patched, or not taken back; it is as it was."""


@dataclass(frozen=True, eq=False)
class Patched:
    """What `patch` did to a model.

    Args:
        replaced: method, by its path in the model -> what it does.
        left: method, likewise -> why it stays the host's.
        modules: that were patched, by their path.
    """

    replaced: Mapping[str, str]
    left: Mapping[str, str]
    modules: Mapping[str, nn.Module]

    def undo(self) -> None:
        """Give every module its own class back; nothing else of it was changed.

        Raises:
            DropinError: something else changed the class of a patched module since, or put a method of its own on it,
                which may call ours; that must be undone first.
        """
        for path, module in self.modules.items():
            if methods := swap.covered(module):
                where = f"{path}.{methods[0]}".lstrip(".")
                raise DropinError(f"undo: {where} was replaced on this instance since it was patched: undo that first")
            if swap.recipe_of(module) is not None and not swap.is_ours(type(module)):
                raise DropinError(
                    f"undo: {path or 'the model'} got another class since it was patched: undo that first"
                )
        for module in self.modules.values():
            swap.restore(module)

    def __str__(self) -> str:
        lines = [f"replaced {path}: {what}" for path, what in self.replaced.items()]
        return "\n".join(lines + [f"left     {path}: {why}" for path, why in self.left.items()])


def patch(model: nn.Module, *, masks: str = "host", exact: bool = True) -> Patched:
    """Replace methods of a host program's modules by ours, where both compute the same.

    Modules are recognized by structure, wherever they are in the model. Each method is tried on random input first, and
    stays if it does anything else than its replacement. A patched module keeps its parameters, buffers, hooks and
    attributes, and gets a subclass of its class; so do its copies and pickles, for which bimkern must be installed.

    Args:
        model: or any part of it, on a CPU or a GPU. Patching it again changes nothing, unless what was left can be
            replaced now, or the other way round.
        masks: "host" leaves the random numbers the host's: the same seed gives the same masks. "counter" draws them
            with random_keep, so that they are the same on every device.
        exact: HOG layers compute bins without rounding. False repeats the rounding of the published layers bit for bit,
            in plain torch and so not faster.

    Returns:
        What was replaced, what was left and why; its undo() takes all back.

    Raises:
        DropinError: nothing in the model has a known structure or can be replaced, it is patched with other
            options already, or on a device without our kernels. The model is then as it was.
        TypeError: model is not a module.
        ValueError: masks is not known.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"patch: model must be a torch.nn.Module, got {type(model).__name__}")
    if masks not in ORDERS:
        raise ValueError(f"patch: masks must be {' or '.join(map(repr, ORDERS))}, got {masks!r}")
    found = list(recognize(model, HOSTS.values()))
    if not found:
        raise DropinError(f"patch: no known structure in {type(model).__name__}; {_nearest(model)}")
    _check_device(model)
    replaced: dict[str, str] = {}
    left: dict[str, str] = {}
    classes: list[tuple[str, nn.Module, type[nn.Module]]] = []
    for path, module, host in found:
        _check_options(path, module, masks, exact)
        with trial.isolated(module):
            indices = tuple(_usable(path, module, host, exact, replaced, left))
        if indices:
            cls = swap.patched_class(swap.host_class_of(module), (host.name, indices, masks, exact))
            classes.append((path, module, cls))
    if not classes:
        reasons = "; ".join(f"{path} {why}" for path, why in left.items())
        raise DropinError(f"patch: nothing in {type(model).__name__} can be replaced: {reasons}")
    for _, module, cls in classes:
        if swap.recipe_of(module) is None or swap.is_ours(type(module)):
            module.__class__ = cls
    return Patched(replaced, left, {path: module for path, module, _ in classes})


def _usable(
    path: str, module: nn.Module, host: Host, exact: bool, replaced: dict[str, str], left: dict[str, str]
) -> Iterator[int]:
    """Yield the parts that can be replaced, at most one for each method, and note what becomes of every method."""
    host_class = swap.host_class_of(module)
    forms = trial.forms(host, module)
    done: set[str] = set()
    for index, part in enumerate(host.parts):
        if part.method in done:
            continue
        ours = functools.partial(swap.patched_class, host_class, (host.name, (index,), "host", exact))
        where = f"{path}.{part.method}".lstrip(".")
        reason = trial.difference(host_class, ours, part, module, forms)
        if reason is None:
            done.add(part.method)
            left.pop(where, None)
            replaced[where] = part.what
            yield index
        else:
            left[where] = reason


def _check_device(model: nn.Module) -> None:
    device = next((x.device.type for x in (*model.parameters(), *model.buffers())), "cpu")
    if device not in _DEVICES:
        raise DropinError(f"patch: model must be on {' or '.join(_DEVICES)}, where our kernels run, got {device}")


def _check_options(path: str, module: nn.Module, masks: str, exact: bool) -> None:
    recipe = swap.recipe_of(module)
    if recipe is None:
        return
    where = path or type(module).__name__
    for name, before, now in (("masks", recipe[2], masks), ("exact", recipe[3], exact)):
        if before != now:
            raise DropinError(f"patch: {where} is patched with {name}={before!r} already, got {now!r}: undo that first")


def _nearest(model: nn.Module) -> str:
    """Say what was looked for: what the nearest structure lacks, if there is one, and the names of all."""
    names = ", ".join(HOSTS)
    candidates = [
        (len(missing), host, path, missing)
        for path, module in model.named_modules()
        for host in HOSTS.values()
        if (missing := list(host.missing(module))) and 2 * len(missing) <= len(host.attributes) + len(host.tensors)
    ]
    if not candidates:
        return f"looked for {names}"
    _, host, path, missing = min(candidates, key=lambda candidate: candidate[0])
    where = path or "it"
    return f"looked for {names}; {where} is nearest to {host.name} but {', '.join(missing)}"
