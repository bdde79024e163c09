"""A call that was bound serves those that are like it, no others, and gives the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import elman
from elman import cells
from elman.execute import Call
from elman.recurrent.programs import Argument, Captured, Owned
from elman.trace.call import store_of
from elman.trace.initial import initial_state
from tests import eager, zoo
from tests.cases import CASES, Case
from tests.recurrent.bound import EXACT, UNWATCHED, B, H, I, data, same, warm

Tensor = torch.Tensor


def _owning(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    """The cell with a learned initial state."""

    class Owning(kind):
        def __init__(self, *sizes: int) -> None:
            super().__init__(*sizes)
            self.start = nn.Parameter(torch.randn(sizes[1]))

        def initial_state(self, batch: int) -> Tensor:
            return self.start.expand(batch, -1)

    return Owning


# --- the same results -----------------------------------------------------------------------------------------------


@pytest.mark.grid(1)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_a_call_that_is_bound_is_like_the_first(case: Case, steps: int, matched: list[bool]) -> None:
    rnn = elman.Recurrent(case.make().double())
    x, state, context = case.x(steps, B), case.state(B), case.context(B)
    found = []
    for _ in range(3):
        torch.manual_seed(1)
        with torch.no_grad():
            found.append(rnn(x, state, steps=case.steps(steps), context=context))
    assert any(matched) == (case.name not in UNWATCHED)
    for one, other in zip(pytree.tree_leaves(found[0]), pytree.tree_leaves(found[2]), strict=True):
        assert one is other is None or torch.equal(one, other)
    assert pytree.tree_structure(found[0]) == pytree.tree_structure(found[2])


RAGGED = {
    "lengths": lambda: {"lengths": torch.tensor([2, 0, 4])},
    "mask": lambda: {"mask": torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]]).bool()},
    "resets": lambda: {"reset": torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]).bool()},
}


@pytest.mark.grid
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("happens", RAGGED.values(), ids=RAGGED)
@pytest.mark.parametrize("own", [False, True], ids=["given", "missing"])
@pytest.mark.parametrize(
    "kind", [cells.GRU, cells.LSTM, _owning(cells.Elman)], ids=["GRU", "LSTM", "own start"]
)
def test_a_bound_call_on_pieces(
    kind: Callable[..., nn.Module], own: bool, happens: Callable[[], Any], reverse: bool, matched: list[bool]
) -> None:
    """Taught by a call without pieces, and by one with a state or without."""
    rnn = elman.Recurrent(kind(I, H).double(), reverse=reverse)
    (x, h), more = data(), happens()
    h = (h, h + 1) if kind is cells.LSTM else h
    x.requires_grad_()
    wanted = [x, *rnn.parameters()]
    state = None if own else h

    def found() -> list[Tensor]:
        outputs, final = rnn(x, state, **more)
        total = outputs.square().sum() + sum(f.square().sum() for f in pytree.tree_leaves(final))
        return [outputs, *pytree.tree_leaves(final), *torch.autograd.grad(total, wanted, allow_unused=True)]

    first = found()
    matched.clear()
    rnn(x)
    rnn(x)
    assert matched[-1] is True or not own
    again = found()
    for one, other in zip(again, first, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_a_bound_call_on_a_packed_sequence(matched: list[bool]) -> None:
    rnn, (x, h) = elman.Recurrent(cells.GRU(I, H).double()), data()
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 1, 4]), enforce_sorted=False)
    found = [rnn(packed, h) for _ in range(4)]
    assert matched[-1]
    outputs, final = rnn(x, h, lengths=torch.tensor([2, 1, 4]))
    for other, last in found:
        torch.testing.assert_close(nn.utils.rnn.pad_packed_sequence(other)[0], outputs, **EXACT)
        torch.testing.assert_close(last, final, **EXACT)


@pytest.mark.parametrize("kind", [cells.Elman, cells.GRU, cells.LSTM, cells.Leaky])
def test_gradients_of_a_bound_call(kind: Callable[..., nn.Module], matched: list[bool]) -> None:
    rnn, (x, _) = elman.Recurrent(kind(I, H).double()), data()
    x.requires_grad_()
    wanted = [x, *rnn.cell.parameters()]
    found = [torch.autograd.grad(rnn(x)[0].square().sum(), wanted) for _ in range(4)]
    assert matched[-1]
    expected = torch.autograd.grad(
        eager.unroll(rnn.cell, x, initial_state(rnn.cell, x[0]))[0].square().sum(), wanted
    )
    for got in found:
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_a_step_by_the_engine_is_the_cell(case: Case) -> None:
    cell = case.make().double()
    rnn = elman.Recurrent(cell)
    x, state, context = case.x(1, B), case.state(B), case.context(B)
    with torch.no_grad():
        rnn(x, state, steps=case.steps(1), context=context)
        bound = rnn._calls.latest
        assert bound is not None
        program = bound.program
        if not program.steps_by_loop("auto"):
            assert case.name == "convolutional_rnn"
            return
        x = None if x is None else pytree.tree_map(lambda t: t[0], x)
        given = {"x": x, "state": state, "context": context}
        rest = {
            name: iter([t for t in pytree.tree_leaves(v) if isinstance(t, Tensor)])
            for name, v in given.items()
        }
        tensors = [
            next(rest[source.name]) if isinstance(source, Argument)
            else source.tensor if isinstance(source, Captured)
            else store_of(cell, source.place)[source.place.key]
            for source in bound.sources
            if isinstance(source, (Argument, Captured, Owned))
        ]  # fmt: skip
        made = program.step(Call(1, B, 3, "auto"), tensors)
        if case.noise:
            return
        arguments = [x, state] if context is None else [x, state, context]
        returned = cell(*arguments)
        leaves = [t for t in pytree.tree_leaves(returned) if isinstance(t, Tensor)]
        final = [made[slot] for slot in bound.finals]
        same(final, leaves[len(leaves) - len(final) :])
        if bound.outputs and len(leaves) > len(final):
            same([made[slot] for slot in bound.outputs], leaves[: len(leaves) - len(final)])


@pytest.mark.parametrize("name", ["elman", "lstm", "delayed_rnn", "dict_output_rnn", "silent_rnn"])
def test_steps_without_gradients(name: str, matched: list[bool]) -> None:
    case = CASES[name]
    rnn = elman.Recurrent(case.make().double())
    xs, state = case.x(3, B), case.state(B)
    with torch.no_grad():
        whole, final = rnn(xs, state)
        outputs = []
        for t in range(3):
            output, state = rnn.step(pytree.tree_map(lambda x, t=t: x[t], xs), state)
            outputs.append(output)
    assert matched[-2:] == [True, True]
    assert type(state) is type(final)
    same(state, final)
    for t, output in enumerate(outputs):
        same(output, None if whole is None else pytree.tree_map(lambda o, t=t: o[t], whole))


def test_a_step_with_gradients_is_the_cell() -> None:
    rnn, (x, h) = elman.Recurrent(cells.GRU(I, H).double()), data()
    warm(rnn, x, h)
    output, _ = rnn.step(x[0], h)
    assert output.requires_grad
    rnn.requires_grad_(False)
    assert not rnn.step(x[0], h)[0].requires_grad


def test_a_step_of_a_cell_that_is_no_circuit(matched: list[bool]) -> None:
    class Branches(zoo.Base):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.U(x)) if h.sum() > 0 else h

    rnn, (x, h) = elman.Recurrent(Branches(I, H).double()), data()
    with torch.no_grad():
        for state in (h.abs(), -h.abs(), h.abs()):
            same(rnn.step(x[0], state)[0], rnn.cell(x[0], state))
    assert matched[-1], "that it is none is found out once"


def test_noise_is_fresh_at_every_step() -> None:
    rnn = elman.Recurrent(CASES["noisy_rnn"].make().double())
    x, h = torch.zeros(4, I, dtype=torch.float64), torch.zeros(4, H, dtype=torch.float64)
    with torch.no_grad():
        drawn = [rnn.step(x, h)[0] for _ in range(400)]
        torch.manual_seed(1)
        theirs = torch.stack(
            [rnn.cell(x, h) if isinstance(rnn.cell(x, h), Tensor) else rnn.cell(x, h)[0] for _ in range(400)]
        )
        torch.manual_seed(5)
        one = rnn.step(x, h)[0]
        torch.manual_seed(5)
        again = rnn.step(x, h)[0]
    assert torch.equal(one, again)
    assert not torch.equal(drawn[-1], drawn[-2])
    assert torch.stack(drawn).std().item() == pytest.approx(theirs.std().item(), rel=0.1)
    assert torch.stack(drawn).mean().item() == pytest.approx(theirs.mean().item(), abs=0.05)


def test_results_belong_to_the_user() -> None:
    rnn, (x, h) = elman.Recurrent(cells.Elman(I, H).double()), data()
    warm(rnn, x, h)
    with torch.no_grad():
        outputs, final = rnn(x, h)
        kept = outputs.clone()
        final.zero_()
        assert torch.equal(outputs, kept)
        output, state = rnn.step(x[0], h)
        kept = output.clone()
        rnn.step(x[1], h)
        assert torch.equal(output, kept)
    outputs.requires_grad_().sum().backward()
    state.requires_grad_()
