"""Modes of PyTorch's around a call: what they do to a step is honoured, and no longer than they last."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import elman
from elman import cells
from elman.errors import NotSupported
from tests import eager

Tensor = torch.Tensor
T, B, I, H = 5, 2, 3, 4


class Relu(TorchFunctionMode):
    """Another nonlinearity."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (torch.relu if func is torch.tanh else func)(*args, **(kwargs or {}))


class Twice(TorchFunctionMode):
    """Whatever makes a tanh makes twice as much: once, not again where an engine computes it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return 2 * made if "tanh" in getattr(func, "__name__", "") else made


class Looks(TorchDispatchMode):
    """The operations that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def layer(**options: Any) -> elman.Recurrent:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_size, self.W, self.U = H, nn.Linear(H, H), nn.Linear(I, H)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.W(h) + self.U(x))

    return elman.Recurrent(Cell().double(), **options)


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(T, B, I, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)


def agrees(rnn: elman.Recurrent, x: Tensor, h: Tensor) -> None:
    found = []
    for run in (rnn, lambda x, h: eager.unroll(rnn.cell, x, h)):
        outputs, final = run(x, h)
        gradients = torch.autograd.grad(outputs.square().sum() + final.sum(), [*rnn.cell.parameters()])
        found.append((outputs, final, *gradients))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.grid
@pytest.mark.parametrize("mode", [Relu, Twice])
@pytest.mark.parametrize("warm", [0, 4])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_function_modes(mode: Any, warm: int, engine: str) -> None:
    rnn, other, (x, h) = layer(engine=engine), layer(engine=engine), data()
    for _ in range(warm):
        agrees(rnn, x, h)
    with mode():
        for _ in range(2):
            agrees(rnn, x, h)
        with torch.no_grad():
            torch.testing.assert_close(rnn.step(x[0], h)[0], rnn.cell(x[0], h))
            torch.testing.assert_close(rnn.stream(B, h).step(x[0]), rnn.cell(x[0], h))
    for one in (rnn, other):
        agrees(one, x, h)
        with torch.no_grad():
            torch.testing.assert_close(one.step(x[0], h)[0], one.cell(x[0], h))


def test_a_default_device_is_no_such_mode() -> None:
    """Calls in it are recognised, and programs made in it are kept."""
    rnn, (x, h) = layer(), data()
    with torch.device("cpu"):
        for _ in range(3):
            agrees(rnn, x, h)
        assert rnn._calls.again(x, h, False) is not None
        kept = rnn._calls.latest
    agrees(rnn, x, h)
    assert rnn._calls.latest is kept
    with Relu(), torch.device("cpu"):
        agrees(rnn, x, h)


def test_a_mode_that_looks_sees_operations() -> None:
    rnn, (x, h) = layer(), data()
    expected = rnn(x, h)[0]
    for _ in range(3):
        rnn(x, h)
    with Looks() as mode:
        torch.testing.assert_close(rnn(x, h)[0], expected)
    assert sum("tanh" in name for name in mode.seen) == T
    rnn.engine = "native"
    with Looks(), pytest.raises(NotSupported, match="wants to see"):
        rnn(x, h)


@pytest.mark.parametrize("warm", [0, 4])
def test_flops(warm: int) -> None:
    rnn, (x, h) = layer(), data()
    for _ in range(warm):
        rnn(x, h)
    counts = []
    for run in (rnn, lambda x, h: eager.unroll(rnn.cell, x, h)):
        with FlopCounterMode(display=False) as mode:
            run(x, h)
        counts.append(mode.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.grid(1)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("warm", [0, 4])
def test_fake_tensors(strict: bool, warm: int) -> None:
    """Shapes, and no numbers; nothing reads memory that is not there."""
    rnn = elman.Recurrent(cells.GRU(I, H))
    x = torch.randn(T, B, I)
    stream = rnn.stream(B)
    for _ in range(warm):
        rnn(x)[0].sum().backward()
        with torch.no_grad():
            rnn(x), rnn.step(x[0]), stream.step(x[0])
    with FakeTensorMode(allow_non_fake_inputs=not strict) as mode:
        if strict:
            rnn = elman.Recurrent(cells.GRU(I, H))
        fake = mode.from_tensor(x)
        outputs, final = rnn(fake)
        assert outputs.shape == (T, B, H)
        outputs.sum().backward()
        assert rnn.cell.W.grad.shape == rnn.cell.W.shape
        rnn.zero_grad()
        with torch.no_grad():
            assert rnn(fake)[1].shape == rnn.step(fake[0])[0].shape == final.shape
            assert rnn.stream(B).step(fake[0]).shape == final.shape
            if warm and not strict:
                with pytest.raises(NotSupported):
                    stream.step(fake[0])
    assert rnn(fake)[0].shape == (T, B, H)  # they may outlive their mode
    if not strict:
        assert type(rnn(x)[0]) is Tensor


def _halved(module: nn.Module, given: Any, made: Any) -> Any:
    return 0.5 * made if isinstance(module, nn.Linear) else None


def test_a_global_hook_that_changes_a_value() -> None:
    rnn, (x, h) = layer(), data()
    agrees(rnn, x, h)
    handle = register_module_forward_hook(_halved)
    try:
        agrees(rnn, x, h)
    finally:
        handle.remove()
    agrees(rnn, x, h)


def test_anomalies_are_looked_for_before_the_first_call() -> None:
    rnn, (x, h) = layer(), data()
    with torch.autograd.set_detect_anomaly(True):
        agrees(rnn, x, h)
        assert torch.is_anomaly_enabled()


def test_a_cache_of_parametrizations() -> None:
    """What a trace computes of fake weights is nothing to keep."""
    rnn, (x, h) = layer(), data()
    nn.utils.parametrizations.weight_norm(rnn.cell.W)
    with nn.utils.parametrize.cached():
        agrees(rnn, x, h)
    with torch.no_grad():
        rnn.cell.W.parametrizations.weight.original0.mul_(0.5)
    agrees(rnn, x, h)


@pytest.mark.parametrize("name", ["lengths", "list", "mask", "reset"])
def test_fake_tensors_of_different_lengths(name: str) -> None:
    """Where steps lie is asked of real tensors, whatever mode is about; of fake ones nobody can ask it."""
    some = torch.tensor([[True, False], [True, True], [False, True], [True, True], [True, False]])
    lengths = torch.tensor([3, 5])
    given = {"lengths": lengths, "list": [3, 5], "mask": some, "reset": some}[name]
    said: Any = {"lengths" if name == "list" else name: given}
    rnn, (x, _) = layer(), data()
    mode = FakeTensorMode()
    for module in rnn.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(mode.from_tensor(parameter.data))
    with mode:
        outputs, final = rnn(mode.from_tensor(x), **said)
        outputs.sum().backward()
        assert list(outputs.shape) == [T, B, H]
        assert list(final.shape) == [B, H]
        assert all(p.grad is not None for p in rnn.parameters())
        if isinstance(given, Tensor):
            with pytest.raises(NotSupported, match="fake tensor"):
                rnn(mode.from_tensor(x), **{name: mode.from_tensor(given)})
