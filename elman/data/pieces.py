"""Cutting a text where no symbol is cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PIECE = 16_384  # characters


def cut_safely(pieces: Iterable[str], size: int = PIECE) -> Iterator[str]:
    """The same text in pieces of at most `size` characters, whose symbols, one after another, are those of the whole.

    A cut stands before a space or newline that follows something else than white space. That is right for words and
    for byte-level BPE, both of which look for symbols inside of what a regular expression finds from left to right:
    what it finds has white space at its beginning only, or is nothing but white space, so one of its matches ends at
    such a place in any case; and it looks ahead only behind white space, which is never the last of a piece.

    A stretch of `size` characters without such a place is cut at its end, and a symbol there may become two.
    Where that is depends on the text alone, not on the pieces that come in.
    """
    held = ""
    for piece in pieces:
        held += piece
        start = 0
        while len(held) - start > size:  # so that the place is the same whatever came in at a time
            at = _place(held, start, start + size)
            yield held[start:at]
            start = at
        held = held[start:]
    if held:
        yield held


def _place(text: str, start: int, stop: int) -> int:
    """The last safe place in (start, stop], or `stop` if there is none."""
    at = stop + 1
    while (at := max(text.rfind(" ", start + 1, at), text.rfind("\n", start + 1, at))) > 0:
        if not text[at - 1].isspace():
            return at
    return stop
