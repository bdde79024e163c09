"""elman.truncated against a plain Python loop over single steps that says what it means."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import elman
from elman.errors import InputError, InputTypeError, NotSupported
from tests.pairwise import with_more

Tensor = torch.Tensor
F64 = torch.float64
T, B, I, H = 23, 3, 3, 4


class Learned(torch.nn.Module):
    """A cell with an initial state of its own that is learnt, and outputs that are not its state."""

    def __init__(self) -> None:
        super().__init__()
        self.U, self.W, self.V = torch.nn.Linear(I, H), torch.nn.Linear(H, H), torch.nn.Linear(H, 2)
        self.h0 = torch.nn.Parameter(torch.randn(H))

    def initial_state(self, batch: int) -> Tensor:
        return self.h0.expand(batch, H)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.U(x) + self.W(h))
        return self.V(h), h


MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "gru": lambda: elman.Recurrent(elman.cells.GRU(I, H)),
    "lstm": lambda: elman.Recurrent(elman.cells.LSTM(I, H)),
    "learned": lambda: elman.Recurrent(Learned()),
    "stack": lambda: elman.Stack(
        elman.Recurrent(elman.cells.GRU(I, H)), elman.Recurrent(elman.cells.LSTM(H, H))
    ),
    "drop-in": lambda: elman.nn.LSTM(I, H, num_layers=2),
    "compiled": lambda: torch.compile(elman.Recurrent(elman.cells.Elman(I, H)), backend="eager"),  # type: ignore[return-value]
}
EVENTS = ("dense", "lengths", "mask", "reset", "all")


def made(name: str) -> torch.nn.Module:
    torch.manual_seed(1)
    return MODULES[name]().to(F64)


def stream(events: str = "dense") -> dict[str, Tensor]:
    """x, y, and as events say it which steps happen and where sequences begin; some of it at masked steps."""
    torch.manual_seed(2)
    said = {"x": torch.randn(T, B, I, dtype=F64), "y": torch.randn(T, B, dtype=F64)}
    if events in ("mask", "all"):
        said["mask"] = torch.rand(T, B) < 0.6
    if events in ("reset", "all"):
        said["reset"] = torch.rand(T, B) < 0.2
    return said


def chunks(said: dict[str, Tensor], sizes: tuple[int, ...], events: str) -> Iterator[dict[str, Tensor]]:
    """The stream cut into pieces, of whose rows, if lengths are wanted, all but the first end early."""
    at = 0
    while at < T:
        size = sizes[at % len(sizes)]
        piece = {name: value[at : at + size] for name, value in said.items()}
        if events in ("lengths", "all"):
            piece["lengths"] = torch.tensor([len(piece["x"]), len(piece["x"]) // 2, (at + 1) % 2])
        yield piece
        at += size


def whole(pieces: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """(which steps happen, resets) `[T, B]`."""
    happens, resets = [], []
    for piece in pieces:
        steps = len(piece["x"])
        there = torch.arange(steps)[:, None] < piece.get("lengths", torch.full((B,), steps))
        happens.append(there & piece.get("mask", torch.tensor(True)))
        resets.append(piece.get("reset", torch.zeros(steps, B, dtype=torch.bool)))
    return torch.cat(happens), torch.cat(resets)


def choose(rows: Tensor, one: Any, other: Any) -> Any:
    """For each row, one state or the other."""

    def leaf(a: Tensor, b: Tensor) -> Tensor:
        wide = rows if a.dim() == 2 else rows[None]  # torch.nn's states are [layers, B, H]
        return torch.where(wide[..., None], a, b)

    return pytree.tree_map(leaf, one, other)


def plain(
    module: Any, x: Tensor, happens: Tensor, resets: Tensor, k1: int, k2: int
) -> Iterator[tuple[int, Tensor]]:
    """The definition: one step at a time, older ones again from the state that they were run from before."""
    step = module.step if hasattr(module, "step") else lambda x, h: one_step(module, x, h)
    initial = lambda: begin_state(module, x)  # noqa: E731
    states: dict[int, Any] = {}
    for first in range(0, len(x), k1):
        begin, stop = max(0, first - (k2 - k1)), min(first + k1, len(x))
        state, owed = states[begin] if begin else (initial(), torch.zeros(B, dtype=torch.bool))
        outputs = []
        for t in range(begin, stop):
            owed = owed | resets[t]
            o, after = step(x[t], choose(owed & happens[t], initial(), state))
            state = choose(happens[t], after, state)
            owed = owed & ~happens[t]
            outputs.append(torch.where(happens[t][:, None], o, 0))
            states[t + 1] = pytree.tree_map(torch.Tensor.detach, state), owed
        yield first, torch.stack(outputs[first - begin :])


def one_step(module: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    outputs, state = module(x[None], state)
    return outputs[0], state


def begin_state(module: Any, x: Tensor) -> Any:
    """What a module begins with, with its gradient."""
    if isinstance(getattr(module, "cell", None), Learned):
        return module.cell.initial_state(x.shape[1])
    with torch.no_grad():
        state = module(x[:1], None)[1]
    return pytree.tree_map(torch.zeros_like, state)


def learn(
    module: torch.nn.Module, windows: Iterator[tuple[Tensor, Tensor, Tensor]], lr: float
) -> tuple[list[float], list[Tensor]]:
    """(losses, gradients and weights along the way) of steps of plain gradient descent."""
    losses, seen = [], []
    for outputs, y, happens in windows:
        if not happens.any():
            continue
        loss = (outputs.sum(-1) - y)[happens].square().sum()
        module.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in module.parameters():
                gradient = torch.zeros_like(p) if p.grad is None else p.grad.clone()
                p -= lr * gradient
                seen.append(gradient)
        losses.append(loss.item())
    return losses, [*seen, *(p.detach().clone() for p in module.parameters())]


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


# --- what it equals -----------------------------------------------------------------------------------------------


@pytest.mark.grid
@pytest.mark.parametrize("sizes", [(1,), (7,), (5, 11, 2), (64,)], ids=str)
@pytest.mark.parametrize("lr", [0.0, 0.05])
@pytest.mark.parametrize(
    ("k1", "k2"),
    with_more([(1, 1), (3, 5), (5, 13), (6, 40)], [(4, 4), (1, 6), (4, 8), (23, 23)], together=True),
)
@pytest.mark.parametrize("events", EVENTS)
@pytest.mark.parametrize("name", with_more(["lstm", "learned", "stack"], ["gru", "drop-in"]))
def test_it_is_the_plain_loop(
    name: str, events: str, k1: int, k2: int, lr: float, sizes: tuple[int, ...]
) -> None:
    said = stream(events)
    happens, resets = whole(list(chunks(said, sizes, events)))

    def ours() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for window in elman.truncated(module, chunks(said, sizes, events), k1=k1, k2=k2):
            assert torch.equal(window.happens, happens[window.first : window.first + k1])
            assert torch.equal(window.x, said["x"][window.first : window.first + k1])
            assert not any(h.requires_grad for h in pytree.tree_leaves(window.state))
            yield window.outputs, window.y, window.happens

    def theirs() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for first, outputs in plain(module, said["x"], happens, resets, k1, k2):
            yield outputs, said["y"][first : first + k1], happens[first : first + k1]

    module = made(name)
    got = learn(module, ours(), lr)
    module = made(name)
    same(got, learn(module, theirs(), lr))


@pytest.mark.grid(1)
@pytest.mark.parametrize("events", ["dense", "reset", "all"])
@pytest.mark.parametrize("name", MODULES)
def test_a_window_of_everything_is_a_call_on_the_whole(name: str, events: str) -> None:
    said = stream(events)
    pieces = list(chunks(said, (5, 11, 2), events))
    happens, resets = whole(pieces)
    module = made(name)
    (window,) = elman.truncated(module, pieces, k1=T)
    window.outputs.square().sum().backward()
    got = [p.grad for p in module.parameters()]
    module.zero_grad()
    outputs, final = module(said["x"], mask=happens, reset=resets)
    outputs.square().sum().backward()
    same(window.outputs, outputs)
    same(window.state, final)
    same(got, [p.grad for p in module.parameters()])


def test_windows_that_reach_back_to_the_beginning_add_up_to_the_whole() -> None:
    module, x = made("learned"), stream()["x"]
    for window in elman.truncated(module, x.split(4), k1=5, k2=T + 5):
        window.outputs.square().sum().backward()
    got = [p.grad for p in module.parameters()]
    module.zero_grad()
    module(x)[0].square().sum().backward()
    same(got, [p.grad for p in module.parameters()])


def test_a_reset_at_a_masked_step_counts_for_the_next_one_that_happens() -> None:
    """At the end of a chunk, at the end of a window, and through a chunk in which nothing happens."""
    module, x = made("learned"), stream()["x"][:8]
    mask, reset = torch.ones(8, B, dtype=torch.bool), torch.zeros(8, B, dtype=torch.bool)
    mask[3:6, 0], reset[3, 0] = False, True
    expected, final = module(x, mask=mask, reset=reset)
    pieces = [
        {"x": x[a:b], "mask": mask[a:b], "reset": reset[a:b]} for a, b in ((0, 4), (4, 5), (5, 5), (5, 8))
    ]
    windows = list(elman.truncated(module, pieces, k1=2, k2=5))
    same(torch.cat([window.outputs for window in windows]), expected)
    same(windows[-1].state, final)


def test_torchs_own_layers_and_functions() -> None:
    x = stream()["x"]
    theirs, ours = made("drop-in"), torch.nn.LSTM(I, H, num_layers=2).to(F64)
    ours.load_state_dict(theirs.state_dict())
    for module in (ours, lambda x, state: ours(x, state)):
        for one, other in zip(
            elman.truncated(module, x.split(7), k1=3, k2=7),
            elman.truncated(theirs, x.split(7), k1=3, k2=7),
            strict=True,
        ):
            same(one.outputs, other.outputs)
            same(one.state, other.state)


def test_batch_first() -> None:
    said = stream("all")
    pieces = list(chunks(said, (5, 11, 2), "all"))
    turned = [{k: v if k == "lengths" else v.swapaxes(0, 1) for k, v in piece.items()} for piece in pieces]
    module, first = made("gru"), elman.Recurrent(elman.cells.GRU(I, H), batch_first=True).to(F64)
    first.load_state_dict(module.state_dict())
    every = [
        elman.truncated(module, pieces, k1=3, k2=7),
        elman.truncated(first, turned, k1=3, k2=7),
        elman.truncated(lambda x, h, **more: first(x, h, **more), turned, k1=3, k2=7, batch_first=True),
    ]
    for one, *others in zip(*every, strict=True):
        for other in others:
            for name in ("outputs", "x", "y", "happens"):
                same(getattr(other, name).swapaxes(0, 1), getattr(one, name))
            same(other.state, one.state)


class Nested(torch.nn.Module):
    """Takes and gives more than one tensor at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.W = H, torch.nn.Linear(I + H, H)

    def forward(self, x: dict[str, Tensor], h: Tensor) -> tuple[dict[str, Any], Tensor]:
        h = torch.tanh(self.W(torch.cat([x["a"], h], -1)) * x["b"])
        return {"h": h, "sum": (h.sum(-1), None)}, h

    def initial_state(self, batch: int) -> Tensor:
        return self.W.weight.new_zeros(batch, H)


