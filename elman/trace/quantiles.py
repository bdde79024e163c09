"""Quantiles as what they are made of: PyTorch writes them into a value whose direction forward a trace cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Tensor = torch.Tensor


def _in_parts(function: Callable[..., Tensor], skips: bool) -> Callable[..., Tensor]:
    """`torch.quantile` or `torch.nanquantile`, [.., n] of floats -> [.., Q] of them, where it can be made of parts.

    skips: whether NaN are left out; else the result is NaN where there is one.
    """

    def found(
        input: Tensor, q: float | Tensor, dim: int | None = None, keepdim: bool = False, *,
        interpolation: str = "linear", out: Any = None,
    ) -> Tensor:  # fmt: skip
        if dim is None or out is not None or interpolation not in ("linear", "midpoint"):
            return function(input, q, dim, keepdim, interpolation=interpolation, out=out)
        ordered = input.movedim(dim, -1).sort(-1)[0]  # NaN stand last
        last, odd = ordered.shape[-1] - 1, ordered.isnan()
        if skips:
            at = _numbers(q, input) * (odd.logical_not().sum(-1, keepdim=True) - 1).clamp(min=0)
        else:
            at = torch.where(odd.any(-1, keepdim=True), float(last), _numbers(q, input) * last)
        return _between(ordered, at, q, dim, keepdim, interpolation)

    return found


def _numbers(q: float | Tensor, input: Tensor) -> Tensor:
    """`[Q]`, Q = 1 for one number."""
    if isinstance(q, Tensor):
        return q.reshape(-1)
    return torch.full((1,), q, dtype=input.dtype, device=input.device)


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


quantile = _in_parts(torch.quantile, skips=False)
nanquantile = _in_parts(torch.nanquantile, skips=True)
