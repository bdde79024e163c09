"""A cell by its name: one that we ship, or anybody's class in a file or a package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

from elman import cells
from elman.errors import ElmanError, InputError, expect

MakeCell = Callable[[int, int], nn.Module]  # (input width, hidden width) -> cell

SHIPPED: dict[str, MakeCell] = {
    "elman": cells.Elman,
    # The output carries the recurrence: as wide as the hidden layer, so that nothing is lost in it.
    "jordan": lambda n_in, n_hidden: cells.Jordan(n_in, n_hidden, n_hidden),
    "gru": cells.GRU,
    "lstm": cells.LSTM,
    "leaky": cells.Leaky,
}
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
    spec = importlib.util.spec_from_file_location(f"elman_cell_{path.stem}", path)
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
