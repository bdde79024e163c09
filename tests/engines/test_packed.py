"""Products go through their columns together, from either end, and pack as they go: no bit depends on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import elman
from elman.engines.native import Native, why_not_built
from elman.engines.native.lower import Lowered, lower
from elman.plan.stepwise import stepwise
from tests.engines.test_products import instruction_sets

pytestmark = pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")

Tensor = torch.Tensor
I, H = 300, 130  # longer than a chain of sums; no whole number of panels


class Gated(nn.Module):
    """Three products of one step, of which one begins with what another has made."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.U, self.W, self.V = (nn.Parameter(0.1 * torch.randn(3 * H, n)) for n in (I, H, H))
        self.b = nn.Parameter(torch.randn(3 * H))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a, b, c = (F.linear(x, self.U, self.b) + F.linear(h, self.W)).chunk(3, 1)
        d = F.linear(torch.relu(h), self.V)[:, :H]
        return torch.tanh(a) + torch.sigmoid(b) * c + d


class Dying(nn.Module):
    """What the first product reads is read by nothing else, and what the last one makes would fit in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.U, self.W, self.V = (nn.Parameter(0.1 * torch.randn(H, n)) for n in (I, H, 2 * H))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        gate = F.linear(torch.relu(torch.cat([h, h], 1)), self.V)
        return torch.tanh((F.linear(x, self.U) + F.linear(h, self.W)) * gate)


class Chained(nn.Module):
    """Each product reads what the one before it has made."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.W, self.V = (nn.Parameter(0.1 * torch.randn(H, H)) for _ in range(2))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x[:, :H] + F.linear(F.linear(F.linear(h, self.W), self.V), self.W))


class Shared(nn.Module):
    """One weight is read by three products of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.W = nn.Parameter(0.1 * torch.randn(H, H))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        two = F.linear(x[:, : 2 * H].unflatten(1, (2, H)), self.W).sum(1)
        return torch.tanh(two + F.linear(h, self.W))


class Lying(nn.Module):
    """A weight whose rows are in order where others' columns are, and one of which neither is."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.U, self.W = nn.Parameter(0.1 * torch.randn(I, H)), nn.Parameter(0.1 * torch.randn(H, H, 2))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x @ self.U + F.linear(h, self.W[:, :, 1]))


CELLS: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: elman.cells.GRU(I, H), "lstm": lambda: elman.cells.LSTM(I, H),
    "gated": Gated, "dying": Dying, "chained": Chained, "shared": Shared, "lying": Lying,
}  # fmt: skip


@torch.no_grad()
@pytest.mark.grid
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CELLS)
def test_steps_of_any_number_of_rows(
    name: str, threads: int, dtype: torch.dtype, isa: str, set_threads: Callable[[int], None]
) -> None:
    """A call, its steps one by one, and a stream, of a few rows and of many: the rows are the same."""
    torch.manual_seed(0)
    rnn = elman.Recurrent(CELLS[name]().to(dtype), engine=Native(isa))
    x = torch.randn(5, 40, I, dtype=dtype)
    expected = rnn.cell(x[0], _start(rnn, 40, dtype))
    set_threads(threads)
    made = rnn(x)[0]
    h = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(made[0], h, rtol=1e-4, atol=1e-4)
    for rows in (1, 2, 4, 5, 13, 40):
        few = x[:, :rows].contiguous()
        assert torch.equal(rnn(few)[0], made[:, :rows])
        stream, state = rnn.stream(batch=rows), None
        for x_t, o in zip(few, made[:, :rows], strict=True):
            assert torch.equal(stream.step(x_t), o)
            o_t, state = rnn.step(x_t, state)
            assert torch.equal(o_t, o)


def _start(rnn: elman.Recurrent, rows: int, dtype: torch.dtype) -> Tensor | tuple[Tensor, Tensor]:
    zeros = torch.zeros(rows, H, dtype=dtype)
    return (zeros, zeros) if isinstance(rnn.cell, elman.cells.LSTM) else zeros


@pytest.mark.grid
@torch.no_grad()
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("width", [3, 301])
def test_streams_with_weights_in_fewer_bits(
    width: int, weights: str, isa: str, set_threads: Callable[[int], None]
) -> None:
    """Few rows go through its columns from either end, products together; many do not."""
    torch.manual_seed(0)
    rnn = elman.Recurrent(elman.cells.GRU(width, H + 1), engine=Native(isa))
    x = torch.randn(4, 40, width)
    one = [rnn.stream(weights=weights) for _ in range(40)]
    right = [torch.cat([each.step(x_t[i, None]) for i, each in enumerate(one)]) for x_t in x]
    for rows, threads in ((3, 1), (5, 1), (13, 1), (40, 1), (40, 2)):
        set_threads(threads)
        stream = rnn.stream(batch=rows, weights=weights)
        for x_t, o in zip(x, right, strict=True):
            assert torch.equal(stream.step(x_t[:rows]), o[:rows])


