"""Model FLOPs utilization: of steps, on GPUs whose peak is known."""

import pytest

from bench.peaks import mfu

STEP = {"pass": "step", "device_name": "NVIDIA H200", "dtype": "bfloat16", "tflop_per_s": "494.5"}


def test_it_is_the_share_of_the_data_sheets_peak():
    assert mfu(STEP) == pytest.approx(0.5)
    assert mfu(STEP | {"device_name": "NVIDIA H100 PCIe"}) == pytest.approx(494.5 / 756)


@pytest.mark.parametrize(
    "other", [{"pass": "fwd"}, {"device_name": "NVIDIA H200 NVL"}, {"dtype": "float32"}, {"tflop_per_s": ""}]
)
def test_there_is_none_of_ops_other_cards_float32_and_what_is_not_counted(other):
    assert mfu(STEP | other) is None
