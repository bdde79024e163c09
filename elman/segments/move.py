"""Moving rows from one order to another, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack

Tensor = torch.Tensor


class Move:
    """Chosen rows of a tensor in another order, `rows` [N] of M; and back, with zeros at those that were not chosen.

    places: [M], where each row has gone, N for nowhere.

    Both directions read rows in any order and write them one after the other: that is up to ten times faster than
    writing to any place, and the gradient of one is the other.
    """

    def __init__(self, rows: Tensor, places: Tensor) -> None:
        self.rows, self.places = rows, places
        self.all = len(rows) == len(places)

    def __call__(self, value: Tensor) -> Tensor:
        """[M, …] -> [N, …]."""
        return _moved(value, self.rows, self.places, False, not self.all)

    def back(self, value: Tensor) -> Tensor:
        """[N, …] -> [M, …]."""
        return _moved(value, self.places, self.rows, not self.all, False)


def _moved(value: Tensor, index: Tensor, inverse: Tensor, holes: bool, holes_back: bool) -> Tensor:
    if value.requires_grad and torch.is_grad_enabled() and peek_interpreter_stack() is None:
        return _Moved.apply(value, index, inverse, holes, holes_back)
    return _gathered(value, index, holes)


def _gathered(value: Tensor, index: Tensor, holes: bool) -> Tensor:
    """Rows of a tensor; where there are holes, row number len(value) is zero."""
    if holes:
        value = torch.cat([value, value.new_zeros((1, *value.shape[1:]))])
    return value.index_select(0, index)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, index: Tensor, inverse: Tensor, *holes: bool) -> Tensor:
        ctx.way = index, inverse, holes
        return _gathered(value, index, holes[0])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (cotangent,) = cotangents
        index, inverse, (here, back) = ctx.way
        return _moved(cotangent, inverse, index, back, here), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *directions: Tensor | None) -> Tensor:
        direction = directions[0]
        assert direction is not None
        return _moved(direction, *ctx.way[:2], *ctx.way[2])
