"""A call that was bound serves those that are like it, no others, and gives the same."""

from __future__ import annotations

import contextlib
import copy
import pickle
import sys
import types
from collections.abc import Callable, Iterator
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
from elman.recurrent.calls import Calls
from elman.recurrent.programs import Argument, Captured, Owned
from elman.recurrent.single import SingleSteps
from elman.trace.call import store_of
from elman.trace.fingerprint import watch
from elman.trace.initial import initial_state
from tests import eager, zoo
from tests.cases import CASES, Case
from tests.recurrent.test_trace_key import KEEPERS, Holder, Options

Tensor = torch.Tensor
EXACT = {"rtol": 1e-12, "atol": 1e-12}
T, B, I, H = 4, 3, 5, 7
CPU = torch.device("cpu")
# What `watch` has no way to look into: calls of these cells are bound every time.
UNWATCHED = ("weight_norm_rnn",)


@pytest.fixture
def matched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every try to use a bound call from here on, whether it matched."""
    tries: list[bool] = []
    going: list[bool] = []  # for the call that is going on, whether it was bound anew

    def calling(kind: type, name: str) -> None:
        call = getattr(kind, name)

        def counted(self: Any, *args: Any) -> Any:
            if going:
                return call(self, *args)
            going.append(False)
            try:
                return call(self, *args)
            finally:
                tries.append(not going.pop())

        monkeypatch.setattr(kind, name, counted)

    def binding(kind: type, name: str) -> None:
        bind = getattr(kind, name)

        def noted(self: Any, *args: Any) -> Any:
            going[-1] = True
            return bind(self, *args)

        monkeypatch.setattr(kind, name, noted)

    again = Calls.again

    def repeating(self: Calls, *args: Any) -> Any:
        results = again(self, *args)
        tries.extend([True] * (results is not None))
        return results

    monkeypatch.setattr(Calls, "again", repeating)
    for kind, name in ((Calls, "whole"), (Calls, "run"), (SingleSteps, "step")):
        calling(kind, name)
    for kind, name in ((Calls, "_bind"), (SingleSteps, "_bind_step")):
        binding(kind, name)
    return tries


@contextlib.contextmanager
def in_python() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["elman.trace.watch"], "_native", None)
        yield


# What has changed is asked by the native engine, or in Python, where there is none.
WATCHING = {"native": contextlib.nullcontext, "in Python": in_python}


@pytest.fixture(params=WATCHING)
def watching(request: pytest.FixtureRequest) -> Iterator[None]:
    with WATCHING[request.param]():
        yield


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(T, B, I, dtype=dtype), torch.randn(B, H, dtype=dtype)


def same(got: Any, expected: Any) -> None:
    mine, right = pytree.tree_leaves(got), pytree.tree_leaves(expected)
    torch.testing.assert_close(mine, right, **EXACT)


def warm(rnn: elman.Recurrent, x: Any, h: Any) -> None:
    """Until the next call like this one is bound, and the next step."""
    with torch.no_grad():
        for _ in range(3):
            rnn(x, h)
            rnn.step(pytree.tree_map(lambda t: t[0], x), h)


def _owning(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    """The cell with a learned initial state."""

    class Owning(kind):
        def __init__(self, *sizes: int) -> None:
            super().__init__(*sizes)
            self.start = nn.Parameter(torch.randn(sizes[1]))

        def initial_state(self, batch: int) -> Tensor:
            return self.start.expand(batch, -1)

    return Owning


def right(rnn: elman.Recurrent, x: Tensor, h: Tensor) -> None:
    """Call and step are what the cell says now."""
    with torch.no_grad():
        outputs, final = eager.unroll(rnn.cell, x, h)
        same(rnn(x, h), (outputs, final))
        same(rnn.step(x[0], h), (outputs[0], eager.unroll(rnn.cell, x[:1], h)[1]))


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


# --- what changes is noticed ----------------------------------------------------------------------------------------


def _hooked(cell: nn.Module) -> None:
    cell.register_forward_hook(lambda module, given, made: made * 0.5)


def _other_forward(cell: nn.Module) -> None:
    def forward(self: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        return torch.sin(h) + nn.functional.linear(x, self.U)

    cell.forward = types.MethodType(forward, cell)


def _set(name: str, value: Any) -> Callable[[nn.Module], None]:
    return lambda cell: setattr(cell, name, value)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "a number": _set("alpha", 0.9),
    "a parameter": lambda c: setattr(c, "W", nn.Parameter(torch.randn_like(c.W))),
    "a parameter's data": lambda c: setattr(c.W, "data", torch.randn_like(c.W)),
    "a parameter in place": lambda c: c.W.data.mul_(0.5),
    "a parameter that is gone": _set("b", None),
    "another forward": _other_forward,
    "a hook": _hooked,
    "tied weights": lambda c: setattr(c, "U", c.W),
    "another class": lambda c: setattr(c, "__class__", Doubled),
}  # fmt: skip


class Doubled(cells.Leaky):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 2 * super().forward(x, h)


@pytest.mark.usefixtures("watching")
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_two_calls(name: str, matched: list[bool]) -> None:
    rnn = elman.Recurrent(cells.Leaky(H, H).double())
    x, h = torch.randn(T, B, H, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)
    warm(rnn, x, h)
    assert matched[-1]
    right(rnn, x, h)
    CHANGES[name](rnn.cell)
    right(rnn, x, h)
    right(rnn, x, h)
    right(rnn, x, h)


def test_one_and_one_point_nought(matched: list[bool]) -> None:
    rnn, (x, h) = elman.Recurrent(cells.Leaky(I, H, alpha=1).double()), data()
    warm(rnn, x, h)
    rnn.cell.alpha = 1.0
    matched.clear()
    right(rnn, x, h)
    assert not matched[0]


class Little(Holder):
    """It is traced again after every change."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return (x[:, :1] + h) * self.read(self.kept)


