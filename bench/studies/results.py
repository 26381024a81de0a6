"""Results of a study in a JSON Lines file, a row for every finished trial."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.results import ResultsError
from bench.studies.methods import DEPTH
from bench.studies.study import Result, Study, result_of
from bimkern.files import jsonl

_SETTINGS = ("study", "data", "steps", "fine_tuning_steps", "batch_size", "probe_steps", "neighbors")


def settings(study: Study) -> dict[str, Any]:
    """Return what all results of a file must agree in."""
    values = {"study": study.name, "data": repr(study.source), "layers": DEPTH}
    return values | {name: getattr(study, name) for name in _SETTINGS if name not in values}


def digest(study: Study) -> str:
    """Name the settings of a study, for a folder of what is only theirs."""
    return hashlib.sha256(json.dumps(settings(study)).encode()).hexdigest()[:12]


def read(path: Path, study: Study | None = None) -> list[Result]:
    """Read all results of a file, none where there is no file.

    Args:
        path: the file.
        study: what they must be results of; None: anything.

    Raises:
        ResultsError: a row is none of a study, or of one with other settings.
    """
    found = []
    for record in jsonl.read(path):
        try:
            result = result_of(record)
        except (KeyError, TypeError, ValueError) as error:
            raise ResultsError(f"{path}: holds rows of another kind ({error!r}); choose another --out") from error
        if study is not None and (differing := _differing(result.facts, settings(study))):
            raise ResultsError(f"{path}: holds results of other settings ({differing}); choose another --out")
        found.append(result)
    return found


def _differing(facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {facts.get(name)}, now {value}" for name, value in wanted.items() if facts.get(name) != value
    )


def append(path: Path, results: Sequence[Result]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    jsonl.append(path, [result.record() for result in results])
