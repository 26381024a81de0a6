"""--normalize: the statistics of the data are measured once, and used wherever the run's images are."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from spectral import smooth_levels, write_spectral

from bimkern.api import pretrain
from bimkern.data.decoding import Decoding
from bimkern.data.listing import list_images
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.statistics import measure
from bimkern.exporters.trained import read_trained
from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD
from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.train.config.overrides import with_overrides
from bimkern.train.config.run import ConfigError

QUICK = {"batch_size": 4, "workers": 0, "arena": "off"}


@pytest.fixture
def photos(tmp_path):
    return write_spectral(tmp_path / "photos", channels=3)


def measured(folder, channels=3, workers=0):
    listing = list_images(ImageFolder(paths=(folder,)), Decoding(channels=channels))
    return measure(listing, workers=workers)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_they_are_those_of_the_pixels_for_any_number_of_workers(tmp_path, channels):
    folder = write_spectral(tmp_path / "images", channels)
    pixels = np.stack([smooth_levels(channels=channels, seed=i) for i in range(12)]).reshape(-1, channels) / 255
    found = measured(folder, channels)
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), atol=5.1e-5)  # four digits
    np.testing.assert_allclose(found.std, pixels.std(axis=0), atol=5.1e-5)
    assert measured(folder, channels, workers=2) == found


def test_measuring_takes_no_memory_beside_the_image(tmp_path):
    Image.new("RGB", (1000, 800), (255, 51, 0)).save(tmp_path / "large.png")
    tracemalloc.start()
    try:
        found = measured(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1000 * 800
    finally:
        tracemalloc.stop()
    assert (found.mean, found.std) == ((1, 0.2, 0), (0, 0, 0))


def test_bad_images_are_left_out(photos):
    expected = measured(photos)
    (photos / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert measured(photos) == expected


def test_a_run_resumes_with_what_it_measured_and_exports_it(photos, tmp_path):
    options = QUICK | {"data": photos, "out": tmp_path / "run", "normalize": "dataset"}
    expected = measured(photos)
    pretrain("mae_vit_test", steps=1, **options)
    saved = json.loads((tmp_path / "run" / "normalization.json").read_text())
    assert saved == {"mean": list(expected.mean), "std": list(expected.std)}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"]["mean"] == saved["mean"]
    _, trained = read_trained(tmp_path / "run")
    assert (trained.preprocessing.mean, trained.preprocessing.std) == (expected.mean, expected.std)
    (tmp_path / "run" / "normalization.json").write_text(json.dumps({"mean": [0.1] * 3, "std": [0.5] * 3}))
    with pytest.raises(ConfigError, match=r"other settings \(method.mean.*before, .*0.1.* now"):  # it is read
        pretrain("mae_vit_test", steps=1, **options)
    (tmp_path / "run" / "normalization.json").write_text(json.dumps(saved))
    outcome = pretrain("mae_vit_test", steps=2, extend=True, **options)
    assert outcome.config.method.mean == expected.mean


def test_a_file_and_imagenet(photos, tmp_path):
    (tmp_path / "own.json").write_text('{"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}')
    options = QUICK | {"data": photos, "steps": 1}
    outcome = pretrain("mae_vit_test", out=tmp_path / "a", normalize=str(tmp_path / "own.json"), **options)
    assert (outcome.config.method.mean, outcome.config.method.std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    outcome = pretrain("mae_vit_test", out=tmp_path / "b", normalize="imagenet", **options)
    assert (outcome.config.method.mean, outcome.config.method.std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"--normalize must be imagenet, dataset, or a JSON file, got .*own.json \(No such file"),
        ("[1]", r'--normalize .*own.json: expected a JSON object \{"mean"'),
        ('{"mean": [0.5], "std": [0.2]}', r"--normalize .*own.json: Method: mean must"),
    ],
)
def test_mistakes_are_one_line(photos, tmp_path, content, message):
    if content is not None:
        (tmp_path / "own.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        pretrain("mae_vit_test", data=photos, out=tmp_path / "run", normalize=str(tmp_path / "own.json"))


def test_images_of_one_color_have_no_std(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "black.png")
    with pytest.raises(ConfigError, match=r"--normalize dataset: Method: std must"):
        pretrain("mae_vit_test", data=tmp_path, out=tmp_path.parent / "run", normalize="dataset")


@pytest.mark.parametrize("given", [["--mean", "0.5", "0.5", "0.5"], ["--set", "method.mean=0.5,0.5,0.5"]])
@pytest.mark.parametrize("normalize", [["--normalize", "dataset"], ["--set", "run.normalize=dataset"]])
def test_mean_and_normalize_contradict_each_other(given, normalize, capsys):
    with pytest.raises(SystemExit):
        main(["mae_vit_test", *normalize, *given] if given[0] != normalize[0] else ["mae_vit_test", *given, *normalize])
    assert (
        "--normalize dataset and method.mean both say how images are normalized; give one of them, or --normalize none"
        in capsys.readouterr().err
    )


def test_with_other_channels_it_needs_no_mean(tmp_path):
    data = write_spectral(tmp_path / "images", channels=5)
    changes = {"method.encoder.channels": 5}
    options = QUICK | {"data": data, "out": tmp_path / "run", "steps": 1}
    with pytest.raises(ConfigError, match=r"mean must hold a value for each of the encoder's 5 channels"):
        pretrain("mae_vit_test", set=changes, **options)
    outcome = pretrain("mae_vit_test", set=changes, normalize="dataset", **options)
    assert outcome.config.method.mean == measured(data, 5).mean


def test_so_they_do_from_python_and_beside_a_config_that_has_it(photos, tmp_path):
    message = "--normalize imagenet and method.std both say how images are normalized"
    changes = {"method": {"std": (1, 2, 3)}}
    with pytest.raises(ConfigError, match=message):
        pretrain("mae_vit_test", data=photos, out=tmp_path / "run", normalize="imagenet", set=changes)
    recipe = RECIPES["mae_vit_test"].config
    recipe = replace(recipe, run=replace(recipe.run, normalize="imagenet"))
    with pytest.raises(ConfigError, match=message):
        with_overrides(recipe, {"method.std": "1,2,3"})
    assert with_overrides(recipe, {"method.std": "1,2,3", "run.normalize": "none"}).method.std == (1, 2, 3)
