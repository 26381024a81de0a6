"""Addresses, and what messages show of them."""

from pathlib import Path

import pytest
import torch

from bimkern import attention, probe
from bimkern.data.addresses import without_passwords
from bimkern.evaluate.labeled import Labeled, Part, Unlabeled
from bimkern.train.reporting.scalars import hyperparameters


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://eve:sesame@host/photos", "ftp://eve@host/photos"),
        ("ftp://eve:ses@me@host/photos", "ftp://eve@host/photos"),
        ("http:/eve:sesame@host/photos", "http:/eve@host/photos"),  # a Path has dropped a slash
        ("ftp://:sesame@host", "ftp://@host"),
        ("cannot read ftp://a:b@h/x, ftp://c:d@h/y", "cannot read ftp://a@h/x, ftp://c@h/y"),
        ("ftp://host:21/a@b", "ftp://host:21/a@b"),
        ("ftp://host:21, as a@b says", "ftp://host:21, as a@b says"),
        ("hf://datasets/a/b@main", "hf://datasets/a/b@main"),
        ("/photos/a:b@c", "/photos/a:b@c"),
    ],
)
def test_a_text_without_passwords_is_otherwise_the_same(text, shown):
    assert without_passwords(text) == shown


def test_loggers_get_no_password():
    config = {"run": {"data": "http:/eve:sesame@host/photos", "steps": 4, "val": None}}
    assert hyperparameters(config) == {"run.data": "http:/eve@host/photos", "run.steps": 4}


@pytest.mark.parametrize("program", [probe, attention])
def test_a_table_names_its_images_without_a_password(program, monkeypatch):
    monkeypatch.setattr(program, "to_table", lambda _: "a table")
    options = program.Options(runs=(Path("run"),), data=Path("ftp://eve:sesame@host/photos"))
    part = Part(labels=torch.zeros(1), read=lambda *_: None)
    labeled, unlabeled = Labeled(classes=("ant", "bee"), train=part, test=part), Unlabeled(count=1, read=part.read)
    assert program._text(options, labeled if program is probe else unlabeled, {}).startswith("ftp://eve@host/photos: ")
