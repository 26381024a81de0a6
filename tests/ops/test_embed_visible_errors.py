"""What embed_visible says about wrong arguments, and what its bare kernels refuse."""

import pytest
import torch

from bimkern.ops import embed_visible


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"images": torch.zeros(2, 3, 8, 6)},
            ValueError,
            "images must be [B, C, H, W] with H and W multiples of patch=4, got [2, 3, 8, 6]",
        ),
        (
            {"images": torch.zeros(2, 3, 7, 8)},
            ValueError,
            "images must be [B, C, H, W] with H and W multiples of patch=4, got [2, 3, 7, 8]",
        ),
        (
            {"weight": torch.zeros(5, 3, 0, 0)},
            ValueError,
            "images must be [B, C, H, W] with H and W multiples of patch=0, got [2, 3, 8, 8]",
        ),
        ({"weight": torch.zeros(5, 3, 4, 2)}, ValueError, "weight must be [D, C, p, p], got [5, 3, 4, 2]"),
        ({"images": torch.zeros(2, 1, 8, 8)}, ValueError, "images must be [B, C=3, H, W], got [2, 1, 8, 8]"),
        ({"bias": torch.zeros(4)}, ValueError, "bias must be [D=5], got [4]"),
        ({"keep": torch.zeros(3, 2).long()}, ValueError, "keep must be [B=2, K], got [3, 2]"),
        ({"keep": torch.zeros(2, 5).long()}, ValueError, "keep must hold at most N=4 ids per image, got K=5"),
        ({"pos": torch.zeros(5, 5)}, ValueError, "pos must be [N=4, D=5], got [5, 5]"),
        ({"prefix": torch.zeros(1, 4)}, ValueError, "prefix must be [R, D=5], got [1, 4]"),
        ({"mean": torch.zeros(1)}, ValueError, "mean must be [C=3], got [1]"),
        ({"std": torch.zeros(4)}, ValueError, "std must be [C=3], got [4]"),
        (
            {"images": torch.zeros(2, 3, 8, 8).int()},
            TypeError,
            "images must be uint8, float32, float16, bfloat16 or float64, got int32",
        ),
        ({"weight": torch.zeros(5, 3, 4, 4).half()}, TypeError, "weight must be float32 or float64, got float16"),
        ({"bias": torch.zeros(5).half()}, TypeError, "bias must be float32, got float16"),
        ({"keep": torch.zeros(2, 2).int()}, TypeError, "keep must be int64, got int32"),
        ({"pos": torch.zeros(4, 5).double()}, TypeError, "pos must be float32, got float64"),
        ({"prefix": torch.zeros(1, 5).double()}, TypeError, "prefix must be float32, got float64"),
        ({"mean": torch.zeros(3).double()}, TypeError, "mean must be float32, got float64"),
        ({"std": torch.zeros(3).double()}, TypeError, "std must be float32, got float64"),
        (
            {"dtype": torch.int32},
            TypeError,
            "dtype must be float32, float16, bfloat16 or float64, got torch.int32",
        ),
        ({"pos": torch.zeros(4, 5, device="meta")}, ValueError, "pos must be on cpu like images, got meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_says_what_is_wrong(change, error, message):
    arguments = {
        "images": torch.zeros(2, 3, 8, 8),
        "weight": torch.zeros(5, 3, 4, 4),
        "bias": torch.zeros(5),
        "keep": torch.tensor([[0, 1], [2, 3]]),
    }
    with pytest.raises(error) as raised:
        embed_visible(**arguments | change)
    assert str(raised.value) == f"embed_visible: {message}"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 1], [2, 4]], "keep must hold ids in [0, N=4), got 4 in image 1"),
        ([[-1, 1], [2, 3]], "keep must hold ids in [0, N=4), got -1 in image 0"),
        ([[0, 1], [3, 3]], "keep must not repeat an id within an image, got 3 twice in image 1"),
    ],
)
def test_checks_ids_on_the_cpu(ids, message):
    with pytest.raises(RuntimeError) as raised:
        embed_visible(torch.zeros(2, 3, 8, 8), torch.zeros(5, 3, 4, 4), torch.zeros(5), torch.tensor(ids))
    assert f"embed_visible: {message}" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 8, 6)}, "H and W multiples of patch=4"),
        ({"images": torch.zeros(3, 8, 8)}, "H and W multiples of patch=4"),
        ({"images": torch.zeros(2, 3, 8, 8).int()}, "dtype must be float32"),
        ({"keep": torch.zeros(3, 2).long()}, r"keep must be \[B, K\]"),
        ({"keep": torch.zeros(2, 2).int()}, "keep must be int64"),
        ({"mean": torch.zeros(2)}, r"mean must be \[C\]"),
        ({"std": torch.zeros(3).double()}, "std must be of the type that patches are normalized in"),
        ({"dtype": torch.int32}, "dtype must be float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_bare_cut_reads_nothing_out_of_bounds(change, message):
    arguments = {"images": torch.zeros(2, 3, 8, 8), "keep": torch.tensor([[0, 1], [2, 3]]), "mean": None, "std": None}
    arguments |= {"patch": 4, "dtype": torch.float32} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.visible_patches(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"product": torch.zeros(2, 5, 2).mT}, "product must be contiguous"),
        ({"product": torch.zeros(2, 5)}, "product must be contiguous"),
        ({"product": torch.zeros(2, 2, 5).int()}, "dtype must be float32"),
        ({"keep": torch.zeros(2, 3).long()}, r"product must be \[B, K, D\]"),
        ({"keep": torch.zeros(2, 2).int()}, "keep must be int64"),
        ({"bias": torch.zeros(4)}, r"bias must be \[D\]"),
        ({"bias": torch.zeros(5).half(), "pos": None, "prefix": None}, "dtype must be float32 or float64"),
        ({"pos": torch.zeros(4, 4)}, r"pos must be \[4, D\]"),
        ({"pos": torch.zeros(4, 5).half()}, "pos must have the dtype and device of the result"),
        ({"pos": torch.zeros(3, 5)}, r"keep must hold ids in \[0, N=3\), got 3 in image 1"),
        ({"prefix": torch.zeros(1, 4)}, r"prefix must be \[1, D\]"),
        ({"prefix": torch.zeros(1, 5).double()}, "prefix must have the dtype and device of the result"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_bare_sum_reads_nothing_out_of_bounds(change, message):
    arguments = {"product": torch.zeros(2, 2, 5), "bias": torch.zeros(5), "keep": torch.tensor([[0, 1], [2, 3]])}
    arguments |= {"pos": torch.zeros(4, 5), "prefix": torch.zeros(1, 5)}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.add_embeddings(**arguments | change)
