"""A function of Python, written line by line while the library runs: what is the same at every call is settled once."""

from __future__ import annotations

import itertools
import keyword
import linecache
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_NUMBERS = itertools.count(1)


class PythonFunction:
    """The text of a function while it grows; every argument, constant and value has a name of its own.

    name: of the function. what: said in tracebacks in the place of a file.
    """

    def __init__(self, name: str, what: str):
        self.name, self.what = name, what
        self._arguments: list[str] = []
        self._lines: list[str] = []
        self._margin = "    "
        self._constants: dict[str, Any] = {"zip": zip, "range": range}  # no other may have these names
        self._values = 0

    def argument(self, name: str | None = None) -> str:
        """The next argument, called `name` or by a new name."""
        self._arguments.append(name or f"a{len(self._arguments)}")
        return self._arguments[-1]

    def constant(self, value: Any, name: str | None = None) -> str:
        """The name of something that the function carries with it: this one or its own, with a number if need be."""
        stem = name or getattr(value, "__name__", "k")
        if not stem.isidentifier() or keyword.iskeyword(stem):
            stem = "k"
        names = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2)))
        free = next(each for each in names if self._constants.get(each, value) is value)
        self._constants[free] = value
        return free

    def let(self, expression: str) -> str:
        """The name of a value that is computed here."""
        name = f"v{self._values}"
        self._values += 1
        self.line(f"{name} = {expression}")
        return name

    def unpack(self, expression: str, count: int) -> list[str]:
        """The names of the values of a tuple."""
        names = [f"v{self._values + i}" for i in range(count)]
        self._values += count
        self.line(f"{''.join(f'{name}, ' for name in names)}= {expression}" if names else expression)
        return names

    def drop(self, names: Iterable[str]) -> None:
        """Values that nobody needs any more."""
        self.line(f"del {', '.join(names)}")

    def line(self, text: str) -> None:
        self._lines.append(f"{self._margin}{text}\n")

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """What is written within stands under `head`."""
        self.line(head)
        self._margin += "    "
        yield
        self._margin = self._margin[:-4]

    def returning(self, values: Iterable[str]) -> Callable[..., tuple[Any, ...]]:
        """The function, which returns a tuple of these; tracebacks show its lines for as long as it lives."""
        self.line(f"return {tuple_of(*values)}")
        lines = [f"def {self.name}({', '.join(self._arguments)}):\n", *self._lines]
        text, file = "".join(lines), f"<elman {self.what}, {next(_NUMBERS)}>"
        exec(compile(text, file, "exec"), self._constants)
        function = self._constants.pop(self.name)
        linecache.cache[file] = (len(text), None, lines, file)
        weakref.finalize(function, linecache.cache.pop, file, None).atexit = False
        return function  # type: ignore[no-any-return]


def tuple_of(*parts: Any) -> str:
    """A tuple written down, parts that are empty left out."""
    kept = [str(part) for part in parts if part != ""]
    return f"({', '.join(kept)}{',' if len(kept) == 1 else ''})"
