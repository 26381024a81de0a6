"""One word a thing: names that were replaced, and words that the manual avoids, stand nowhere in the tree."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".ci", "bench", "bimkern", "csrc", "docs", "examples", "findings", "python", "tests")
SUFFIXES = {".cmake", ".cpp", ".cu", ".h", ".ipynb", ".md", ".py", ".pyi", ".sh", ".toml", ".txt"}

# What is written instead. `_` stands for itself or a space, so names and prose are both found.
WORDS = {
    "anew": "again, new",
    "aloud": "in a line of the log",
    "as_it_likes": "freely",
    "caveats?": "note",
    "composed": "composite",
    "compute_with": "set_compute",
    "courses?": "step layout, segment",
    "durable": "atomic",
    "entrants?": "method",
    "go(es)?_on": "resume, continue",
    r"hidden(?!_(width|size|dim|layers|act|state))": "masked",
    "hid(e|es|ing)": "mask, masking",
    "in_force": "active",
    "judged?": "held-out evaluation, test",
    "learnt": "learned",
    "(compiled|transformer|teacher)_blocks?": "layers",
    "(local|loss_per)_blocks?": "stages",
    "nobody": "the one that is meant: no caller, no reader",
    "of_whom": "of which",
    "outages?": "failure",
    "outlived": "leaked",
    "played": "simulated",
    "set_aside": "quarantined",
    "settles?d?": "freeze, drain",
    "somebody": "the one that is meant: a caller, a user",
    "strayed": "unsynchronized free, other thread",
    "stretch(es)?": "segment; scale",
    "tells?_whether": "return whether",
    "timetable": "step layout",
    "whoever": "the one that is meant: a caller, a user",
    r"class_(Drop|Feed|Found|Lap|Paint|Replace|Sketch|Supply)(?=[(:])": "a noun of the field, such as DropMasked",
}
EXCEPTIONS = {
    ("hidden", "CMakeLists.txt"): "CMake's word for symbols",
    ("hidden", "bench/arena_mlp.py"): "the hidden width of an MLP",
    ("hidden", "bench/eager/network.py"): "the hidden width of an MLP",
    ("hidden", "bimkern/data/sources/image_folder.py"): "files whose name begins with a dot",
    ("hidden", "bimkern/models/layers.py"): "the hidden width of an MLP",
    ("hidden", "python/find_torch.py"): "folders that an isolated build does not see",
    ("hidden", "tests/bench/test_arena_mlp.py"): "the hidden width of an MLP",
    ("hidden", "tests/test_install.py"): "folders that an isolated build does not see",
    ("hides", "python/find_torch.py"): "an isolated build does",
    ("hide", "tests/exporters/test_layouts.py"): "a default hides an omission",
}


def pattern(word):
    spaced = word.replace("_", r"[_\s]")
    return re.compile(rf"(?<![A-Za-z])(?:{spaced})(?![A-Za-z])", re.IGNORECASE)


ANY = pattern("|".join(f"(?:{word})" for word in WORDS))


def words_of(text):
    """Separate the words of camel case."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text)


def texts():
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    top = [path for path in ROOT.iterdir() if path.suffix in SUFFIXES or path.name == "Makefile"]
    return [path for path in sorted({*inside, *top}) if path != Path(__file__).resolve() and path.is_file()]


def test_old_names_stay_away():
    found, needed = [], set()
    for path in texts():
        text, name = words_of(path.read_text()), path.relative_to(ROOT).as_posix()
        for match in ANY.finditer(text):
            key = match[0].lower(), name
            if key in EXCEPTIONS:
                needed.add(key)
                continue
            better = next(better for word, better in WORDS.items() if pattern(word).match(text, match.start()))
            found.append(f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}; better: {better}")
    assert not found, "\n".join(found)
    assert needed == EXCEPTIONS.keys()


@pytest.mark.parametrize("text", ["nobody", "a_run_goes_on", "Hidden", "kNobody", "num_hidden", "class Drop(Base)"])
def test_a_word_is_found_in_names_and_prose(text):
    assert ANY.search(words_of(text))


@pytest.mark.parametrize("text", ["hidden_size", "hidden width", "forbidden", "ongoing", "unhidden"])
def test_other_words_are_not(text):
    assert not ANY.search(words_of(text))
