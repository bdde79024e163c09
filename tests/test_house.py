"""House rules that no linter knows: which room may import which, what the package exports, what errors say."""

from __future__ import annotations

import ast
import functools
import pickle
import re
import runpy
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

import elman
from elman import errors

ROOT = Path(__file__).resolve().parent.parent
Tree = Callable[[Path], ast.Module]


@pytest.fixture(scope="module")
def tree() -> Tree:
    """A file's syntax, taken apart once for all tests here."""
    return functools.cache(lambda path: ast.parse(path.read_text("utf-8")))


# From the bottom up: a room imports itself and rooms that stand before it. A room is a file or a folder directly
# under elman/; docs/pipeline.md says what each is for.
ROOMS = (
    "errors",
    "caches",
    "_native",  # compiled from native/; it imports nothing
    "circuit",
    "cells",
    "noise",
    "precision",
    "trace",
    "forcing",
    "unfold",
    "adjoint",
    "tangent",
    "vmapped",
    "segments",
    "plan",
    "engines",
    "execute",
    "recurrent",
    "online",
    "nn",
    "data",
    "training",
    "models",
    "draw",
    "export",
    "report",
    "dynamics",
    "verify",
    "tasks",
    "serve",
    "app",
    "__main__",
)

# What `import elman` promises. A name that goes or comes is a line in CHANGELOG.md.
PUBLIC = (
    "Bidirectional",
    "Circuit",
    "ElmanError",
    "Online",
    "Recurrent",
    "Segments",
    "Stack",
    "adjoint",
    "caches",
    "cells",
    "cost",
    "draw",
    "dynamics",
    "explain",
    "export",
    "force",
    "last",
    "machine",
    "models",
    "nn",
    "pair",
    "plan",
    "pool",
    "tangent",
    "trace",
    "truncated",
    "unfold",
    "verify",
)


def room_of(module: str) -> str:
    """The room a dotted name lies in: "circuit" for "elman.circuit.form", "" for "elman" itself."""
    return module.removeprefix("elman").removeprefix(".").partition(".")[0]


