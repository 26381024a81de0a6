"""Traces of steps, from which memory is extrapolated, made once for all processes of the tests.

A trace takes longer than the steps of a test. What is not of a step, such as sizes, may differ from run to run.
"""

import os
import pickle
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from bimkern.files.atomic import replaced
from bimkern.train.memory import extrapolate

FOLDER = "BIMKERN_TEST_TRACES"  # names the folder that processes share


@contextmanager
def traced_once():
    """Trace a step once in the context, and once for all processes that share the folder."""
    trace, known = extrapolate._Step, {}

    def step(config, *kind):
        if getattr(config.run, "teacher", None) is not None:  # a file, whose content may change
            return trace(config, *kind)
        run, stage = config.run, getattr(config, "stage", None)
        key = (type(config).__name__, *_network(config), stage, run.precision, run.recomputed, *kind)
        if key not in known:
            known[key] = _shared(trace, key, partial(trace, config, *kind))
        return known[key]

    extrapolate._Step = step
    try:
        yield
    finally:
        extrapolate._Step = trace


def _network(config):
    """Return what a config says of the network and its step: its method, or all that is not of other things."""
    if hasattr(config, "method"):
        return (config.method,)
    others = {"recipe", "run", "source", "optim", "schedule", "layer_decay", "crop"}
    return tuple(getattr(config, field.name) for field in fields(config) if field.name not in others)


def _shared(kind, key, make):
    """Return the trace that another process has made, or make it; classes of tests mean something in one process."""
    if FOLDER not in os.environ or not _is_ours(key):
        return make()
    file = Path(os.environ[FOLDER]) / sha256(repr(key).encode()).hexdigest()
    if file.exists():
        found = kind.__new__(kind)
        vars(found).update(pickle.loads(file.read_bytes()))
        return found
    made = make()
    with replaced(file) as scratch:
        scratch.write_bytes(pickle.dumps(vars(made)))
    return made


def _is_ours(value):
    """Return whether a value, and all that it holds, is of classes of bimkern or of Python."""
    if isinstance(value, tuple):
        return all(map(_is_ours, value))
    if is_dataclass(value):
        own = type(value).__module__.startswith("bimkern.")
        return own and all(_is_ours(getattr(value, field.name)) for field in fields(value))
    return value is None or isinstance(value, int | float | str)
