"""Streams: one step after another is what `step` is, to the last bit, whatever happens to the rows and the weights."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import elman
from elman import cells
from elman.errors import InputError, InputTypeError, NotSupported, NotYet, TraceError
from elman.models import LanguageModel
from tests.cases import CASES, SELDOM
from tests.turns import taking_turns

SOME = [name for name in sorted(CASES) if name not in SELDOM][::10]


def same(a: object, b: object) -> bool:
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(left) == len(right) and all(
        torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(left, right, strict=True)
    )


def at(x: object, t: int) -> object:
    return pytree.tree_map(lambda leaf: leaf[t] if isinstance(leaf, torch.Tensor) else leaf, x)


@pytest.mark.grid(1)
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["32", "64"])
@torch.no_grad()
def test_a_stream_is_step_after_step(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    rnn = elman.Recurrent(case.make().to(dtype))
    generator = torch.Generator().manual_seed(0)
    T, B = 3, 3
    x, state, context = (make(generator) for make in (
        lambda g: case.x(T, B, g, dtype), lambda g: case.state(B, g, dtype), lambda g: case.context(B, g, dtype)
    ))  # fmt: skip
    stream = rnn.stream(state=state)
    for t in range(T):
        made = stream.step(at(x, t), context=context)
        if case.noise:
            continue
        expected, state = rnn.step(at(x, t), state, context=context)
        # With a context the cell itself takes the step, by PyTorch's functions.
        assert (close if case.contexts is not None else same)((made, stream.state), (expected, state)), t


def close(a: object, b: object) -> bool:
    return all(torch.allclose(x, y, atol=1e-5) for x, y in zip(*map(pytree.tree_leaves, (a, b)), strict=True))


def gru(hidden: int = 8, engine: str = "auto") -> elman.Recurrent:
    return elman.Recurrent(cells.GRU(6, hidden), engine=engine)


def steps(stream: elman.recurrent.Stream, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([stream.step(x_t) for x_t in x])


@torch.no_grad()
def test_a_stream_is_a_call() -> None:
    rnn, x = gru(), torch.randn(9, 2, 6)
    outputs, final = rnn(x)
    stream = rnn.stream(batch=2)
    assert torch.equal(steps(stream, x), outputs)
    assert torch.equal(stream.state, final)


@torch.no_grad()
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_rows_come_and_go(engine: str) -> None:
    """Each row goes on as if it were alone: to the last bit where an engine keeps it."""
    rnn, x = gru(engine=engine), torch.randn(9, 4, 6)
    begun = torch.randn(1, 8)
    alone = [steps(rnn.stream(), x[1:, 0:1]), steps(rnn.stream(state=begun), x[:, 1:2])]
    alone += [steps(rnn.stream(), x[3:, 2:3])]
    stream = rnn.stream(batch=2)
    stream.step(x[0, :2])
    stream.state = torch.cat([torch.zeros(1, 8), stream.state[1:]])
    made = [[], [], []]
    assert stream.add(state=begun) == 2
    stream.drop(1)  # rows are now 0 and the one that was given
    for t in range(9):
        rows = [0, 1]
        if t == 3:
            assert stream.add() == 2
        if t >= 3:
            rows.append(2)
        x_t = torch.stack([x[min(t + 1, 8), 0], x[t, 1], x[t, 2]])[rows]
        for row, value in zip(rows, stream.step(x_t), strict=True):
            made[row].append(value)
    check = torch.equal if engine == "native" else torch.allclose
    for got, expected in zip(made, alone, strict=True):
        assert check(torch.stack(got)[: len(expected)], expected[: len(got), 0])


@torch.no_grad()
def test_a_reset_begins_anew_and_leaves_the_others() -> None:
    class Begins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h, self.W = nn.Parameter(torch.randn(4)), nn.Linear(4, 4)

        def initial_state(self, batch: int) -> torch.Tensor:
            return self.h.expand(batch, -1)

        def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.W(h) + x)

    rnn, x = elman.Recurrent(Begins()), torch.randn(6, 3, 4)
    resets = torch.rand(6, 3) < 0.4
    assert torch.equal(rnn.stream(batch=3).state, rnn.cell.initial_state(3))
    stream, state = rnn.stream(batch=3), None
    for x_t, reset in zip(x, resets, strict=True):
        expected, state = rnn.step(x_t, state, reset=reset)
        assert torch.equal(stream.step(x_t, reset=reset), expected)
    before = stream.state
    stream.reset([0, np.int64(2)])
    assert torch.equal(stream.state, torch.where(torch.tensor([[0], [1], [0]]) > 0, before, rnn.cell.h))
    stream.reset(np.int64(1))
    assert torch.equal(stream.state, rnn.cell.initial_state(3))


@torch.no_grad()
def test_changes_of_the_cell_are_noticed() -> None:
    rnn, x = elman.Recurrent(cells.Leaky(6, 8)), torch.randn(2, 6)
    stream = rnn.stream(batch=2)
    stream.step(x)

    def follows() -> bool:
        state = stream.state
        return torch.equal(stream.step(x), rnn.step(x, state)[0])

    parameter = next(rnn.parameters())
    parameter.mul_(2)
    assert follows()
    parameter.data = torch.randn_like(parameter)
    assert follows()
    rnn.cell.alpha = 0.9
    assert follows()
    for name, value in [*rnn.cell._parameters.items()]:
        rnn.cell._parameters[name] = None if value is None else nn.Parameter(torch.randn_like(value))
    assert follows()
    rnn.cell = cells.Leaky(6, 8)
    assert follows()
    next(rnn.parameters()).data.mul_(2)  # which PyTorch does not count
    assert not follows()
    stream.refresh()
    assert follows()


@torch.no_grad()
def test_a_stack_is_one_stream() -> None:
    deep = elman.Stack(
        gru(), elman.Recurrent(cells.LSTM(8, 8)), residual=True, norms=[nn.LayerNorm(8)]
    ).eval()
    stream, x, state = deep.stream(batch=2), torch.randn(5, 2, 6), None
    for x_t in x:
        expected, state = deep.step(x_t, state)
        assert close((stream.step(x_t), stream.state), (expected, state))
    assert type(stream.state) is type(state)
    deep.dropout, before = 0.5, stream.state
    deep.train()
    assert not torch.equal(stream.step(x[0]), deep.eval().step(x[0], before)[0])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Stack", "LanguageModel"])
def test_a_new_stream_of_layers_takes_a_state(kind: str) -> None:
    """Whatever its cells start from, which nobody knows before a first step."""
    layers = gru(), elman.Recurrent(cells.LSTM(8, 8))
    if kind == "Stack":
        model, x = elman.Stack(*layers), torch.randn(5, 1, 6)
    else:
        model, x = LanguageModel(20, hidden=8, layers=2), torch.randint(20, (5, 1))
    model.eval()
    with pytest.raises(NotYet, match="at the first step"):
        _ = model.stream().state
    state = model(x)[1]
    expected = model(x[:1], state)[0][0]
    begun, joined = model.stream(state=state), model.stream(batch=0)
    assigned, mixed = model.stream(), model.stream()
    assigned.state = state
    assert joined.add(state=state) == 0
    assert mixed.add(state=state) == 1
    for stream in (begun, assigned, joined):
        assert close(stream.state, state)
        assert close(stream.step(x[0]), expected)
    assert close(mixed.step(x[0].expand(2, *x[0].shape[1:]))[1:], expected)
    with pytest.raises(InputTypeError, match="one state for each part"):
        model.stream(state=state[:1])


def rounded(w: torch.Tensor, weights: str) -> torch.Tensor:
    if weights == "bfloat16":
        return w.bfloat16().float()
    scale = w.abs().amax(1, keepdim=True) / 127
    return torch.where(scale > 0, (w / scale).round() * scale, 0.0)


@torch.no_grad()
@pytest.mark.grid
@pytest.mark.parametrize("isa", elman.engines.native.extension.compiled.instruction_sets())
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize(("rows", "n_in", "hidden"), [(3, 5, 37), (7, 300, 130)])
def test_weights_in_fewer_bits(isa: str, weights: str, rows: int, n_in: int, hidden: int) -> None:
    """They are the numbers of the cell with rounded weights, up to the rounding of sums."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_size = hidden
            self.U, self.W, self.V = (
                nn.Linear(n_in, hidden),
                nn.Linear(hidden, hidden, bias=False),
                nn.Linear(hidden, 3),
            )

        def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            h = torch.tanh(self.U(x) + self.W(h))
            return self.V(h), h

    cell = Cell()
    cell.U.weight[0] = 0  # a row without a scale
    cell.W.weight[1, 0] = 3.0
    rnn = elman.Recurrent(cell, engine=elman.engines.native.Native(isa))
    x, h = torch.randn(3, rows, n_in), torch.zeros(rows, hidden)
    stream = rnn.stream(batch=rows, weights=weights)
    made = steps(stream, x)
    one = rnn.stream(weights=weights)
    assert torch.equal(steps(one, x[:, rows // 2, None])[:, 0], made[:, rows // 2])
    exact = rnn.stream(batch=rows)
    assert not torch.equal(steps(exact, x), made)
    for layer in (cell.U, cell.W, cell.V):
        layer.weight.copy_(rounded(layer.weight, weights))
    for x_t, o in zip(x, made, strict=True):
        expected, h = cell(x_t, h)
        torch.testing.assert_close(o, expected, rtol=1e-5, atol=1e-5)


def test_threads_have_a_stream_each() -> None:
    rnn, x = gru(64), torch.randn(30, 4, 6)
    expected, made = rnn(x)[0], [None] * 4

    def run(i: int) -> None:
        made[i] = steps(rnn.stream(), x[:, i : i + 1])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.cat(made, 1), expected)


class _Counting(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.W, self.hidden_size = nn.Parameter(torch.zeros(hidden, hidden)), hidden

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return h + 1 + h @ self.W + x


@pytest.mark.parametrize("hidden", [8, 640])  # steps that keep Python's lock, and steps that let it go
@torch.no_grad()
def test_threads_with_one_stream_are_refused_or_served(hidden: int) -> None:
    """Whichever of them: every step that was served has happened once, in all of the state."""
    stream, x = elman.Recurrent(_Counting(hidden)).stream(), torch.zeros(1, hidden)
    stream.step(x)
    stream.reset()
    served, refused = [0, 0], set()

    def run(i: int) -> None:
        for _ in range(1000):
            try:
                stream.step(x)
            except RuntimeError as error:
                refused.add(str(error))
            else:
                served[i] += 1

    with taking_turns(lambda: run(0), lambda: run(1)):
        pass
    assert torch.equal(stream.state, torch.full((1, hidden), float(sum(served))))
    assert all("one step at a time" in words for words in refused)


def test_what_does_not_fit_is_said() -> None:
    rnn, x = gru(), torch.randn(2, 6)
    with pytest.raises(InputError, match="reversed"):
        elman.Recurrent(cells.GRU(6, 8), reverse=True).stream()
    with pytest.raises(InputError, match="reversed"):
        elman.Stack(gru(), elman.Recurrent(cells.GRU(8, 8), reverse=True)).stream()
    with pytest.raises(InputError, match="reversed"):
        elman.Stack(gru(), elman.Bidirectional(cells.GRU(8, 8), cells.GRU(8, 8))).stream()
    with pytest.raises(InputError, match="cannot be kept so"):
        rnn.stream(weights="int4")
    with pytest.raises(NotSupported, match="float32"):
        elman.Recurrent(cells.GRU(6, 8).double()).stream(weights="int8")
    with pytest.raises(NotSupported, match="native engine alone"):
        gru(engine="reference").stream(weights="int8").step(x[:1])
    with pytest.raises(InputError, match="number of rows"):
        rnn.stream(batch=3, state=torch.zeros(2, 8))
    stream = rnn.stream(batch=2)
    with pytest.raises(NotYet):
        _ = stream.state
    before, constant = stream.step(x), bytes(64)
    for wrong, error in (
        (lambda: stream.step(x[:1]), "a row for each"),
        (lambda: stream.step(x.clone().requires_grad_()), "no gradients"),
        (lambda: stream.step(x, out=torch.empty(2, 7)), "no room"),
        (lambda: stream.step(x, reset=torch.tensor([True, False]), out=torch.empty(2, 7)), "no room"),
        (lambda: stream.step(x.numpy(), out=np.frombuffer(constant, np.float32).reshape(2, 8)), "read-only"),
        (lambda: stream.step(x.numpy(), out=np.empty((2, 8), np.float32)[::-1]), "such memory"),
        (lambda: stream.step(x, reset=[True]), "reset"),
        (lambda: stream.drop(2), "no such row"),
        (lambda: stream.reset(-1), "no such row"),
        (lambda: setattr(stream, "state", torch.zeros(3, 8)), "a row for each"),
        (lambda: setattr(stream, "state", torch.zeros(2, 9)), "look like"),
        (lambda: rnn.stream(batch=0).step(x[:0]), "no rows"),
    ):
        state = stream.state
        with pytest.raises(InputError, match=error):
            wrong()
        assert torch.equal(stream.state, state)
    assert constant == bytes(64)
    with pytest.raises(TraceError):
        stream.step("x")
    with pytest.raises(InputTypeError, match="no such numbers"):
        stream.step(x.numpy().astype(">f4"))
    stream.step(x)
    assert before.shape == (2, 8)
    assert "ordinary steps: the reference engine" in repr(stepped(gru(engine="reference").stream(), x[:1]))
    assert "native" in str(stream.explain())


def stepped(stream: elman.recurrent.Stream, x: torch.Tensor) -> elman.recurrent.Stream:
    stream.step(x)
    return stream


def test_a_step_that_fails_leaves_the_state() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_size, self.table = 3, nn.Embedding(5, 3)

        def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return h + self.table(x)

    stream = elman.Recurrent(Looks()).stream(batch=2)
    stream.step(torch.tensor([0, 4]))
    state = stream.state
    with pytest.raises(InputError, match="out of range"):
        stream.step(torch.tensor([1, 5]))
    assert torch.equal(stream.state, state)


@torch.no_grad()
def test_a_language_model_streams() -> None:
    model = LanguageModel(12, hidden=8, layers=2, cutoffs=(5, 9), condition=3).eval()
    context = torch.randn(2, 3)
    stream, state = model.stream(batch=2), None
    for x in torch.randint(12, (3, 2)):
        expected, state = model.step(x, state, context=context)
        assert close((stream.step(x, context=context), stream.state), (expected, state))
    assert "native" in repr(stream)
    array = torch.tensor([3, 4]).numpy()
    assert close(
        torch.from_numpy(stream.step(array, context=context)),
        model.step(torch.tensor(array), state, context=context)[0],
    )
    with pytest.raises(InputTypeError, match="numbers of symbols"):
        stream.step(torch.zeros(2), context=context)


def test_writing_with_weights_in_fewer_bits() -> None:
    model = LanguageModel(12, hidden=16)
    likeliest = model.generate([1, 2], 8, temperature=0)
    assert model.generate([1, 2], 8, temperature=0, weights="bfloat16") == likeliest
    first, again = (model.generate([1], 9, samples=2, seed=3, top_k=4, weights="int8") for _ in range(2))
    assert first == again
    assert first != model.generate([1], 9, samples=2, seed=4, top_k=4, weights="int8")


@torch.no_grad()
@pytest.mark.parametrize("weights", [None, "bfloat16", "int8"])
def test_threads_share_columns(weights: str | None) -> None:
    rnn, x, made = gru(300), torch.randn(3, 1, 6), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append(steps(rnn.stream(weights=weights), x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)


@pytest.mark.parametrize("begun", [False, True])
@torch.no_grad()
def test_a_copy_goes_on_from_where_a_stream_is(begun: bool) -> None:
    rnn = elman.Recurrent(cells.LSTM(3, 4))
    x, start = torch.randn(3, 2, 3), (torch.randn(2, 4), torch.randn(2, 4))
    stream = rnn.stream(state=start)
    if begun:
        stream.step(x[0])
    other, third = copy.deepcopy(stream), copy.copy(stream)
    expected = [stream.step(x[t]) for t in (1, 2)]
    for one in (other, third):
        assert same([one.step(x[t]) for t in (1, 2)], expected)
        assert same(one.state, stream.state)
    rnn.cell.b.mul_(0.5)  # they share the weights, and notice
    assert same(other.step(x[0]), stream.step(x[0]))


def test_a_stream_does_not_go_into_a_file() -> None:
    with pytest.raises(NotSupported, match=r"state=state") as told:
        pickle.dumps(elman.Recurrent(cells.Elman(3, 4)).stream())
    assert told.value.where == "pickle"
