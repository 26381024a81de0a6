"""`python -m bimkern.info [--json]`: show versions, devices, the backend of each op, and which options are usable."""

import argparse
import json
import platform
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from bimkern import arena, openmp, ops, optional, versions
from bimkern.data import dali
from bimkern.models import attention
from bimkern.ops.native_library import library
from bimkern.output import printing
from bimkern.train.config.run import resolve_device
from bimkern.train.optim import adapters

_DESCRIPTION = "Show versions, devices, the backend of each op, and usable loaders, attention kernels and optimizers."
OPTIONAL: dict[str, tuple[str, Callable[[ModuleType], str | None] | None]] = {
    "dali": ("nvidia.dali", None),
    "nvimgcodec": ("nvidia.nvimgcodec", None),  # DALI's decoders on a GPU
    "triton": ("triton", None),
    "xformers": ("xformers", None),
    "apex": ("apex", adapters.not_nvidias),
    "timm": ("timm", None),
    "wandb": ("wandb", None),
    "mlflow": ("mlflow", None),
    "torchvision": ("torchvision", None),
    "h5py": ("h5py", None),  # sources of images, from here on
    "lmdb": ("lmdb", None),
    "pyarrow": ("pyarrow", None),
    "fsspec": ("fsspec", None),
}


def _optional(module_name: str, reason_against: Callable[[ModuleType], str | None] | None) -> dict[str, Any]:
    """Import a package to see whether it works here; an exception becomes the reason."""
    try:
        module = optional.load(module_name)
    except optional.Unusable as error:
        return {"version": None, "reason": str(error)}
    reason = reason_against(module) if reason_against else None
    return {"version": None if reason else getattr(module, "__version__", "unknown"), "reason": reason}


def _cuda() -> dict[str, Any]:
    if torch.version.cuda is None:
        return {"devices": [], "reason": "torch was built without CUDA"}
    try:
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError) as error:
        return {"devices": [], "reason": optional.first_line(error)}
    described = [f"{d.name}, sm_{d.major}{d.minor}, {d.total_memory / 2**30:.0f} GiB" for d in devices]
    return {"devices": described, "reason": None if described else f"no device is visible (CUDA {torch.version.cuda})"}


def collect() -> dict[str, Any]:
    """Collect the report as plain data: versions, devices, the native library, backends and optional packages."""
    device = resolve_device("auto")
    return {
        "versions": versions.installed(),
        "cpu": {"machine": platform.machine(), "threads": torch.get_num_threads(), "openmp": openmp.describe()},
        "cuda": _cuda(),
        "native": {
            "path": str(library.path),
            "cuda_archs": list(library.cuda_archs),
            "simd": library.simd,
            "error": library.error,
        },
        "arena": {name: arena.unusable(name, may_build=False) for name in ("cpu", "cuda")},
        "ops": {
            op: {device: {"backend": c.backend, "reason": c.reason} for device, c in devices.items()}
            for op, devices in ops.backends().items()
        },
        "choices": {
            "device": str(device),
            "loader": {"pil": None, "dali": dali.unusable(device)},
            "attention": {name: attention.unusable(name, device, torch.float16) for name in attention.NAMES},
            "optimizer": {name: adapters.unusable(name, device) for name in adapters.NAMES},
        },
        "optional": {name: _optional(*how) for name, how in OPTIONAL.items()},
    }


def lines(info: dict[str, Any]) -> list[str]:
    """Format the report as text, one fact per line."""
    native, cuda, choices = info["native"], info["cuda"], info["choices"]
    simd = native["simd"] or "BIMKERN_CPU cannot be met"
    built = f"{simd}, {' '.join(native['cuda_archs']) or 'no CUDA'}"
    return [
        *(f"{name:12} {version}" for name, version in info["versions"].items()),
        f"{'cpu':12} {info['cpu']['machine']}, {info['cpu']['threads']} threads",
        f"{'openmp':12} {info['cpu']['openmp']}",
        *(f"{'cuda':12} {device}" for device in cuda["devices"] or [f"none: {cuda['reason']}"]),
        f"{'native':12} " + (f"missing: {native['error']}" if native["error"] else f"{native['path']} ({built})"),
        *(
            f"{'arena':12} " + (f"{device}: none: {reason}" if reason else f"{device}: usable")
            for device, reason in info["arena"].items()
        ),
        *(
            f"op {op:20} {device:5} {served['backend']}: {served['reason']}"
            for op, devices in info["ops"].items()
            for device, served in devices.items()
        ),
        *(
            f"{option} {name:12} " + (f"none: {reason}" if reason else f"usable on {choices['device']}")
            for option in ("loader", "attention", "optimizer")
            for name, reason in choices[option].items()
        ),
        *(
            f"optional {name:12} {found['version'] or 'none: ' + found['reason']}"
            for name, found in info["optional"].items()
        ),
    ]


def main() -> None:
    """Print the report, as text or as JSON."""
    # Not tyro, as in the other commands: this report is wanted where packages are missing.
    parser = argparse.ArgumentParser(prog="python -m bimkern.info", description=_DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    with printing():
        options = parser.parse_args()
        info = collect()
        print(json.dumps(info, indent=2) if options.json else "\n".join(lines(info)))


if __name__ == "__main__":
    main()
