"""The shapes that are measured: what the published networks do to a batch.

Letters: B images, N patches, K kept patches, D width, R prefix tokens, P patches that get a position (N or 0), p pixels
a side of a patch, L values of a target, w tokens a side of a window, u of a mask unit, H heads of d channels.
"""

from dataclasses import dataclass
from typing import Any

Dims = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Shapes of one image, and the batch that goes with a device. A quick look takes a small batch of the first."""

    images: tuple[Dims, ...]
    cpu_batch: int = 64
    cuda_batch: int = 256

    def on(self, device: str, *, quick: bool) -> list[Dims]:
        """List the shapes to measure on a device."""
        if quick:
            return [{"B": 4} | self.images[0]]
        batch = self.cuda_batch if device == "cuda" else self.cpu_batch
        return [{"B": batch} | image for image in self.images]


def _patches(width: int, *, size: int = 224, patch: int = 16) -> Dims:
    """Tokens of an image with 75 % masked: He et al. 2022 (MAE), section 4.1."""
    side = size // patch
    return {"N": side**2, "K": side**2 // 4, "D": width}


_BASE, _LARGE, _DECODER = _patches(768), _patches(1024), _patches(512)

# The encoder's entry: with positions in one pass, without where a growing mask drops tokens between stages.
GATHER = Shapes(images=(_BASE | {"P": 0}, _BASE | {"P": 196}, _LARGE | {"P": 196}))

# Patch embedding of ViT-B/16 and of ViT-H/14.
EMBED = Shapes(images=(_BASE | {"p": 16}, _patches(1280, patch=14) | {"p": 14}))

# The decoder's entry: MAE's 512 channels whatever the encoder, behind one cls token; and a wide one.
RESTORE = Shapes(images=(_DECODER | {"R": 1}, _LARGE | {"R": 1}))

# A mask at 224 px and at 448.
KEEP = Shapes(images=({"N": 196, "K": 49}, {"N": 784, "K": 196}), cpu_batch=256)

# The mask of 14 x 14 patches at the other scales of LocalMIM: Wang et al. 2023, section 4.1.
_SCALES = tuple({"N": 196, "K": 49, "scale": scale} for scale in (4, 2, 0.5))
SCALES = Shapes(images=_SCALES, cpu_batch=256)

# LocalMIM's decoders, 256 wide, HOG of 9 bins and of 18: Wang et al. 2023, section 4.1.
_HEADS = tuple(_patches(256) | {"L": L, "scale": scale} for L, scale in ((27, 4), (54, 4), (27, 2), (54, 2), (27, 1)))
_HALF = _patches(256) | {"L": 27, "scale": 0.5}
# Without a deconvolution a head is so small that what it costs beside its products counts in a small batch.
MATCH = Shapes(images=(*_HEADS, _HALF, {"B": 8} | _HEADS[-1], {"B": 8} | _HALF))
PREDICT = Shapes(
    images=tuple({letter: size for letter, size in head.items() if letter != "K"} for head in MATCH.images),
)

# The 7 x 7 mask units of a Swin at 224 px, windows of 7 and 14: one mask for the whole batch, and one per image.
_UNITS = {"N": 49, "K": 12}
GROUP = Shapes(images=tuple({"B": B, "w": w} | _UNITS for B, w in ((1, 7), (1, 14), (8, 7))))

# The stages of Swin-B: units of u tokens a side, heads of d = 32 channels, windows shifted and not; and windows of 14.
_STAGES = ((8, 4, 0), (8, 4, 3), (4, 8, 3), (2, 16, 3), (1, 32, 0))
_ATTENDING = tuple({"u": u, "H": H, "d": 32, "w": 7, "shift": shift} for u, H, shift in _STAGES)
ATTENTION = Shapes(
    images=tuple(_UNITS | heads for heads in (*_ATTENDING, _ATTENDING[0] | {"w": 14, "shift": 7})),
    cpu_batch=8,
    cuda_batch=64,
)

# Images at 224 px, in the small batch of a step on a CPU and in a whole one.
HOG = Shapes(images=({"B": 8, "H": 224}, {"B": 64, "H": 224}))

# Predictions of ViT-B/16's pixels, of HOG at 9 bins a patch and at LocalMIM's finest scale of 18: Wang et al. 2022
# (MaskFeat), section 3.2; Wang et al. 2023 (LocalMIM), section 4.1.
LOSS = Shapes(
    images=(
        {"N": 196, "K": 49, "P": 768},
        {"N": 196, "K": 49, "P": 108},
        {"N": 3136, "K": 784, "P": 54},
    ),
)

# Pixels of patches of 16, and of the 32 of a Swin's last stage.
PIXELS = Shapes(images=({"N": 196, "p": 16}, {"N": 49, "p": 32}))
PIXEL_LOSS = Shapes(images=({"N": 196, "K": 49, "p": 16}, {"N": 49, "K": 12, "p": 32}))
