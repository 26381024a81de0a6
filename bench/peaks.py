"""Peak rates of GPUs in 16 bits, by their data sheets: dense products on tensor cores, without sparsity."""

from collections.abc import Mapping

_PEAKS = {  # TFLOP/s, by the name that torch gives
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.0,
    "NVIDIA B200": 2250.0,
}
_DTYPES = ("bfloat16", "float16")  # in float32, settings decide about the peak


def mfu(row: Mapping[str, str]) -> float | None:
    """Return the model FLOPs utilization of a step, given its row of results; None where there is no peak, or no count.

    FLOPs are those that the method needs: what a step computes again does not count.
    Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    peak = _PEAKS.get(row["device_name"])
    if row["pass"] != "step" or row["dtype"] not in _DTYPES or peak is None or not row["tflop_per_s"]:
        return None
    return float(row["tflop_per_s"]) / peak
