"""Weights that get their values late: a network is built without memory for them, and then drawn part by part.

What a constructor does to its tensors is noted, with the state of the generator before each draw. Done again, it gives
the same bits as on a network that is built at once.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_TRUNCATED_NORMAL = "_no_grad_trunc_normal_"  # of nn.init, behind its public function
_EMPTY = torch.ops.aten.empty.memory_format
_ITEM = torch.ops.aten._local_scalar_dense.default
_OVERWRITES = {getattr(torch.ops.aten, name) for name in ("uniform_", "normal_", "fill_", "zero_", "copy_")}


class NotLate(Exception):
    """A constructor reads weights, which have no values yet; the message names the operation."""


@dataclass(frozen=True)
class _Call:
    """An operation in place on a part of a storage."""

    func: Any
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    args: tuple[Any, ...]  # after the tensor
    kwargs: dict[str, Any]
    state: Tensor | None  # of the generator, before a draw

    def run(self, tensor: Tensor) -> None:
        if self.state is None:
            self.func(tensor, *self.args, **self.kwargs)
            return
        with torch.random.fork_rng(devices=()):
            torch.set_rng_state(self.state)
            self.func(tensor, *self.args, **self.kwargs)


class LateWeights(TorchDispatchMode):
    """Build networks inside the context: floating-point tensors of the host that begin empty get no memory.

    Draws are made even so, one tensor at a time, so that what follows them is drawn as ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, list[_Call]] = {}  # by storage
        self._drawing = False
        self._storages: list[torch.UntypedStorage] = []  # whose keys stay theirs
        self._read: set[int] = set()  # storages of what operations read when they are done again

    def __enter__(self) -> Self:
        """Enter it.

        Raises:
            NotLate: this torch draws truncated normals otherwise.
        """
        if not hasattr(nn.init, _TRUNCATED_NORMAL):
            raise NotLate(f"nn.init.{_TRUNCATED_NORMAL} is gone in torch {torch.__version__}")
        self._truncated_normal: Any = getattr(nn.init, _TRUNCATED_NORMAL)
        setattr(nn.init, _TRUNCATED_NORMAL, self._truncated)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        setattr(nn.init, _TRUNCATED_NORMAL, self._truncated_normal)

    def _truncated(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Draw truncated normals: torch draws again what lies outside, and draws nothing without memory."""
        if not self._is_late(tensor):
            return self._truncated_normal(tensor, *args, **kwargs)
        self._note(self._truncated_normal, tensor, *args, random=True, whole=True, **kwargs)
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._drawing:
            return func(*args, **kwargs)
        if func is _EMPTY and _is_weight(args[0], **kwargs):
            made: Tensor = func(*args, **(kwargs | {"device": "meta"}))
            self._storages.append(made.untyped_storage())
            self._calls[_key(made)] = []
            return made
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        late = [tensor for tensor in tensors if self._is_late(tensor)]
        if not late:
            if func._schema.is_mutable and any(_key(tensor) in self._read for tensor in tensors):
                raise NotLate(f"{func} on what weights are computed from")
            return func(*args, **kwargs)
        if func._schema.is_mutable and len(late) == 1 and late[0] is args[0] and kwargs.get("generator") is None:
            random = torch.Tag.nondeterministic_seeded in func.tags
            self._note(func, *args, random=random, whole=func.overloadpacket in _OVERWRITES, **kwargs)
            return args[0]
        if not func._schema.is_mutable and func is not _ITEM:
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and self._is_late(result):  # a view
                return result
        raise NotLate(f"{func}")

    def _note(self, func: Any, tensor: Tensor, *args: Any, random: bool, whole: bool, **kwargs: Any) -> None:
        """Note an operation in place, which may draw, and may write the whole tensor without a look at it."""
        where = tensor.size(), tensor.stride(), int(tensor.storage_offset())
        call = _Call(func, *where, args, kwargs, torch.get_rng_state() if random else None)
        if random:
            self._drawing = True
            try:
                func(torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype), *args, **kwargs)
            finally:
                self._drawing = False
        self._read |= {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        calls = self._calls[_key(tensor)]
        if whole and tensor.nbytes == tensor.untyped_storage().nbytes():
            calls.clear()
        calls.append(call)

    def _is_late(self, tensor: Tensor) -> bool:
        return tensor.is_meta and _key(tensor) in self._calls

    def check(self, module: nn.Module) -> None:
        """Make sure that draw() can give all tensors of a module their values.

        Raises:
            NotLate: one has no memory, as where a constructor puts it on the device of its weights.
        """
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_meta and not self._is_late(tensor):
                raise NotLate(f"{name} is on the device of weights that have no memory")

    @torch.no_grad()
    def draw(self, module: nn.Module) -> None:
        """Give a module, with all that it contains, memory and values; what has them stays as it is."""
        drawn: dict[int, Tensor] = {}
        for owner in module.modules():
            all_tensors: tuple[Any, Any] = owner._parameters, owner._buffers
            for tensors in all_tensors:
                for name, tensor in tensors.items():
                    if tensor is not None and self._is_late(tensor):
                        tensors[name] = drawn.setdefault(id(tensor), self._drawn(tensor))

    def _drawn(self, like: Tensor) -> Tensor:
        storage = torch.empty(like.untyped_storage().nbytes() // like.itemsize, dtype=like.dtype)
        for call in self._calls[_key(like)]:
            call.run(storage.as_strided(call.size, call.stride, call.offset))
        tensor = storage.as_strided(like.size(), like.stride(), int(like.storage_offset()))
        if not isinstance(like, nn.Parameter):
            return tensor
        parameter = nn.Parameter(tensor, requires_grad=like.requires_grad)
        parameter.__dict__.update(like.__dict__)
        return parameter


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_weight(
    size: Any, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **others: Any
) -> bool:
    is_on_host = device is None or torch.device(device).type == "cpu"
    return is_on_host and (dtype or torch.get_default_dtype()).is_floating_point and math.prod(size) > 0
