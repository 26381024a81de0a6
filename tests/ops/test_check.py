import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from bimkern.ops import _check as check
from bimkern.ops import embed_visible, gather_tokens, keep_to_mask, random_keep, restore_tokens


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


OUT_OF_RANGE = torch.tensor([[0, 1], [2, 4]])
OPS_WITH_KEEP = {
    "gather_tokens: keep": lambda keep: gather_tokens(torch.zeros(2, 4, 8, device=keep.device), keep),
    "restore_tokens: keep": lambda keep: restore_tokens(
        torch.zeros(2, 2, 8, device=keep.device), keep, torch.zeros(8, device=keep.device), num_tokens=4
    ),
    "embed_visible: keep": lambda keep: embed_visible(
        torch.zeros(2, 3, 4, 4, device=keep.device),
        torch.zeros(5, 3, 2, 2, device=keep.device),
        torch.zeros(5, device=keep.device),
        keep,
    ),
    "keep_to_mask: keep": lambda keep: keep_to_mask(keep, 4),
    "random_keep: parent": lambda keep: random_keep(torch.arange(2, device=keep.device), 4, 1, seed=0, parent=keep),
}


@pytest.mark.parametrize("argument", OPS_WITH_KEEP)
def test_debugging_checks_the_ids_of_every_op(device, monkeypatch, argument):
    monkeypatch.setenv("BIMKERN_DEBUG", "1")
    OPS_WITH_KEEP[argument](torch.tensor([[0, 1], [2, 3]], device=device))
    with pytest.raises(RuntimeError) as raised:
        OPS_WITH_KEEP[argument](OUT_OF_RANGE.to(device))
    assert str(raised.value) == f"{argument} must hold ids in [0, N=4), got 4 in image 1"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[-1, 1], [2, 3]], "op: keep must hold ids in [0, N=4), got -1 in image 0"),
        ([[0, 1], [2, 2]], "op: keep must not repeat an id within an image, got 2 twice in image 1"),
        ([[3, 1, 0, 1], [3, 3, 3, 9]], "op: keep must not repeat an id within an image, got 1 twice in image 0"),
        ([[3, 1, 0, 2], [3, 1, 3, 9]], "op: keep must not repeat an id within an image, got 3 twice in image 1"),
        ([[3, 1, 0, 2], [3, 1, 9, 3]], "op: keep must hold ids in [0, N=4), got 9 in image 1"),
    ],
)
def test_says_which_id_is_wrong_first(device, ids, message):
    with pytest.raises(RuntimeError) as raised:
        check.ids("op", "keep", torch.tensor(ids, device=device), 4)
    assert str(raised.value) == message


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_keep_holds_no_wrong_id(device, shape):
    check.ids("op", "keep", torch.zeros(shape, device=device, dtype=torch.int64), 0)


@pytest.mark.parametrize("setting", [None, "0"])
def test_without_debugging_no_id_is_read_beside_a_kernel(monkeypatch, setting):
    monkeypatch.setenv("BIMKERN_BACKEND", "native")
    monkeypatch.delenv("BIMKERN_DEBUG", raising=False)
    if setting is not None:
        monkeypatch.setenv("BIMKERN_DEBUG", setting)
    monkeypatch.setattr(check, "ids", lambda *_: pytest.fail("ids were read"))
    with pytest.raises(RuntimeError, match="got 4 in image 1"):  # the kernel's own check
        keep_to_mask(OUT_OF_RANGE, 4)


@pytest.mark.parametrize("argument", OPS_WITH_KEEP)
@pytest.mark.parametrize(
    "ids",
    [[[0, 1], [2, 4]], [[-1, 1], [2, 3]], [[0, 1], [2, 2]], [[1, 0], [2, 4]], [[1, 0], [3, 3]]],
    ids=str,
)
def test_every_backend_refuses_the_same_ids_on_the_cpu(monkeypatch, argument, ids):
    messages = {}
    for backend in ("native", "reference"):
        monkeypatch.setenv("BIMKERN_BACKEND", backend)
        with pytest.raises(RuntimeError) as raised:
            OPS_WITH_KEEP[argument](torch.tensor(ids))
        messages[backend] = str(raised.value).splitlines()[0]
    assert messages["native"].startswith(f"{argument} must ")
    assert messages["reference"] == messages["native"]


