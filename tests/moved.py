"""A case's calls on another device than the CPU: its inputs there, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

import elman
from tests.recurrent import compare
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor
T, B = 6, 3


def moved_to(inputs: Inputs, device: torch.device) -> Inputs:
    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().to(device).requires_grad_(value.requires_grad)

    parts = {name: pytree.tree_map(leaf, getattr(inputs, name)) for name in ("x", "state", "context")}
    return replace(inputs, **parts)


def results(
    rnn: elman.Recurrent, inputs: Inputs, run: Callable[..., Any], **said: Any
) -> list[compare.Named]:
    wanted = compare.wanted_of(rnn, inputs)
    values = compare.flat(*run(rnn, inputs, **said))
    return [home(values), home(compare.gradients(values, wanted))]


def home(values: compare.Named) -> compare.Named:
    return {name: None if value is None else value.detach().cpu() for name, value in values.items()}