@torch.no_grad()
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_threads_share_columns_of_weights_in_fewer_bits(
    weights: str, set_threads: Callable[[int], None]
) -> None:
    torch.manual_seed(0)
    rnn, x = elman.Recurrent(elman.cells.GRU(300, 300)), torch.randn(3, 5, 300)
    made = []
    for threads in (1, 8):
        set_threads(threads)
        stream = rnn.stream(batch=5, weights=weights)
        made.append(torch.stack([stream.step(x_t) for x_t in x]))
    assert torch.equal(*made)


@pytest.mark.parametrize(
    ("name", "runs"), [("gru", [2]), ("lstm", [2]), ("gated", [3]), ("dying", [3]), ("chained", [1, 1, 1])]
)
def test_which_products_go_together(name: str, runs: list[int]) -> None:
    program = _step_of(CELLS[name]())
    products = [i for i, op in enumerate(program.ops) if op.code == "product"]
    inside = {j for i in products for j in range(i + 1, i + program.ops[i].together)}
    assert [program.ops[i].together for i in products if i not in inside] == runs
    assert all(program.ops[i].together == 1 for i in inside)


def _step_of(cell: nn.Module) -> Lowered:
    """The program of a single step."""
    h = torch.zeros(2, H)
    state = (h, h) if isinstance(cell, elman.cells.LSTM) else h
    plan = stepwise(elman.trace(cell, torch.zeros(2, I), state))
    assert plan.loop is not None
    return lower(plan.loop, 16, 8)


@torch.no_grad()
@pytest.mark.parametrize("hidden", [H, 300])
def test_a_call_of_one_step_packs_no_weight_beforehand(
    hidden: int, set_threads: Callable[[int], None]
) -> None:
    """Threads share columns, of large products alone, and each packs its own; where they share rows, of many, they
    share out packing first."""
    torch.manual_seed(0)
    rnn = elman.Recurrent(elman.cells.GRU(I, hidden))
    x, h = torch.randn(200, I), torch.randn(200, hidden)
    expected = rnn(x[None], h)[0][0]
    for threads in (1, 2, 3):
        set_threads(threads)
        for rows in (1, 1, 1, 2, 3, 8, 9, 37, 64, 65, 200):
            assert torch.equal(rnn.step(x[:rows], h[:rows])[0], expected[:rows])


@pytest.mark.grid
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["gru", "shared", "lying"])
def test_calls_of_a_few_steps(
    name: str, dtype: torch.dtype, isa: str, set_threads: Callable[[int], None]
) -> None:
    """Their weights are packed before or not at all, by the number of steps and rows: no bit depends on it."""
    torch.manual_seed(0)
    cells = {"gru": lambda: elman.cells.GRU(I, 300), **{name: CELLS[name] for name in ("shared", "lying")}}
    rnn = elman.Recurrent(cells[name]().to(dtype), engine=Native(isa))
    x = torch.randn(9, 40, I, dtype=dtype)
    with torch.no_grad():
        expected = rnn(x)[0]
    for threads in (1, 2):
        set_threads(threads)
        for T, rows in itertools.product((1, 2, 3, 4, 5, 8, 9), (1, 2, 3, 4, 8, 9)):
            few = x[:T, :rows].clone().requires_grad_()
            made = rnn(few)[0]
            assert torch.equal(made, expected[:T, :rows])
            one = torch.autograd.grad(made.sum(), few)[0][:, :1]
            alone = x[:T, :1].clone().requires_grad_()
            assert torch.equal(one, torch.autograd.grad(rnn(alone)[0].sum(), alone)[0])


@pytest.mark.grid
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["gru", "shared", "lying"])
def test_a_training_step_of_one_step(
    name: str, dtype: torch.dtype, isa: str, set_threads: Callable[[int], None]
) -> None:
    """Gradients of rows are the same bits in any company, and all gradients with any number of threads."""
    torch.manual_seed(0)
    rnn = elman.Recurrent(CELLS[name]().to(dtype), engine=Native(isa))
    x, g = (torch.randn(1, 130, n, dtype=dtype) for n in (I, H))
    alone: dict[int, list[Tensor]] = {}
    for threads in (1, 2, 5):
        set_threads(threads)
        for rows in (1, 2, 3, 6, 8, 9, 13, 64, 130):
            given = x[:, :rows].clone().requires_grad_()
            made = torch.autograd.grad(rnn(given)[0], [given, *rnn.parameters()], g[:, :rows])
            for one, expected in zip(made, alone.setdefault(rows, list(made)), strict=True):
                assert torch.equal(one, expected)
    assert all(torch.equal(alone[rows][0], alone[130][0][:, :rows]) for rows in alone)
