"""What a host program's module must look like to be recognized, and which of its methods have a faster form."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from bimkern.ops import _check as check


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """Arguments for one call of a method, and small stand-ins for the layers that it runs through."""

    args: tuple[Any, ...]
    children: Mapping[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One method of a host and its replacement, which computes the same.

    Args:
        what: is replaced, in words.
        method: its name in the host.
        ours: the replacement, a function of the module and the same arguments, with the same names and defaults.
        trial: makes a call by which the two are compared before anything is replaced.
        reads_training: the replacement does otherwise out of training, and is called so, too, when it is tried.
    """

    what: str
    method: str
    ours: Callable[..., Any]
    trial: Callable[[nn.Module], Trial]
    reads_training: bool = False


def as_it_is(module: nn.Module) -> nn.Module:
    """Return a module whose trials are cheap."""
    return module


def no_constants(host_class: type) -> Mapping[str, Any]:
    """Return the constants of a host that needs none."""
    return {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Host:
    """A family of modules that share a structure, wherever their code comes from.

    Args:
        name: of the family.
        attributes: dotted names that a module of the family has.
        tensors: attribute -> shape, in letters (`_check.shapes`); a letter has one size in all of them.
        parts: what is replaced. Several of one method are tried in turn.
        package: on PyPI, or None for code that is passed on as files.
        tested: versions of the package with which the tests passed.
        constants: makes class attributes that the replacements read, from the host's class.
        smaller: makes a module of the same structure whose trials are cheap, or raises anything where it cannot.
            If its trial fails, the module itself is tried.
    """

    name: str
    parts: tuple[Part, ...]
    attributes: tuple[str, ...] = ()
    tensors: Mapping[str, str] = field(default_factory=dict)
    package: str | None = None
    tested: tuple[str, ...] = ()
    constants: Callable[[type], Mapping[str, Any]] = no_constants
    smaller: Callable[[nn.Module], nn.Module] = as_it_is

    def missing(self, module: nn.Module) -> Iterator[str]:
        """Yield what a module differs in from this structure."""
        for name in self.attributes:
            if _get(module, name) is None:
                yield f"has no {name}"
        found = {name: _get(module, name) for name in self.tensors}
        for name, value in found.items():
            if not isinstance(value, Tensor):
                yield f"has no {name} [{', '.join(self.tensors[name].split())}]"
        if all(isinstance(value, Tensor) for value in found.values()):
            try:
                check.shapes(self.name, **{name: (found[name], shape) for name, shape in self.tensors.items()})
            except ValueError as error:
                yield f"has another shape: {str(error).removeprefix(f'{self.name}: ')}"

    @functools.cached_property
    def roots(self) -> frozenset[str]:
        """Return the names that a module of the family has itself."""
        return frozenset(name.partition(".")[0] for name in (*self.attributes, *self.tensors))


def recognize(model: nn.Module, hosts: Iterable[Host]) -> Iterator[tuple[str, nn.Module, Host]]:
    """Yield path, module and host of every module that has the structure of one of the hosts.

    A model has hundreds of modules, and getattr() takes long where it fails. So names are compared first.
    """
    hosts = tuple(hosts)
    names_of = {cls: frozenset(dir(cls)) for cls in set(map(type, model.modules()))}
    for path, module in model.named_modules():
        cls = type(module)
        names = names_of[cls].union(vars(module), module._parameters, module._buffers, module._modules)
        finds_others = cls.__getattr__ is not nn.Module.__getattr__  # such as those of a module that it wraps
        for host in hosts:
            if (finds_others or host.roots <= names) and next(host.missing(module), None) is None:
                yield path, module, host
                break


def _get(module: nn.Module, name: str) -> Any:
    try:
        return attrgetter(name)(module)
    except AttributeError:
        return None
