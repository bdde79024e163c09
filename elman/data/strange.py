"""Symbols that a model does not know, and is given all the same: said once."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

_SHOWN = 8


class Strange:
    """Notes symbols that are not among the known ones, each once, and no more than a few.

    note: is given a line.
    """

    def __init__(self, known: Container[str], note: Callable[[str], None]) -> None:
        self._known, self._note = known, note
        self._met: set[str] = set()

    def look(self, symbols: Iterable[str]) -> None:
        """Look at what the model is about to read."""
        if len(self._met) > _SHOWN:
            return
        new = sorted({symbol for symbol in symbols if symbol not in self._known} - self._met)
        if not new:
            return
        room = _SHOWN - len(self._met)
        self._met.update(new)
        shown = [_shown(symbol) for symbol in new[:room]] + ["…"] * (len(new) > room)
        self._note(f"the model does not know {', '.join(shown)}: read as <unk>.")


def _shown(symbol: str) -> str:
    """By its number too: letters that run from right to left would turn the line round."""
    return f"{symbol!r:.60}" + (f" (U+{ord(symbol):04X})" if len(symbol) == 1 else "")
