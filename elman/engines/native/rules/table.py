"""The table of rules, and what all of them use: types of numbers, and what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from elman.engines.native.values import View
from elman.engines.native.writer import NUMBER, Writer

Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


@dataclass(frozen=True)
class Want:
    """What the traced node gives: sizes in a row and type (of its first result), and all of its results' sizes."""

    sizes: tuple[int, ...]
    type: str
    all: tuple[tuple[int, ...], ...]


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def enter(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return enter


def cast(w: Writer, x: View | NUMBER, type: str) -> View | NUMBER:
    """The same numbers in another type."""
    if not isinstance(x, View):
        return x
    return x if x.type == type else w.map(f"{x.type}_to_{type}", type, x.sizes, x)


def view_of(w: Writer, x: View | NUMBER, type: str, sizes: Sequence[int]) -> View:
    return cast(w, x, type) if isinstance(x, View) else w.number(x, type, sizes)  # type: ignore[return-value]


def must(view: View | None) -> View:
    assert view is not None
    return view
