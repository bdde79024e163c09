"""Whole numbers in a recurrence: exact however large, and a word about those that are out of range, by every engine."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import elman
from elman.engines.native import why_not_built
from elman.errors import InputError, NotSupported
from tests import pairwise

Tensor = torch.Tensor
V, H, B = 7, 6, 3
ENGINES = ["reference"] if why_not_built() is not None else ["native", "reference"]
State = tuple[Tensor, Tensor]

# Of real h [B, H], whole numbers k [B], and a table [V, H]: what looks k up among so many, and whether -1 is the last.
LOOKUPS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int, bool]] = {
    "embedding": (lambda h, k, table: F.embedding(k, table), V, False),
    "table[k]": (lambda h, k, table: table.detach()[k], V, True),
    "index_select": (lambda h, k, table: table.detach().index_select(0, k), V, False),
    "gather": (lambda h, k, table: h.gather(1, k.unsqueeze(1).expand(-1, H)), H, False),
    "gather of whole numbers": (lambda h, k, table: h.long().gather(1, k.unsqueeze(1)) + 0 * h, H, False),
    "scatter": (lambda h, k, table: torch.zeros_like(h).scatter(1, k.unsqueeze(1), h[:, :1]), H, False),
    "scatter a number": (lambda h, k, table: h.scatter(1, k.unsqueeze(1), 0.5), H, False),
    "scatter_add": (lambda h, k, table: h.scatter_add(1, k.unsqueeze(1).expand(-1, H), h), H, False),
    "one_hot": (lambda h, k, table: F.one_hot(k, H).to(h.dtype), H, False),
    "cross_entropy": (lambda h, k, table: h + F.cross_entropy(h, k, reduction="none").unsqueeze(1), H, False),
}  # fmt: skip


class Looking(nn.Module):
    """A state (h, k) whose whole numbers are looked up at every step; where="input": those of x are."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__()
        self.look, self.where = LOOKUPS[name][0], where
        self.table, self.w = nn.Parameter(torch.randn(V, H)), nn.Linear(H, H)

    def forward(self, x: Tensor, state: State) -> State:
        h, k = state
        looked = self.look(h, k if self.where == "state" else x[:, 0], self.table)
        return torch.tanh(self.w(h) + looked), k


def run(cell: nn.Module, engine: str, bad: int | None, lengths: Tensor | None = None) -> Tensor:
    """Outputs and gradients of three steps, where row 1 meets the bad number at step 1."""
    g = torch.Generator().manual_seed(0)
    x, k = torch.zeros(3, B, 1, dtype=torch.int64), torch.tensor([0, 2, 1])
    if bad is not None:
        x[1, 1], k[1] = bad, bad if cell.where == "state" else 2  # type: ignore[call-overload]
    out, _ = elman.Recurrent(cell, engine=engine)(x, (torch.rand(B, H, generator=g), k), lengths=lengths)
    (gradient,) = torch.autograd.grad(out.sum(), [cell.w.weight])  # type: ignore[union-attr]
    return torch.cat([out.detach().flatten(), gradient.flatten()])


@pytest.mark.grid(1)
@pytest.mark.parametrize("where", ["state", "input"])
@pytest.mark.parametrize("name", LOOKUPS)
def test_an_index_that_is_out_of_range(name: str, where: str) -> None:
    cell, (_, size, behind) = Looking(name, where), LOOKUPS[name]
    within = [run(cell, engine, None) for engine in ENGINES]
    for engine, value in zip(ENGINES, within, strict=True):
        torch.testing.assert_close(value, within[-1])
        for bad in (
            (size, -1, -(2**63)) if not pairwise.exhaustive else (size, -1, -size - 1, 2**62, -(2**63))
        ):
            if behind and bad == -1:
                run(cell, engine, bad)
                continue
            with pytest.raises(InputError, match="an index inside the recurrence is out of range") as caught:
                run(cell, engine, bad)
            assert caught.value.got == bad
            assert f"for a dimension of size {size}" in str(caught.value)
        if where == "input":  # in the padding nobody looks at it
            run(cell, engine, 10**6, lengths=torch.tensor([3, 1, 2]))


