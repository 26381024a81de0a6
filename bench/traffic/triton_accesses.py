"""What Triton kernels read and write, access by access, while the interpreter runs them (TRITON_INTERPRET=1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from triton.runtime.interpreter import InterpreterBuilder

Addresses = NDArray[np.int64]
Kind: TypeAlias = Literal["load", "store", "atomic"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Access:
    """One load, store or atomic addition of a program: the addresses that its mask lets through."""

    kind: Kind
    launch: int  # of the launches recorded
    program: int
    addresses: Addresses  # [*]
    size: int  # bytes at each address


@contextmanager
def recorded() -> Iterator[list[Access]]:
    """Note every access of the kernels that run inside, in their order."""
    accesses: list[Access] = []
    launches = 0
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    change = InterpreterBuilder.create_atomic_rmw
    set_grid_dim = InterpreterBuilder.set_grid_dim  # called once for each launch

    def note(kind: Kind, builder: Any, pointers: Any, mask: Any) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        program = builder.grid_idx[0]
        accesses.append(Access(kind=kind, launch=launches, program=program, addresses=addresses, size=size))

    def counted_launch(builder: Any, *grid: int) -> None:
        nonlocal launches
        launches += 1
        set_grid_dim(builder, *grid)

    def noted_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        note("load", builder, pointers, mask)
        return load(builder, pointers, mask, *rest)

    def noted_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("store", builder, pointers, mask)
        return store(builder, pointers, value, mask, *rest)

    def noted_change(builder: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("atomic", builder, pointers, mask)
        return change(builder, operation, pointers, value, mask, *rest)

    with (
        mock.patch.object(InterpreterBuilder, "set_grid_dim", counted_launch),
        mock.patch.object(InterpreterBuilder, "create_masked_load", noted_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", noted_store),
        mock.patch.object(InterpreterBuilder, "create_atomic_rmw", noted_change),
    ):
        yield accesses
