"""`python -m bench.precision`: training steps with products of float32, and with their factors in bfloat16.

Beside torch.nn told the same (`torch.set_float32_matmul_precision`), and under autocast, which keeps states in bfloat16
as well. Milliseconds, the median of rounds in turns; and how far outputs and gradients are from those in float64.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils import _pytree as pytree

import elman
from bench.contestants import ENTRIES, Entry, loop, torchs
from bench.form import LOOP, OURS, TORCH, Eager, Shape
from elman.engines.native.extension import in_halves
from elman.precision import products_in

Tensor = torch.Tensor
CELLS, SHAPES, T = ("gru", "lstm", "ln"), ("B1H256", "B16H64", "B16H384", "B32H256", "B64H512"), 100
Step = Callable[[], list[Tensor]]
PRECISIONS = {"highest": "ieee", "medium": "bf16"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cells", default=",".join(CELLS))
    options.add_argument("--shapes", default=",".join(SHAPES))
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--seconds", type=float, default=3.0, help="for a row, at least three rounds")
    told = options.parse_args()
    torch.set_num_threads(told.threads)
    with products_in("bf16"):
        able = in_halves()
    print(f"PyTorch {torch.__version__}, {told.threads} threads, T {T}; AMX: {'yes' if able else 'no'}")
    for cell in told.cells.split(","):
        for shape in told.shapes.split(","):
            print("  ".join(row(ENTRIES[cell], Shape.parse(shape), told.seconds)), flush=True)


def row(entry: Entry, shape: Shape, seconds: float) -> Iterator[str]:
    yield f"{entry.name} {shape}:"
    steps, exact = contest(entry, shape)
    errors = {name: error(step(), exact) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begun)
    for name in steps:
        yield f"{name} {1e3 * statistics.median(times[name]):.2f} ({errors[name]:.0e})"
    pairs = zip(times[f"{OURS} highest"], times[f"{OURS} medium"], strict=True)
    yield f"{statistics.median(a / b for a, b in pairs):.2f} times as fast"


def contest(entry: Entry, shape: Shape) -> tuple[dict[str, Step], list[Tensor]]:
    """(name -> a training step of it, what comes out in float64)."""
    g, H, B = torch.Generator().manual_seed(0), shape.H, shape.B
    cell = entry.case.make(H, H)
    x, state = entry.case.x(T, B, g, torch.float32, H, H), entry.case.state(B, g, torch.float32, H, H)
    gradient = torch.randn(T, B, H, generator=g)

    def step(
        way: Eager, among: AbstractContextManager[Any], x: Tensor = x, state: Any = state
    ) -> list[Tensor]:
        with among:
            out = way.run(x.requires_grad_(), state)[0]
            gradients = torch.autograd.grad(out, [x, *way.weights.values()], gradient.to(out.dtype))
        return [out.detach(), *gradients]

    runs = [Eager(OURS, elman.Recurrent(cell), dict(cell.named_parameters()))]
    if entry.torch is not None:
        runs.append(torchs(entry.torch, cell))
    steps: dict[str, Step] = {
        f"{run.name} {name}": lambda run=run, to=to: step(run, products_in(to))
        for run in runs
        for name, to in PRECISIONS.items()
    }
    if entry.torch is not None:
        steps[f"{TORCH} autocast"] = lambda: step(runs[1], torch.autocast("cpu", torch.bfloat16))
    wide = copy.deepcopy(cell).double()
    exact = Eager(LOOP, loop(wide), dict(wide.named_parameters()))
    double = pytree.tree_map(lambda t: t.double() if t.is_floating_point() else t, state)
    return steps, step(exact, nullcontext(), x.detach().double(), double)


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest of the tensors', each over its own norm."""
    pairs = zip(found, exact, strict=True)
    return max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)


if __name__ == "__main__":
    main()
