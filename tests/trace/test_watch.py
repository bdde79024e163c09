"""What is compared by identity: whatever a dict is written to by, the comparison after it says so."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest

from elman.trace.watch import Watched

A, B, C = object(), object(), object()
Entries = dict[str, Any]


class Holder:
    """Its attributes are entries of its dict."""

    shared = A

    def __init__(self) -> None:
        self.a, self.b = A, B


def quiet(watched: Watched) -> Callable[[], bool]:
    """Its comparison, which has found everything the same twice."""
    watched.unchanged()
    same = watched.same
    assert same is not None
    assert same()
    assert same()
    return same


def cleared(d: Entries) -> None:
    d.clear()
    d.update(b=B, a=A)


def written_often(d: Entries) -> None:
    for i in range(100):  # which the interpreter takes shorter ways for
        d["a"] = B if i % 2 else A


WAYS: dict[str, Callable[[Entries], Any]] = {
    "item": lambda d: d.__setitem__("a", B),
    "new item": lambda d: d.__setitem__("c", C),
    "update": lambda d: d.update(b=A),
    "or": lambda d: d.__ior__({"b": C}),
    "setdefault": lambda d: d.setdefault("c", C),
    "del": lambda d: d.__delitem__("b"),
    "pop": lambda d: d.pop("a"),
    "popitem": lambda d: d.popitem(),
    "clear": lambda d: d.clear(),
    "other order": cleared,
    "often": written_often,
}


@pytest.mark.parametrize("kind", [dict, OrderedDict])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_writing_into_a_dict(way: str, kind: type[Entries]) -> None:
    entries, watched = kind(a=A, b=B), Watched()
    watched.dict(entries)
    same = quiet(watched)
    WAYS[way](entries)
    assert not same()
    assert not same()
    entries.clear()
    entries.update(a=A, b=B)
    assert same()


def set_often(holder: Holder) -> None:
    for i in range(100):
        holder.a = B if i % 2 else A


ATTRIBUTES: dict[str, Callable[[Holder], Any]] = {
    "assigned": lambda holder: setattr(holder, "a", B),
    "often": set_often,
    "new": lambda holder: setattr(holder, "c", C),
    "deleted": lambda holder: delattr(holder, "b"),
    "by the dict": lambda holder: vars(holder).__setitem__("a", C),
    "by object": lambda holder: object.__setattr__(holder, "b", A),
}


@pytest.mark.parametrize("way", ATTRIBUTES)
def test_every_way_of_writing_an_attribute(way: str) -> None:
    holder, watched = Holder(), Watched()
    watched.dict(vars(holder))
    same = quiet(watched)
    ATTRIBUTES[way](holder)
    assert not same()


def test_attributes_of_a_class() -> None:
    kind: Any = type("Kind", (Holder,), {"shared": A, "other": B})
    watched = Watched()
    watched.classes.append((kind, frozenset({"other"})))
    same = quiet(watched)
    kind.other = C
    assert same()
    kind.shared = C
    assert not same()
    kind.shared = A
    assert same()
    del kind.shared
    assert not same()


def test_entries_that_do_not_count() -> None:
    entries, watched = {"a": A, "b": B}, Watched()
    watched.dict(entries, frozenset({"a"}))
    same = quiet(watched)
    for value in (B, C, A):
        entries["a"] = value
        assert same()
    entries["b"] = B  # what it was
    assert same()
    entries["b"] = C
    assert not same()
    entries["b"] = B
    assert same()


def test_what_has_to_stay_empty() -> None:
    entries: Entries = {}
    watched = Watched()
    watched.empty.append(entries)
    same = quiet(watched)
    entries["a"] = A
    assert not same()
    del entries["a"]
    assert same()


def test_values_are_held() -> None:
    """An object that is gone could have its address taken by another one."""
    entries, watched = {"a": object()}, Watched()
    watched.dict(entries)
    same = quiet(watched)
    for _ in range(100):
        entries["a"] = object()
        assert not same()
