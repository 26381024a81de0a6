"""Images of any number of channels, and methods for them."""

from dataclasses import replace

import numpy as np
from PIL import Image


def with_channels(config, channels):
    """Return a config whose encoder takes images of so many channels, each with statistics of its own."""
    method = config.method
    if channels == method.encoder.channels:
        return config
    mean, std = (tuple((first + 0.01 * np.arange(channels)).tolist()) for first in (0.45, 0.2))
    encoder = replace(method.encoder, channels=channels)
    return replace(config, method=replace(method, encoder=encoder, mean=mean, std=std))


def smooth_levels(width=60, height=48, channels=5, seed=0):
    """Draw smooth noise, [H, W, C] uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (channels, 4, 5), dtype=np.uint8)
    bands = [Image.fromarray(band).resize((width, height), Image.Resampling.BICUBIC) for band in coarse]
    return np.stack(bands, axis=-1)


def write_spectral(folder, channels, count=12):
    """Write images of so many channels: PNGs in gray, RGB and RGBA, else arrays, and of RGBA half of them as arrays."""
    folder.mkdir()
    for i in range(count):
        levels = smooth_levels(channels=channels, seed=i)
        if channels in (1, 3) or (channels == 4 and i % 2):
            Image.fromarray(levels.squeeze()).save(folder / f"{i:02}.png")
        else:
            np.save(folder / f"{i:02}.npy", levels)
    return folder
