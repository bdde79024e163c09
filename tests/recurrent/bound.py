"""Calls that are bound: the same sizes in all their tests, and what is right."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import elman
from tests import eager

Tensor = torch.Tensor
EXACT = {"rtol": 1e-12, "atol": 1e-12}
T, B, I, H = 4, 3, 5, 7
# What `watch` has no way to look into: calls of these cells are bound every time.
UNWATCHED = ("weight_norm_rnn",)


@contextlib.contextmanager
def in_python() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["elman.trace.watch"], "_native", None)
        yield


# What has changed is asked by the native engine, or in Python, where there is none.
WATCHING = {"native": contextlib.nullcontext, "in Python": in_python}


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(T, B, I, dtype=dtype), torch.randn(B, H, dtype=dtype)


def same(got: Any, expected: Any) -> None:
    mine, right = pytree.tree_leaves(got), pytree.tree_leaves(expected)
    torch.testing.assert_close(mine, right, **EXACT)


def warm(rnn: elman.Recurrent, x: Any, h: Any) -> None:
    """Until the next call like this one is bound, and the next step."""
    with torch.no_grad():
        for _ in range(3):
            rnn(x, h)
            rnn.step(pytree.tree_map(lambda t: t[0], x), h)


def right(rnn: elman.Recurrent, x: Tensor, h: Tensor) -> None:
    """Call and step are what the cell says now."""
    with torch.no_grad():
        outputs, final = eager.unroll(rnn.cell, x, h)
        same(rnn(x, h), (outputs, final))
        same(rnn.step(x[0], h), (outputs[0], eager.unroll(rnn.cell, x[:1], h)[1]))
