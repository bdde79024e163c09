"""Several examples at once: `torch.func.vmap` over ours, over the plain loop, and ours once for each example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.func import functional_call, grad, vmap

import elman
from bench.contestants import loop
from bench.measure import in_turns
from bench.ragged import Line

Tensor = torch.Tensor
OURS, LOOP, ONE_BY_ONE = "ours, vmap", "loop, vmap", "ours, one by one"
T, B, H, V = 50, 1, 64, 32


def lines(seconds: float, steps: int = T, width: int = H, size: int = V) -> Iterator[Line]:
    """A GRU over inputs, over an ensemble's weights, and its gradients per sample; compared before they are timed."""
    torch.manual_seed(0)
    cell = elman.cells.GRU(width, width)
    rnn = elman.Recurrent(cell)
    run, h, x = loop(cell), torch.zeros(B, width), torch.randn(size, steps, B, width)
    weights = {name: p.detach() for name, p in cell.named_parameters()}
    ensemble = {name: w + 0.01 * torch.randn(size, *w.shape) for name, w in weights.items()}

    class Loop(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor, h: Tensor) -> Any:
            return run(x, h)

    def outputs(layer: torch.nn.Module) -> Callable[..., Tensor]:
        return lambda w, x: functional_call(layer, {f"cell.{n}": v for n, v in w.items()}, (x, h))[0]

    def gradient(layer: torch.nn.Module) -> Callable[..., Any]:
        return grad(lambda w, x: outputs(layer)(w, x).square().sum())

    kinds: tuple[tuple[str, Any, Any, tuple[int | None, int]], ...] = (
        ("inputs", outputs, weights, (None, 0)),
        ("an ensemble", outputs, ensemble, (0, 0)),
        ("gradients per sample", gradient, weights, (None, 0)),
        ("gradients of an ensemble", gradient, ensemble, (0, 0)),
    )
    for words, make, given, dims in kinds:
        ours, plain = make(rnn), make(Loop())
        each = [given if dims[0] is None else {n: w[i] for n, w in given.items()} for i in range(size)]
        ways = {
            OURS: lambda f=ours, w=given, d=dims: vmap(f, d)(w, x),
            LOOP: lambda f=plain, w=given, d=dims: vmap(f, d)(w, x),
            ONE_BY_ONE: lambda f=ours, w=each: [f(w[i], x[i]) for i in range(size)],
        }
        with torch.no_grad():
            torch.testing.assert_close(ways[OURS](), ways[LOOP](), rtol=1e-3, atol=1e-4)
            yield Line(words, in_turns(ways, 15, seconds))
