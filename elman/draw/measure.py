"""How wide a text is at most, whichever font of the fallback list a reader has."""

from __future__ import annotations

import unicodedata

from elman.caches import cached

# The widest of these is DejaVu Sans (Verdana is as wide); what is measured is that, and a little more.
FONTS = "'DejaVu Sans', Verdana, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
LINE = 1.3  # height of a line, in font sizes

_EM = {
    **dict.fromkeys("ijl'|.,:;!`", 0.36),
    **dict.fromkeys("ftrI()[]{}/\\ \"-", 0.46),
    **dict.fromkeys("mwMW@%…—", 1.04),
    **dict.fromkeys("+=<>±×−∼~#→←↑↓⊙", 0.88),
    **dict.fromkeys("ABCDEFGHJKLNOPQRSTUVXYZ", 0.80),
}  # fmt: skip


@cached("widths of words in pictures", 4096)
def width(text: str, size: float) -> float:
    """The width of one line of text in pixels, at a font size in pixels; no font of `FONTS` is wider."""
    return 1.03 * size * sum(_em(char) for char in text)


def _em(char: str) -> float:
    if char in _EM:
        return _EM[char]
    if unicodedata.combining(char):
        return 0.0
    if unicodedata.east_asian_width(char) in "WF" or ord(char) > 0xFFFF:
        return 1.3
    return 0.66 if char.isascii() or char.isalpha() else 0.95


__all__ = ["FONTS", "LINE", "width"]
