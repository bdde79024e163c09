"""What is kept between calls is bounded, and listed."""

from __future__ import annotations

import gc

import pytest
import torch

import elman
from elman.caches import CacheSize, Recent, caches
from elman.recurrent import programs


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


def test_what_was_used_last_stays() -> None:
    kept = Recent(2)
    for key in (1, 2, 1, 3):
        kept.keep(key, -key)
    assert dict(kept) == {1: -1, 3: -3}
    assert kept.latest == (3, -3)
    assert Recent(1).latest == (None, None)
