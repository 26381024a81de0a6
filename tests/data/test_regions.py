"""Whether DALI decodes regions is tried in another process, and a run does without them where it fails."""

import sys

import pytest
import torch

from bimkern.data import dali, regions
from bimkern.data.dali import DaliLoader
from bimkern.data.loader import choose_loader

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def forget():
    regions.unusable.cache_clear()
    yield
    regions.unusable.cache_clear()


@pytest.fixture
def on_cpu(monkeypatch):
    pytest.importorskip("nvidia.dali")
    monkeypatch.setattr(sys, "argv", ["regions", "cpu"])


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
        ("exec sleep 600", "not done after 1 s"),
    ],
)
def test_a_process_that_fails_is_a_reason(tmp_path, monkeypatch, script, reason):
    (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(regions, "_SECONDS", 1.0 if "sleep" in script else 60.0)
    assert regions.unusable(CPU) == reason


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
