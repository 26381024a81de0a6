"""Files that the program which He et al. 2022 published loads: encoder and decoder."""

from pathlib import Path

from torch import Tensor

from bimkern.exporters.autoencoder import Autoencoder, read_autoencoder
from bimkern.exporters.trained import Trained
from bimkern.exporters.whole_file import write_pickled


def write_mae_program(path: Path, trained: Trained, depth: int) -> None:
    """Write a file of torch.save, its weights under "model".

    Raises:
        ConfigError: the method is not MAE's at this depth, or the file cannot be written.
    """
    weights = program_weights(read_autoencoder(trained, depth, "mae-program"))
    write_pickled(path, {"model": weights, "metadata": trained.metadata(depth)})


def program_weights(run: Autoencoder) -> dict[str, Tensor]:
    """Name encoder and decoder as the program does."""
    decoder = {decoder_name(name): tensor for name, tensor in run.decoder_weights.items()}
    return run.encoder_weights | decoder | {"decoder_pos_embed": run.decoder_positions}


def decoder_name(ours: str) -> str:
    """Return the program's name of a weight of the decoder, from its name in our head."""
    return ours if ours == "mask_token" else f"decoder_{ours}"
