"""Does the suite notice? Small faults, put into a copy of the package one at a time, and the tests that should go red.

    make mutants                                  # all of them: an hour of one core; ends with 1 if one survives
    python -m tests.mutants plan engines          # those whose name or description holds one of these words
    python -m tests.mutants --list native         # their names alone
    python -m tests.mutants --conformance         # with the grids as a whole

A fault is killed when a test fails with it, and the same test passes without it. One that survives wants a test, or a
reason in `explained.py`; one whose text is not there any more wants a look. Most are made out of what is there, so
that a new operation, kernel or key comes with faults of its own:

| file | faults |
| --- | --- |
| `by_hand.py` | slips that somebody has made or could make, anywhere: all of `slips_of_….py` |
| `operations.py` | each field of each row of the table of operations |
| `keys.py` | each thing that a trace key, a call's key or a cache compares, left out |
| `code.py` | the rules of adjoint, plan, rows and segments: comparisons turned, terms and statements left out |
| `native.py` | each function and kernel of the native engine, a little wrong or in one case |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Stale(Exception):
    """The text that a fault changes is not there, or not once."""


class Mutant(NamedTuple):
    """name: stays the same as long as what it breaks is there. kind: of faults, for counting. file: within the copy.
    change: its text -> one with the fault, or raises Stale. tests: groups of pytest's arguments, tried in turn.
    switch: of a native module that holds many faults, which one is on; then nothing else is changed."""

    name: str
    kind: str
    file: str
    change: Callable[[str], str]
    breaks: str
    tests: tuple[str, ...]
    switch: str = ""


def replaced(old: str, new: str) -> Callable[[str], str]:
    """A change of one text, which is there once."""

    def change(text: str) -> str:
        if text.count(old) != 1:
            raise Stale(f"its text is there {text.count(old)} times")
        return text.replace(old, new)

    return change


def appended(more: str) -> Callable[[str], str]:
    """A change behind everything else."""
    return lambda text: f"{text.rstrip()}\n\n\n{more}\n"
