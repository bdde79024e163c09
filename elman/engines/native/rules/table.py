"""The table of rules, and what all of them use: types of numbers, and what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from elman.engines.native.builder import NUMBER, Builder
from elman.engines.native.values import View

Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


@dataclass(frozen=True)
class ResultSpec:
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


def cast(p: Builder, x: View | NUMBER, type: str) -> View | NUMBER:
    """The same numbers in another type."""
    if not isinstance(x, View):
        return x
    return x if x.type == type else p.map(f"{x.type}_to_{type}", type, x.sizes, x)


def view_of(p: Builder, x: View | NUMBER, type: str, sizes: Sequence[int]) -> View:
    return cast(p, x, type) if isinstance(x, View) else p.number(x, type, sizes)  # type: ignore[return-value]


def must(view: View | None) -> View:
    assert view is not None
    return view
