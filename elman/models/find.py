"""A cell by its name: one that we ship, or anybody's class in a file or a package."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from elman import cells
from elman.data.files import read_file
from elman.errors import ElmanError, InputError, InputTypeError, did_you_mean, expect

MakeCell = Callable[[int, int], nn.Module]  # (input width, hidden width) -> cell

SHIPPED: dict[str, MakeCell] = {
    "elman": cells.Elman,
    # The output carries the recurrence: as wide as the hidden layer, so that nothing is lost in it.
    "jordan": lambda n_in, n_hidden: cells.Jordan(n_in, n_hidden, n_hidden),
    "gru": cells.GRU,
    "lstm": cells.LSTM,
    "leaky": cells.Leaky,
}
_NAMES: dict[type, str] = {
    cells.Elman: "elman", cells.Jordan: "jordan", cells.GRU: "gru", cells.LSTM: "lstm", cells.Leaky: "leaky",
}  # fmt: skip
_FROM_FILE = "elman_cell_"  # beginning of the names of modules that are files
_FORMS = f"one of {', '.join(SHIPPED)}, or path.py:Class, or package.module:Class"
_SOURCE = 2**26  # bytes of a file with a cell's code


@dataclass(frozen=True)
class Code:
    """The file with a cell's code, which was read and not run. digest: SHA-256 of it, in hexadecimal."""

    path: Path
    content: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def code_of(name: str) -> Code | None:
    """The file that a cell's name leads to; None for a shipped cell, and for a package without a file.

    Nothing in it is run, nor in the packages around it. Raises InputError or DataError where there is none.
    """
    if name in SHIPPED:
        return None
    place, _ = _place(name)
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise InputError(
                what="there is no such file",
                where=place,
                mend="give the path of the file with the cell's class; of a model that was saved, --cell "
                "(Python: cell=) says where that is now",
            )
        return Code(Path(place).resolve(), _source(Path(place)))
    with _importing(place, Path.cwd()):
        path = _file_of(place)
    return None if path is None else Code(path, _source(path))


def digest_of(name: str) -> str | None:
    """The digest of the file that a cell's name leads to; None for a shipped cell, and where there is no file."""
    try:
        code = code_of(name)
    except ElmanError:
        return None
    return None if code is None else code.digest


def allow(
    name: str, known: str | None, *, trust: bool, notify: Callable[[str], None] | None, where: object
) -> None:
    """Let the cell of a model that was saved pass only if it is elman's own, or trusted.

    known: the digest of its file when the model was trained. notify: is given a line with the file and its digest,
    before anything of it runs; None: the logger "elman". where: the model's. Raises InputError where it is not trusted.
    """
    if name in SHIPPED:
        return
    try:
        code = code_of(name)
    except ElmanError as error:
        error.where, error.got = f"{where}, cell", name
        raise
    source = "no file of its own" if code is None else f"{code.path}, SHA-256 {code.digest}"
    if not trust:
        raise InputError(
            what="the model's cell is code that is not elman's own, which is not run unless it is trusted",
            where=where, got=f"{name}: {source}",
            mend="read that file; if you trust it and all that it imports, add --trust (Python: trust=True)",
        )  # fmt: skip
    words = f"running the code of the cell {name}: {source}"
    if known is None:
        words += "; what it was in training is not known"
    elif code is None or code.digest != known:
        words += f"; it was edited since training, when it was {known[:12]}…"
    (notify or logging.getLogger("elman").warning)(words)


