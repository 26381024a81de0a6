"""A run on a million images starts as one on a few: no image costs a call of a Python function, or an object."""

import json
import os
import subprocess
import sys
import tracemalloc
from functools import partial

import many_images
import pytest

SECONDS, BYTES = 5, 700e6  # of a million images, with all that is imported


def calls_of(start):
    """Return how many Python functions are called."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        start()
    finally:
        sys.setprofile(None)
    return calls


def test_a_start_calls_no_function_for_each_image(tmp_path, monkeypatch):
    """Neither a new run, nor one that resumes; and what is kept of an image are some bytes."""
    counts, calls = (2_000, 8_000), []
    for count in counts:
        folder = tmp_path / f"{count}"
        folder.mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}/cache")
        many_images.fill(folder, count)
        calls.append([calls_of(partial(many_images.start, folder, begun)) for begun in (False, True)])
    for few, many in zip(*calls, strict=True):
        assert many - few < (counts[1] - counts[0]) / 100
    tracemalloc.start()
    try:
        images = many_images.start(folder, begun=True)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(images.images) + len(images.held_out) == counts[1]
    assert kept < 250 * counts[1]
    assert peak < 600 * counts[1]


@pytest.mark.skipif("BIMKERN_STRESS" not in os.environ, reason="a million images are for make stress")
def test_a_million_images_start_in_seconds(tmp_path):
    took = [run("fill", tmp_path), *(run("start", tmp_path) for _ in range(2))]
    print(f"CPU seconds and bytes: {took}")
    for seconds, peak in took[1:]:
        assert seconds < SECONDS
        assert peak < BYTES


def run(what, folder, count=1_000_000):
    command = [sys.executable, many_images.__file__, what, f"{folder}", f"{count}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
