"""What a fault by hand is: a text of a file, and another one in its place."""

from __future__ import annotations

from typing import NamedTuple


class Slip(NamedTuple):
    """file: in elman/. old: a text that is there once. breaks: what is wrong then. tests: pytest's arguments."""

    file: str
    old: str
    new: str
    breaks: str
    tests: str
