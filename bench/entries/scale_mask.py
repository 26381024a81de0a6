"""scale_mask against interpolation and pooling of an image of the mask."""

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from bench import inputs, shapes
from bench.entry import Case, Measure, entry
from bimkern.ops.keep_to_mask import keep_to_mask
from bimkern.ops.scale_mask import scale_mask, scale_mask_reference


def resample(mask: Tensor, side: int, average: int, repeat: int) -> Tensor:
    """The usual form: the mask as an image of one channel."""
    image = mask.view(-1, 1, side, side)
    scaled = avg_pool2d(image, average) if average > 1 else interpolate(image, scale_factor=repeat, mode="nearest")
    return scaled.flatten(1)


@entry("scale_mask", shapes=shapes.SCALES, dtypes=("float32",), passes=("fwd",))
def measure(case: Case) -> Measure:
    """Repeat or average a mask to the other scales of LocalMIM."""
    B, N, scale = (case.dims[name] for name in ("B", "N", "scale"))
    side = round(N**0.5)
    average, repeat = (1, scale) if scale > 1 else (round(1 / scale), 1)
    mask = keep_to_mask(inputs.keep(case), N)
    compiled = case.compiled(scale_mask_reference)
    return Measure(
        ours=lambda: scale_mask(mask, scale),
        rivals={
            "resample": lambda: resample(mask, side, average, repeat),
            "compile": lambda: compiled(mask, side, side, average, repeat),
        },
        reference=lambda: scale_mask_reference(mask, side, side, average, repeat),
        bytes=round(4 * B * N * (1 + scale**2)),
    )
