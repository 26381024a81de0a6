"""The shape of the house: who may import whom, who may know what, and how large a file may grow."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sorted((ROOT / "bimkern").rglob("*.py"))
_WRITTEN = (path for folder in ("csrc", "python", "tests/csrc") for path in (ROOT / folder).rglob("*.*"))
NATIVE = sorted(path for path in _WRITTEN if path.suffix != ".pyc")
SOURCES = [*PYTHON, *NATIVE, *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]

COMMANDS = ("pretrain", "finetune", "probe", "attention", "export", "plan", "pack", "info")
# Every module may import those of the rows above its own, of its own part, and nothing else of the package.
LAYERS = (
    ("image_size",),
    ("annotations", "errors", "abridged"),
    ("rng", "units", "versions", "pieces", "openmp", "output", "watchdog", "distributed", "files", "figures"),
    ("optional",),
    ("torchvision_compat", "ops"),
    ("nn",),
    ("arena", "models"),
    ("mim", "data"),
    ("train.config",),
    ("train.network", "train.device", "train.signals", "train.callbacks"),
    ("train.memory",),
    ("train.graphs",),
    ("train.checkpoint",),
    ("train.sharding",),
    ("train.optim",),
    ("train.run_folder",),
    ("train.reporting",),
    ("exporters",),
    ("importers",),
    ("train.task",),
    ("train.loop",),
    ("train.pipeline",),
    ("train.trainer",),
    ("train.training", "train.pretraining"),
    ("train.run", "train.finetuning"),
    ("evaluate", "dropin", "recipes"),
    ("cli.command",),
    ("cli.config_options", "cli.training", "cli.evaluation", "api"),
    ("cli.finetune_options",),
    COMMANDS,
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
ENGINE = {"errors", "rng", "pieces", "files", "optional", "output", "ops", "nn", "models", "mim"}  # for dropin
METHODS = ("mae", "simmim", "maskfeat", "greenmim", "bim", "fastmim", "localmim", "vitfreeze")
# mae, mae_program, MAEDecoder; not bimkern, nor BIMKERN_CPU.
METHOD_NAME = re.compile(rf"(?!(?i:bimkern))(?i:{'|'.join(METHODS)})([A-Z_].*)?")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def part_of(module):
    """Part of the package that a module (without the leading `bimkern.`) belongs to; None for a package of parts."""
    names = module.split(".")
    return next((part for n in (2, 1) if (part := ".".join(names[:n])) in LEVEL), None)


def module_of(path):
    names = path.relative_to(ROOT / "bimkern").with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


@functools.cache
def imported_modules(path):
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}, line {node.lineno}: imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def without_docstrings(tree):
    """Yield every node but the docstrings, where a paper may be cited by its name."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return (node for node in ast.walk(tree) if id(node) not in docstrings)


def names_in(node):
    """Yield what a node calls things: identifiers and whole strings."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for field in ("id", "attr", "arg", "name"):
        if isinstance(getattr(node, field, None), str):
            yield getattr(node, field)


def test_imports_point_down():
    faults = []
    for path in PYTHON:
        module = module_of(path)
        if module in ("", "train", "cli"):
            continue
        part = part_of(module)
        assert part is not None, f"{module} has no place in the order of the layers: enter it in LAYERS"
        for imported in imported_modules(path):
            root, _, rest = imported.partition(".")
            target = part_of(rest) if root == "bimkern" else None
            if target is None or target == part:
                continue
            if LEVEL[target] >= LEVEL[part] or (part == "dropin" and target not in ENGINE):
                faults.append(f"{name_of(path)} must not import {imported}")
    assert faults == []


@pytest.mark.parametrize(
    ("package", "place"),
    [
        ("nvidia.dali", "bimkern/data/dali.py"),
        ("triton", "bimkern/ops/_triton/"),
        ("matplotlib", "bimkern/figures.py"),  # when something is drawn
    ],
)
def test_a_large_package_is_imported_in_one_place(package, place):
    importing = [
        name_of(path)
        for path in PYTHON
        if any(f"{module}.".startswith(f"{package}.") for module in imported_modules(path))
    ]
    assert importing
    assert [name for name in importing if not name.startswith(place)] == []


@pytest.mark.parametrize("name", ["mae", "mae_program", "MAE_RECIPES", "MAEDecoder", "SimMIM", "bimHead"])
def test_a_method_is_recognized_by_any_spelling(name):
    assert METHOD_NAME.fullmatch(name)
    assert not METHOD_NAME.fullmatch(f"un{name}")
    assert not METHOD_NAME.fullmatch("BIMKERN_CPU")


def test_nothing_below_the_recipes_names_a_method():
    named = {}
    for path in PYTHON:
        if part_of(module_of(path)) in ("recipes", "dropin", *COMMANDS):
            continue
        nodes = without_docstrings(parsed(path))
        if found := {name for node in nodes for name in names_in(node) if METHOD_NAME.fullmatch(name)}:
            named[name_of(path)] = found
    assert named == {}


def test_nothing_unpickles():
    """No module that runs what it reads; torch.load, in code or in what is told to users, takes weights alone."""
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for path in PYTHON:
        source, modules = path.read_text(), {module.partition(".")[0] for module in imported_modules(path)}
        assert not modules & unsafe, name_of(path)
        assert "allow_pickle" not in source, name_of(path)
        for line in re.findall(r".*\btorch\.load\(.*", source):
            assert "weights_only=True" in line, name_of(path)


def test_the_core_knows_neither_torch_nor_python():
    above = ("torch", "ATen", "c10", "Python.h", "pybind11")
    core = [path for path in NATIVE if name_of(path).startswith("csrc")]
    assert core
    for path in core:
        included = re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text())
        assert not [name for name in included if name.startswith(above)], name_of(path)


def test_files_stay_small():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
