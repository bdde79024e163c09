"""How far two results of one call are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from elman.circuit.structure import flatten, paths

Tensor = torch.Tensor
Named = dict[str, Tensor | None]
Parts = dict[str, Named]  # outputs, final state, d inputs, d state, d parameters -> path -> tensor


def named(tree: object, name: str) -> Named:
    """The tensors of a tree by what users call them."""
    tensors, structure = flatten(tree, name)
    return dict(zip(paths(structure, name), tensors, strict=True))


def projection(values: Mapping[str, Tensor | None], seed: int) -> Tensor | None:
    """A random projection of all that carries a gradient, with the same numbers for every dtype."""
    total = None
    for number, value in enumerate(values.values()):
        if value is None or not value.requires_grad:
            continue
        real = torch.view_as_real(value) if value.is_complex() else value
        generator = torch.Generator().manual_seed(seed + 1000 * number)
        weight = (
            torch.randn(real.shape, generator=generator, dtype=torch.float64).to(real.dtype).to(real.device)
        )
        part = (real * weight).sum()
        total = part if total is None else total + part
    return total


class Distance(NamedTuple):
    """The largest difference, as a share of the largest number of its kind, and where it is. nothing: no finite number
    was there to compare."""

    size: float
    where: str
    nothing: bool = False


def distance(got: Named, expected: Named, least: float) -> Distance:
    """Of tensors with the same names; no gradient is the same as zeros, NaN agrees with NaN, infinity with itself.

    least: the size of numbers beside which smaller ones are rounding.
    """
    worst, nothing = Distance(0.0, ""), bool(expected)
    for name, theirs in expected.items():
        ours = got.get(name)
        if theirs is None and ours is None:
            nothing = False
            continue
        like = theirs if theirs is not None else ours
        assert like is not None
        a = (torch.zeros_like(like) if ours is None else ours).detach()
        b = (torch.zeros_like(like) if theirs is None else theirs).detach()
        if a.shape != b.shape:
            return Distance(math.inf, f"{name}: {list(a.shape)} for {list(b.shape)}")
        if not (b.is_floating_point() or b.is_complex()):
            difference, nothing = float((a != b).any()), False
        else:
            a, b = _real(a), _real(b)
            same = (a == b) | (a.isnan() & b.isnan())
            finite = b.isfinite()
            nothing &= not bool(finite.any()) and b.numel() > 0
            size = max(float(b[finite].abs().max()) if bool(finite.any()) else 0.0, least, 1e-300)
            apart = torch.where(same, 0.0, (a - b).abs()) / size
            difference = float(apart.nan_to_num(math.inf, math.inf).max()) if apart.numel() else 0.0
        if difference > worst.size or not worst.where:
            worst = Distance(difference, name)
    return worst._replace(nothing=nothing)


def _real(value: Tensor) -> Tensor:
    return (torch.view_as_real(value) if value.is_complex() else value).double()


def largest(parts: Parts) -> float:
    """The largest finite number in results."""
    values = [
        _real(v.detach()) for part in parts.values() for v in part.values() if v is not None and v.numel()
    ]
    return max((float(torch.where(v.isfinite(), v, 0.0).abs().max()) for v in values), default=0.0)
