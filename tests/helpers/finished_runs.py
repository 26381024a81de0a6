"""What runs have left in their folders, for tests that resume or compare them."""

import shutil

from safetensors.torch import load_file


def killed(folder, copy):
    """Make a copy of a finished run one that was killed before its last checkpoint."""
    shutil.copytree(folder, copy)
    shutil.rmtree(_newest(copy))
    return copy


def saved(folder):
    """Return the tensors of the last checkpoint."""
    newest = _newest(folder)
    return load_file(newest / "model.safetensors") | load_file(newest / "optimizer.safetensors")


def _newest(folder):
    return max((folder / "checkpoints").iterdir())
