"""Photographs as a camera takes them: with shot and read noise, in JPEGs."""

import numpy as np
from PIL import Image

NOISE = 8  # levels in a white area


def noisy_photograph(photograph, width, height, seed):
    """Enlarge the center of a photograph and add the noise of a sensor, which the lens does not blur."""
    scale = max(width / photograph.width, height / photograph.height)
    left, top = (photograph.width - width / scale) / 2, (photograph.height - height / scale) / 2
    box = (left, top, left + width / scale, top + height / scale)
    levels = np.asarray(photograph.resize((width, height), Image.Resampling.BICUBIC, box=box), dtype=np.float32)
    noise = np.random.default_rng(seed).standard_normal(levels.shape, dtype=np.float32)
    levels = levels + noise * NOISE * np.sqrt(0.15 + levels / 255)
    return Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))
