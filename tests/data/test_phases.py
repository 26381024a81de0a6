"""Phases as numbers: where they begin, what their steps are like, and which are impossible."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from bimkern.data.step_layout import Phase
from bimkern.recipes import RECIPES
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import differences, from_json, to_json

IMAGENET = 1_281_167
CONFIG = RECIPES["fastmim_p_vit_test"].config


def table(config, num_images, **options):
    return replace(config, run=replace(config.run, **options)).step_layout(num_images)


def begins(config, num_images, **options):
    return [segment.first_step for segment in table(config, num_images, **options).segments]


def with_phases(*phases, **options):
    return replace(CONFIG, phases=phases, run=replace(CONFIG.run, **options))


@pytest.mark.parametrize("name", ["fastmim_p_vit_large", "bim_fastmim_p_vit_base"])
def test_the_published_phases_begin_at_their_epochs(name):
    config = RECIPES[name].config
    found = config.step_layout(IMAGENET)
    assert [segment.image_size.height for segment in found.segments] == [128, 160, 192]
    assert config.method.encoder.image_size.height == 192
    for segment, epoch in zip(found.segments, (0, 500, 700), strict=True):
        assert abs(segment.first_image - epoch * IMAGENET) <= 2048 / 2
        assert segment.batch_size == 2048
    assert abs(found.num_images() - 800 * IMAGENET) <= 2048 / 2
    # 64, 100 and 144 patches an image: as many at a time, or a few less.
    patches = [segment.micro_batch * segment.image_size.height**2 for segment in found.segments]
    assert all(0.99 * patches[0] < count <= patches[0] for count in patches)


def test_options_keep_the_shares():
    # 8, 3.2 and 1.6 epochs of 100 images, to the epoch, in steps of 10, 20 and 1.
    phases = (
        Phase(share=0.625, image_size=32),
        Phase(share=0.25, image_size=48, batch_factor=2),
        Phase(share=0.125, image_size=64, batch_factor=0.1),
    )
    config = with_phases(*phases, batch_size=10)
    assert begins(config, 100, epochs=12.8, steps=None) == [0, 80, 80 + 15]
    assert table(config, 100, epochs=12.8, steps=None).num_steps == 80 + 15 + 180
    assert begins(config, 100, epochs=8, steps=None) == [0, 50, 50 + 10]
    assert begins(config, 100, epochs=8, steps=None, batch_size=20) == [0, 25, 25 + 5]
    # As many steps as 8 epochs take.
    assert begins(config, 100, steps=50 + 10 + 100) == [0, 50, 50 + 10]
    assert table(config, 100, steps=50 + 10 + 100).num_steps == 160


def test_a_phase_begins_at_the_step_nearest_to_its_epoch():
    config = with_phases(Phase(share=0.5, image_size=32), Phase(share=0.5, image_size=64))
    assert begins(config, 101, epochs=4, steps=None, batch_size=8) == [0, 25]  # image 200; epoch 2 begins at 202
    assert begins(config, 102, epochs=4, steps=None, batch_size=8) == [0, 26]  # image 208, at 204


def test_where_there_are_no_whole_epochs_steps_are_shared():
    assert begins(CONFIG, 10_000, steps=16) == [0, 10, 14]
    assert begins(CONFIG, 10_000, epochs=1, steps=None, batch_size=1000) == [0, 6, 9]
    assert begins(CONFIG, 10_000, steps=3) == [0, 1, 2]
    assert begins(CONFIG, 1, epochs=0.1, steps=None) == [0, 1, 2]


def test_segments_leave_no_gap_whatever_the_options():
    for seed in range(300):
        draw = random.Random(seed)
        cuts = sorted(draw.random() for _ in range(draw.randrange(3)))
        shares = [end - begin for begin, end in pairwise([0, *cuts, 1])]
        sizes = [*draw.choices([32, 48, 64], k=len(cuts)), 64]
        factors = draw.choices([0.3, 1, 2.5], k=len(shares))
        config = with_phases(
            *(
                Phase(share=share, image_size=size, batch_factor=factor, micro_factor=draw.choice([0.2, 1, 3]))
                for share, size, factor in zip(shares, sizes, factors, strict=True)
            )
        )
        options = {"batch_size": draw.randrange(1, 40), "micro_batch": draw.choice([None, 1, 7, 50])}
        steps = draw.choice([None, len(shares) + draw.randrange(60)])
        found = table(config, draw.randrange(1, 500), steps=steps, epochs=draw.uniform(0.01, 9), **options)
        assert all(length >= 1 for length in found.lengths())
        assert sum(found.lengths()) == found.num_steps == (steps or found.num_steps)
        assert all(1 <= segment.micro_batch <= segment.batch_size for segment in found.segments)
        for (before, after), length in zip(pairwise(found.segments), found.lengths(), strict=False):
            assert after.first_step == before.first_step + length
            assert after.first_image == before.first_image + length * before.batch_size
            assert after.first_index == before.first_index + length * before.per_step


def test_progress_counts_images_and_is_that_of_steps_where_the_batch_stays():
    found = table(CONFIG, 100, steps=16)
    assert [found.progress(step) for step in range(16)] == [(step + 0.5) / 16 for step in range(16)]
    halves = with_phases(Phase(share=0.5, image_size=32), Phase(share=0.5, image_size=64, batch_factor=2), batch_size=5)
    found = table(halves, 100, epochs=2, steps=None)
    assert found.num_steps == 30
    assert found.progress(19) == 0.4875
    assert found.progress(20) == 0.525


def test_phases_survive_being_saved_and_are_part_of_what_a_run_computes():
    assert from_json(to_json(CONFIG)) == CONFIG
    other = replace(CONFIG, phases=(replace(CONFIG.phases[0], micro_factor=0.5), *CONFIG.phases[1:]))
    assert differences(to_json(CONFIG), to_json(other)) != []
    plain = to_json(RECIPES["mae_vit_test"].config)
    older = {name: value for name, value in plain.items() if name != "phases"}
    assert differences(older, plain) == []
    assert from_json(older).phases == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0}, r"Phase: share must be in \(0, 1\], got 0"),
        ({"share": 1.5}, r"Phase: share must be in \(0, 1\], got 1.5"),
        ({"batch_factor": 0}, "Phase: batch_factor must be above 0 and finite, got 0"),
        ({"micro_factor": -1.0}, "Phase: micro_factor must be above 0 and finite, got -1.0"),
        ({"batch_factor": float("inf")}, "Phase: batch_factor must be above 0 and finite, got inf"),
    ],
)
def test_impossible_phases_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Phase(**{"share": 1, "image_size": 64} | values)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([(0.5, 32), (0.4, 64)], "Config: the shares of the phases must add up to 1, got 0.9"),
        ([(0.5, 64), (0.5, 48)], "Config: the last phase must have the encoder's image_size=64, got 48"),
        ([(0.5, 40), (0.5, 64)], "ViTConfig: image_size must be a multiple of patch=16, got 40"),
        (
            [(0.5, 16), (0.5, 64)],
            "BlockPixels: ratio must mask at least 1 and leave at least 1 of 1 mask units, got 0.75",
        ),
    ],
)
def test_impossible_successions_are_named(phases, message):
    with pytest.raises(ValueError, match=message):
        with_phases(*(Phase(share=share, image_size=size) for share, size in phases))


def test_fewer_steps_than_phases_are_refused():
    message = "--steps must be at least 3, one for every phase of fastmim_p_vit_test, got 2"
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, run=replace(CONFIG.run, steps=2))
