"""What may change between two steps of a stream: each step is that of the layer as it is then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import elman
from elman import cells
from elman.errors import ElmanError, InputError, NotSupported
from elman.recurrent import stream as streams
from tests.recurrent.test_stream import gru

Tensor = torch.Tensor


class Simple(nn.Module):
    """h(t) = tanh(W h(t-1) + x(t))."""

    def __init__(self, n: int = 8) -> None:
        super().__init__()
        self.rec, self.hidden_size = nn.Linear(n, n), n

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.rec(h) + x)
        return h, h


class Branching(Simple):
    """Its step depends on whether a buffer wants a gradient."""

    def __init__(self, n: int = 8) -> None:
        super().__init__(n)
        self.register_buffer("b", torch.zeros(n))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        a = self.rec(h) + x + self.b
        h = torch.tanh(a) if self.b.requires_grad else torch.relu(a)
        return h, h


class Default(Simple):
    """Its step depends on the default dtype."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        a = self.rec(h) + x
        h = torch.tanh(a) if torch.get_default_dtype() is torch.float32 else torch.relu(a)
        return h, h


def begun(layer: Any, x: Tensor) -> Any:
    """A stream that has made a step."""
    stream = layer.stream(batch=len(x))
    stream.step(x)
    return stream


def follows(stream: Any, layer: Any, x: Tensor) -> bool:
    with torch.no_grad():
        state = stream.state
        found, expected = stream.step(x), layer.step(x, state)[0]
    return torch.allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("halves", ["bfloat16", "half"])
def test_weights_that_come_to_lie_where_they_lay(halves: str) -> None:
    """Converting twice may take the memory that the first one gave back: same address, same version, other numbers."""
    for seed in range(20):
        torch.manual_seed(seed)
        layer = elman.Recurrent(Simple(200))
        x = torch.randn(2, 200)
        stream = begun(layer, x)
        getattr(layer, halves)().float()
        assert follows(stream, layer, x)


def two() -> elman.Stack:
    torch.manual_seed(0)
    return elman.Stack(gru(), elman.Recurrent(cells.LSTM(8, 8)), norms=[nn.LayerNorm(8)])


def other_norm() -> nn.LayerNorm:
    norm = nn.LayerNorm(8)
    nn.init.normal_(norm.weight)
    return norm


STACKS: dict[str, Callable[[Any], Any]] = {
    "a norm": lambda s: s.norms.__setitem__(0, other_norm()),
    "all norms": lambda s: setattr(s, "norms", nn.ModuleList([other_norm()])),
    "all layers": lambda s: setattr(s, "layers", nn.ModuleList([gru(), elman.Recurrent(cells.LSTM(8, 8))])),
    "a layer": lambda s: s.layers.__setitem__(1, elman.Recurrent(cells.LSTM(8, 8))),
    "a cell": lambda s: setattr(s.layers[0], "cell", cells.GRU(6, 8)),
}


@pytest.mark.parametrize("what", STACKS)
def test_parts_of_a_stack(what: str) -> None:
    stack, x = two(), torch.randn(2, 6)
    stream = begun(stack, x)
    assert follows(stream, stack, x)
    STACKS[what](stack)
    assert follows(stream, stack, x)


def test_a_layer_more_does_not_go_unnoticed() -> None:
    stack, x = elman.Stack(gru(), gru_of(8)), torch.randn(2, 6)
    stream = stack.stream(batch=2)
    stream.step(x)
    stack.layers.append(gru_of(8))
    with pytest.raises(ElmanError):
        stream.step(x)


def gru_of(n: int) -> elman.Recurrent:
    return elman.Recurrent(cells.GRU(n, n))


def test_the_generator_of_a_layer() -> None:
    class Noisy(Simple):
        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.rec(h) + x + torch.randn(x.shape[0], self.hidden_size))
            return h, h

    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    layer, x = elman.Recurrent(Noisy(), generator=first), torch.randn(2, 8)
    stream = layer.stream(batch=2)
    stream.step(x)
    layer.generator, before = second, first.get_state()
    stream.step(x)
    assert torch.equal(first.get_state(), before)
    assert not torch.equal(second.get_state(), torch.Generator().manual_seed(2).get_state())


