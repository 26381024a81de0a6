"""What the arena's plan needs for a step that no recipe has."""

from typing import get_args

import pytest

from bench.arena_mlp import SHAPES, Kept, main, plan

BATCH, WIDTH, HIDDEN, OUTPUTS = SHAPES[0]
WEIGHTS = 4 * HIDDEN * (WIDTH + OUTPUTS)  # bytes, without biases


@pytest.mark.parametrize(("kept", "twice"), [("nothing", 0), ("batch", 4 * BATCH * WIDTH), ("gradients", WEIGHTS)])
def test_what_lives_into_the_next_step_has_two_slots(kept, twice):
    found = plan(SHAPES[0], kept, fused=True)
    assert found.survivor_bytes >= 2 * twice
    assert (found.gap == 0) == (kept == "nothing")


def test_the_table_has_a_line_for_every_shape_and_adamw(capsys):
    main()
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("peak of the plan above the largest sum of live bytes")
    assert head.split()[-3:] == list(get_args(Kept))
    assert len(rows) == 2 * len(SHAPES)
    assert {len(row) for row in rows} == {len(head)}
