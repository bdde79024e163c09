"""Moving rows from one order to another, and back: in C++ where that part is there, and it is no matter for threads."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from elman.segments.timeline import as_index
from elman.trace.batches import of_a_batch
from elman.trace.modes import has_no_memory, looks_at_operations

try:
    from elman import _native
except ImportError:
    _native: Any = None

Tensor = torch.Tensor


class Move:
    """Chosen rows of a tensor `[*lead, …]` in another order, `numbers` [N]; and back, with zeros at the others.

    places: for each row of `lead`, in order, where it has gone, N for nowhere.

    Both directions read rows in any order and write them one after the other: that is up to ten times faster than
    writing to any place, and the gradient of one is the other.
    """

    def __init__(
        self, numbers: np.ndarray, places: np.ndarray, lead: tuple[int, ...], device: torch.device
    ) -> None:
        self.lead, self.all = lead, len(numbers) == len(places)
        self._numbers, self._places, self._device = numbers, places, device

    def __call__(self, value: Tensor) -> Tensor:
        """[*lead, …] -> [N, …]."""
        return self._moved(value, False)

    def back(self, value: Tensor) -> Tensor:
        """[N, …] -> [*lead, …]."""
        return self._moved(value, True)

    @functools.cached_property
    def rows(self) -> Tensor:
        """`numbers`, where the tensors are."""
        return as_index(self._numbers, self._device)

    @functools.cached_property
    def places(self) -> Tensor:
        return as_index(self._places, self._device)

    def _moved(self, value: Tensor, back: bool) -> Tensor:
        plain = peek_interpreter_stack() is None
        if plain and value.requires_grad and torch.is_grad_enabled():
            return _Moved.apply(value, self, back)
        plain = plain and not (looks_at_operations() or has_no_memory(value))
        if _native is not None and plain and forward_ad._current_level < 0:
            lead, index = (1, self._places) if back else (len(self.lead), self._numbers)
            made = value.new_empty((*(self.lead if back else index.shape), *value.shape[lead:]))
            if _native.move(value, index, made, lead):
                return made
        if not back:
            return value.flatten(0, len(self.lead) - 1).index_select(0, self.rows)
        if not self.all:  # row number N is zero
            value = torch.cat([value, value.new_zeros((1, *value.shape[1:]))])
        return value.index_select(0, self.places).reshape(*self.lead, *value.shape[1:])


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, move: Move, back: bool) -> Tensor:
        ctx.way = move, back
        return move._moved(value, back)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        move, back = ctx.way
        (gradient,) = of_a_batch(lambda given: [move._moved(given[0], not back)], cotangents)  # type: ignore[arg-type]
        return gradient, None, None

    @staticmethod
    def jvp(ctx: Any, *directions: Tensor | None) -> Tensor:
        move, back = ctx.way
        (direction,) = of_a_batch(lambda given: [move._moved(given[0], back)], directions[:1])  # type: ignore[arg-type]
        assert direction is not None
        return direction
