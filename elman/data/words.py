"""Any text as HTML and SVG show it."""

from __future__ import annotations

import html
import unicodedata


def plain(text: str) -> str:
    """The text, escaped; what no page may hold (control characters, halves of pairs) becomes �."""
    kept = (c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text)
    return html.escape("".join(kept))
