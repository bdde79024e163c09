"""An engine is a class and its place in `ENGINES`; all else asks it what it can do."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
import torch

import elman
from elman import engines
from elman.circuit import graphs
from elman.circuit.form import ROWS
from elman.engines import Engine, LoopResult, codegen
from elman.errors import NotSupported
from elman.plan.form import Loop

Tensor = torch.Tensor
SIZES = itertools.count(101)  # no other test has them: recurrences that are alike share their engine


class Toy(Engine):
    """Step by step, as plainly as can be; no loops of whole numbers."""

    name = "toy"

    def __init__(self, cheap_to_start: bool) -> None:
        self.cheap_to_start = cheap_to_start
        self.steps = 0

    def describe(self) -> str:
        return "toy (of wood)"

    def supports(self, loop: Loop, device: torch.device) -> str | None:
        dtypes = {value.meta["val"].dtype for value in graphs.results_of(loop.graph).values()}
        return None if all(dtype.is_floating_point for dtype in dtypes) else "it cannot count"

    def run(
        self,
        loop: Loop,
        values: Mapping[str, Tensor],
        batch_sizes: Sequence[int],
        reverse: bool,
        out: Mapping[str, Tensor],
    ) -> LoopResult:
        names = (*loop.constants, *loop.sequences, *(state.name for state in loop.states), ROWS)
        results = list(graphs.results_of(loop.graph))
        step = codegen.function(loop.graph, names, results)
        states = {state.name: values[state.name].clone() for state in loop.states}
        sums: dict[str, Tensor] = {}
        order = range(len(batch_sizes))
        for t in reversed(order) if reverse else order:
            rows, first = batch_sizes[t], sum(batch_sizes[:t])
            given = {
                name: values[name][:rows] if name in loop.rowed else values[name] for name in loop.constants
            }
            at = {name: t if name in loop.stepped else slice(first, first + rows) for name in values}
            at |= {name: t if name in loop.stepped else slice(first, first + rows) for name in loop.emits}
            given |= {name: values[name][at[name]] for name in loop.sequences}
            given |= {name: state[:rows].clone() for name, state in states.items()}
            values_now = dict(zip(results, step(*(given[name] for name in names[:-1]), rows), strict=True))
            for name in loop.emits:
                out[name][at[name]] = values_now[name]
            for name in loop.sums:
                sums[name] = sums.get(name, 0) + values_now[name]
            for state in loop.states:
                states[state.name][:rows] = values_now[state.next] if state.next else 0.0
            self.steps += 1
        return LoopResult(states, sums)


@pytest.fixture(params=[False, True], ids=["dear to start", "cheap to start"])
def toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """One more engine, before all others."""
    engine = Toy(request.param)
    monkeypatch.setattr(engines, "ENGINES", (engine, *engines.ENGINES))
    return engine


def results(
    engine: str | Engine, cell: torch.nn.Module, lengths: list[int] | None, reverse: bool
) -> list[Tensor]:
    """Outputs and gradients of a whole call; outputs without gradients."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 4, generator=g, dtype=torch.float64).requires_grad_()
    n = None if lengths is None else torch.tensor(lengths)
    rnn = elman.Recurrent(cell, engine=engine, reverse=reverse)
    hs, _ = rnn(x, lengths=n)
    gradients = torch.autograd.grad(hs.sin().sum(), [x, *cell.parameters()])
    with torch.no_grad():
        return [hs.detach(), *gradients, rnn(x, lengths=n)[0], rnn(x[:1])[0]]


@pytest.mark.grid
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [6, 2, 4]], ids=["dense", "ragged"])
def test_a_new_engine(toy: Toy, lengths: list[int] | None, reverse: bool) -> None:
    cell = elman.cells.Elman(4, next(SIZES)).double()
    expected = results("reference", cell, lengths, reverse)
    for engine in ("auto", "toy", toy):
        toy.steps = 0
        for got, want in zip(results(engine, cell, lengths, reverse), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        assert toy.steps >= 18


def test_it_is_named(toy: Toy) -> None:
    rnn = elman.Recurrent(elman.cells.Elman(4, next(SIZES)))
    rnn(torch.zeros(2, 3, 4))
    assert "toy (of wood)" in str(rnn.explain())


class Counts(torch.nn.Module):
    """A state of whole numbers."""

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1, dtype=torch.int64)

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return k * 2 + x


def test_what_it_cannot_do_another_does(toy: Toy) -> None:
    x = torch.ones(3, 2, 1, dtype=torch.int64)
    hs, _ = elman.Recurrent(Counts())(x)
    assert (hs[:, 0, 0].tolist(), toy.steps) == ([1, 3, 7], 0)
    with pytest.raises(NotSupported, match="engine 'toy' cannot run this loop: it cannot count"):
        elman.Recurrent(Counts(), engine="toy")(x)
