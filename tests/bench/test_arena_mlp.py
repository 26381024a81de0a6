"""What the arena's plan needs for a step that no recipe has."""

from typing import get_args

import pytest

from bench.arena_mlp import SHAPES, Kept, main, plan

BATCH, WIDTH, HIDDEN, OUTPUTS = SHAPES[0]
WEIGHTS = 4 * HIDDEN * (WIDTH + OUTPUTS)  # bytes, without biases


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("kept", get_args(Kept))
def test_the_plan_is_near_the_bound(shape, kept):
    found = plan(shape, kept, fused=True)
    assert found.gap <= (0.2 if kept == "batch" else 0)


@pytest.mark.parametrize(("kept", "size", "slots"), [("batch", 4 * BATCH * WIDTH, 2), ("gradients", WEIGHTS // 2, 1)])
def test_what_meets_its_successor_has_two_slots(kept, size, slots):
    found = plan(SHAPES[0], kept, fused=True)
    kept_on = [one for one in found.allocations if one.end is not None and one.end >= found.ticks]
    assert {found.slots(one) for one in kept_on if one.bytes == size} == {slots}


def test_the_table_has_a_line_for_every_shape_and_adamw(capsys):
    main()
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("peak of the plan above the largest sum of live bytes")
    assert head.split()[-3:] == list(get_args(Kept))
    assert len(rows) == 2 * len(SHAPES)
    assert {len(row) for row in rows} == {len(head)}
