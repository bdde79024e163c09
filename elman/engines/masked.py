"""Rows of different lengths as rows of one length: those that have ended, or not begun, keep their states.

For an engine that records what it starts: how many rows run at which step is then a tensor that a step reads, and no
longer what decides which operations there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from elman.circuit import graphs
from elman.circuit.form import ROWS
from elman.engines.codegen import repeated
from elman.plan.form import Loop

Tensor = torch.Tensor


class Rows:
    """Where packed rows `[N, …]` lie among `[steps, batch, …]`, which are some more, so that few numbers come up.

    batch_sizes: rows at each step, never growing. alive: `[steps, batch]`, which of them there are.
    """

    def __init__(self, batch_sizes: Sequence[int], device: torch.device) -> None:
        self.T, self.B = len(batch_sizes), batch_sizes[0]
        self.steps, self.batch = rounded(self.T), rounded(self.B)
        counts = np.zeros(self.steps, dtype=np.int64)
        counts[: self.T] = batch_sizes
        alive = np.arange(self.batch) < counts[:, None]
        # Where nothing is, any row will do: what comes of it is dropped.
        sources = np.minimum(
            np.cumsum(counts)[:, None] - counts[:, None] + np.arange(self.batch), counts.sum() - 1
        )
        told = torch.from_numpy(np.concatenate([sources.ravel(), np.flatnonzero(alive), alive.ravel()]))
        self._sources, self._places, there = told.to(device).split(
            [alive.size, int(counts.sum()), alive.size]
        )
        self.alive = there.view(self.steps, self.batch).bool()

    def spread(self, value: Tensor) -> Tensor:
        """[N, …] -> [steps, batch, …]."""
        return value.index_select(0, self._sources).view(self.steps, self.batch, *value.shape[1:])

    def packed(self, value: Tensor) -> Tensor:
        """[steps, batch, …] -> [N, …]."""
        return value.flatten(0, 1).index_select(0, self._places)


def padded(value: Tensor, size: int) -> Tensor:
    """A tensor with so many rows, the last of which come again and again."""
    missing = size - value.shape[0]
    return value if not missing else torch.cat([value, value[-1:].expand(missing, *value.shape[1:])])


def rounded(count: int) -> int:
    """Up to a number with four binary digits, of which there are few: at most an eighth more."""
    unit = 1 << max(count.bit_length() - 4, 0)
    return -(-count // unit) * unit


def masked(loop: Loop, reverse: bool) -> Callable[..., tuple[Tensor, ...]]:
    """A loop without sums as `(steps, batch, seed, first, *constants, *sequences, *starts, alive) -> what it makes`.

    What it makes: emits, then states. Sequences and emits are `[steps, batch, …]`, or `[steps, …]` without rows. The
    function does not hold the loop.
    """
    states = {state.name: state.next for state in loop.states}
    run = repeated(loop.graph, loop.constants, loop.sequences, states, loop.emits, (), ROWS, masked=True)
    results = graphs.results_of(loop.graph)
    likes = [results[name].meta["val"] for name in loop.emits]
    made = [
        (name in loop.stepped, [int(size) for size in like.shape[name not in loop.stepped :]], like.dtype)
        for name, like in zip(loop.emits, likes, strict=True)
    ]
    ends = len(loop.constants), len(loop.constants) + len(loop.sequences)
    way = slice(None, None, -1 if reverse else 1)

    def function(steps: int, batch: int, seed: int, first: int, *tensors: Tensor) -> tuple[Any, ...]:
        constants, sequences = tensors[: ends[0]], tensors[ends[0] : ends[1]]
        starts, alive = tensors[ends[1] : -1], tensors[-1]
        out = [
            alive.new_empty((steps, *shape) if stepped else (steps, batch, *shape), dtype=dtype)
            for stepped, shape, dtype in made
        ]
        masks = [alive.view(steps, batch, *[1] * (start.dim() - 1)) for start in starts]
        lists = [value.unbind(0)[way] for value in (*sequences, *out, *masks)]
        return (*out, *run(steps, batch, *constants, *lists, *starts))

    return function