def test_whether_a_buffer_wants_a_gradient() -> None:
    layer, x = elman.Recurrent(Branching()), torch.randn(2, 8)
    stream = begun(layer, x)
    assert follows(stream, layer, x)
    layer.cell.b.requires_grad_()
    assert follows(stream, layer, x)


def test_the_default_dtype() -> None:
    layer, x = elman.Recurrent(Default()), torch.randn(2, 8)
    stream = begun(layer, x)
    assert follows(stream, layer, x)
    torch.set_default_dtype(torch.float64)
    try:
        assert follows(stream, layer, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert follows(stream, layer, x)


class Relu(TorchFunctionMode):
    """Makes relu of tanh."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (torch.relu if func is torch.tanh else func)(*args, **(kwargs or {}))


class Counts(TorchDispatchMode):
    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("within", [False, True])
def test_modes_come_and_go(within: bool) -> None:
    """within: the first step stands in one."""
    layer, x = elman.Recurrent(Simple()), torch.randn(2, 8)
    stream = layer.stream(batch=2)
    if within:
        with Relu():
            stream.step(x)
    stream.step(x)
    assert follows(stream, layer, x)
    assert "packed once" in repr(stream)
    with Relu():
        assert follows(stream, layer, x)
        assert follows(stream, layer, x)
    assert follows(stream, layer, x)
    with Counts() as counts:
        stream.step(x)
    assert counts.seen > 3
    with torch.device("cpu"):
        assert follows(stream, layer, x)
    assert follows(stream, layer, x)
    assert "packed once" in repr(stream)


def test_autograd_hears_of_memory_for_the_output() -> None:
    stream, x, w = gru().stream(), torch.randn(1, 6), torch.ones(1, 8, requires_grad=True)
    out = torch.empty(1, 8)
    for _ in range(2):  # the long way, and the short one
        stream.step(x, out=out)
        before = out._version
        y = (w * out).sum()
        stream.step(x, out=out)
        assert out._version > before
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def test_an_output_that_cannot_be_written_leaves_the_state() -> None:
    stream, x = gru().stream(batch=2), torch.randn(2, 6)
    stream.step(x)
    state = stream.state
    with pytest.raises(RuntimeError):
        stream.step(x, out=torch.empty(1, 8).expand(2, 8))
    assert torch.equal(stream.state, state)


class Sub(Tensor):
    pass


def test_a_subclass_of_tensors() -> None:
    layer, x = gru(), torch.randn(2, 6)
    stream = layer.stream(batch=2)
    expected = layer.step(x)[0]
    torch.testing.assert_close(stream.step(x.as_subclass(Sub)), expected)


@pytest.mark.parametrize(
    "transform", [torch.func.vmap, torch.func.grad, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))]
)
def test_transforms_are_refused_in_words(transform: Any) -> None:
    stream, x = gru().stream(batch=1), torch.randn(3, 1, 6)
    stream.step(x[0])
    with pytest.raises(NotSupported, match="no derivatives"):
        transform(lambda row: stream.step(row.reshape(-1, 6)[:1]).sum())(x)


def test_weights_that_another_thread_changes_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between finding out what the layer is and its step."""
    layer, x = gru(), torch.randn(1, 6)
    stream = layer.stream()
    stream.step(x)
    run, left = streams.Running.step, [3]

    def step(self: Any, *given: Any) -> Any:
        if left[0]:
            left[0] -= 1
            with torch.no_grad():
                layer.cell.W.mul_(2)
        return run(self, *given)

    monkeypatch.setattr(streams.Running, "step", step)
    with torch.no_grad():
        layer.cell.W.mul_(2)
    assert follows(stream, layer, x)
    left[0] = 1000
    with torch.no_grad():
        layer.cell.W.mul_(2)
    with pytest.raises(NotSupported, match="does not take"):
        stream.step(x)
    left[0] = 0
    with pytest.raises(InputError):
        stream.step(torch.randn(2, 6))
    assert follows(stream, layer, x)