def test_nested_inputs_outputs_and_targets() -> None:
    module, x = elman.Recurrent(Nested()).to(F64), stream()["x"]
    given, y = {"a": x, "b": x[..., :1]}, (x[..., 0] > 0, {"weight": x[..., 1]})
    split = lambda tree, a, b: pytree.tree_map_only(Tensor, lambda t: t[a:b], tree)  # noqa: E731
    pieces = [(split(given, a, a + 5), split(y, a, a + 5)) for a in range(0, T, 5)]
    expected = module(given)[0]
    for window in elman.truncated(module, pieces, k1=4, k2=6):
        a, b = window.first, window.first + 4
        same(window.outputs, split(expected, a, b))
        same((window.x, window.y), (split(given, a, b), split(y, a, b)))


def test_a_loss_at_each_step_and_no_output() -> None:
    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_size, self.cell = H, elman.cells.GRU(I, H)

        def forward(self, x: tuple[Tensor, Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
            h = self.cell(x[0], h)
            return (h.sum(-1) - x[1]).square(), h

    said = stream()
    module = elman.Recurrent(Loss()).to(F64)
    pieces = [{"x": (x, y)} for x, y in zip(said["x"].split(6), said["y"].split(6), strict=True)]
    got = torch.cat([window.outputs for window in elman.truncated(module, pieces, k1=5)])
    same(got, module((said["x"], said["y"]))[0])


def test_the_state_that_is_given_has_no_history() -> None:
    module, x = made("gru"), stream()["x"]
    state = torch.randn(B, H, dtype=F64, requires_grad=True)
    for window in elman.truncated(module, [x], k1=5, k2=15, state=2 * state):
        window.outputs.sum().backward()
    assert state.grad is None
    same(window.state, module(x, 2 * state)[1])


# --- as a stream --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 7, 30])
@pytest.mark.parametrize(("k1", "k2"), [(3, 3), (5, 12)])
def test_no_chunk_is_taken_before_it_is_needed(size: int, k1: int, k2: int) -> None:
    taken = 0

    def source() -> Iterator[Tensor]:
        nonlocal taken
        while True:  # it never ends
            taken += 1
            yield torch.randn(size, B, I, dtype=F64)

    windows = elman.truncated(made("gru"), source(), k1=k1, k2=k2)
    assert taken == 0
    for window in windows:
        assert taken == -(-(window.first + k1) // size)
        if window.first > 60:
            break


@pytest.fixture
def alone() -> Iterator[None]:
    """The collector of garbage knows of nothing that was there before: asking it takes no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.conformance
@pytest.mark.parametrize(("size", "k1", "k2"), [(40, 5, 20), (3, 10, 30), (8, 8, 8)])
def test_what_is_held_does_not_grow(size: int, k1: int, k2: int, alone: None) -> None:
    """Steps of x that live when a chunk is wanted: no more than k2, whoever made them, and no old graph."""
    module, most = torch.nn.GRU(I, H).to(F64), []

    def live() -> int:
        held = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in gc.get_objects()
            if type(t) is Tensor and t.dtype is F64 and t.dim() == 3 and t.shape[1:] == (B, I)
        }
        return sum(held.values()) // (8 * B * I)

    def source() -> Iterator[Tensor]:
        for _ in range(24):
            gc.collect()
            most.append(live())
            yield torch.randn(size, B, I, dtype=F64)

    for window in elman.truncated(module, source(), k1=k1, k2=k2):
        window.outputs.sum().backward()
        assert live() <= 2 * k2 + size  # a window that crosses chunks is put together
        del window
    assert max(most) - most[0] <= k2


def test_no_window_outlives_its_turn(alone: None) -> None:
    module, graphs = made("gru"), []

    def watched(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        gc.collect()
        assert [ref for ref in graphs if ref() is not None] == []
        return module(x, state)

    for window in elman.truncated(watched, stream()["x"].split(12), k1=4, k2=9):
        graphs.append(weakref.ref(window.outputs))
        window.outputs.sum().backward()
        del window
    assert len(graphs) == 6


def test_chunks_that_are_fed() -> None:
    """As in a loop of somebody else's, which hands one chunk after the other."""
    module, pieces = made("gru"), stream()["x"].split(6)
    expected = list(elman.truncated(module, pieces, k1=4, k2=7))
    stream_ = elman.truncated(module, k1=4, k2=7)
    got = [window for piece in pieces for window in stream_.feed(piece)]
    assert [window.first for window in got] == [0, 4, 8, 12, 16]
    got += stream_.rest()
    assert list(stream_.rest()) == []
    for one, other in zip(got, expected, strict=True):
        same((one.outputs, one.state, one.first), (other.outputs, other.state, other.first))
    same(stream_.state, expected[-1].state)
    (more,) = stream_.feed(pieces[0][:4])  # it goes on
    same(more.outputs, module(pieces[0][:4], expected[-1].state)[0])
    assert more.first == T


def test_a_loop_that_is_left_early_goes_on() -> None:
    module, x = made("gru"), stream()["x"]
    stream_, got = elman.truncated(module, k1=4, k2=7), []
    for window in stream_.feed(x[:15]):
        got.append(window)
        break
    got += [*stream_.feed(x[15:]), *stream_.rest()]
    same(torch.cat([window.outputs for window in got]), module(x)[0])


def test_a_window_in_which_nothing_happens_is_not_given_out() -> None:
    module, x = made("gru"), stream()["x"]
    mask = torch.ones(T, B, dtype=torch.bool)
    mask[4:13] = False
    windows = list(elman.truncated(module, [{"x": x, "mask": mask}], k1=4))
    assert [window.first for window in windows] == [0, 12, 16, 20]
    same(windows[-1].state, module(x, mask=mask)[1])


# --- what is refused ----------------------------------------------------------------------------------------------

BACKWARD = {
    "bidirectional": lambda: elman.Bidirectional(elman.cells.GRU(I, H), elman.cells.GRU(I, H)),
    "reverse": lambda: elman.Recurrent(elman.cells.GRU(I, H), reverse=True),
    "stack": lambda: elman.Stack(
        elman.Recurrent(elman.cells.GRU(I, H)),
        elman.Bidirectional(elman.cells.GRU(H, H), elman.cells.GRU(H, H)),
    ),
    "drop-in": lambda: elman.nn.GRU(I, H, bidirectional=True),
    "torch": lambda: torch.nn.GRU(I, H, bidirectional=True),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_layers_that_read_backward_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="reads backward"):
        elman.truncated(BACKWARD[name](), [], k1=2)


@pytest.mark.parametrize(
    ("k1", "k2", "kind", "says"),
    [
        (0, 3, InputError, "1 ≤ k1 ≤ k2"),
        (4, 3, InputError, "k1=4, k2=3"),
        (2.0, 3, InputTypeError, "k1 is a number of steps"),
        (2, True, InputTypeError, "k2 is a number of steps"),
    ],
)
def test_numbers_of_steps_that_cannot_be(k1: Any, k2: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        elman.truncated(made("gru"), [], k1=k1, k2=k2)


x = torch.randn(5, B, I, dtype=F64)
WRONG: dict[str, tuple[list[Any], type[Exception], str]] = {
    "no chunk": ([5], InputTypeError, "no chunk of a stream"),
    "three": ([(x, x, x)], InputTypeError, "x, or \\(x, y\\)"),
    "a typo": ([{"x": x, "length": [1]}], InputTypeError, "a dict of 'x', 'length'"),
    "no x": ([{"y": x}], InputTypeError, "a dict of 'y'"),
    "nothing in x": ([{"x": None}], InputError, "no tensor that says how long"),
    "packed": ([torch.nn.utils.rnn.pack_sequence([x[:, 0]])], NotSupported, "another order in every chunk"),
    "one dimension": ([x[:, 0, 0]], InputError, r"got: shape \[5\]"),
    "y of other steps": ([(x, x[:4])], InputError, r"chunk\['y'\]"),
    "fewer rows": ([x, x[:, :2]], InputError, "drop an incomplete last batch"),
    "wider": ([x, torch.cat([x, x], -1)], InputError, "not like the first one"),
    "another dtype": ([x, x.float()], InputError, "not like the first one"),
    "another structure": ([x, (x, x)], InputTypeError, "not of the structure"),
    "a history": ([2 * x.clone().requires_grad_()], InputError, "a history"),
    "too long": ([{"x": x, "lengths": [6, 1, 1]}], InputError, "a length is not"),
    "no bools": ([{"x": x, "mask": torch.ones(5, B)}], InputTypeError, "mask says yes or no"),
    "transposed": ([{"x": x, "reset": torch.ones(B, 5, dtype=torch.bool)}], InputError, "transposed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_chunks_that_do_not_fit(name: str) -> None:
    given, kind, says = WRONG[name]
    with pytest.raises(kind, match=says):
        list(elman.truncated(made("gru"), given, k1=2, k2=3))


def test_modules_that_do_not_fit() -> None:
    ragged = [{"x": x, "lengths": [5, 2, 1]}]
    with pytest.raises(InputTypeError, match="takes no mask"):
        list(elman.truncated(torch.nn.GRU(I, H).to(F64), ragged, k1=2))
    with pytest.raises(InputTypeError, match="does not return outputs and a state"):
        list(elman.truncated(lambda x, state: x, [x], k1=2))
    with pytest.raises(InputError, match="no time dimension"):
        list(elman.truncated(lambda x, state: (x.sum(0), state), [x], k1=2))
    with pytest.raises(InputTypeError, match="is a module"):
        elman.truncated(5, [x], k1=2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="there are no chunks"):
        list(elman.truncated(made("gru"), k1=2))
