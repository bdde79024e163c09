"""Calls that are not like the one that was bound: who leaves it, and where states come from."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import elman
from elman import cells
from elman.engines import choose
from elman.errors import InputError
from tests import eager
from tests.recurrent.bound import B, H, I, T, data, right, same, warm

Tensor = torch.Tensor


def test_dtype_shape_and_structure(matched: list[bool]) -> None:
    rnn, (x, h) = elman.Recurrent(cells.Elman(I, H).double()), data()
    warm(rnn, x, h)
    for T_, B_ in ((1, 1), (7, 2), (0, 3), (T, 0)):
        matched.clear()
        got = rnn(x.new_zeros(T_, B_, I), h.new_ones(B_, H))
        assert matched == [True], "one program serves every T and B"
        assert list(got[0].shape) == [T_, B_, H]
    with pytest.raises(elman.ElmanError):
        rnn(x, h[:1])
    with pytest.raises(elman.ElmanError):
        rnn(x[0], h)
    with pytest.raises(elman.ElmanError):
        rnn(x, h, lengths=torch.ones(B))
    with pytest.raises(elman.ElmanError):
        rnn(x, (h, h))
    rnn.float()
    assert rnn(x.float(), h.float())[0].dtype == torch.float32
    rnn.double()
    right(rnn, x, h)
    right(rnn, x.transpose(0, 1).contiguous().transpose(0, 1), h)
    right(rnn, x, h.t().contiguous().t())


class Bare(nn.Module):
    """Nothing of its own that has a dtype."""

    hidden_size = H

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + 0.5 * h)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_cell_without_tensors_runs_in_the_dtype_of_the_call(engine: str) -> None:
    rnn, x, h = elman.Recurrent(Bare(), engine=engine), torch.randn(T, B, H), torch.randn(B, H)
    for dtype in (torch.float64, torch.float32, torch.float64):
        out, final = rnn(x.to(dtype), h.to(dtype))
        expected, last = eager.unroll(rnn.cell, x.to(dtype), h.to(dtype))
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(final, last)


def test_without_a_state(matched: list[bool]) -> None:
    for kind in (cells.Elman, cells.LSTM):
        rnn, (x, _) = elman.Recurrent(kind(I, H).double()), data()
        with torch.no_grad():
            found = [rnn(x) for _ in range(3)]
            steps = [rnn.step(x[0]) for _ in range(3)]
        assert matched[-1]
        for one in found[1:]:
            same(one, found[0])
        for one in steps:
            same(one[0], found[0][0][0])


def test_hooks_fire() -> None:
    rnn, (x, h) = elman.Recurrent(cells.Elman(I, H).double()), data()
    warm(rnn, x, h)
    fired: list[str] = []
    first = rnn.cell.register_forward_hook(lambda *_: fired.append("cell"))
    with torch.no_grad():
        rnn.step(x[0], h)
        assert fired == ["cell"]
        first.remove()
        every = torch.nn.modules.module.register_module_forward_hook(lambda *_: fired.append("every"))
        try:
            rnn.step(x[0], h)
        finally:
            every.remove()
        assert fired == ["cell", "every"]
        rnn.register_forward_hook(lambda *_: fired.append("layer"))
        rnn(x, h)
    assert fired == ["cell", "every", "layer"]


def test_engines_by_name_and_direction() -> None:
    rnn, (x, h) = elman.Recurrent(cells.Elman(I, H).double()), data()
    warm(rnn, x, h)
    with torch.no_grad():
        first = rnn(x, h)
        rnn.engine = "reference"
        same(rnn(x, h), first)
        same(rnn.step(x[0], h)[0], first[0][0])
        rnn.engine = "abacus"
        with pytest.raises(elman.ElmanError, match="no such engine"):
            rnn(x, h)
        rnn.engine, rnn.reverse = "auto", True
        same(rnn(x, h)[0].flip(0), elman.Recurrent(rnn.cell)(x.flip(0), h)[0])
        with pytest.raises(elman.ElmanError):
            rnn.step(x[0], h)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_autocast_and_transforms(engine: str) -> None:
    rnn, (x, h) = elman.Recurrent(cells.Elman(I, H), engine=engine), data(torch.float32)
    warm(rnn, x, h)
    with torch.no_grad():
        whole = rnn(x, h)[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert rnn(x.bfloat16(), h.bfloat16())[0].dtype == torch.float32
            warm(rnn, x, h)
            assert torch.equal(rnn(x, h)[0], whole)

        class Mixed(nn.Module):
            """Works in the dtype of x, which autocast makes that of the parameters."""

            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.ones(I))

            def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
                return x * self.w, h

        mixed = elman.Recurrent(Mixed(), engine=engine)
        warm(mixed, x.double(), x[0])
        assert mixed(x.double(), x[0])[0].dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert mixed(x.double(), x[0])[0].dtype == torch.float32
    gradient = torch.func.grad(lambda x: rnn(x, h)[0].sum())(x)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(rnn(y := x.clone().requires_grad_(), h)[0].sum(), y)[0]
    )


def test_copies_forget() -> None:
    rnn, (x, h) = elman.Recurrent(cells.Elman(I, H).double()), data()
    warm(rnn, x, h)
    for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        assert other._calls.latest is None
        other.cell.W.data.zero_()
        right(other, x, h)
    right(rnn, x, h)


def test_the_engine_is_there() -> None:
    """Where no compiler was, steps are the cell's own, and nothing above shows the engine's step."""
    rnn, (x, h) = elman.Recurrent(cells.Elman(I, H).double()), data()
    warm(rnn, x, h)
    loop = rnn._calls.latest.program.plan.loop
    native = choose("auto", loop, torch.device("cpu")).name == "native"
    step = rnn._calls._bound.latest[1]
    assert (step.binding is not None) == native
    program = rnn._calls.latest.program
    assert (program.steps_by_loop("auto"), program.steps_by_loop("reference")) == (native, False)


class Start(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.Parameter(torch.arange(1.0, H + 1))

    def forward(self, batch: int) -> Tensor:
        return self.h.expand(batch, -1)


class Handing(nn.Module):
    """A wrapper that has what the cell in it has."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.inner = cell

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.inner(x, h)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_module_says_what_the_cell_starts_from(wrapped: bool) -> None:
    """Neither an attribute of the class nor of the object, as Python looks for them."""
    cell: nn.Module = cells.Elman(I, H)
    cell.initial_state = Start()
    cell = Handing(cell.double()) if wrapped else cell.double()
    rnn, (x, _) = elman.Recurrent(cell), data()
    outputs, final = rnn(x, cell.initial_state(B))
    for _ in range(3):
        same(rnn(x), (outputs, final))
        with torch.no_grad():
            same(rnn.step(x[0])[0], outputs[0])