class Wide(nn.Module):
    """A product so wide that a batch of one shares its columns out between threads."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.table = nn.Linear(512, 512), nn.Embedding(10, 512)

    def forward(self, x: Tensor, state: State) -> State:
        h, k = state
        return torch.tanh(self.w(h) + self.table(k) + x), k + 1


@pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")
def test_all_threads_leave_a_loop_that_fails() -> None:
    rnn, x, h = elman.Recurrent(Wide(), engine="native"), torch.randn(8, 1, 512), torch.zeros(1, 512)
    found: list[str] = []

    def attempts() -> None:
        with torch.no_grad():
            rnn(x, (h, torch.tensor([2])))
            for first in (99, 5, 8, 9) * 5:  # out of range at the first step, in the middle, at the last
                try:
                    rnn(x, (h, torch.tensor([first])))
                except InputError as error:
                    found.append(str(error.got))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        waiting = threading.Thread(target=attempts, daemon=True)
        waiting.start()
        waiting.join(120)
    finally:
        torch.set_num_threads(before)
    assert not waiting.is_alive(), "threads wait for one another for ever"
    assert found == ["99", "10", "10", "10"] * 5


# --- arithmetic -------------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, n = state
        n = self.function(n)
        return n, (torch.tanh(h + x), n)


EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "a generator of random numbers": lambda n: (n * 6364136223846793005 + 1442695040888963407) % 2147483648,
    "beyond floats": lambda n: torch.where(n + 16777217 > 16777217, n + 16777217, n - 16777217),
    "beyond doubles": lambda n: torch.where(n == 9007199254740993, 9007199254740995, n + 9007199254740992),
    "wraps around": lambda n: n + 9223372036854775807,
    "quotients": lambda n: (n + 2**60 + 1) // 3 - torch.remainder(n - 2**60 - 1, 9007199254740993),
}


@pytest.mark.grid(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_whole_numbers_are_exact(name: str, dtype: torch.dtype) -> None:
    x, n = torch.zeros(5, B, H, dtype=dtype), torch.tensor([[1], [16777216], [9007199254740993]])
    expected, last = [], n
    for _ in range(5):
        last = EXACT[name](last)
        expected.append(last)
    for engine in ENGINES:
        out, (_, final) = elman.Recurrent(Counting(EXACT[name]), engine=engine)(x, (x[0], n))
        assert torch.equal(out, torch.stack(expected)), engine
        assert torch.equal(final, last), engine


REFUSED = {
    "amax": lambda n: n.amax(1, keepdim=True) + n,
    "prod": lambda n: n.prod(1, keepdim=True) + n,
    "sum": lambda n: n.sum(1, keepdim=True) + n,
}


@pytest.mark.parametrize("name", REFUSED)
def test_whole_numbers_that_the_native_engine_leaves_to_the_reference(name: str) -> None:
    x, n = torch.zeros(1, B, H), torch.tensor([[3, 16777217], [1, 2], [-5, 4]])
    cell = Counting(REFUSED[name])
    assert torch.equal(elman.Recurrent(cell)(x, (x[0], n))[0][0], REFUSED[name](n))
    if "native" in ENGINES:
        with pytest.raises(NotSupported, match=r"of (int values|whole numbers)"):
            elman.Recurrent(cell, engine="native")(torch.zeros(2, B, H), (x[0], n))


def test_division_by_zero() -> None:
    x, fine, n = torch.zeros(1, B, H), torch.tensor([[2], [3], [4]]), torch.tensor([[2], [1], [0]])
    if "native" in ENGINES:
        for function in (lambda n: n // (n - 1), lambda n: torch.remainder(n, n - 1) + n):
            rnn = elman.Recurrent(Counting(function), engine="native")
            rnn(x, (x[0], fine))  # at a first call with such numbers the step itself is told to fail
            with pytest.raises(InputError, match="divided by zero"):
                rnn(x, (x[0], n))


class Placing(nn.Module):
    """Writes at places that a buffer says."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.hidden_size, self.name = H, name
        self.register_buffer("places", torch.tensor([4, 1]))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        if self.name == "index_add":
            return torch.tanh(h.index_add(1, self.places, x))
        return torch.tanh(torch.ops.aten.index_put.default(h, [None, self.places], x))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["index_add", "index_put"])
def test_places_that_have_changed_since_the_trace(name: str, engine: str) -> None:
    cell = Placing(name)
    rnn, x = elman.Recurrent(cell, engine=engine), torch.ones(2, B, 2)
    rnn(x, torch.zeros(B, H))
    cell.places[1] = H
    with pytest.raises(InputError, match="out of range"):
        rnn(x, torch.zeros(B, H))
