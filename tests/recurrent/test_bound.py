"""A call that was bound serves those that are like it, no others, and gives the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import elman
from elman import cells
from elman.engines import choose
from elman.errors import InputError
from elman.execute import Call
from elman.recurrent.programs import Argument, Captured, Owned
from elman.trace.call import store_of
from elman.trace.initial import initial_state
from tests import eager, zoo
from tests.cases import CASES, Case
from tests.recurrent.bound import EXACT, UNWATCHED, B, H, I, T, data, right, same, warm

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


# --- who leaves it --------------------------------------------------------------------------------------------------


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
