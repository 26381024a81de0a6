"""Whether DALI decodes regions is tried in another process, and a run does without them where it fails."""

import sys

import pytest
import torch

from bimkern.data import dali, regions
from bimkern.data.dali import DaliLoader
from bimkern.data.loader import choose_loader

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def forget(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clear = regions.unusable.cache_clear
    clear()
    yield
    clear()


@pytest.fixture
def on_cpu(monkeypatch):
    pytest.importorskip("nvidia.dali")
    monkeypatch.setattr(sys, "argv", ["regions", "cpu"])


def python_is(path, script, monkeypatch):
    """Have a shell script run in the position of Python."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_regions_are_decoded_on_a_cpu():
    pytest.importorskip("nvidia.dali")
    assert regions.unusable(CPU) is None


def test_without_a_gpu_the_reason_is_dalis():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert regions.unusable(GPU).startswith("DALI cannot be used (")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -SEGV $$", "the process that tried was killed by SIGSEGV"),
        ("echo crops differ; exit 1", "crops differ"),
        ("exit 7", "exit code 7"),
        ("echo Traceback >&2; echo 'ImportError: no DALI' >&2; exit 1", "ImportError: no DALI"),
        ("exec sleep 600", "not done after 1 s"),
    ],
)
def test_a_process_that_fails_is_a_reason(tmp_path, monkeypatch, script, reason):
    python_is(tmp_path / "python", script, monkeypatch)
    monkeypatch.setattr(regions, "_SECONDS", 1.0 if "sleep" in script else 60.0)
    assert regions.unusable(CPU) == reason


def test_success_is_remembered_for_a_setup_and_failure_is_not(tmp_path, monkeypatch, caplog):
    tries = tmp_path / "tries"

    def tried(script):
        python_is(tmp_path / "python", f"echo >> {tries}; {script}", monkeypatch)
        regions.unusable.cache_clear()
        regions.unusable(CPU)
        return tries.read_text().count("\n")

    assert [tried(script) for script in ("exit 1", "exit 0", "exit 0")] == [1, 2, 2]
    assert caplog.text.count("testing DALI's decoding of image regions on cpu") == 2
    (tmp_path / "driver").write_text("another driver")
    monkeypatch.setattr(regions, "_DRIVER", tmp_path / "driver")
    assert tried("exit 0") == 3


def test_other_pixels_than_those_asked_for_are_found(on_cpu, monkeypatch, capsys):
    from nvidia.dali import fn

    def whole(encoded, corner, extent, **options):
        """Give the region at the origin, as a decoder that loses its corner."""
        return plain(encoded, corner * 0, extent, **options)

    assert regions.main() == 0
    plain = fn.decoders.image_slice
    monkeypatch.setattr(fn.decoders, "image_slice", whole)
    assert regions.main() == 1
    assert "levels from those of PIL, expected at most 2" in capsys.readouterr().out


def test_a_decoder_that_refuses_regions_is_found(on_cpu, monkeypatch, capsys):
    from nvidia.dali import fn

    plain = fn.decoders.image_slice
    monkeypatch.setattr(
        fn.decoders, "image_slice", lambda encoded, *_, **options: plain(encoded, [-9, -9], [1, 1], **options)
    )
    assert regions.main() == 1
    assert "DALI" in capsys.readouterr().out


@pytest.mark.parametrize("reason", [None, "crops differ"])
def test_a_gpu_that_cannot_decode_regions_decodes_whole_images(monkeypatch, reason):
    monkeypatch.setattr(dali, "unusable", lambda device: None)
    monkeypatch.setattr(regions, "unusable", lambda device: reason)
    loader, line = choose_loader("auto", GPU, 3)
    assert loader == DaliLoader(threads=3, device=GPU, regions=reason is None)
    whole = ", whole images, as it cannot decode regions of them (crops differ)" if reason else ""
    assert line == f"DALI, decodes, crops, resizes and flips on cuda{whole}"
