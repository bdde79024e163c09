"""Quantiles as what they are made of: PyTorch writes them into a value whose direction forward a trace cannot hold."""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor


def quantile(
    input: Tensor, q: float | Tensor, dim: int | None = None, keepdim: bool = False, *,
    interpolation: str = "linear", out: Any = None,
) -> Tensor:  # fmt: skip
    """`torch.quantile`: NaN where there is one among the numbers."""
    if dim is None or out is not None or interpolation not in ("linear", "midpoint"):
        return torch.quantile(input, q, dim, keepdim, interpolation=interpolation, out=out)
    ordered = input.movedim(dim, -1).sort(-1)[0]
    last = ordered.shape[-1] - 1
    at = torch.where(ordered.isnan().any(-1, keepdim=True), float(last), _numbers(q, input) * last)
    return _between(ordered, at, q, dim, keepdim, interpolation)


def nanquantile(
    input: Tensor, q: float | Tensor, dim: int | None = None, keepdim: bool = False, *,
    interpolation: str = "linear", out: Any = None,
) -> Tensor:  # fmt: skip
    """`torch.nanquantile`: of the numbers that are none."""
    if dim is None or out is not None or interpolation not in ("linear", "midpoint"):
        return torch.nanquantile(input, q, dim, keepdim, interpolation=interpolation, out=out)
    ordered = input.movedim(dim, -1).sort(-1)[0]
    last = (ordered.isnan().logical_not().sum(-1, keepdim=True) - 1).clamp(min=0)
    return _between(ordered, _numbers(q, input) * last, q, dim, keepdim, interpolation)


def _numbers(q: float | Tensor, input: Tensor) -> Tensor:
    """`[Q]`, Q = 1 for one number."""
    return (
        q.reshape(-1)
        if isinstance(q, Tensor)
        else torch.full((1,), q, dtype=input.dtype, device=input.device)
    )


def _between(
    ordered: Tensor, at: Tensor, q: float | Tensor, dim: int, keepdim: bool, interpolation: str
) -> Tensor:
    """What stands at the places `at [.., Q]` of `ordered [.., n]`, whole or not, as PyTorch lays it."""
    below = at.detach().floor().long()
    weight = at - below if interpolation == "linear" else torch.full_like(at, 0.5)
    found = torch.lerp(ordered.gather(-1, below), ordered.gather(-1, at.detach().ceil().long()), weight)
    several = isinstance(q, Tensor) and q.dim() > 0
    if keepdim:
        found = found.unsqueeze(dim if dim >= 0 else dim - 1)
    return found.movedim(-1, 0) if several else found.squeeze(-1)
