"""The picture of reconstructions: which columns it has, and what it says."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from spectral import with_channels

from bimkern.image_size import ImageSize
from bimkern.mim.masking.blockwise import Blockwise
from bimkern.mim.model import MIM
from bimkern.mim.targets import PixelTarget
from bimkern.recipes import RECIPES
from bimkern.train.memory.live_bytes import LiveBytes
from bimkern.train.memory.tracker import AllocationTracker
from bimkern.train.reporting import plots


def predicted(recipe, rows=2, **changes):
    torch.manual_seed(0)
    method = replace(RECIPES[recipe].config.method, **changes)
    size = method.encoder.image_size.height
    images = torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8)
    return plots.predict(MIM(method), images, torch.arange(rows), seed=0)


@pytest.mark.parametrize(
    ("recipe", "titles"),
    [
        ("mae_vit_test", ["12 of 16 masked", "after layer 4", "after layer 4*"]),
        ("simmim_vit_test", ["12 of 16 masked", "after layer 4"]),
        ("fastmim_vit_test", ["12 of 16 masked", "target, 8 x 8", "after layer 4"]),
        (
            "localmim_vit_test",
            [
                *("12 of 16 masked", "target, 16 x 16", "after layer 2", "target, 8 x 8", "after layer 4"),
                *("target, 4 x 4", "after layer 6", "target, 2 x 2", "after layer 8"),
            ],
        ),
        (
            "bim_hog_vit_test",
            [
                *("11 of 16 masked", "target, 8 x 8", "after layer 1", "12 of 16 masked", "after layer 2"),
                *("13 of 16 masked", "after layer 3", "14 of 16 masked", "after layer 4"),
            ],
        ),
    ],
)
def test_masks_and_targets_are_shown_where_they_change(recipe, titles):
    shown = predicted(recipe)
    assert [column.title for column in shown.columns] == ["original", *titles]
    for column in shown.columns:
        picture = column.draw(1, shown.size)
        assert picture.shape == (3, *shown.size)
        assert 0 <= picture.min() < picture.max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("recipe", ["mae_vit_test", "fastmim_vit_test"])
def test_images_of_any_channels_are_shown_in_gray_or_the_first_three_in_color(recipe, channels, tmp_path):
    torch.manual_seed(0)
    method = with_channels(RECIPES[recipe].config, channels).method
    size = method.encoder.image_size.height
    images = torch.full((1, channels, size, size), 99, dtype=torch.uint8)
    images[:, -1] = 200
    shown = plots.predict(MIM(method), images, torch.arange(1), seed=0)
    plots.draw_reconstructions(tmp_path / "picture.png", shown, "title")
    with Image.open(tmp_path / "picture.png") as picture:
        original = picture.getpixel((shown.size.height // 2, picture.height - shown.size.height // 2))
    assert original == {1: (200, 200, 200), 2: (99, 99, 99), 4: (99, 99, 99)}[channels]
    said = {1: [], 2: ["of 2 channels, the first"], 4: ["of 4 channels, the first three in red, green and blue"]}
    assert [line for line in shown.legend.splitlines() if line.startswith("of ")] == said[channels]


def test_images_that_differ_in_how_much_is_masked_are_counted_from_least_to_most():
    encoder = replace(RECIPES["maskfeat_vit_test"].config.method.encoder, image_size=224)
    shown = predicted("maskfeat_vit_test", rows=8, encoder=encoder, masker=Blockwise(ratio=0.4, exact=False))
    least, most = shown.columns[1].title.removesuffix(" of 196 masked").split("-")
    assert 39 < int(least) < int(most) <= 78


def test_the_legend_names_the_statistics_of_every_kind_of_target():
    method = RECIPES["localmim_vit_test"].config.method
    shown = predicted("localmim_vit_test", targets=(*method.targets[:2], *2 * [PixelTarget(normalize=True)]))
    assert shown.legend.splitlines() == [
        "histograms of oriented gradients, where patches are visible the target's: no statistics of the truth are "
        "used; all are drawn at length 1",
        "de-normalized with brightness and contrast of the average visible patch;",
        "* with those of the masked truth, which leaks",
    ]


def test_a_column_stands_below_its_title_and_an_image_in_its_row(tmp_path):
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]).view(3, 2, 3, 1, 1)
    columns = [plots.Column(f"column {i}", lambda row, size, i=i: colors[row, i].expand(3, *size)) for i in range(2)]
    shown = plots.Reconstructions(columns, 3, ImageSize.square(100), "a note of many words, " * 5)
    plots.draw_reconstructions(tmp_path / "picture.png", shown, "title")
    with Image.open(tmp_path / "picture.png") as picture:
        head = picture.height - 3 * 110
        assert picture.width == 220
        assert head >= 60
        for row in range(3):
            for i in range(2):
                position = (i * 110 + 55, head + row * 110 + 55)
                assert picture.getpixel(position) == tuple(int(255 * value) for value in colors[row, i].flatten())
        written = picture.convert("L").crop((0, 0, 220, head)).point(lambda value: 255 * (value < 128))
        left, top, right, bottom = written.getbbox()
    assert left > 0 < top
    assert right < 220
    assert bottom < head


def test_curves_take_stages_that_stop_learning(tmp_path):
    records = [{"step": step, "lr": 0.1, "loss_per_stage": [None if step > 2 else 0.5, 0.4]} for step in (1, 2, 3, 4)]
    plots.draw_curves(tmp_path / "curves.png", records, ["after layer 2", "after layer 4"])
    with Image.open(tmp_path / "curves.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24)) > 10


def test_drawing_holds_a_few_tiles_at_a_time(tmp_path):
    """Whole rows in floats take a hundred megabytes, which malloc keeps for the rest of the run."""
    shown = predicted("bim_vit_test", rows=6)
    with AllocationTracker([], live := LiveBytes()):
        plots.draw_reconstructions(tmp_path / "picture.png", shown, "title")
    tile = 3 * shown.size.pixels * torch.float32.itemsize
    assert 0 < live.peak <= 8 * tile < shown.num_rows * len(shown.columns) * tile
