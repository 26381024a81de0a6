"""Every host, patched and not: the same losses from the same seed, in whatever is done with a model."""

import copy
import pickle

import pytest
import torch
from dropin_hosts import CASES

from bimkern.dropin import patch

FIRST, LATER = 1e-6, 1e-4  # relative errors of a loss that are allowed


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def built(case, device="cpu"):
    torch.manual_seed(0)
    model = case.make().to(device)
    return model, torch.randint(256, case.shape, device=device) / 256  # on which HOG of hosts does not round


def seeded(case, model, batch, seed=1):
    torch.manual_seed(seed)
    return case.loss(model, batch)


def gradients(model, loss):
    loss.backward()
    return [p.grad for p in model.parameters()]


def distance(grads, truth):
    return torch.cat([(g - t).flatten() for g, t in zip(grads, truth, strict=True) if t is not None]).norm()


def losses(case, model, batch, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(1)
    result = []
    for _ in range(steps):
        loss = case.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        result.append(loss.item())
    return result


def test_losses_over_twenty_steps(case, device):
    model, batch = built(case, device)
    other = copy.deepcopy(model)
    patched = patch(other)
    assert not patched.left
    expected, got = losses(case, model, batch, 20), losses(case, other, batch, 20)
    if case.exact:
        assert got == expected
    assert got[0] == pytest.approx(expected[0], rel=FIRST, abs=0)
    assert got == pytest.approx(expected, rel=LATER, abs=0)


def test_the_same_random_numbers_are_drawn(case):
    model, batch = built(case)
    seeded(case, model, batch)
    expected = torch.get_rng_state()
    before = torch.get_rng_state()
    patch(model)
    assert torch.equal(torch.get_rng_state(), before)
    seeded(case, model, batch)
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_model_out_of_training(case):
    model, batch = built(case)
    expected = seeded(case, model.eval(), batch)
    patch(model)
    torch.testing.assert_close(seeded(case, model, batch), expected, rtol=FIRST, atol=0)


def test_parameters_and_state_stay(case):
    model, _ = built(case)
    ids = [id(p) for p in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = [dict(vars(module)) for module in model.modules()]
    patch(model)
    assert [id(p) for p in model.parameters()] == ids
    assert [dict(vars(module)) for module in model.modules()] == attributes
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], value) for name, value in state.items())
    model.load_state_dict(state)


def test_undo_gives_every_class_back(case):
    model, batch = built(case)
    classes = [type(module) for module in model.modules()]
    expected = seeded(case, model, batch)
    patched = patch(model)
    assert [type(module) for module in model.modules()] != classes
    assert all(isinstance(module, cls) for module, cls in zip(model.modules(), classes, strict=True))
    patched.undo()
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(seeded(case, model, batch), expected)
    patched.undo()  # twice is once
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_patched_and_their_own(case, duplicate):
    model, batch = built(case)
    patch(model)
    other = duplicate(model)
    assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
    assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
    assert torch.equal(seeded(case, other, batch), seeded(case, model, batch))
    patch(other).undo()  # a copy is taken back on its own
    assert [type(module) for module in other.modules()] != [type(module) for module in model.modules()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_grad_scaler(case, dtype):
    model, batch = built(case)
    theirs, ours = copy.deepcopy(model), copy.deepcopy(model)
    patch(ours)
    truth = gradients(model, seeded(case, model, batch))
    found = []
    for trained in (theirs, ours):
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        with torch.autocast("cpu", dtype):
            loss = seeded(case, trained, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        found.append((loss, [None if p.grad is None else p.grad.clone() for p in trained.parameters()]))
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 2.0**10  # nothing overflowed
    (expected, wanted), (got, grads) = found
    assert got.dtype == expected.dtype
    assert got.item() == pytest.approx(expected.item(), rel=2e-2)
    assert [None if g is None else g.dtype for g in grads] == [None if g is None else g.dtype for g in wanted]
    own, torchs = (distance(each, truth) for each in (grads, wanted))
    assert own <= 3 * torchs


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.double])
def test_double_precision(name):
    case = CASES[name]
    model, batch = built(case)
    patch(model)
    other = copy.deepcopy(model)
    patch(other).undo()
    model, other, batch = model.double(), other.double(), batch.double()
    got, expected = seeded(case, model, batch), seeded(case, other, batch)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in CASES if "," not in name])
def test_torch_compile(name):
    case = CASES[name]
    model, batch = built(case)
    patch(model)
    expected = seeded(case, model, batch)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(seeded(case, compiled, batch), expected, rtol=FIRST, atol=0)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.draws])
def test_counter_masks(name):
    case = CASES[name]
    model, batch = built(case)
    patch(model)
    host = seeded(case, model, batch)
    patch(model).undo()
    patch(model, masks="counter")
    one, again, other = (seeded(case, model, batch, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert one != host
    assert one != other


def test_a_patched_model_runs_on_a_device_without_kernels_too(case):
    model, batch = built(case)
    other = copy.deepcopy(model)
    patch(other)
    model, other, batch = model.to("meta"), other.to("meta"), batch.to("meta")
    expected, got = case.loss(model, batch), case.loss(other, batch)
    assert (got.shape, got.dtype, got.device) == (expected.shape, expected.dtype, expected.device)
    expected.backward()
    got.backward()
    assert [p.grad is None for p in other.parameters()] == [p.grad is None for p in model.parameters()]