class _Asked(nn.Module):
    """Starts from what it is told to, and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(H, I + H, dtype=torch.float64))
        self.asked, self.value = [], 0.5

    def initial_state(self, batch: int) -> Tensor:
        self.asked.append(batch)
        return self.W.new_full((batch, H), float(len(self.asked)))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(torch.cat([x, h], 1) @ self.W.T)


def test_a_cell_is_asked_once_where_it_starts_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """By every call, by every step, and where a step falls back to the cell."""
    cell = _Asked()
    rnn = elman.Recurrent(cell)
    x = torch.randn(T, B, I, dtype=torch.float64)

    def expected() -> Tensor:
        return x.new_full((B, H), float(len(cell.asked)))

    with torch.no_grad():
        rnn(x)
        rnn.step(x[0])
        for _ in range(3):  # bound by now
            before = len(cell.asked)
            made = rnn(x)
            assert len(cell.asked) == before + 1
            same(made, eager.unroll(cell, x, expected()))
            made = rnn.step(x[0])
            assert len(cell.asked) == before + 2
            same(made[1], cell(x[0], expected()))
        monkeypatch.setattr(elman.execute.Program, "steps_by_loop", lambda self, engine: False)
        other = elman.Recurrent(cell)
        other.step(x[0])
        before = len(cell.asked)
        made = other.step(x[0])
        assert len(cell.asked) == before + 1
        same(made[1], cell(x[0], expected()))


def test_a_start_that_is_another_one_than_before() -> None:
    """Another batch than asked for is refused; another structure is another program."""

    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Parameter(torch.randn(H, H, dtype=torch.float64))
            self.made: list[Callable[[int], Any]] = []

        def initial_state(self, batch: int) -> Any:
            return self.made[0](batch)

        def forward(self, x: Tensor, state: Any) -> Any:
            h = state if isinstance(state, Tensor) else state[0]
            h = torch.tanh(x @ self.W + h)
            return h if isinstance(state, Tensor) else (h, (h,))

    cell = Turning()
    rnn = elman.Recurrent(cell)
    x = torch.randn(T, B, H, dtype=torch.float64)
    single: Callable[[int], Any] = lambda batch: x.new_ones(batch, H)  # noqa: E731
    with torch.no_grad():
        cell.made[:] = [single]
        for _ in range(3):
            outputs, _ = rnn(x)
        cell.made[:] = [lambda batch: (x.new_ones(batch, H),)]
        for _ in range(3):
            again, final = rnn(x)
            assert isinstance(final, tuple)
            same(again, outputs)
        cell.made[:] = [lambda batch: x.new_ones(batch + 1, H)]
        with pytest.raises(InputError, match="batch size"):
            rnn(x)


def test_parameters_that_get_another_size_through_data() -> None:
    """And the old one again: calls and steps have been there before."""
    cell = nn.GRUCell(3, 4).double()
    rnn, there = elman.Recurrent(cell), {4: [p.detach() for p in cell.parameters()]}
    there[6] = [p.detach() for p in nn.GRUCell(3, 6).double().parameters()]
    for width in (4, 6, 4, 6):
        cell.hidden_size = width
        for parameter, numbers in zip(cell.parameters(), there[width], strict=True):
            parameter.data, parameter.grad = numbers, None
        x, h = torch.randn(4, 2, 3).double(), torch.randn(2, width).double()
        wanted, found = list(cell.parameters()), []
        for run in (rnn, lambda x, h: rnn.step(x[0], h), lambda x, h: eager.unroll(cell, x, h)):
            found.append(torch.autograd.grad(run(x, h)[1].sum(), wanted))
        calls, _, loop = found
        for mine, expected in zip(calls, loop, strict=True):
            torch.testing.assert_close(mine, expected)
        rnn(x, h)[1].sum().backward()
        torch.testing.assert_close(tuple(p.grad for p in wanted), calls)
