"""Of weights alone, once per call: weight norm, and constants that are counted out."""

from __future__ import annotations

from typing import Any

import torch

from elman.engines.native.builder import NUMBER, Builder
from elman.engines.native.rules.features import reduced
from elman.engines.native.rules.pointwise import where
from elman.engines.native.rules.table import RULES, ResultSpec, Rule, cast, rule
from elman.engines.native.values import BOOL, INT, REAL, Unsupported, View

aten = torch.ops.aten


@rule(aten.eye.default, aten.eye.m)
def _eye(p: Builder, want: ResultSpec, *_: Any, **__: Any) -> View:
    out = p.copy(p.number(0, want.type, want.sizes))
    n = min(want.sizes)
    p.copy(p.number(1, want.type, (n,)), into=View(out.buffer, out.offset, (n,), (sum(out.strides),)))
    return out


def _counted(p: Builder, n: int) -> View:
    """0, 1, … n - 1."""
    if n > 1 << 24:
        raise Unsupported("so many numbers counted out")  # float32 has no more of them
    ones, up = p.copy(p.number(1, REAL, (n,))), p.new(REAL, (n,))
    p.lines("cumsum", (), n, [(View(up.buffer, 0, (), ()), 1), (View(ones.buffer, 0, (), ()), 1)])
    return p.map("sub", REAL, (n,), up, 1.0)


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _arange(p: Builder, want: ResultSpec, *bounds: NUMBER, **_: Any) -> View:
    start, step = bounds[0] if len(bounds) > 1 else 0, bounds[2] if len(bounds) > 2 else 1
    (n,) = want.sizes
    if want.type == INT and max(abs(start), abs(start + n * step)) > 1 << 24:
        raise Unsupported("so large numbers counted out")
    return cast(p, p.map("fma", REAL, (n,), _counted(p, n), float(step), float(start)), want.type)  # type: ignore[return-value]


def _triangle(code: str) -> Rule:
    """What lies on one side of a diagonal, which is so many columns to the right of the main one."""

    def lower(p: Builder, want: ResultSpec, x: View, diagonal: int = 0) -> View:
        rows, columns = want.sizes[-2:]
        right = p.map("sub", REAL, (rows, columns), _counted(p, columns), _counted(p, rows).unsqueeze(1))
        kept = p.map(code, BOOL, (rows, columns), right, float(diagonal))
        return where(p, want, kept.expand(want.sizes), x, 0)

    return lower


RULES[aten.tril.default], RULES[aten.triu.default] = _triangle("le"), _triangle("ge")


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
