"""Threads that share columns meet wherever one would write what another one reads, in blocks of any number of rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import elman
from elman.engines.native import finishing, why_not_built
from elman.engines.native.lower import lower
from elman.plan.stepwise import stepwise

pytestmark = pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")

Tensor = torch.Tensor
H = 256


class Odd(nn.Module):
    """Values of 513 and of 256 columns, which take turns in the same place of scratch memory."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.W = nn.Linear(H, 2 * H + 1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a, b, gate = self.W(h).split([H, H, 1], -1)
        h = torch.sigmoid(gate) * h
        u, v = torch.tanh(a), torch.sigmoid(b)
        w = torch.exp(u * v)
        return torch.tanh(torch.tanh(w + u) * torch.sigmoid(w * v) + torch.cos(w) + x + h)


class Masked(nn.Module):
    """Whole numbers and truths, of other bytes each, between floats."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.W = nn.Linear(H, 3 * H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a, b, c = self.W(h).chunk(3, -1)
        small = (a < b) & (b < c)
        d = torch.where(small, torch.lerp(a, b, torch.sigmoid(c)), x)
        e = torch.where((d > a) & ~small, torch.exp(-d * d), d - c)
        return torch.tanh(e * torch.sigmoid(a) + torch.where(e > d, b, x))


CELLS: dict[str, Callable[[], nn.Module]] = {
    "odd": Odd,
    "masked": Masked,
    "gru": lambda: elman.cells.GRU(H, H),
    "lstm": lambda: elman.cells.LSTM(H, H),
}


class Access(NamedTuple):
    """Bytes of scratch memory that a thread reads or writes."""

    op: int
    thread: int
    begin: int
    end: int
    written: bool


def accesses(p: Any, ops: list[Any], rows: int, threads: int) -> list[Access]:
    """As native/loop.hpp lays them out: a root at its offset times the rows, its rows one behind another."""
    found = []
    for i, op in enumerate(ops):
        for j, view in enumerate(op.operands):
            if view is None or view.buffer.fixed or view.buffer.root()[0].kind != "scratch":
                continue
            root, inner = view.buffer.root()
            size = p.bytes_of(view.type)
            for thread, row in itertools.product(range(threads if op.split else 1), range(rows)):
                n = op.size[3] if op.split else view.numel
                first, stop = (n // 32 * k // threads * 32 for k in (thread, thread + 1))
                if thread == threads - 1:
                    stop = n
                if not op.split or (
                    op.code == "product" and j == 1
                ):  # one thread does it, or reads the whole left factor
                    first, stop = 0, view.numel
                begin = root.offset * rows + (row * root.width + inner + view.offset) * size
                found.append(Access(i, thread, begin + first * size, begin + stop * size, j < op.results))
    return found


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_no_thread_writes_what_another_one_touches(
    name: str, adjoint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    builders = []
    meetings = finishing._meetings
    monkeypatch.setattr(finishing, "_meetings", lambda p: (meetings(p), builders.append(p)))
    h = torch.zeros(2, H)
    circuit = elman.trace(CELLS[name](), torch.zeros(2, H), (h, h) if name == "lstm" else h)
    plan = elman.plan(elman.pair(circuit).backward) if adjoint else stepwise(circuit)
    assert plan.loop is not None
    lower(plan.loop, 16, 8)
    (p,) = builders
    parts: list[list[Any]] = []
    for op in p.ops:
        if op.wait or not parts:
            parts.append([])
        parts[-1].append(op)
    assert any(len(part) > 1 for part in parts)
    for part, rows, threads in itertools.product(parts, (1, 2, 5), (2, 3)):
        for a, b in itertools.combinations(accesses(p, part, rows, threads), 2):
            apart = a.op == b.op or a.thread == b.thread or not (a.written or b.written)
            assert apart or a.end <= b.begin or b.end <= a.begin, (
                part[a.op].code,
                part[b.op].code,
                rows,
                threads,
            )


@torch.no_grad()
@pytest.mark.parametrize("name", CELLS)
def test_rows_that_threads_share(name: str, set_threads: Callable[[int], None]) -> None:
    torch.manual_seed(0)
    rnn = elman.Recurrent(CELLS[name]())
    x, made = torch.randn(1, 40, H), []
    for threads in (1, 2, 3):
        set_threads(threads)
        for rows in (2, 9, 40):
            expected = made[0][:, :rows] if made else rnn(x)[0][:, :rows]
            made = made or [rnn(x)[0]]
            assert all(torch.equal(rnn(x[:, :rows])[0], expected) for _ in range(20))
