"""Under torch.compile: each cell has its own program, and a cell that changes gets another."""

from __future__ import annotations

import functools
import gc
import operator as operators
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import elman
from elman.execute import operator
from tests import pairwise
from tests.eager import unroll


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor) -> torch.Tensor:
        return torch.tanh(a)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return g


class Backward(nn.Module):
    """Cells whose forward passes are the same."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.hidden_size = kind, 3
        self.W = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        a = self.W(h)
        if self.kind == "cut":
            a = a.detach()
        if self.kind == "frozen":
            with torch.no_grad():
                a = self.W(h)
        return Through.apply(x + a) if self.kind == "through" else torch.tanh(x + a)


def gradients(run: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    run(x)[0].square().sum().backward()
    assert x.grad is not None
    return x.grad


def compiled(layer: nn.Module) -> Callable[..., Any]:
    return torch.compile(layer, backend="aot_eager", fullgraph=True)


def test_cells_that_differ_in_their_backward_alone() -> None:
    x = torch.randn(5, 2, 3)
    cells = [Backward(kind) for kind in ("plain", "cut", "through")]
    for cell in cells:
        cell.load_state_dict(cells[0].state_dict())
    found = [gradients(compiled(elman.Recurrent(cell)), x) for cell in cells]
    for cell, ours in zip(cells, found, strict=True):
        assert torch.allclose(ours, gradients(lambda x, c=cell: unroll(c, x, torch.zeros(2, 3)), x))
    assert len({tuple(f.flatten().tolist()) for f in found}) == 3


def test_a_flag_that_is_switched() -> None:
    """There and back: the layer has two programs, and each is found again."""
    x = torch.randn(5, 2, 3)
    cell = Backward("plain")
    run = compiled(elman.Recurrent(cell))
    for kind in ("plain", "frozen", "plain", "frozen"):
        cell.kind = kind
        assert torch.allclose(
            gradients(run, x), gradients(lambda x: unroll(cell, x, torch.zeros(2, 3)), x)
        ), kind


def test_names_of_programs_are_given_once() -> None:
    """PyTorch keeps compiled graphs on disk, where a name that counts or says the forward graph alone would be met
    again in another process, for another program."""
    layers = [elman.Recurrent(Backward(kind)) for kind in ("plain", "cut")]
    x = torch.randn(5, 2, 3)
    names = []
    for layer in layers:
        layer(x)
        for wants in (frozenset[str](), frozenset({"x"})):
            assert layer._calls.latest is not None
            names.append(operator.register(layer._calls.latest.program, wants))
            assert names[-1] == operator.register(layer._calls.latest.program, wants)
    assert len(set(names)) == 4
    assert all(len(name) == 32 for name in names)
    assert len({name[:8] for name in names}) == 4


# --- what the guards see: the same as the eager key ---------------------------------------------------------------


class Many(nn.Module):
    """What a step may hang on besides its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._private, self.public, self.act = 0.5, 0.5, torch.tanh
        self.inner, self.table, self.few = nn.Tanh(), {"k": 0.5}, {1}
        self.maybe: object = None
        self.options, self.many = types.SimpleNamespace(gain=0.5), [0.9]
        self.partly = functools.partial(operators.mul, 0.5)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        y = self.inner(self.act(x + self._private * self.public * h * self.table["k"]))
        y = self.partly(y if self.maybe is None else y * 0)
        return y * self.options.gain * sum(self.many) * (2 if 2 in self.few else 1)


CHANGES: dict[str, Callable[[elman.Recurrent, Many], object]] = {
    "public": lambda layer, cell: setattr(cell, "public", 4.0),
    "private": lambda layer, cell: setattr(cell, "_private", 4.0),
    "function": lambda layer, cell: setattr(cell, "act", torch.relu),
    "dict": lambda layer, cell: cell.table.update(k=4.0),
    "namespace": lambda layer, cell: setattr(cell.options, "gain", 0.7),
    "list": lambda layer, cell: cell.many.append(0.3),
    "set": lambda layer, cell: cell.few.add(2),
    "partial": lambda layer, cell: setattr(cell, "partly", functools.partial(operators.mul, 3.0)),
    "submodule": lambda layer, cell: setattr(cell, "inner", nn.ReLU()),
    "hook": lambda layer, cell: cell.inner.register_forward_hook(lambda m, i, o: o * 0.1),
    "reverse": lambda layer, cell: setattr(layer, "reverse", True),
    "object": lambda layer, cell: setattr(cell, "maybe", object()),
    "cell": lambda layer, cell: setattr(layer, "cell", nn.RNNCell(3, 3)),
}
# Seen by guards of the same kind as others; without a compiler: tests/recurrent/test_bound.py.
ALIKE = {"private", "namespace", "set", "partial", "object"}


@pytest.mark.filterwarnings("ignore::elman.errors.RetraceWarning")
@torch._dynamo.config.patch(recompile_limit=2 * len(CHANGES))
def test_a_change_is_seen() -> None:
    """One after the other, in one layer."""
    cell = Many()
    layer = elman.Recurrent(cell)
    run = torch.compile(layer, backend="eager", fullgraph=True)
    x, h = torch.randn(4, 2, 3), torch.zeros(2, 3)
    with torch.no_grad():
        before = run(x, h)[0]
        for name, change in CHANGES.items():
            if name in ALIKE and not pairwise.exhaustive:
                continue
            change(layer, cell)
            after = run(x, h)[0]
            expected = unroll(layer.cell, x.flip(0) if layer.reverse else x, h)[0]
            expected = expected.flip(0) if layer.reverse else expected
            torch.testing.assert_close(after, expected, msg=lambda m, name=name: f"{name}: {m}")
            assert not torch.allclose(after, before), name
            before = after


def test_a_compilation_keeps_its_programs_and_nothing_else() -> None:
    x = torch.randn(4, 2, 3)
    layer = elman.Recurrent(Backward("through"))
    run = compiled(layer)
    loss = run(x.requires_grad_())[0].sum()
    cell = weakref.ref(layer.cell)
    names = set(operator._ENTRIES)
    layer._calls.programs.kept.clear()  # as if it had seen many others since
    loss.backward()
    assert names == set(operator._ENTRIES)
    del run, layer, loss
    gc.collect()
    assert cell() is None


def test_a_program_that_is_not_here() -> None:
    with pytest.raises(elman.errors.StateError, match="program"):
        torch.ops.elman.run([torch.zeros(1)], "no such name", 1, 1, None, "auto", None, 0)
