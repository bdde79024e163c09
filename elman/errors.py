"""What elman raises: one root, and children by who has to act. Imports nothing of ours.

Each error says what is wrong, where, what was got and expected, and how to mend it. The parts are fields, so a
program can read them; the message is made from them in one place, here.
"""

from __future__ import annotations

import difflib
import numbers
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ElmanError(Exception):
    """The root: `except elman.ElmanError` catches everything that elman raises on purpose.

        what: one sentence without its full stop.
        where: the argument, node, edge, path or `file:line` it is about.
        got, expected: what stood there and what would have been right; anything that reads well as a string.
        mend: what the reader can do about it, one sentence.

    Parts that are None are left out of the message.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        mend: str | None = None,
    ) -> None:
        # `what` alone goes to args: from that and from __dict__ pickle and copy restore an error.
        super().__init__(what)
        self.what = what
        self.where = where
        self.got = got
        self.expected = expected
        self.mend = mend

    def _head(self) -> str:
        return self.what

    def __str__(self) -> str:
        parts = (("where", self.where), ("got", self.got), ("expected", self.expected), ("mend", self.mend))
        return "\n".join([self._head(), *(f"  {name}: {part}" for name, part in parts if part is not None)])


class TraceError(ElmanError):
    """The cell cannot become a circuit.

    cell: the name of its class. where: `file:line` of the user's code, or None where that is not known.
    """

    def __init__(
        self,
        what: str,
        *,
        cell: str | None = None,
        where: object = None,
        got: object = None,
        expected: object = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(what, where=where, got=got, expected=expected, mend=mend)
        self.cell = cell

    def _head(self) -> str:
        return self.what if self.cell is None else f"{self.cell}: {self.what}"


class CircuitError(ElmanError):
    """An intermediate form breaks a rule of its own: found by a `check()`. where: the node, edge or port.

    Nothing a user writes should lead here; if it does, it is a defect of elman.
    """


class InputError(ElmanError, ValueError):
    """An argument of a call has the right type and a wrong value, shape, dtype or device."""


class InputTypeError(ElmanError, TypeError):
    """An argument of a call has the wrong type or structure."""


class StateError(ElmanError, RuntimeError):
    """A call came too early or too late: what it asks for does not exist yet, or not any more."""


class NotYet(StateError, AttributeError):
    """An attribute that a call will make, read before any: for `hasattr` it is not there."""


class NotSupported(ElmanError, NotImplementedError):
    """elman does not do this, or not yet. mend: the way round."""


class DataError(ElmanError, ValueError):
    """A file is missing, unreadable or not what it should be. where: its path, and the line if known."""


class RetraceWarning(UserWarning):
    """A cell is traced anew at every call, which takes some 300 ms each: something that its trace depends on keeps
    changing."""


class AmbiguityWarning(UserWarning):
    """What was said can be meant in two ways, and one of them was taken; how to say which stands in the words."""


def expect(
    value: object, kind: type | tuple[type, ...], what: str, where: str, mend: str | None = None
) -> None:
    """Raise InputTypeError unless an argument is of a kind; bool is no whole number here."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wider = tuple(
        {int: numbers.Integral, float: numbers.Real}.get(one, one) for one in kinds
    )  # numpy's numbers are numbers
    if not isinstance(value, wider) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(one.__name__ for one in kinds)
        raise InputTypeError(what, where=where, got=type(value).__name__, expected=expected, mend=mend)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The beginning of a mend: "did you mean 'price'? " where a known name is nearly that one, else nothing."""
    by_letters = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(name.casefold(), by_letters, 1)
    return f"did you mean {by_letters[near[0]]!r}? " if near else ""
