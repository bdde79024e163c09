"""A cell that was traced and dropped leaves nothing behind."""

from __future__ import annotations

import gc
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from elman.caches import Recent
from elman.recurrent import Recurrent, programs


def _use(number: int) -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W, self.k = nn.Linear(3, 3), 1.0 + number  # a trace of its own

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.W(h) * self.k + x)

    Recurrent(Cell())(torch.randn(3, 2, 3), torch.zeros(2, 3))[0].sum().backward()


def _living() -> Counter[str]:
    gc.collect()
    found: Counter[str] = Counter()
    for kind, count in Counter(map(type, gc.get_objects())).items():
        found[f"{kind.__module__}.{kind.__qualname__}"] += count
    return found


def test_a_cell_that_was_traced_and_dropped_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Programs that are kept for other layers like it: of other tests there may be many.
    monkeypatch.setattr(programs, "_SHARED", Recent(1))
    for number in range(2):
        _use(number)
    before = _living()
    for number in range(2, 4):
        _use(number)
    left = _living() - before
    for part in ("_Batch", "_Placeless"):  # a shape environment of ours, and a part of it: see below
        left.pop(f"elman.trace.fakes.{part}", None)
    ours = ("elman.", "torch.fx.node", "torch.fx.graph", "torch._subclasses", "torch.Tensor", "tests.")
    assert {name: count for name, count in left.items() if name.startswith(ours)} == {}
    # PyTorch keeps some hundred shape environments, emptied, in caches of 256 entries each. What hung on them
    # once was ten times as much.
    assert left.total() / 2 < 250
