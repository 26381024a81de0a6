import pytest
import torch

from bimkern.ops import _check as check


def test_shapes_returns_every_letter():
    sizes = check.shapes("op", a=(torch.zeros(2, 7, 3), "B N 3"), b=(torch.zeros(7, 5), "N D"))
    assert sizes == {"B": 2, "N": 7, "D": 5}


def test_shapes_solves_a_sum_for_its_unknown():
    assert check.shapes("op", {"R": 2}, a=(torch.zeros(7), "R+N")) == {"R": 2, "N": 5}
    assert check.shapes("op", a=(torch.zeros(7), "N+1")) == {"N": 6}


def test_shapes_passes_none_over():
    assert check.shapes("op", a=(torch.zeros(2), "B"), b=(None, "B N")) == {"B": 2}


@pytest.mark.parametrize(
    ("shape", "dims", "message"),
    [
        ((2, 3), "N", "op: x must be [N=4], got [2, 3]"),
        ((3,), "N", "op: x must be [N=4], got [3]"),
        ((2, 4, 4), "B 3 N", "op: x must be [B, 3, N=4], got [2, 4, 4]"),
        ((6,), "R+N", "op: x must be [R+N=5], got [6]"),
        ((3, 2), "N+M 2", "op: x must be [N=4+M, 2], got [3, 2]"),
        ((2, 3), "B B", "op: x must be [B, B], got [2, 3]"),
    ],
)
def test_shapes_says_what_is_wrong(shape, dims, message):
    with pytest.raises(ValueError, match=r"^op: ") as raised:
        check.shapes("op", {"N": 4, "R": 1}, x=(torch.zeros(shape), dims))
    assert str(raised.value) == message


def test_dtypes():
    check.dtypes("op", x=(torch.zeros(1), check.FLOATS), i=(torch.zeros(1).long(), torch.int64), n=(None, torch.int64))
    with pytest.raises(TypeError, match=r"^op: i must be int64, got float32$"):
        check.dtypes("op", i=(torch.zeros(1), torch.int64))
    with pytest.raises(TypeError, match=r"^op: x must be uint8 or float32, got int64$"):
        check.dtypes("op", x=(torch.zeros(1).long(), (torch.uint8, torch.float32)))


def test_same_device():
    check.same_device("op", a=torch.zeros(1), b=None, c=torch.zeros(2))
    with pytest.raises(ValueError, match=r"^op: c must be on cpu like a, got meta$"):
        check.same_device("op", a=torch.zeros(1), b=None, c=torch.zeros(2, device="meta"))
