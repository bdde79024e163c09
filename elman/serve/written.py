"""Symbols that are drawn one by one become text, which ends before a text that is to stop it."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from functools import lru_cache

from elman.caches import listed_in
from elman.data import Tokenizer

# (what the next symbol adds to a text, what is left when no more come)
Pen = tuple[Callable[[int], str], Callable[[], str]]


_counted = listed_in(
    "words and what they add to a text", lambda spelling: spelling._behind.cache_info().currsize, 2**16
)


class Spelling:
    """How a tokenizer's symbols are written, prepared once for all texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.names = tokenizer.symbols
        self._behind = lru_cache(2**16)(self._after)
        _counted(self)

    def begun(self, last: int | None) -> Pen:
        """last: the symbol before the text, if there is one."""
        kind = self.tokenizer.kind
        if kind == "characters":
            return self.names.__getitem__, str
        if kind == "words":
            return self._words(last), str
        raw, decoder = self.tokenizer.raw, codecs.getincrementaldecoder("utf-8")("replace")
        return lambda symbol: decoder.decode(raw[symbol]), lambda: decoder.decode(b"", final=True)

    def _words(self, last: int | None) -> Callable[[int], str]:
        def piece(symbol: int) -> str:
            nonlocal last
            before, last = last, symbol
            return self._behind(before, symbol)

        return piece

    def _after(self, before: int | None, symbol: int) -> str:
        kept = [] if before is None else [before]
        return self.tokenizer.decode([*kept, symbol])[len(self.tokenizer.decode(kept)) :]


class Stops:
    """Looks for texts in a text that comes in pieces (Knuth, Morris and Pratt), and holds back what may begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._matched = [0] * len(stops)
        self._held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """(what is sure to stand before any stop, whether a stop has come, after which nothing more is to come)."""
        held = self._held + piece
        for k in range(len(held) - len(piece), len(held)):
            ends = 0
            for i, (stop, borders) in enumerate(self._stops):
                at = self._matched[i]
                while at and stop[at] != held[k]:
                    at = borders[at - 1]
                at += stop[at] == held[k]
                self._matched[i] = at
                if at == len(stop):
                    ends = max(ends, at)
            if ends:  # of several that end here, the one that begins first
                self._held = ""
                return held[: k + 1 - ends], True
        kept = len(held) - max(self._matched)
        self._held = held[kept:]
        return held[:kept], False

    def rest(self) -> str:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return held


def _borders(stop: str) -> list[int]:
    """For each beginning of a text, how long the longest beginning is with which it ends, itself apart."""
    borders, at = [0], 0
    for letter in stop[1:]:
        while at and stop[at] != letter:
            at = borders[at - 1]
        at += stop[at] == letter
        borders.append(at)
    return borders
