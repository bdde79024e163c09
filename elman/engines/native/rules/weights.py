"""Of weights alone, once per call: weight norm, and the matrix one."""

from __future__ import annotations

from typing import Any

import torch

from elman.engines.native.builder import Builder
from elman.engines.native.rules.features import reduced
from elman.engines.native.rules.table import ResultSpec, rule
from elman.engines.native.values import REAL, View

aten = torch.ops.aten


@rule(aten.eye.default, aten.eye.m)
def _eye(p: Builder, want: ResultSpec, *_: Any, **__: Any) -> View:
    out = p.copy(p.number(0, want.type, want.sizes))
    n = min(want.sizes)
    p.copy(p.number(1, want.type, (n,)), into=View(out.buffer, out.offset, (n,), (sum(out.strides),)))
    return out


@rule(aten._weight_norm_interface.default)
def _weight_norm(p: Builder, want: ResultSpec, v: View, g: View, dim: int = 0) -> Any:
    """v g / |v|, the norm over all dimensions but one; and the norm."""
    norm = p.map("sqrt", REAL, g.sizes, _over(p, p.map("square", REAL, v.sizes, v), g, dim))
    return p.map("mul", REAL, v.sizes, v, p.map("div", REAL, g.sizes, g, norm)), norm


@rule(aten._weight_norm_interface_backward.default)
def _weight_norm_backward(
    p: Builder, want: ResultSpec, gradient: View, v: View, g: View, norm: View, dim: int
) -> Any:
    """With u = v / |v|: g / |v| (∂w - u Σ ∂w u), and Σ ∂w u."""
    u = p.map("div", REAL, v.sizes, v, norm)
    d_g = _over(p, p.map("mul", REAL, v.sizes, gradient, u), g, dim)
    across = p.map("fnma", REAL, v.sizes, u, d_g, gradient)
    return p.map("mul", REAL, v.sizes, across, p.map("div", REAL, g.sizes, g, norm)), d_g


def _over(p: Builder, x: View, like: View, dim: int) -> View:
    """The sum over all dimensions but one."""
    return reduced(
        p,
        ResultSpec(like.sizes, REAL, ()),
        "sum",
        x,
        [d for d in range(len(x.sizes)) if d != dim % len(x.sizes)],
    )
