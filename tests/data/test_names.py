"""Names in one string of bytes behave as a list of names; suffixes and dot files are found in all at once."""

import pickle
import random

import numpy as np
import pytest

from bimkern.data.names import Names
from bimkern.data.reasons import Reasons
from bimkern.data.suffixes import are_dot_files, is_dot_file, suffix_of, suffixes_of

ODD = ["", "a.jpg", "caf\udce9.jpg", "größe.png", "\udc80x", "漢字", "\uffff", "a/.b/c.JPG", "...", "x.", "y.tar.gz"]


def random_names(seed):
    """Names of few characters, so that all cases of dots, slashes and capitals come up, and some that are no text."""
    rng = random.Random(seed)
    parts = ["a", "B", ".", "/", "..", ".jpg", ".JPEG", ".npy", "ä", "\udce9", "\0", "\u212a", "0123456789"]
    return sorted({"".join(rng.choices(parts, k=rng.randint(0, 6))) for _ in range(400)})


@pytest.mark.parametrize("listed", [[], [""], ["a"], sorted(ODD), random_names(0), random_names(1)], ids=len)
def test_they_are_a_sequence_of_text(listed):
    names = Names.of(iter(listed))
    assert (list(names), len(names), bool(names)) == (listed, len(listed), bool(listed))
    assert names == listed
    assert names == tuple(listed)
    assert [names[i] for i in range(-len(listed), len(listed))] == 2 * listed
    assert names[1:-1:2] == listed[1:-1:2]
    assert names != [*listed, "more"]
    assert pickle.loads(pickle.dumps(names)) == names
    assert Names.of(names) is names
    assert names.ascend
    assert [names.index_of(name) for name in listed] == list(range(len(listed)))
    assert names.index_of("a name that is not there") is None


@pytest.mark.parametrize("seed", range(4))
def test_some_of_them_are_found_and_taken_by_number_by_mask_and_by_name(seed):
    listed, rng = random_names(seed), np.random.default_rng(seed)
    names, mask = Names.of(listed), rng.random(len(listed)) < 0.3
    some = [name for name, is_in in zip(listed, mask, strict=True) if is_in]
    assert names.where(mask) == names.take(np.flatnonzero(mask)) == some
    assert names.where(np.ones(len(names), dtype=bool)) is names
    order = rng.permutation(len(names))
    assert names.take(order) == [listed[i] for i in order]
    assert names.indexes_of(names.take(order)).tolist() == order.tolist()
    assert names.indexes_of(names).tolist() == list(range(len(names)))
    assert Names.of(some).indexes_of(names).tolist() == [some.index(name) if name in some else -1 for name in listed]
    rest = [name for name in listed if name not in some]
    whole, places = Names.of(rest).inserted(some)
    assert whole == listed
    assert np.insert(np.array(rest, dtype=object), places, some).tolist() == listed


def test_an_end_of_one_name_and_the_begin_of_the_next_make_no_character():
    assert not Names.joined_from([b"a\xc3", b"\xa9b"]).is_text
    assert Names.of(["ä", "漢"]).is_text
    assert not Names.of(["\udcff"]).is_text


def test_names_in_disorder_do_not_ascend():
    assert not Names.of(["b", "a"]).ascend
    assert not Names.of(["a", "a"]).ascend
    assert not Names.of(["\udc80", "\uffff", "a"]).ascend
    with pytest.raises(AssertionError):
        Names.of(["b", "a"]).index_of("a")


@pytest.mark.parametrize("listed", [[], [""], ["."], sorted(ODD), *map(random_names, range(4))], ids=len)
def test_suffixes_and_dot_files_are_those_of_each_name(listed):
    numbers, suffixes = suffixes_of(Names.of(listed))
    assert [suffixes[i] for i in numbers] == [suffix_of(name) for name in listed]
    assert are_dot_files(Names.of(listed)).tolist() == [is_dot_file(name) for name in listed]


def test_reasons_are_a_mapping_and_files_may_be_added_to_them():
    plain = {"b.jpg": None, "a.txt": "text", "d.txt": "text", "c.npy": None, "e": "other"}
    reasons = Reasons.of(plain)
    assert dict(reasons) == plain
    assert list(reasons) == sorted(plain)
    assert reasons.names.where(reasons.images) == ["b.jpg", "c.npy"]
    assert "x" not in reasons
    others = reasons.where(~reasons.images)
    assert {key: list(files) for key, files in others.alike().items()} == {
        (".txt", "text"): ["a.txt", "d.txt"],
        ("without suffix", "other"): ["e"],
    }
    assert others.count() == {".txt": 2, "without suffix": 1}
    more = others.joined({"b.raw": "raw", "a.txt": "known already", "zz": "text"})
    assert dict(more) == {"a.txt": "text", "b.raw": "raw", "d.txt": "text", "e": "other", "zz": "text"}
    assert list(more) == sorted(more)
    assert others.joined({}) is others
    assert dict(reasons.skip(".npy", "array")) == plain | {"c.npy": "array"}
    assert dict(reasons.skip(".gif", "animated")) == plain
    assert Reasons.of({}).count() == {}
    assert Reasons.of({}).joined({"a": "b"}) == {"a": "b"}
