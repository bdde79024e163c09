"""Layers of small cells in float64, and random numbers for them."""

from __future__ import annotations

from typing import Any

import torch

import elman
from tests.cases import CASES


def layer(name: str = "gru", **options: Any) -> elman.Recurrent:
    """The same cell at the same widths in every test, so that it is traced once."""
    return elman.Recurrent(CASES[name].make().double(), **options)


def random(*size: int, **options: Any) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float64, **options)
