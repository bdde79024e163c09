"""A layer with a generator draws from it alone, whatever runs it: the same numbers again, and torch's own untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import elman
from elman import cells

T, B, H = 6, 3, 4
WAYS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "a call": lambda layer, x: layer(x)[0],
    "a call without gradients": lambda layer, x: torch.no_grad()(layer)(x)[0],
    "steps": lambda layer, x: _steps(layer, x),
    "steps without gradients": lambda layer, x: torch.no_grad()(_steps)(layer, x),
    "a stream": lambda layer, x: torch.stack([*map(layer.stream(batch=B).step, x)]),
}


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W, self.hidden_size = nn.Linear(H, H), H

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.W(h) + x + torch.randn_like(h))
        return nn.functional.dropout(h, 0.5)


def _steps(layer: Any, x: torch.Tensor) -> torch.Tensor:
    state, outputs = None, []
    for x_t in x:
        output, state = layer.step(x_t, state)
        outputs.append(output)
    return torch.stack(outputs)


def _stack(**options: Any) -> elman.Stack:
    return elman.Stack(*[elman.Recurrent(cells.GRU(H, H)) for _ in range(3)], **{"dropout": 0.5, **options})


LAYERS: dict[str, Callable[[], Any]] = {
    "one layer": lambda: elman.Recurrent(Noisy(), batch_first=False),
    "one layer in segments": lambda: elman.Recurrent(Noisy(), batch_first=False, memory=elman.Segments(2)),
    "one layer, reference": lambda: elman.Recurrent(Noisy(), batch_first=False, engine="reference"),
    "a stack": _stack,
    "a stack, locked": lambda: _stack(locked=True),
    "a stack in segments": lambda: _stack(memory=elman.Segments(2)),
    "a stack in segments, locked": lambda: _stack(memory=elman.Segments(2), locked=True),
}


@pytest.mark.grid(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_generator_says_what_is_drawn(kind: str, way: str) -> None:
    layer, x = LAYERS[kind](), torch.randn(T, B, H)

    def drawn(seed: int) -> torch.Tensor:
        layer.generator = torch.Generator().manual_seed(seed)
        return WAYS[way](layer, x)

    drawn(0)  # the first call of a layer, or step, may go another way
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = drawn(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(drawn(5), one)
    assert not torch.equal(drawn(6), one)


@pytest.mark.grid(1)
@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("memory", [None, elman.Segments(2)], ids=["", "segments"])
def test_all_left_out_is_zeros_between_layers(memory: Any, locked: bool) -> None:
    stack, x = _stack(dropout=1.0, memory=memory, locked=locked), torch.randn(T, B, H)
    alone, _ = stack[2](torch.zeros(T, B, H))
    torch.testing.assert_close(stack(x)[0], alone)


def test_some_layers_of_a_stack_have_its_budget() -> None:
    assert _stack(memory=elman.Segments(2))[1:].memory == elman.Segments(2)
