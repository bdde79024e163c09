"""What is kept between calls is bounded, and listed."""

from __future__ import annotations

import ast
import gc
import importlib
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import elman
from elman.caches import CacheSize, Recent, caches, listed_in
from elman.recurrent import programs
from elman.segments import layout
from tests.turns import taking_turns


def test_every_cache_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    # tests/conftest.py lets that of the process keep more.
    monkeypatch.setattr(programs, "_SHARED", Recent(256))
    gc.collect()  # what other tests left behind may go at any moment
    layer = elman.Recurrent(elman.cells.Elman(3, 4))
    before = caches()["programs of the layers that are there, 32 each"].entries
    layer(torch.zeros(2, 1, 3))
    sizes = elman.caches()
    assert sizes["programs of the layers that are there, 32 each"].entries == before + 1
    assert sizes["programs of recurrences, by trace key"] >= CacheSize(1, 256)
    assert {
        "names that code reads",
        "plans run by the names of their ports",
        "loops of reference",
    } <= sizes.keys()
    for entries, limit in sizes.values():
        assert entries >= 0
        assert limit is None or entries <= limit
    del layer
    assert elman.caches()["programs of the layers that are there, 32 each"].entries == before


class Owner:
    """Something that keeps one entry."""


def test_caches_are_counted_while_others_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["elman.caches"], "_LISTED", {})  # `elman.caches` is the function
    add, stop = listed_in("owners", lambda owner: 1), threading.Event()
    here = [Owner() for _ in range(1000)]
    for owner in here:
        add(owner)

    def make() -> None:
        while not stop.is_set():
            add(Owner())

    with taking_turns(make):
        try:
            counted = [caches()["owners"].entries for _ in range(500)]
        finally:
            stop.set()
    assert min(counted) >= 1000
    assert caches()["owners"].entries == 1000


def test_numbers_are_as_many_as_asked_for_whatever_another_thread_does() -> None:
    """As if one had put fewer there between any two lines."""

    def elsewhere(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            layout._counted = np.arange(16)
        return elsewhere

    before, tracing = layout._counted, sys.gettrace()
    sys.settrace(lambda frame, event, _: elsewhere if frame.f_code is layout._numbers.__code__ else None)
    try:
        numbers = layout._numbers(5000)
    finally:
        sys.settrace(tracing)
        layout._counted = before
    assert len(numbers) == 5000


# Where something is kept between calls, and the word by which it is listed.
KEPT = {
    "circuit/operations.py": ["operations that no table lists"],
    "circuit/rows.py": ["what sizes are of the batch"],
    "draw/measure.py": ["widths of words in pictures"],
    "draw/routes.py": ["shares of a curve's four points"],
    "dynamics/flow.py": ["linearised flows"],
    "engines/cuda.py": [
        "sizes of passes that threads have met",
        "loops of cuda over rows of different lengths",
    ],
    "engines/speed.py": ["how fast this machine is"],
    "engines/native/engine.py": ["products between stages, by instruction set and dtype", "loops of native"],
    "engines/reference.py": ["loops of reference"],
    "execute/executable.py": ["plans run by the names of their ports"],
    "execute/operator.py": ["plans that compiled graphs know by name"],
    "execute/program.py": ["plans and programs derived from programs"] * 2,
    "recurrent/known.py": ["calls that layers are bound to"],
    "recurrent/compiled.py": ["layers, by which compiled graphs find them"],
    "recurrent/programs.py": ["programs of recurrences", "programs of the layers"],
    "segments/layout.py": ["layouts of batches of which every step happens"],
    "serve/written.py": ["words and what they add to a text"],
    "trace/joint.py": ["what is taken apart while a step is traced"],
    "trace/names.py": ["names that code reads", "modules that are installed"],
}
_KEEPERS = {"Recent", "lru_cache", "cached", "cache", "WeakKeyDictionary", "WeakValueDictionary"}


def _keepers(node: ast.AST) -> int:
    """How many there are in a node: what it calls, or what a function is decorated with as it is."""
    used = [node.func] if isinstance(node, ast.Call) else getattr(node, "decorator_list", [])
    names = [one.id if isinstance(one, ast.Name) else getattr(one, "attr", "") for one in used]
    return sum(name in _KEEPERS for name in names)


def test_nothing_is_kept_that_is_not_listed() -> None:
    """Whoever keeps something in a new place writes it down in this table, and has it listed."""
    root = Path(elman.__file__).parent
    found: dict[str, int] = {}
    for path in sorted(root.rglob("*.py")):
        if path.name != "caches.py":
            text = path.read_text("utf-8")
            there = ast.walk(ast.parse(text)) if any(word in text for word in _KEEPERS) else ()
            calls = sum(map(_keepers, there))
            found |= {path.relative_to(root).as_posix(): calls} if calls else {}
    assert found == {file: len(words) for file, words in KEPT.items()}
    for file in KEPT:
        importlib.import_module("elman." + file.removesuffix(".py").replace("/", "."))
    elman.Recurrent(elman.cells.Elman(2, 3))(
        torch.zeros(2, 1, 2)
    )  # engines list what they keep when they begin
    for words in KEPT.values():
        for word in words:
            assert any(what.startswith(word) for what in caches()), word


def test_what_was_used_last_stays() -> None:
    kept = Recent(2)
    for key in (1, 2, 1, 3):
        kept.keep(key, -key)
    assert dict(kept) == {1: -1, 3: -3}
    assert kept.latest == (3, -3)
    assert Recent(1).latest == (None, None)
