"""A cell by its name: one that we ship, or anybody's class in a file or a package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from elman import cells
from elman.errors import ElmanError, InputError, InputTypeError, expect

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


def find_cell(name: str) -> MakeCell:
    """What makes the cell of that name: called with (input width, hidden width).

    name: a shipped cell's, or `path.py:Class`, or `package.module:Class` (modules in the current folder are
    found). The code of a file or package named so is run.

    Raises InputError for a name that leads to no class of cells, ElmanError if the code there fails.
    """
    expect(name, str, "a cell is found by its name", "cell", f"give {_FORMS}")
    if name in SHIPPED:
        return SHIPPED[name]
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise InputError(
            what="there is no cell of that name", where="cell", got=name, expected=_FORMS, mend="choose one"
        )
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        there = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        raise InputError(
            what=f"{place} has no class {attribute}"
            if found is None
            else f"{attribute} is no torch.nn.Module class",
            where=name,
            got=f"classes there: {', '.join(there) or 'none'}",
            mend="name a class derived from torch.nn.Module",
        )
    return _checked(found, name)


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
        made: Any = cell(n_in, n_hidden)
        expect(made, nn.Module, "a factory makes cells", "cell", "return a torch.nn.Module")
        return made

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


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(
            what="there is no such file", where=path, mend="give the path of the file with the cell's class"
        )
    path = path.resolve()
    spec = importlib.util.spec_from_file_location(f"{_FROM_FILE}{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None  # a name that ends in .py has a loader
    module = importlib.util.module_from_spec(spec)
    with _importing(str(path), path.parent):
        sys.modules[spec.name] = module  # classes look their module up: dataclasses, pickle, inspect
        spec.loader.exec_module(module)
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
