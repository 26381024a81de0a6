"""The model of step time on several devices, where it can be reckoned by hand."""

import pytest

from bench.scaling.model import Link, Phase, pipeline_step, reduced_at_end, simulate

LINK = Link(bytes_per_s=100.0, latency_s=0.01)
LOCAL = [Phase(compute_s=1.0, gradient_bytes=80.0, waits_for=(i,)) for i in range(4)]  # 0.82 s on the wire each
_BACKWARD = [Phase(compute_s=1.0, gradient_bytes=80.0)] * 3
END_TO_END = [Phase(compute_s=1.0, waits_for=(1, 2, 3)), *_BACKWARD]


def test_one_device_never_waits() -> None:
    step = simulate(LOCAL, LINK, 1)
    assert (step.seconds, step.wire, step.overlapped) == (4.0, 0.0, 1.0)


def test_an_all_reduce_sends_what_a_ring_sends() -> None:
    assert LINK.all_reduce_s(80.0, 2) == pytest.approx(2 * 0.01 + 80.0 / 100.0)
    assert LINK.all_reduce_s(80.0, 4) == pytest.approx(4 * 0.01 + 120.0 / 100.0)


def test_local_stages_overlap_with_a_wire_that_is_faster_than_they_are() -> None:
    step = simulate(LOCAL, LINK, 2)
    assert step.wire == pytest.approx(4 * 0.82)
    assert step.seconds == pytest.approx(4.0)
    assert step.overlapped == pytest.approx(1.0)


def test_a_slower_wire_sets_the_pace_of_local_stages() -> None:
    step = simulate(LOCAL, Link(bytes_per_s=50.0, latency_s=0.0), 2)  # 1.6 s a stage
    assert step.seconds == pytest.approx(4 * 1.6)


def test_a_backward_pass_does_not_cover_what_it_reduces_last() -> None:
    step = simulate(END_TO_END, LINK, 2)
    assert step.seconds == pytest.approx(4.0 + 0.82)  # the first two overlap with the backward pass


def test_one_reduction_at_the_end_overlaps_with_nothing() -> None:
    step = simulate(reduced_at_end(LOCAL), LINK, 2)
    assert step.seconds == pytest.approx(4.0 + 4 * 0.8 + 0.02)
    assert step.overlapped == pytest.approx(0.0)


def test_the_slowest_stage_sets_the_pace_of_a_pipeline() -> None:
    stages = [Phase(compute_s=seconds, gradient_bytes=80.0) for seconds in (1.0, 2.0, 1.0)]
    assert pipeline_step(stages, (10.0, 10.0), LINK, 3).seconds == pytest.approx(3 * 2.0)
    two_copies = pipeline_step(stages, (10.0, 10.0), LINK, 6)
    assert two_copies.seconds == pytest.approx(3 * 2.0 + 0.82)


def test_a_slow_wire_sets_the_pace_of_a_pipeline() -> None:
    stages = [Phase(compute_s=1.0)] * 2
    assert pipeline_step(stages, (1000.0,), LINK, 2).seconds == pytest.approx(0.01 + 2 * 1000.0 / 100.0)