def find_cell(name: str) -> MakeCell:
    """What makes the cell of that name: called with (input width, hidden width).

    name: a shipped cell's, or `path.py:Class`, or `package.module:Class` (modules in the current folder are
    found). The code of a file or package named so is run.

    Raises InputError for a name that leads to no class of cells, ElmanError if the code there fails.
    """
    expect(name, str, "a cell is found by its name", "cell", f"give {_FORMS}")
    if name in SHIPPED:
        return SHIPPED[name]
    place, attribute = _place(name)
    module = _from_file(name) if place.endswith(".py") else _from_package(place)
    kind = getattr(module, attribute, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        there = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        raise InputError(
            what=f"{place} has no class {attribute}"
            if kind is None
            else f"{attribute} is no torch.nn.Module class",
            where=name,
            got=f"classes there: {', '.join(there) or 'none'}",
            mend="name a class derived from torch.nn.Module",
        )
    return _checked(kind, name)


def find_cells(cell: Any, layers: int | None = None) -> list[tuple[MakeCell, str | None]]:
    """For each layer what makes its cell, and the name by which `find_cell` finds that again, None if there is none.

    cell: a name, a class, a factory `(input width, hidden width) -> cell`, or a cell; or a sequence with one of these
    for each layer. layers: how many, by default one, or as many as the sequence has.
    Raises InputError or InputTypeError for anything else, and where their numbers differ.
    """
    each = list(cell) if isinstance(cell, (list, tuple, nn.ModuleList)) else [cell] * (layers or 1)
    if not each or (layers is not None and len(each) != layers):
        raise InputError(
            what="there is one cell for each layer", where="cell", got=f"{len(each)} cells, layers={layers}",
            mend="leave layers out",
        )  # fmt: skip
    return [_maker(one) for one in each]


def names_of(cell: Any) -> list[Any]:
    """The names in a configuration's "cell", which is one or a list."""
    return cell if isinstance(cell, list) else [cell]


def _maker(cell: Any) -> tuple[MakeCell, str | None]:
    if isinstance(cell, str):
        return find_cell(cell), cell
    if isinstance(cell, nn.Module):
        return lambda n_in, n_hidden: cell, None
    if isinstance(cell, type) and issubclass(cell, nn.Module):
        name = _NAMES.get(cell)
        return (SHIPPED[name], name) if name else (_checked(cell, cell.__qualname__), _name_of(cell))
    if not callable(cell) or isinstance(cell, type):
        raise InputTypeError(
            what="this is no cell, and nothing that makes one", where="cell",
            got=cell.__name__ if isinstance(cell, type) else type(cell).__name__,
            expected="a name, a class, a factory (n_in, n_hidden) -> cell, a cell, or a list with one for each layer",
            mend=f"a name is {_FORMS}",
        )  # fmt: skip

    def make(n_in: int, n_hidden: int) -> nn.Module:
        instance: Any = cell(n_in, n_hidden)
        expect(instance, nn.Module, "a factory makes cells", "cell", "return a torch.nn.Module")
        return instance

    return make, None


def _name_of(cls: type) -> str | None:
    """`package.module:Class`, if a class is found under that in another process too."""
    name = cls.__module__
    if name == "__main__" or name.startswith(_FROM_FILE) or "." in cls.__qualname__:
        return None
    return (
        f"{name}:{cls.__qualname__}"
        if getattr(sys.modules.get(name), cls.__qualname__, None) is cls
        else None
    )


def _place(name: str) -> tuple[str, str]:
    """(file or package, class) of a name."""
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute or "\0" in name:
        raise InputError(
            what="there is no cell of that name", where="cell", got=name, expected=_FORMS,
            mend=f"{did_you_mean(name, SHIPPED)}choose one",
        )  # fmt: skip
    return place, attribute


def _source(path: Path) -> bytes:
    return read_file(path, _SOURCE, "the cell's code", "give the file with the cell's class")


def _file_of(package: str) -> Path | None:
    """The file of a module, found without importing anything."""
    if package in sys.modules:  # what an import would give
        file = getattr(sys.modules[package], "__file__", None)
        return Path(file) if file else None
    first, *rest = package.split(".")
    if not re.fullmatch(r"\w+(\.\w+)*", package):
        raise InputError(
            what="there is no such module", where="cell", got=package, expected=_FORMS, mend="choose one"
        )
    spec, name = importlib.util.find_spec(first), first  # of a name without dots, this imports nothing
    for part in rest:
        name = f"{name}.{part}"
        inside = spec and spec.submodule_search_locations
        spec = importlib.machinery.PathFinder.find_spec(name, inside) if inside else None
    if spec is None:
        raise InputError(
            what=f"there is no module {package}", where=package, expected=_FORMS, mend="install it"
        )
    return Path(spec.origin) if spec.has_location and spec.origin else None


def _checked(cls: type[nn.Module], name: str) -> MakeCell:
    def make(n_in: int, n_hidden: int) -> nn.Module:
        try:
            return cls(n_in, n_hidden)
        except TypeError as error:
            raise InputError(
                what=f"the cell cannot be constructed: {error}",
                where=name,
                expected=f"{cls.__name__}(n_in, n_hidden)",
                mend="give further arguments of its constructor default values",
            ) from error

    return make


def _from_file(name: str) -> ModuleType:
    code = code_of(name)
    assert code is not None
    spec = importlib.util.spec_from_file_location(f"{_FROM_FILE}{code.path.stem}", code.path)
    assert spec is not None  # a name that ends in .py has a loader
    module = importlib.util.module_from_spec(spec)
    with _importing(str(code.path), code.path.parent):
        sys.modules[spec.name] = module  # classes look their module up: dataclasses, pickle, inspect
        # The bytes whose digest is told, not what a __pycache__ beside them holds.
        exec(compile(code.content, str(code.path), "exec", dont_inherit=True), module.__dict__)
    return module


def _from_package(name: str) -> ModuleType:
    with _importing(name, Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _importing(name: str, folder: Path) -> Iterator[None]:
    """Import with `folder` searched first, as when a script there is run; failures are told as the cell's."""
    sys.path.insert(0, str(folder))
    try:
        yield
    except ElmanError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and name.startswith(error.name):
            raise InputError(
                what=f"there is no module {error.name}", where=name, expected=_FORMS, mend="install it"
            ) from error
        raise ElmanError(
            what=f"the cell's code failed while it was imported: {type(error).__name__}: {error}",
            where=name,
            mend="see that `python` can import it",
        ) from error
    finally:
        sys.path.remove(str(folder))