@pytest.mark.parametrize("argument", OPS_WITH_KEEP)
def test_the_reference_takes_good_ids(device, monkeypatch, argument):
    monkeypatch.setenv("BIMKERN_BACKEND", "reference")
    OPS_WITH_KEEP[argument](torch.tensor([[0, 1], [2, 3]], device=device))


def test_ids_without_values_are_not_read(monkeypatch):
    monkeypatch.setenv("BIMKERN_BACKEND", "reference")
    with FakeTensorMode():
        assert keep_to_mask(torch.zeros(2, 3, dtype=torch.int64), 4).shape == (2, 4)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("argument", OPS_WITH_KEEP)
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch loops over our kernels
def test_every_op_maps_over_its_ids(monkeypatch, argument, backend):
    if backend is not None:
        monkeypatch.setenv("BIMKERN_BACKEND", backend)
    keeps = torch.tensor([[[0, 1], [2, 3]], [[3, 0], [1, 2]]])
    mapped = torch.vmap(OPS_WITH_KEEP[argument])(keeps)
    torch.testing.assert_close(mapped, stacked([OPS_WITH_KEEP[argument](keep) for keep in keeps]))


def stacked(results):
    return (
        torch.stack(results)
        if isinstance(results[0], torch.Tensor)
        else tuple(map(torch.stack, zip(*results, strict=True)))
    )


def test_ids_outside_the_map_are_checked(monkeypatch):
    monkeypatch.setenv("BIMKERN_BACKEND", "reference")
    with pytest.raises(RuntimeError, match="keep must not repeat an id within an image, got 2 twice in image 0"):
        torch.vmap(lambda tokens: gather_tokens(tokens, torch.tensor([[2, 2]])))(torch.zeros(3, 1, 4, 8))


def test_debugging_leaves_compiled_code_alone(monkeypatch):
    monkeypatch.setenv("BIMKERN_DEBUG", "1")
    compiled = torch.compile(keep_to_mask, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.tensor([[0, 2]]), 4), torch.tensor([[0.0, 1, 0, 1]]))


def test_a_check_that_passed_is_not_made_again():
    calls = []

    def count(x, y, number):
        calls.append(number)
        return number + 1

    x = torch.zeros(2, 3)
    for _ in range(3):
        assert check.once(count, (x, None), 1) == 2
    assert calls == [1]
    others = [x[:1], x.long(), x.to("meta"), torch.zeros(2, 3, requires_grad=True)]
    for other in others:
        check.once(count, (other, None), 1)
    check.once(count, (x, x), 1)
    check.once(count, (x, None), 5)
    assert calls == [1] * 6 + [5]


def test_numbers_of_other_types_are_checked_even_where_they_are_equal():
    assert [check.once(type, (), number) for number in (1, 1.0, True, 1)] == [int, float, bool, int]


def test_a_check_that_failed_is_made_again():
    for _ in range(2):
        with pytest.raises(ValueError, match=r"keep must be \[B, K\], got \[4\]"):
            keep_to_mask(torch.zeros(4).long(), 4)
        with pytest.raises(ValueError, match="keep must hold at most N=2 ids per image, got K=3"):
            gather_tokens(torch.zeros(1, 2, 4), torch.zeros(1, 3).long())


def test_checks_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(check, "_ROOM", 3)
    monkeypatch.setattr(check, "_passed", {})
    for number in range(20):
        assert check.once(lambda number: number, (), number) == number
        assert len(check._passed) <= 3


def test_sizes_that_are_symbols_are_checked():
    def trace(tokens, keep):
        return gather_tokens(tokens, keep)

    inputs = torch.randn(2, 6, 3), torch.tensor([[0, 1], [4, 3]])
    traced = make_fx(trace, tracing_mode="symbolic")(*inputs)
    assert torch.equal(traced(*inputs), gather_tokens(*inputs))
