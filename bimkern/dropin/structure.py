"""What a host program's module must look like to be recognized, and which of its methods have a faster form."""

from collections.abc import Callable, Iterator, Mapping
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
    """

    what: str
    method: str
    ours: Callable[..., Any]
    trial: Callable[[nn.Module], Trial]


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
    """

    name: str
    parts: tuple[Part, ...]
    attributes: tuple[str, ...] = ()
    tensors: Mapping[str, str] = field(default_factory=dict)
    package: str | None = None
    tested: tuple[str, ...] = ()
    constants: Callable[[type], Mapping[str, Any]] = no_constants

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

    def recognizes(self, module: nn.Module) -> bool:
        """Return whether a module has the structure of this family."""
        return next(self.missing(module), None) is None


def _get(module: nn.Module, name: str) -> Any:
    try:
        return attrgetter(name)(module)
    except AttributeError:
        return None
