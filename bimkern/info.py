"""`python -m bimkern.info`: what is installed here, what is missing, and what each op runs on."""

import argparse
import importlib
import json
import platform
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy
import torch

import bimkern
from bimkern import ops
from bimkern.ops._native import library


def _apex_reason(module: ModuleType) -> str | None:
    """Tell NVIDIA's apex from the package of that name on PyPI."""
    return None if hasattr(module, "optimizers") else "a package of this name is installed, but it is not NVIDIA's"


OPTIONAL: dict[str, tuple[str, Callable[[ModuleType], str | None] | None]] = {
    "dali": ("nvidia.dali", None),
    "triton": ("triton", None),
    "xformers": ("xformers", None),
    "apex": ("apex", _apex_reason),
    "timm": ("timm", None),
    "torchvision": ("torchvision", None),
}


def _optional(module_name: str, reason_against: Callable[[ModuleType], str | None] | None) -> dict[str, Any]:
    """Import a package to see whether it works here; whatever it throws becomes the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            return {"version": None, "reason": "not installed"}
        return {"version": None, "reason": f"cannot be imported: {error}"}
    except Exception as error:
        return {"version": None, "reason": f"cannot be imported: {_first_line(error)}"}
    reason = reason_against(module) if reason_against else None
    return {"version": None if reason else getattr(module, "__version__", "unknown"), "reason": reason}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cuda() -> dict[str, Any]:
    if torch.version.cuda is None:
        return {"devices": [], "reason": "torch was built without CUDA"}
    try:
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError) as error:
        return {"devices": [], "reason": _first_line(error)}
    described = [f"{d.name}, sm_{d.major}{d.minor}, {d.total_memory / 2**30:.0f} GiB" for d in devices]
    return {"devices": described, "reason": None if described else f"no device is visible (CUDA {torch.version.cuda})"}


def collect() -> dict[str, Any]:
    """Gather everything as plain data: versions, devices, the native library, backends, optional packages."""
    return {
        "versions": {
            "bimkern": bimkern.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
        "cpu": {"machine": platform.machine(), "threads": torch.get_num_threads()},
        "cuda": _cuda(),
        "native": {
            "path": str(library.path),
            "cuda_archs": list(library.cuda_archs),
            "simd": library.simd,
            "error": library.error,
        },
        "ops": {
            op: {device: {"backend": c.backend, "reason": c.reason} for device, c in devices.items()}
            for op, devices in ops.backends().items()
        },
        "optional": {name: _optional(*how) for name, how in OPTIONAL.items()},
    }


def lines(info: dict[str, Any]) -> list[str]:
    """Lay the collected data out for reading, one fact a line."""
    native, cuda = info["native"], info["cuda"]
    simd = native["simd"] or "BIMKERN_CPU cannot be met"
    built = f"{simd}, {' '.join(native['cuda_archs']) or 'no CUDA'}"
    return [
        *(f"{name:12} {version}" for name, version in info["versions"].items()),
        f"{'cpu':12} {info['cpu']['machine']}, {info['cpu']['threads']} threads",
        *(f"{'cuda':12} {device}" for device in cuda["devices"] or [f"none: {cuda['reason']}"]),
        f"{'native':12} " + (f"missing: {native['error']}" if native["error"] else f"{native['path']} ({built})"),
        *(
            f"op {op:20} {device:5} {served['backend']}: {served['reason']}"
            for op, devices in info["ops"].items()
            for device, served in devices.items()
        ),
        *(
            f"optional {name:12} {found['version'] or 'none: ' + found['reason']}"
            for name, found in info["optional"].items()
        ),
    ]


def main() -> None:
    """Print the report, as text or as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bimkern.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    info = collect()
    print(json.dumps(info, indent=2) if parser.parse_args().json else "\n".join(lines(info)))


if __name__ == "__main__":
    main()
