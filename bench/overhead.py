"""What is paid once: importing elman, tracing a cell; and what a call costs that has next to nothing to compute."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import elman
from bench import measure
from bench.contestants import ENTRIES, SHIPPED
from bench.form import OURS, TORCH, Shape
from bench.measure import in_turns, seconds_of

_IMPORT = "import time, torch; t = time.perf_counter(); import elman; print(time.perf_counter() - t)"
_TRACE = "import json; from bench.overhead import traces; print(json.dumps(traces()))"
LENGTHS = (1, 10, 100, 1000)
Table = dict[str, dict[str, float]]


def import_seconds(times: int = 3) -> float:
    """Seconds that `import elman` takes after `import torch`, in a fresh process, the median."""
    return statistics.median(float(_fresh(_IMPORT)) for _ in range(times))


def trace_seconds() -> Table:
    """`traces`, in a fresh process."""
    return json.loads(_fresh(_TRACE))  # type: ignore[no-any-return]


def traces() -> Table:
    """Shipped cell -> seconds from the cell to its first result: the first inference, the first training step after it,
    and the first of each for another instance with the same trace key. "first in a process" stands by itself."""
    found = {"first in a process": _trace(elman.cells.Elman, 12)}
    for name, kind in SHIPPED.items():
        found[name] = _trace(kind, 8)
    return found


def _trace(kind: Any, width: int) -> dict[str, float]:
    made = {}
    for words in ("", ", second instance"):
        layer = elman.Recurrent(
            kind(width, width, width) if kind is elman.cells.Jordan else kind(width, width)
        )
        x = torch.randn(3, 2, width)
        with torch.no_grad():
            made[f"inference{words}"] = seconds_of(lambda layer=layer, x=x: layer(x))
        made[f"training{words}"] = seconds_of(lambda layer=layer, x=x: layer(x)[0].sum().backward())
    return made


def call_seconds(times: int = 300) -> Table:
    """Shipped cell -> median seconds of one call at T = 1, B = 1, H = 64 without gradients: the layer, its `step`, the
    cell itself."""
    found = {}
    for name, kind in SHIPPED.items():
        cell = kind(64, 64, 64) if kind is elman.cells.Jordan else kind(64, 64)
        layer, x = elman.Recurrent(cell), torch.randn(1, 1, 64)
        with torch.no_grad():
            _, state = layer(x)
            ways: dict[str, Callable[[], Any]] = {
                "layer(x)": lambda layer=layer, x=x: layer(x),
                "layer(x, state)": lambda layer=layer, x=x, state=state: layer(x, state),
                "layer.step(x, state)": lambda layer=layer, x=x, state=state: layer.step(x[0], state),
                "cell(x, state)": lambda cell=cell, x=x, state=state: cell(x[0], state),
            }
            found[name] = _medians(ways, times)
    return found


def training_seconds(times: int = 200, width: int = 64, calls: int = 20) -> Table:
    """Shipped cell -> seconds of a training step at T = 1, B = 1: ours, and those of an `autograd.Function` that makes
    as many tensors of the same sizes, in both directions, and computes nothing. Medians of rounds of calls."""
    found = {}
    for name in ("elman", "gru", "lstm"):
        layer, x = elman.Recurrent(SHIPPED[name](width, width)), torch.randn(1, 1, width, requires_grad=True)
        inputs = [x, *layer.parameters()]
        apply = _nothing([t.shape for t in pytree.tree_leaves(layer(x))], [t.shape for t in inputs])
        ways: dict[str, Callable[[], Any]] = {
            OURS: lambda layer=layer, inputs=inputs: layer(inputs[0])[0],
            "a function that computes nothing": lambda apply=apply, inputs=inputs: apply(*inputs)[0],
        }

        def several(way: Callable[[], Any], inputs: list[torch.Tensor] = inputs) -> Callable[[], None]:
            def run() -> None:
                for _ in range(calls):
                    torch.autograd.grad(way().sum(), inputs)

            return run

        medians = _medians({key: several(way) for key, way in ways.items()}, times)
        found[name] = {key: seconds / calls for key, seconds in medians.items()}
    return found


def _nothing(outputs: list[torch.Size], inputs: list[torch.Size]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """`apply` of a function from inputs of these shapes to outputs of these."""

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            ctx.save_for_backward(*given)
            return tuple(torch.empty(shape) for shape in outputs)

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
            ctx.saved_tensors  # noqa: B018  as every function asks for them
            return tuple(torch.empty(shape) for shape in inputs)

    return Nothing.apply


def step_seconds(times: int = 300, width: int = 128) -> Table:
    """torch's cell -> median seconds of one step at B = 1 without gradients: our `step` over that cell, the cell. The
    results are compared first."""
    found = {}
    for kind in (nn.RNNCell, nn.GRUCell, nn.LSTMCell):
        cell = kind(width, width)
        layer, x, h = elman.Recurrent(cell), torch.randn(1, width), torch.randn(1, width)
        state = (h, torch.randn(1, width)) if kind is nn.LSTMCell else h
        with torch.no_grad():
            ways: dict[str, Callable[[], Any]] = {
                "layer.step(x, state)": lambda layer=layer, x=x, state=state: layer.step(x, state)[1],
                "torch's cell": lambda cell=cell, x=x, state=state: cell(x, state),
            }
            ours, theirs = (way() for way in ways.values())
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            found[kind.__name__] = _medians(ways, times)
    return found


def length_seconds(seconds: float = 0.5, width: int = 64) -> Table:
    """Cell and length T -> median seconds per time step at B = 1: ours and torch.nn, training and inference, in turns
    and after the usual check."""
    found = {}
    for name in ("rnn", "gru", "lstm"):
        for T in LENGTHS:
            contest = measure.contest(ENTRIES[name], Shape(1, width), T)
            line = {}
            for what in (measure.TRAINING, measure.INFERENCE):
                row = contest.row(what, in_turns(contest.ways(what, (TORCH,)), 300, seconds))
                line |= {f"{way}, {what}": 1e-6 * row.per_step(way) for way in (OURS, TORCH)}
            found[f"{name}, T = {T}"] = line
    return found


def _medians(ways: dict[str, Callable[[], Any]], times: int) -> dict[str, float]:
    rounds = in_turns(ways, times, float("inf"))
    return {name: statistics.median(values) for name, values in rounds.items()}


def _fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]
