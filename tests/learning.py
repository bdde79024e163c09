"""Steps of an online rule, and what they are held against: back-propagation through time over a plain loop."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import elman
from elman import noise
from elman.circuit.structure import flatten
from elman.execute import Call
from elman.online import Online
from elman.trace.call import understand
from tests.cases import CASES
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor
T, B = 5, 3


def at(tree: Any, t: int) -> Any:
    return pytree.tree_map(lambda v: v[t].detach() if isinstance(v, Tensor) else v, tree)


def loss_fn(output: Any, weight: Tensor) -> Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return torch.stack([(leaf * weight).sin().sum() for leaf in leaves]).sum()


def taken(module: nn.Module) -> list[Tensor]:
    """The gradients that have come, which are taken away."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    module.zero_grad()
    return found


def learned(online: Online, inputs: Inputs, weights: Tensor, **more: Any) -> list[Tensor]:
    for t in range(len(weights)):
        online.step(
            at(inputs.x, t), weights[t], loss_fn, context=inputs.context, **{k: v[t] for k, v in more.items()}
        )
    return taken(online.rnn.cell)


def through_time(
    online: Online, inputs: Inputs, weights: Tensor, state: Any, reset: Any = None
) -> list[Tensor]:
    """Back-propagation through time over the loop, with the random numbers of `online`."""
    cell, total = online.rnn.cell, torch.zeros((), dtype=torch.float64)
    for t in range(len(weights)):
        drawn = online._derivatives.numbers(Call(1, B, online._seed, "auto", first=t))
        if reset is not None:
            begin = cell.initial_state(B)
            state = pytree.tree_map(lambda s, i, r=reset[t]: torch.where(r[:, None], i, s), state, begin)
        with noise.Replay([n[0] for n in drawn]) if drawn else contextlib.nullcontext():
            given = (at(inputs.x, t), state, *([] if inputs.context is None else [inputs.context]))
            returned = cell(*given)
        output, state = understand(returned, flatten(state, "state")[1], "cell")
        total = total + loss_fn(output, weights[t])
    total.backward()
    return taken(cell)


def same(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def make(name: str, rule: str = "rtrl", **options: Any) -> tuple[Online, Inputs, Any, Tensor]:
    case = CASES[name]
    inputs = Inputs.of(case, T, B)
    state = pytree.tree_map(torch.Tensor.detach, inputs.state)
    online = Online(elman.Recurrent(case.make().double()), rule, state=state, **options)
    return online, inputs, state, torch.linspace(0.3, 1.2, T, dtype=torch.float64)
