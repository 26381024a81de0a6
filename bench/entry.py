"""What an entry is: cases to measure, and for each what runs, against whom, and what it must move."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench import refcheck
from bench.results import Row
from bench.shapes import Shapes

FLOATS = ("float32", "bfloat16")
BOTH = ("fwd", "fwd+bwd")

MIN_ROUNDS, STEP_ROUNDS = 3, 7  # at least; of a training step

Run = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the results, but for its providers."""

    device: torch.device
    dims: Mapping[str, Any]
    dtype: str
    pass_name: str

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def itemsize(self) -> int:
        return self.torch_dtype.itemsize

    @property
    def shape(self) -> str:
        return " ".join(f"{letter}={size}" for letter, size in self.dims.items())

    @property
    def key(self) -> str:
        """Name the case among those of its entry."""
        return f"{self.pass_name} {self.dtype} {self.shape}"

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a rival for exactly this shape, whole or not at all."""
        return torch.compile(function, fullgraph=True, dynamic=False)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The providers of one case and what they have to do."""

    ours: Run
    rivals: Mapping[str, Run]
    label: str = "ours"  # name of the first provider
    reference: Run | None = None  # the truth that all are held to before they are timed; None: what ours puts out
    check: Callable[[str, Any, Any], None] = refcheck.equal_up_to_rounding  # (provider, its output, the truth)
    leaves: Sequence[Tensor] = ()  # what a backward pass differentiates
    bytes: int = 0  # that must be read and written at least, once
    matrix_flops: int = 0  # of matrix products
    other_flops: Mapping[str, int] = field(default_factory=dict)  # provider -> matrix_flops of one that has others
    parameters: Mapping[str, Sequence[nn.Parameter]] = field(default_factory=dict)  # provider -> what its step trains
    items: int = 0  # images, or what report.ITEMS says of the pass; for items/s
    before: Mapping[str, Run] = field(default_factory=dict)  # provider -> what it does, untimed, ahead of every turn
    min_rounds: int = MIN_ROUNDS
    process_too: bool = False  # on a CPU, the CPU time of the process is noted beside the time on the wall

    @property
    def providers(self) -> dict[str, Run]:
        return {self.label: self.ours, **self.rivals}

    def flops(self, provider: str) -> int:
        return self.other_flops.get(provider, self.matrix_flops)


Measured = list[tuple[Case, list[Row]]]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A named set of cases; cases(device type, quick) lists them, measure(case) makes one ready to run."""

    name: str
    summary: str
    cases: Callable[[torch.device, bool], Iterable[Case]]
    measure: Callable[[Case], Measure]
    notes: str = ""  # printed before its cases
    closing: Callable[[Measured], str] | None = None  # what to print behind its cases, of all that were measured
    arguments: Sequence[str] = ()  # what follows its name on a command line that selects the same cases


ENTRIES: dict[str, Entry] = {}


def register(entry: Entry) -> Entry:
    assert entry.name not in ENTRIES, f"two entries are named {entry.name}"
    ENTRIES[entry.name] = entry
    return entry


def entry(
    name: str, *, shapes: Shapes, dtypes: Sequence[str] = FLOATS, passes: Sequence[str] = BOTH
) -> Callable[[Callable[[Case], Measure]], Entry]:
    """Register what is decorated, a function from a case to its Measure, as the bench entry of an op."""

    def cases(device: torch.device, quick: bool) -> Iterable[Case]:
        for dims in shapes.on(device.type, quick=quick):
            for dtype in dtypes[:1] if quick else dtypes:
                for pass_name in passes:
                    yield Case(device=device, dims=dims, dtype=dtype, pass_name=pass_name)

    def add(measure: Callable[[Case], Measure]) -> Entry:
        assert measure.__doc__, f"{name}: the docstring of its measure function is what --list shows"
        return register(Entry(name=name, summary=measure.__doc__.strip(), cases=cases, measure=measure))

    return add


def discover() -> dict[str, Entry]:
    """Import every file in bench/entries, each of which registers its own, and return them by name."""
    package = importlib.import_module("bench.entries")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"bench.entries.{module.name}")
    return dict(sorted(ENTRIES.items()))
