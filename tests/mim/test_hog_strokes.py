import pytest
import torch
from skimage import data

from bimkern.mim.reconstruction.hog_strokes import draw_hog
from bimkern.ops import hog


def edge(normal, size=32):
    """One channel, dark on one side of a line through the middle and bright on the other."""
    y, x = torch.meshgrid(*2 * [torch.arange(size) - (size - 1) / 2], indexing="ij")
    return (normal[0] * x + normal[1] * y).clamp(-4, 4)[None, None]


@pytest.mark.parametrize("normal", [(1, 0), (0, 1), (-3, 1), (2, 1), (1, 4), (1, -1.1)])
@pytest.mark.parametrize("bins", [9, 18])
def test_strokes_lie_along_the_edge(normal, bins):
    picture = draw_hog(hog(edge(normal), 32, bins)[0], (1, 1), bins, side=65)[0]
    y, x = torch.meshgrid(*2 * [torch.arange(65) - 32.0], indexing="ij")
    along = x * -normal[1] + y * normal[0]
    across = x * normal[0] + y * normal[1]
    assert (picture * along**2).sum() > 5 * (picture * across**2).sum()


@pytest.mark.parametrize("channels", [3, 5])
def test_every_cell_and_channel_stands_in_its_place(channels):
    vectors = torch.zeros(6, channels * 9)
    vectors[4, 2 * 9 + 5] = 1
    picture = draw_hog(vectors, (2, 3), 9, side=8)
    assert picture.shape == (channels, 16, 24)
    assert picture.max() > 0.5
    assert picture[2, 8:, 8:16].sum() == picture.sum() > 0


def test_reaches_from_black_to_white_on_a_photograph():
    image = torch.from_numpy(data.astronaut()[:256, :256].copy()).permute(2, 0, 1)[None]
    picture = draw_hog(hog(image, 8)[0], (32, 32), 9)
    assert picture.shape == (3, 512, 512)
    assert picture.min() == 0
    assert 0.9 < picture.max() <= 1


@pytest.mark.parametrize("shape", [(5, 27), (6, 0), (6, 28), (1, 6, 27)])
def test_says_what_is_wrong(shape):
    with pytest.raises(ValueError, match=r"draw_hog: vectors must be \[h\*w=6, C\*bins\] with bins=9, got"):
        draw_hog(torch.zeros(shape), (2, 3), 9)