TENSORS = [name for name in KEEPERS if name.startswith("tensor")]


@pytest.mark.filterwarnings("ignore::elman.errors.RetraceWarning")
@pytest.mark.parametrize(
    "names", [[name for name in KEEPERS if name not in TENSORS], TENSORS], ids=["objects", "tensors"]
)
def test_a_change_of_what_the_cell_keeps(names: list[str], matched: list[bool]) -> None:
    """Of everything that one cell keeps, one after the other. Both ways to watch it share what is traced of objects."""
    kept = {name: KEEPERS[name][0]() for name in names}
    reads = {name: KEEPERS[name][1] for name in names}
    cell = Little(kept, lambda kept: sum(read(kept[name]) for name, read in reads.items())).double()
    rnns, (x, h) = {way: elman.Recurrent(cell) for way in WATCHING}, data()

    def each(do: Callable[[elman.Recurrent, Tensor, Tensor], None], when: str) -> None:
        for way, rnn in rnns.items():
            try:
                with WATCHING[way]():
                    do(rnn, x, h)
            except AssertionError as error:
                raise AssertionError(f"{when}, {way}") from error

    each(warm, "first")
    for name in names:
        matched.clear()
        each(right, f"before {name}")
        assert len(matched) == 2 * len(rnns)
        assert all(matched), f"before {name}"
        KEEPERS[name][2](cell.kept[name])
        each(right, f"after {name}")
        each(warm, f"after {name}")


def test_a_change_of_a_submodule() -> None:
    class Nested(zoo.Base):
        def __init__(self) -> None:
            super().__init__(I, H)
            self.act = nn.Sequential(nn.LeakyReLU(0.1), nn.Softplus(beta=2.0))
            self.register_buffer("gain", torch.ones(H))

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.act(self.U(x) + self.W(h))) * self.gain

    rnn, (x, h) = elman.Recurrent(Nested().double()), data()
    changes: list[Callable[[], Any]] = [
        lambda: setattr(rnn.cell.act[0], "negative_slope", 0.9),
        lambda: rnn.cell.act.__setitem__(1, nn.Tanh()),
        lambda: rnn.cell.act.append(nn.Sigmoid()),
        lambda: setattr(rnn.cell, "gain", torch.full((H,), 0.5, dtype=torch.float64)),
        lambda: rnn.cell.gain.mul_(0.5),
        lambda: setattr(rnn, "cell", CASES["elman"].make().double()),
    ]
    for change in changes:
        warm(rnn, x, h)
        change()
        right(rnn, x, h)


def test_train_and_eval() -> None:
    rnn, (x, h) = elman.Recurrent(CASES["dropout_rnn"].make().double().eval()), data()
    warm(rnn, x, h)
    with torch.no_grad():
        assert torch.equal(rnn(x, h)[0], rnn(x, h)[0])
        rnn.train()
        for _ in range(3):
            assert not torch.equal(rnn(x, h)[0], rnn(x, h)[0])
            assert not torch.equal(rnn.step(x[0], h)[0], rnn.step(x[0], h)[0])


@pytest.mark.usefixtures("watching")
@pytest.mark.parametrize(
    "change",
    [
        lambda o: setattr(o, "gain", 2.0), lambda o: setattr(o, "inner", [1]), lambda o: o.inner.append(2),
        lambda o: o.inner.__setitem__(0, 1.0), lambda o: setattr(o, "more", None),
    ],
)  # fmt: skip
def test_watch(change: Callable[[Any], None]) -> None:
    cell = Holder(Options(0.7, [1]), lambda kept: kept.gain)
    cell.read = float  # a closure-free word for it
    unchanged = watch(cell)
    assert unchanged is not None
    assert unchanged()
    change(cell.kept)
    assert not unchanged()


@pytest.mark.usefixtures("watching")
def test_watch_sees_the_default_dtype() -> None:
    unchanged = watch(cells.Elman(I, H))
    assert unchanged is not None
    torch.set_default_dtype(torch.float64)
    try:
        assert not unchanged()
    finally:
        torch.set_default_dtype(torch.float32)
    assert unchanged()


@pytest.mark.usefixtures("watching")
def test_watch_sees_tensors_change_in_place() -> None:
    cell = CASES["dale_rnn"].make()
    for change in (
        lambda: cell.double(),
        lambda: cell.sign.requires_grad_(),
        lambda: setattr(next(cell.parameters()), "data", torch.zeros(1)),
        lambda: cell.register_forward_pre_hook(lambda *_: None),
    ):
        unchanged = watch(cell)
        assert unchanged is not None
        assert unchanged()
        change()
        assert not unchanged()
    assert watch(cell) is None, "it has a hook"


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
    native = choose("auto", loop, CPU).name == "native"
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
        for parameter, data in zip(cell.parameters(), there[width], strict=True):
            parameter.data, parameter.grad = data, None
        x, h = torch.randn(4, 2, 3).double(), torch.randn(2, width).double()
        wanted, found = list(cell.parameters()), []
        for run in (rnn, lambda x, h: rnn.step(x[0], h), lambda x, h: eager.unroll(cell, x, h)):
            found.append(torch.autograd.grad(run(x, h)[1].sum(), wanted))
        calls, _, loop = found
        for mine, right in zip(calls, loop, strict=True):
            torch.testing.assert_close(mine, right)
        rnn(x, h)[1].sum().backward()
        torch.testing.assert_close(tuple(p.grad for p in wanted), calls)
