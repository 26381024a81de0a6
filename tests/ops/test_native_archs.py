"""Which GPUs a native library serves, by what it was built for."""

from pathlib import Path

import pytest

from bimkern.ops import native_library

BUILT = ("sm_80", "sm_100", "compute_100")


@pytest.mark.parametrize(
    ("gpu", "archs", "served"),
    [
        (80, BUILT, True),
        (86, BUILT, True),  # a newer one of the same major architecture
        (90, BUILT, False),  # neither sm_80 nor what comes after it
        (100, BUILT, True),
        (121, BUILT, True),  # by PTX
        (80, ("sm_86", "sm_120", "compute_120"), False),
        (90, ("sm_86", "sm_120", "compute_120"), False),
        (90, ("sm_90a", "compute_90a"), True),
        (75, BUILT, False),
        (None, BUILT, True),
        (None, (), False),
    ],
)
def test_a_gpu_is_served_by_its_major_architecture_or_by_older_ptx(monkeypatch, gpu, archs, served):
    monkeypatch.setattr(native_library, "_gpu_arch", lambda: gpu)
    reason = native_library.NativeLibrary(path=Path("library"), cuda_archs=archs).missing("cuda")
    assert (reason is None) == served
    if archs and not served:
        assert reason == (
            f"the native library was built for {' '.join(archs)}, this GPU is sm_{gpu} (install it again here)"
        )
    assert native_library.NativeLibrary(path=Path("library"), cuda_archs=archs).missing("cpu") is None
