"""Which tokens a head computes to the end: all, all masked ones, or a random share, drawn for every image and stage.

Shapes: B images, N tokens of the grid that a stage puts out, H masked ones, C chosen ones.
"""

from dataclasses import replace

from torch import Tensor

from bimkern.mim.masking.view import StageView
from bimkern.models.encoder import Grid
from bimkern.ops import keep_to_mask, random_keep
from bimkern.rng import Stream, philox4x32


def num_chosen(share: float, num_masked: int) -> int:
    """Return how many of the masked tokens a share is: at least one, and otherwise rounded down."""
    return max(1, int(share * num_masked))


def masked_ids(view: StageView, grid: Grid, visible: int) -> Tensor:
    """Return the masked tokens [B, H] of a grid, ascending, where all images have as many.

    Args:
        view: what a stage sees.
        grid: rows and columns of the tokens, whole cells of which are masked or visible.
        visible: patches of an image that count in no loss.
    """
    return view.weights(grid).argsort(dim=1, descending=True, stable=True)[:, : _num_masked(view, grid, visible)]


def _num_masked(view: StageView, grid: Grid, visible: int) -> int:
    (rows, columns), (patch_rows, patch_columns) = grid, view.grid
    return rows * columns - visible * rows * columns // (patch_rows * patch_columns)


def chosen_weight(view: StageView, grid: Grid, share: float, *, visible: int) -> Tensor:
    """Return the sum of the loss weights that choose() leaves, without drawing: of every image it is the same."""
    count = num_chosen(share, _num_masked(view, grid, visible))
    patches = (view.grid[0] // grid[0]) * (view.grid[1] // grid[1])  # of a token
    return view.masked.new_tensor(len(view.masked) * count * patches)


def choose(
    view: StageView, grid: Grid, share: float, draw_ids: Tensor, *, visible: int, stage: int, seed: int
) -> StageView:
    """Return the view with some of the masked tokens chosen; only these count in the loss.

    The draw depends on (seed, stage, draw id) alone, not on the mask's own draw.

    Args:
        view: what the stage sees; all images have as many masked tokens.
        grid: rows and columns of the N tokens, whole cells of which are masked or visible.
        share: of the masked tokens, above 0; 1 chooses all.
        draw_ids: [B], int64.
        visible: patches of an image that count in no loss.
        stage: its number.
        seed: of the masks.
    """
    (rows, columns), (patch_rows, patch_columns) = grid, view.grid
    num_tokens = rows * columns
    masked = masked_ids(view, grid, visible)
    count = num_chosen(share, masked.shape[1])
    chosen = masked
    if count < masked.shape[1]:
        chosen, _ = random_keep(draw_ids.to(masked.device), num_tokens, count, seed=_key(stage, seed), parent=masked)
    weights = (1 - keep_to_mask(chosen, num_tokens)).unflatten(1, grid)
    weights = weights.repeat_interleave(patch_rows // rows, 1).repeat_interleave(patch_columns // columns, 2)
    return replace(view, masked=weights.flatten(1), chosen=chosen)


def _key(stage: int, seed: int) -> int:
    low, high, _, _ = philox4x32(stage, Stream.CHOICE.value, 0, 0, seed)
    return int(low | high << 32)
