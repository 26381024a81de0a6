"""A written safetensors file is the library's, byte by byte."""

import hashlib

import pytest
import torch
from disk import mode, umask_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bimkern.train.checkpoint import safetensors_writer

DTYPES = list(safetensors_writer._CODES)


def any_tensor(dtype, *shape):
    return torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8).view(dtype).squeeze(-1)


def written(path, tensors, metadata=None):
    """Write a file; hold it to that of the library, and return it as the library reads it."""
    digest = safetensors_writer.write(path, tensors, metadata=metadata)
    expected = path.with_name("expected")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, expected, metadata)
    assert path.read_bytes() == expected.read_bytes()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    return load_file(path)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d is not torch.bool], ids=str)
def test_any_bits_survive(tmp_path, dtype):
    tensor = any_tensor(dtype, 7, 5)
    (loaded,) = written(tmp_path / "file", {"x": tensor}).values()
    assert loaded.dtype == dtype
    assert torch.equal(loaded.view(torch.uint8), tensor.view(torch.uint8))


def test_dtypes_and_names_stand_in_the_librarys_order(tmp_path):
    tensors = {f"{name}{i}": torch.ones(i + 1).to(dtype) for i, dtype in enumerate(DTYPES) for name in "zaé"}
    assert written(tmp_path / "file", tensors).keys() == tensors.keys()


@pytest.mark.parametrize("length", range(9))
def test_the_header_is_padded_alike(tmp_path, length):
    written(tmp_path / "file", {"n" * (length + 1): torch.ones(3)})


def test_odd_tensors_and_names(tmp_path):
    wide = torch.randn(6, 8)
    tensors = {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 3), "": torch.ones(2)}
    tensors |= {"strided": wide[:, ::2], "transposed": wide.T, 'quote " slash \\ tab \t ü 🎨': torch.ones(1)}
    loaded = written(tmp_path / "file", tensors)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    written(tmp_path / "file", {})


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"quote": '" \\ ü'}], ids=str)
def test_metadata_are_in_the_header(tmp_path, metadata):
    written(tmp_path / "file", {"x": torch.ones(3)}, metadata)


def test_many_metadata_are_read_back(tmp_path):
    """The library writes them in another order every time."""
    metadata = {name: name * 2 for name in "abcdefgh"}
    safetensors_writer.write(tmp_path / "file", {"x": torch.ones(3)}, metadata=metadata)
    with safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == metadata


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077], ids=oct)
def test_the_mode_is_that_of_any_new_file(tmp_path, umask):
    with umask_of(umask):
        safetensors_writer.write(tmp_path / "file", {"x": torch.ones(3)})
    assert mode(tmp_path / "file") == 0o666 & ~umask


def test_what_stops_it_is_asked_before_each_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_writer, "_PIECE", 16)
    calls = []
    written_in_pieces = torch.arange(10.0)
    safetensors_writer.write(tmp_path / "file", {"x": written_in_pieces}, between=lambda: calls.append(1))
    assert len(calls) == 1 + 3  # the header, 40 bytes
    assert torch.equal(load_file(tmp_path / "file")["x"], written_in_pieces)
