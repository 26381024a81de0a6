"""Give a module our methods by changing its class alone, so that everything else it is made of stays as it is.

The new class is a subclass of the module's own: isinstance, parameters, buffers, hooks, state dict and attributes are
untouched. It is made once per host class and choice of parts, and pickled as the recipe to make it again.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from bimkern.dropin.hosts import HOSTS
from bimkern.dropin.order import ORDERS
from bimkern.dropin.structure import Part

Recipe = tuple[str, tuple[int, ...], str, bool]  # name of the host, indices of its parts, masks, exact


@functools.cache
def patched_class(host_class: Any, recipe: Recipe) -> Any:
    """Make the subclass of a host's class that has the parts of a recipe replaced."""
    name, indices, masks, exact = recipe
    host = HOSTS[name]
    namespace: dict[str, Any] = {
        "__module__": host_class.__module__,
        "__qualname__": host_class.__qualname__,
        "__doc__": host_class.__doc__,
        "__reduce_ex__": _reduce_ex,
        "_bimkern_host": host_class,
        "_bimkern_order": staticmethod(ORDERS[masks]),
        "_bimkern_exact": exact,
        "_bimkern_recipe": recipe,
        **host.constants(host_class),
        **{part.method: _with_defaults_of(host_class, part) for part in map(host.parts.__getitem__, indices)},
    }
    return type(host_class)(host_class.__name__, (host_class,), namespace)


def _with_defaults_of(host_class: Any, part: Part) -> Any:
    """Return a replacement with the defaults of the host's method, such as its ratio of masked patches."""
    ours: Any = part.ours
    theirs = inspect.unwrap(getattr(host_class, part.method, ours))
    defaults, of_keywords = getattr(theirs, "__defaults__", None), getattr(theirs, "__kwdefaults__", None)
    if defaults is ours.__defaults__ and of_keywords is ours.__kwdefaults__:
        return ours
    copy = types.FunctionType(ours.__code__, ours.__globals__, ours.__name__, defaults, ours.__closure__)
    copy.__doc__, copy.__annotations__, copy.__kwdefaults__ = ours.__doc__, ours.__annotations__, of_keywords
    return copy


def recipe_of(module: nn.Module) -> Recipe | None:
    """Return how a module is patched, or None. A class that something else derived from ours counts, too."""
    return getattr(type(module), "_bimkern_recipe", None)


def host_class_of(module: nn.Module) -> Any:
    """Return the class that a module has, or had before it was patched."""
    return getattr(type(module), "_bimkern_host", type(module))


def covered(module: nn.Module) -> list[str]:
    """Return which of our methods a module has others for, on itself."""
    name, indices, *_ = recipe_of(module) or ("", ())
    methods = [HOSTS[name].parts[index].method for index in indices]
    return [method for method in methods if method in vars(module)]


def restore(module: nn.Module) -> None:
    """Give a module its own class back, and what our class shows by a property as a plain attribute."""
    shown = (name for name, value in vars(type(module)).items() if isinstance(value, property))
    kept = {name: getattr(module, name) for name in shown if name in vars(module)}
    module.__class__ = host_class_of(module)
    vars(module).update(kept)


def is_ours(cls: type) -> bool:
    """Return whether a class itself was made here."""
    return "_bimkern_recipe" in vars(cls)


def _reduce_ex(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """Pickle and copy with the host's class and the recipe in place of our class, which has no name to be found by."""
    ours = next(cls for cls in type(self).__mro__ if is_ours(cls))
    reduced: Any = super(ours, self).__reduce_ex__(protocol)  # type: ignore[arg-type]  # ours is a class
    if type(self) is not ours:
        return reduced
    make, args, *state = reduced
    host_class, recipe = host_class_of(self), recipe_of(self)
    return _rebuild, (host_class, recipe, make, *(host_class if arg is ours else arg for arg in args)), *state


def _rebuild(host_class: Any, recipe: Recipe, make: Callable[..., Any], *args: Any) -> Any:
    ours = patched_class(host_class, recipe)
    return make(*(ours if arg is host_class else arg for arg in args))
