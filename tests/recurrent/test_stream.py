"""Streams: one step after another is what `step` is, to the last bit, whatever happens to the rows and the weights."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import elman
from elman import cells
from elman.errors import InputError, InputTypeError, NotSupported, NotYet, StateError
from tests.cases import CASES

SOME = sorted(CASES)[::6]


def same(a: object, b: object) -> bool:
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(left) == len(right) and all(
        torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(left, right, strict=True)
    )


def at(x: object, t: int) -> object:
    return pytree.tree_map(lambda leaf: leaf[t] if isinstance(leaf, torch.Tensor) else leaf, x)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["32", "64"])
@torch.no_grad()
def test_a_stream_is_step_after_step(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    rnn = elman.Recurrent(case.make().to(dtype))
    generator = torch.Generator().manual_seed(0)
    T, B = 3, 3
    x, state, context = (make(generator) for make in (
        lambda g: case.x(T, B, g, dtype), lambda g: case.state(B, g, dtype), lambda g: case.context(B, g, dtype)
    ))  # fmt: skip
    stream = rnn.stream(state=state)
    for t in range(T):
        made = stream.step(at(x, t), context=context)
        if case.noise:
            continue
        expected, state = rnn.step(at(x, t), state, context=context)
        # With a context the cell itself takes the step, by PyTorch's functions.
        assert (close if case.contexts is not None else same)((made, stream.state), (expected, state)), t


def close(a: object, b: object) -> bool:
    return all(torch.allclose(x, y, atol=1e-5) for x, y in zip(*map(pytree.tree_leaves, (a, b)), strict=True))