def imports(source: str | ast.Module, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything of elman's that a module imports, wherever in the file it does so.

    `from elman.a import b` is given as "elman.a.b": whether b is a module or a name in one makes no difference
    to the room it lies in. Imports under `if TYPE_CHECKING` and inside functions count: they are how an order
    is evaded.
    """
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source) if isinstance(source, str) else source):
        found: list[str] = []
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names]
            case ast.ImportFrom(module=base, names=names, level=level):
                if level:
                    start = package.split(".")[: len(package.split(".")) - (level - 1)]
                    base = ".".join([*start, *([base] if base else [])])
                found = [f"{base}.{alias.name}" for alias in names]
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="__import__")):
                found = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        for name in found:
            if name == "elman" or str(name).startswith("elman."):
                yield node.lineno, name


def wrong_imports(files: Mapping[str, str | ast.Module]) -> list[str]:
    """What is wrong with the imports of `files` (path under elman/ -> source), one line each."""
    wrong = []
    for path, source in sorted(files.items()):
        parts = Path(path).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(("elman", *(parts[:-1] if is_package else parts)))
        here = room_of(module)
        if module == "elman":
            continue  # the door: it re-exports from every room
        if here not in ROOMS:
            wrong.append(f"elman/{path}: '{here}' is no room; they and their order stand in ROOMS")
            continue
        for line, name in imports(source, module, is_package):
            at, there = f"elman/{path}:{line}", room_of(name)
            if there not in ROOMS:
                wrong.append(f"{at}: imports '{name}' through the door; import it from its room")
            elif ROOMS.index(there) > ROOMS.index(here):
                wrong.append(f"{at}: '{here}' imports '{name}', but {there} stands above {here}")
    return wrong


def test_imports_point_one_way(tree: Tree) -> None:
    package = ROOT / "elman"
    files = {str(path.relative_to(package)): tree(path) for path in package.rglob("*.py")}
    assert "errors.py" in files, "the sources of elman were not found"
    assert wrong_imports(files) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("circuit.py", "import elman.plan", "elman/circuit.py:1: 'circuit' imports 'elman.plan'"),
        ("circuit/form.py", "import math, elman.plan.cut as cut", "'circuit' imports 'elman.plan.cut'"),
        ("circuit/form.py", "from elman.plan import plan", "'circuit' imports 'elman.plan.plan'"),
        ("plan.py", "from elman import app", "'plan' imports 'elman.app'"),
        ("plan.py", "from . import app", "'plan' imports 'elman.app'"),
        ("plan.py", "from .app.cli import main", "'plan' imports 'elman.app.cli.main'"),
        ("plan/cut.py", "from ..app import cli", "'plan' imports 'elman.app.cli'"),
        ("plan/__init__.py", "from ..app import cli", "'plan' imports 'elman.app.cli'"),
        (
            "training.py",
            "def fit():\n    from elman.models import Tagger",
            "training.py:2: 'training' imports",
        ),
        ("errors.py", "if TYPE_CHECKING:\n    from elman.plan import Plan", "errors.py:2: 'errors' imports"),
        ("trace.py", 'importlib.import_module("elman.execute")', "'trace' imports 'elman.execute'"),
        ("recurrent.py", "from elman import Circuit", "through the door"),
        ("recurrent.py", "import elman", "through the door"),
        ("utils.py", "import math", "'utils' is no room"),
        ("misc/text.py", "import math", "'misc' is no room"),
    ],
)
def test_a_wrong_import_is_found(path: str, source: str, complaint: str) -> None:
    found = wrong_imports({path: source})
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__init__.py", "from elman.app import cli\nfrom elman.recurrent import Recurrent"),
        ("app/cli.py", "from elman import models\nfrom elman.errors import ElmanError"),
        ("plan/__init__.py", "from elman.plan.cut import cut\nfrom .stages import split"),
        ("plan/cut.py", "from ..circuit import Circuit\nfrom . import stages\nimport networkx"),
        ("models/language.py", "from elman.training import fit\nfrom elman.data import Text"),
        ("tasks/lm.py", "from elman.models import LanguageModel\nfrom elman.report import Part"),
        ("circuit.py", "import elmanesque\nfrom elmanesque.plan import x\nimportlib.import_module(name)"),
    ],
)
def test_a_right_import_is_let_through(path: str, source: str) -> None:
    assert wrong_imports({path: source}) == []


# What reads a file of anybody's, or runs what it names, and where alone it may stand (under elman/).
DOORS = {
    "json.loads": {
        "data/schema.py",
        "data/tokenizer.py",
        "data/cache.py",
    },  # of a tokenizer that is there; of a cache
    "safe_open": {"training/weights.py"},
    "torch.load": set(),
    "pickle": set(),
    "importlib.import_module": {
        "__init__.py",
        "models/find.py",
        "tasks/__init__.py",
    },  # two of them: elman's own
    "exec": {
        "models/find.py",
        "engines/python.py",
    },  # the latter: what elman wrote itself
    "eval": set(),
    "find_cells": {"models/stack.py"},
    "find_cell": {
        "models/find.py",
        "models/__init__.py",
        "app/seeing.py",
    },  # the last: of a command's own argument
}


def test_files_of_others_come_in_by_known_doors(tree: Tree) -> None:
    found: dict[str, set[str]] = {name: set() for name in DOORS}
    last = re.compile("|".join(rf"\b{name.rpartition('.')[2]}\b" for name in DOORS))
    for path in sorted((ROOT / "elman").rglob("*.py")):
        for node in ast.walk(tree(path)) if last.search(path.read_text("utf-8")) else ():
            names = [ast.unparse(node.func)] if isinstance(node, ast.Call) else []
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names += [alias.name for alias in node.names]
            for name in DOORS.keys() & set(names):
                found[name].add(path.relative_to(ROOT / "elman").as_posix())
    assert found == DOORS


def test_training_knows_no_task() -> None:
    words = re.compile(r"\b(tokenizers?|tokens?|nats|symbols?|texts?\b(?!\())\b")
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted((ROOT / "elman" / "training").glob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if words.search(line) and not line.startswith(("from elman.data.schema import", "from rich."))
    ]
    assert found == []


def test_the_house_is_drawn_as_it_stands(tree: Tree) -> None:
    house = runpy.run_path(str(ROOT / "docs" / "house.py"))
    assert house["HERE"].read_text("utf-8") == house["draw"](tree), "python docs/house.py draws it anew"


def test_shares_are_written_alike() -> None:
    """93.6 %: `elman.training.measure.percent`, not Python's own form, which leaves no room."""
    wrong = [
        path for path in sorted((ROOT / "elman").rglob("*.py")) if re.search(r":[\d.]+%}", path.read_text())
    ]
    assert wrong == []


def test_version_is_said_once() -> None:
    """In elman/__init__.py, where the build reads it; and the changelog has a section for it, or is ahead of it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    sections = re.findall(r"^## \[(.+?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert sections[0][0] == elman.__version__
    assert f"\nversion: {elman.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_every_extra_is_told_of() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    (row,) = re.findall(r"\| extras \| (.*?): ", (ROOT / "docs" / "install.md").read_text("utf-8"))
    assert sorted(re.findall(r"\[(\w+)\]", row)) == sorted(extras)
    assert runpy.run_path(str(ROOT / "tests" / "installed.py"))["EXTRAS"] == set(extras)


def test_torch_is_pinned_without_a_local_version() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if pin.startswith("torch==")] != []
    assert [pin for pin in pins if "==" not in pin or "+" in pin] == []


def test_public_names() -> None:
    assert tuple(sorted(elman.__all__)) == PUBLIC
    assert [name for name in PUBLIC if not hasattr(elman, name)] == []


def test_names_are_imported_late_from_where_type_checkers_find_them() -> None:
    tree = ast.parse((ROOT / "elman" / "__init__.py").read_text("utf-8"))
    said = {
        alias.name: (node.module or "").removeprefix("elman").removeprefix(".")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("elman")
        for alias in node.names
    }
    assert {name: home for name, home in said.items() if home} == elman._HOMES
    assert set(said) == set(PUBLIC)
    assert set(PUBLIC) <= set(dir(elman))
    assert not hasattr(elman, "nothing")


@pytest.mark.parametrize("name", ["adjoint", "draw", "export", "plan", "trace", "unfold", "verify"])
def test_a_function_is_not_hidden_by_its_room(name: str) -> None:
    """elman.plan is the function; the room of the same name is imported as `from elman.plan import …`."""
    assert not isinstance(getattr(elman, name), types.ModuleType)


def test_an_error_says_what_where_and_how_to_mend_it() -> None:
    error = errors.InputError("x is too narrow", where="x", got=(7, 3), expected="[T, B]", mend="widen it")
    assert str(error) == "x is too narrow\n  where: x\n  got: (7, 3)\n  expected: [T, B]\n  mend: widen it"
    assert str(errors.TraceError("it branches on data", cell="Leaky")) == "Leaky: it branches on data"


@pytest.mark.parametrize("kind", [errors.TraceError, errors.InputError, errors.NotSupported])
def test_an_error_survives_a_process(kind: type[errors.ElmanError]) -> None:
    error = kind("no", where="there", mend="go on")
    if isinstance(error, errors.TraceError):
        error.cell = "Leaky"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)


def test_every_error_has_one_root() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 5
    assert [kind for kind in kinds if not issubclass(kind, (errors.ElmanError, Warning))] == []


def test_poisoned_memory_is_nan(poisoned: None) -> None:
    assert torch.empty(3, 2).isnan().all()
