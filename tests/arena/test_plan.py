"""Plans as data: made without an arena, saved, compared, refused, drawn, and taken over by another arena."""

import json

import pytest
import torch
from PIL import Image

from bimkern.arena import Allocation, Arena, ArenaError, Plan, Scope, draw, make_plan
from bimkern.arena.picture import live_bytes

# Scope "a" has two allocations that share an offset, one freed in "b", and one that lives into the next step.
SCOPES = (Scope("a", 0, 8, 0, 4), Scope("b", 10, 13, 4, 5))
ALLOCATIONS = tuple(
    Allocation(*row) for row in ((0, 100, 1, 3), (0, 90, 2, 9), (0, 120, 4, 5), (0, 4, 6, None), (1, 200, 11, 12))
)


_BAD_FIELD = "Plan: a field is missing, unknown or of another type than expected"


@pytest.fixture
def plan():
    return make_plan(SCOPES, ALLOCATIONS, ticks=14, alignment=64)


def recorded(debug=False):
    arena = Arena(debug=debug)
    for _ in range(2):
        work(arena)
    return arena.plan()


def work(arena):
    with arena.scope("work"):
        return [torch.ones(size).data_ptr() for size in (1000, 2000)]


def test_a_plan_is_made_from_any_trace(plan):
    assert (plan.scopes, plan.allocations) == (SCOPES, ALLOCATIONS)
    assert plan.offsets[0] == plan.offsets[2]
    assert plan.bound == 64 + 256
    assert plan.peak == 2 * 64 + 256  # scope b, and two slots of what lives into the next step
    assert plan.gap == pytest.approx(0.2)
    assert [plan.survives(allocation) for allocation in plan.allocations] == [False, True, False, True, False]


def test_the_alignment_and_the_padding_round_up():
    plan = make_plan(SCOPES, ALLOCATIONS, ticks=14, alignment=512, padding=512)
    assert [plan.room(allocation) for allocation in plan.allocations] == [1024] * 5
    assert (plan.peak, plan.bound) == (4 * 1024, 2 * 1024)


def test_a_saved_plan_is_the_same_plan_and_the_same_text(plan, tmp_path):
    path = tmp_path / "plan.json"
    for saved in (plan, recorded()):
        saved.save(path)
        assert Plan.load(path) == saved
        assert Plan.load(path).to_json() == path.read_text() == saved.to_json()
    assert json.loads(plan.to_json())["allocations"][3] == [0, 4, 6, None, plan.offsets[3]]


def test_the_same_work_gives_the_same_plan():
    assert recorded() == recorded()
    assert recorded() != recorded(debug=True)  # room for canaries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format="another"), "Plan: expected a JSON object of format 'bimkern arena plan 3'"),
        (lambda data: data.pop("ticks"), _BAD_FIELD),
        (lambda data: data.update(more=1), _BAD_FIELD),
        (lambda data: data["allocations"][0].pop(), _BAD_FIELD),
        (lambda data: data["allocations"].append(7), _BAD_FIELD),
        (lambda data: data.update(bound="large"), _BAD_FIELD),
        (lambda data: data.update(bound=1), "arena: plan: the largest live sum is 320, got 1"),
        (lambda data: data.update(bound=2**70), _BAD_FIELD),
        (
            lambda data: data["allocations"][0].__setitem__(3, 5),
            "arena: plan: allocations 2 and 0 live at the same time",
        ),
        (lambda data: data["allocations"][1].__setitem__(4, 32), "arena: plan: allocation 1 must be aligned inside"),
        (lambda data: data["scopes"][1].__setitem__(0, "a"), "arena: plan: scope 'a' appears twice"),
    ],
)
def test_a_bad_plan_is_refused(plan, change, message):
    data = json.loads(plan.to_json())
    change(data)
    with pytest.raises(ValueError, match="^" + message.replace("[", r"\[")):
        Plan.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match=r"^Plan: (not JSON: |expected a JSON object)"):
        Plan.from_json(text)


def test_a_bad_trace_is_refused():
    with pytest.raises(ValueError, match="arena: plan: allocation 0 must have a positive size and a lifetime"):
        make_plan(SCOPES[:1], [Allocation(0, 0, 1, 3)] * 4, ticks=14, alignment=64)
    with pytest.raises(ValueError, match="arena: plan: allocation 0 belongs to no scope"):
        make_plan([], ALLOCATIONS, ticks=14, alignment=64)


def test_an_arena_takes_a_plan_over(tmp_path):
    recorded().save(tmp_path / "plan.json")
    arena = Arena()
    arena.adopt(Plan.load(tmp_path / "plan.json"))
    first = work(arena)
    assert work(arena) == first
    stats = arena.stats()
    assert (stats.planned, stats.unplanned, stats.diverged_steps) == (4, 0, 0)
    assert stats.upstream_calls == 1  # the region


def test_a_plan_for_another_arena_is_refused():
    with pytest.raises(ArenaError, match="plan: this arena aligns to 64 bytes and pads by 64, the plan to 64 and by 0"):
        Arena(debug=True).adopt(recorded())
    device = make_plan(SCOPES, ALLOCATIONS, ticks=14, alignment=512)
    with pytest.raises(ArenaError, match="plan: this arena aligns to 64 bytes and pads by 0, the plan to 512 and by 0"):
        Arena().adopt(device)


def test_live_bytes_are_those_of_the_trace(plan):
    times, sums = live_bytes(plan)
    assert list(zip(times, sums, strict=True)) == [
        *((0, 0), (1, 128), (2, 256), (3, 128), (4, 256), (5, 128), (6, 192), (9, 64), (11, 320), (12, 64)),
    ]
    assert max(sums) == plan.bound


def test_what_dies_in_the_next_step_counts_there_too():
    # Two that die after their successors are born, and one of which that is not known.
    rows = ((0, 100, 1, 20), (0, 90, 3, 15), (0, 4, 5, None))
    plan = make_plan((Scope("a", 0, 8, 0, 3),), [Allocation(*row) for row in rows], ticks=11, alignment=64)
    assert [plan.slots(allocation) for allocation in plan.allocations] == [2, 2, 2]
    early = make_plan((Scope("a", 0, 8, 0, 1),), [Allocation(0, 100, 5, 13)], ticks=11, alignment=64)
    assert (early.slots(early.allocations[0]), early.peak, early.bound) == (1, 128, 128)
    assert Plan.from_json(early.to_json()) == early
    times, sums = live_bytes(plan)
    assert max(sums) == plan.bound == 2 * 128 + 2 * 128
    assert plan.peak == plan.bound + 2 * 64
    assert times == sorted(times)


def test_a_plan_can_be_drawn(plan, tmp_path):
    draw(plan, tmp_path / "memory.png")
    with Image.open(tmp_path / "memory.png") as picture:
        assert picture.format == "PNG"
        colors = {color for _, color in picture.convert("RGB").getcolors(2**20)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors  # both scopes
