"""Files that the program which He et al. 2022 published loads: encoder and decoder."""

import io
from pathlib import Path

import torch
from torch import Tensor

from bimkern.exporters.autoencoder import Autoencoder, read_autoencoder
from bimkern.exporters.trained import Trained
from bimkern.exporters.whole_file import whole


def write_mae_program(path: Path, trained: Trained, depth: int) -> None:
    """Write a file of torch.save, its weights under "model".

    Raises:
        ConfigError: the method is not MAE's at this depth, or the file cannot be written.
    """
    weights = program_weights(read_autoencoder(trained, depth, "mae-program"))
    content = io.BytesIO()  # written to a full disk, torch.save speaks of an internal check instead
    torch.save({"model": weights, "metadata": trained.metadata(depth)}, content)
    with whole(path) as scratch:
        scratch.write_bytes(content.getbuffer())


def program_weights(run: Autoencoder) -> dict[str, Tensor]:
    """Name encoder and decoder as the program does."""
    decoder = {decoder_name(name): tensor for name, tensor in run.decoder_weights.items()}
    return run.encoder_weights | decoder | {"decoder_pos_embed": run.decoder_positions}


def decoder_name(ours: str) -> str:
    """Return the program's name of a weight of the decoder, from its name in our head."""
    return ours if ours == "mask_token" else f"decoder_{ours}"
