"""Sizes of images: read, printed, saved and set."""

from dataclasses import replace

import pytest

from bimkern.data.step_layout import Phase, Segment
from bimkern.image_size import ImageSize
from bimkern.models.vit import VIT_TINY, ViTConfig
from bimkern.pieces import PieceError, from_json, to_json
from bimkern.recipes import RECIPES
from bimkern.train.config import serialize
from bimkern.train.config.overrides import with_overrides
from bimkern.train.config.run import ConfigError

MAE = RECIPES["mae_vit_test"].config
OBLONG = replace(VIT_TINY, image_size="160x320")


@pytest.mark.parametrize("value", [224, "224", " 224 ", "224x224", (224, 224), [224, 224], ImageSize(224, 224)])
def test_a_square_is_one_number(value):
    size = ImageSize.read(value)
    assert size == ImageSize.square(224)
    assert (str(size), size.saved, size.as_argument, size.is_square) == ("224", 224, 224, True)


@pytest.mark.parametrize("value", ["160x320", "160X320", "160 x 320", (160, 320), [160, 320]])
def test_a_rectangle_is_height_times_width(value):
    size = ImageSize.read(value)
    assert (size.height, size.width, size.pixels) == (160, 320, 160 * 320)
    assert (str(size), size.saved, size.as_argument) == ("160x320", "160x320", (160, 320))
    assert f"{size} px" == "160x320 px"
    assert ImageSize.read(size.saved) == size
    assert [size.is_multiple(patch) for patch in (16, 32, 160, 320)] == [True, True, True, False]


@pytest.mark.parametrize(
    "value", ["", "x", "16x", "16x32x3", "-16", "a", "1.5", True, 1.5, None, (), (1, 2, 3), (1, "2")]
)
def test_anything_else_is_refused(value):
    with pytest.raises(
        ValueError, match=r"side must be the side of a square in pixels, such as 224, or height x width"
    ):
        ImageSize.read(value, "side")


@pytest.mark.parametrize("value", [0, -1, "0", "16x0", (0, 16), (16, -1)])
def test_both_sides_are_at_least_one(value):
    with pytest.raises(ValueError, match=r"side must be at least 1, got"):
        ImageSize.read(value, "side")


def test_whatever_holds_a_size_reads_it():
    assert OBLONG.image_size == Segment(image_size="160x320", batch_size=1, micro_batch=1).image_size == (160, 320)
    assert (OBLONG.grid, VIT_TINY.grid) == ((10, 20), (14, 14))
    assert OBLONG.resized(224) == VIT_TINY
    with pytest.raises(
        ValueError, match=r"ViTConfig: image_size must be the side of a square in pixels, .*; got '16x'"
    ):
        replace(VIT_TINY, image_size="16x")
    with pytest.raises(ValueError, match="ViTConfig: image_size must be a multiple of patch=16, got 160x200"):
        replace(VIT_TINY, image_size="160x200")
    with pytest.raises(ValueError, match="Phase: image_size must be at least 1, got 0"):
        Phase(share=1.0, image_size=0)


def test_files_of_squares_stay_as_they_were():
    assert to_json(VIT_TINY)["image_size"] == 224
    assert to_json(OBLONG)["image_size"] == "160x320"
    for saved in (160, "160", "160x160", [160, 160]):
        assert from_json({"image_size": saved, "width": 8, "depth": 1, "num_heads": 1}, ViTConfig, "vit").grid == (
            10,
            10,
        )
    for config in (VIT_TINY, OBLONG):
        assert from_json(to_json(config), ViTConfig, "vit") == config
    with pytest.raises(PieceError, match=r"vit.image_size: must be the side of a square in pixels, or height x width"):
        from_json(to_json(OBLONG) | {"image_size": "160x"}, ViTConfig, "vit")


@pytest.mark.parametrize("value", ["32x64", (32, 64), ImageSize(32, 64)])
def test_a_config_is_set_to_a_rectangle(value):
    config = with_overrides(MAE, {"method.encoder.image_size": value})
    assert config.image_size == (32, 64)
    assert serialize.from_json(serialize.to_json(config)) == config
    assert serialize.differences(serialize.to_json(MAE), serialize.to_json(config)) == [
        "method.encoder.image_size: 32 before, 32x64 now"
    ]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "method.encoder.image_size",
            "method.encoder.image_size: must be the side of a square in pixels, or height x width",
        ),
        ("method.encoder.image_size.height", "method.encoder.image_size has no fields"),
    ],
)
def test_a_config_refuses_what_is_no_size(path, words):
    with pytest.raises(ConfigError, match=words):
        with_overrides(MAE, {path: "12 by 3"})


def test_an_encoder_of_a_users_own_must_have_such_a_size():
    encoder = replace(MAE.method.encoder)
    object.__setattr__(encoder, "image_size", 32)
    with pytest.raises(ValueError, match=r"ViTConfig: image_size must be an ImageSize of bimkern.image_size, got 32"):
        replace(MAE.method, encoder=encoder)
