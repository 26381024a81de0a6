"""The arena around steps of other programs: the same losses, and whatever they keep stays what it was."""

import copy

import pytest
import torch
from dropin_hosts import CASES

from bimkern.arena import Arena, ArenaError
from bimkern.dropin import patch

HOSTS = ["hf", "lightly mae"]
STEPS = 8


class Training:
    """A host in training that keeps of its steps what people keep: losses, and an average of the weights."""

    def __init__(self, case, model, batch):
        self.case, self.model, self.batch = case, model, batch
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.losses, self.averages = [], []

    def step(self):
        torch.manual_seed(len(self.losses))
        self.optimizer.zero_grad()  # so that gradients live into the next step
        loss = self.case.loss(self.model, self.batch)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())
        weights = [p.detach() for p in self.model.parameters()]
        average = self.averages[-1] if self.averages else weights
        self.averages.append([0.9 * a + 0.1 * w for a, w in zip(average, weights, strict=True)])

    def kept(self):
        return [*self.losses, *(x for average in self.averages for x in average)]


@pytest.fixture(params=HOSTS)
def pair(request):
    """A patched host, twice."""
    case = CASES[request.param]
    torch.manual_seed(0)
    model, batch = case.make(), torch.rand(case.shape)
    patch(model)
    return [Training(case, each, batch) for each in (model, copy.deepcopy(model))]


def test_what_a_step_keeps_holds_its_values_when_the_arena_is_gone(pair):
    plain, inside = pair
    arena = Arena()
    for _ in range(STEPS):
        plain.step()
        with arena.scope("step"):
            inside.step()
    stats = arena.stats()
    assert stats.plans == 1
    assert stats.still_in_use > 0  # which the plan did not serve a third time
    del arena
    noise = [torch.full_like(x, torch.nan) for x in inside.kept()]
    assert all(map(torch.equal, plain.kept(), inside.kept()))
    plain.step()
    inside.step()  # out of an arena again
    assert all(map(torch.equal, plain.kept(), inside.kept()))
    del noise


def test_a_step_that_keeps_numbers_allocates_nothing_outside_its_plan(pair):
    training, arena, losses = pair[0], Arena(), []
    for _ in range(STEPS):
        with arena.scope("step"):
            loss = training.case.loss(training.model, training.batch)
            loss.backward()
            training.optimizer.step()
            training.optimizer.zero_grad()
            losses.append(loss.item())
            del loss
    stats = arena.stats()
    assert stats.diverged_steps == stats.still_in_use == stats.late == 0
    assert stats.upstream_calls_last_step == 0
    assert stats.planned_reach == stats.reserved_bytes == arena.plan().peak


def test_a_step_that_fails_leaves_the_arena_usable(pair):
    plain, inside = pair
    arena = Arena()
    for index in range(STEPS):
        plain.step()
        if index == 5:
            with pytest.raises(RuntimeError, match=r"^Mismatch in shape: grad_output"), arena.scope("step"):
                inside.case.loss(inside.model, inside.batch).backward(torch.ones(3))
        with arena.scope("step"):
            inside.step()
    assert all(map(torch.equal, plain.kept(), inside.kept()))


def test_an_arena_around_an_arena_is_refused(pair):
    arena = Arena()
    message = "^arena: scope 'step' cannot open: this thread is in a scope of another arena$"
    with arena.scope("epoch"), pytest.raises(ArenaError, match=message), Arena().scope("step"):
        pair[0].step()
    with arena.scope("step"):
        pair[0].step()
