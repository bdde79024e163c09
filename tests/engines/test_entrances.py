"""Whatever a tensor looks like in memory, it may come in by any door: the numbers count, not how they lie."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

import elman
from elman.engines.native import Native, why_not_built
from elman.execute import Call, Program, apply
from elman.trace import trace
from tests.engines.test_native import ENGINES

pytestmark = pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")

Tensor = torch.Tensor
I, H, B, T = 5, 8, 3, 4


class Everything(nn.Module):
    """Products before, in and after the loop, a bias, a context, two outputs."""

    def __init__(self, bias: tuple[int, ...] = (H,)) -> None:
        super().__init__()
        self.U, self.W, self.C = (nn.Parameter(torch.randn(n, H) * 0.3) for n in (I, H, 2))
        self.b = nn.Parameter(torch.randn(bias))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        h = torch.tanh(x @ self.U + self.b + h @ self.W + c @ self.C)
        return (h, h @ self.W + self.b), h


def _stepped(value: Tensor) -> Tensor:
    return torch.stack([value, torch.full_like(value, float("nan"))], -1)[..., 0]


def _offset(value: Tensor) -> Tensor:
    wide = torch.full([size + 3 for size in value.shape], float("nan"), dtype=value.dtype)
    inner = wide[tuple(slice(2, 2 + size) for size in value.shape)]
    return inner.copy_(value)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned": lambda v: v.permute(*range(v.dim())[::-1]).contiguous().permute(*range(v.dim())[::-1]),
    "the second dimension first": lambda v: v.transpose(0, -1).contiguous().transpose(0, -1),
    "every second number": _stepped,
    "a part of more": _offset,
    "one number": lambda v: v.flatten()[:1].view([1] * v.dim()).expand(v.shape),
    "one row": lambda v: v[:1].expand(v.shape),
    "one column": lambda v: v[..., :1].expand(v.shape),
    "the other sign": lambda v: torch._neg_view(-v),
    "an imaginary part": lambda v: torch.complex(torch.ones_like(v), -v).conj().imag,
}  # fmt: skip


@functools.cache
def program() -> Program:
    cell = Everything().double()
    x, h, c = (torch.zeros(B, n, dtype=torch.float64) for n in (I, H, 2))
    return Program(trace(cell, x, h, c, check=False))


def _ports(steps: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all that comes in, and of the cotangents."""
    leading = {"constant": (), "sequence": (steps, B), "state": (B,)}
    found = {
        p.name: (*((B,) if p.name == "context" else leading[p.kind.value]), *p.shape)
        for p in program().inputs
    }
    return found | {f"gradient {i}": (steps, B, H) for i in (0, 1)} | {"gradient 2": (B, H)}


@pytest.mark.grid
@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_a_layout_by_every_door(engine: str, layout: str, steps: int) -> None:
    g = torch.Generator().manual_seed(0)
    given = {
        name: torch.randn(shape, generator=g, dtype=torch.float64) * 0.5
        for name, shape in _ports(steps).items()
    }

    def run(values: dict[str, Tensor]) -> list[Tensor]:
        call = Call(steps, B, 0, engine)
        inputs = [values[p.name].detach() for p in program().inputs]
        free = apply(program(), call, inputs)
        leaves = [value.requires_grad_() for value in inputs]
        made = apply(program(), call, leaves)
        gradients = torch.autograd.grad(made, leaves, [values[f"gradient {i}"] for i in range(3)])
        return [*free, *(value.detach() for value in made), *gradients]

    for name in given:
        other = LAYOUTS[layout](given[name])
        expected = run(given | {name: other.resolve_neg().clone(memory_format=torch.contiguous_format)})
        for got, want in zip(run(given | {name: other}), expected, strict=True):
            torch.testing.assert_close(
                got, want, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
            )


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, H)], ids=str)
def test_biases_that_spread(shape: tuple[int, ...]) -> None:
    cell, g = Everything(shape).double(), torch.Generator().manual_seed(0)
    x, h, c = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((T, B, I), (B, H), (B, 2)))
    found = []
    for engine in ("native", "reference"):
        (a, b), _ = elman.Recurrent(cell, engine=engine)(x, h, context=c)
        found.append(
            [a.detach(), b.detach(), *torch.autograd.grad(a.sum() + b.sum(), list(cell.parameters()))]
        )
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


class Halves(nn.Module):
    """Two rows of a product for each row of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(4, 4) * 0.3)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh((h.reshape(-1, 4) @ self.W).reshape(-1, 8) + x)


def test_states_whose_rows_are_apart() -> None:
    cell, x = Halves().double(), torch.randn(T, B, 8, dtype=torch.float64)
    h = torch.randn(B, 20, dtype=torch.float64)[:, 3:11]
    outputs = [elman.Recurrent(cell, engine=engine)(x, h)[0] for engine in ("native", "reference")]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_single_steps_have_the_bits_of_the_whole(engine: Native) -> None:
    with torch.no_grad():
        rnn, x = elman.Recurrent(elman.cells.GRU(600, 10), engine=engine), torch.randn(5, 2, 600)
        whole, h = rnn(x)[0], None
        for t in range(5):
            out, h = rnn(x[t : t + 1], h)
            assert torch.equal(out[0], whole[t])


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_zeros_that_autograd_has_not_written_down(engine: str) -> None:
    """Autograd hands such tensors on, forward mode above all; their address is a place in nothing."""
    rnn = elman.Recurrent(elman.cells.GRU(4, 5), engine=engine)
    nowhere, start = torch._efficientzerotensor((4, 2, 4)), torch._efficientzerotensor((2, 5))
    stream, other, lengths = rnn.stream(2), rnn.stream(2), torch.tensor([2, 3])
    for _ in range(3):  # a call that has come before takes a shorter way
        for x in (nowhere, nowhere[1:]):
            zeros = torch.zeros(x.shape)
            for said in ({}, {"lengths": lengths}):
                torch.testing.assert_close(rnn(x, start, **said)[0], rnn(zeros, torch.zeros(2, 5), **said)[0])
            with torch.no_grad():
                torch.testing.assert_close(rnn(x, start)[0], rnn(zeros, torch.zeros(2, 5))[0])
                torch.testing.assert_close(rnn.step(x[1], start)[0], rnn.step(zeros[1], torch.zeros(2, 5))[0])
            torch.testing.assert_close(stream.step(x[1]), other.step(zeros[1]))
        outputs, _ = rnn(torch.randn(4, 2, 4, requires_grad=True))
        found = torch.autograd.grad(
            outputs, list(rnn.parameters()), torch._efficientzerotensor(outputs.shape)
        )
        assert not any(gradient.any() for gradient in found)


@pytest.mark.parametrize("name", ["x", "W"])
def test_a_tensor_whose_memory_was_given_back(name: str) -> None:
    """As FSDP does with weights between its calls. Calls that are new say it, and those that have come before."""
    rnn, x, h = elman.Recurrent(elman.cells.GRU(4, 5)), torch.randn(3, 2, 4), torch.zeros(2, 5)
    tensors = {"x": x, "W": rnn.cell.W}
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            for calls in (0, 3):
                for _ in range(calls):
                    rnn(x, h)
                storage = tensors[name].untyped_storage()
                size, kept = storage.nbytes(), tensors[name].detach().clone()
                storage.resize_(0)
                with pytest.raises(RuntimeError, match=r"given back|out of bounds for storage"):
                    rnn(x, h)
                storage.resize_(size)
                tensors[name].data.copy_(kept)
                torch.testing.assert_close(rnn(x, h)[0], elman.Recurrent(rnn.cell)(x, h)[0])
