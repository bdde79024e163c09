"""Products of matrices."""

from __future__ import annotations

import torch

from elman.engines.native.builder import NUMBER, Builder
from elman.engines.native.rules.table import ResultSpec, rule
from elman.engines.native.values import REAL, Unsupported, View

aten = torch.ops.aten


def product(p: Builder, start: View | None, left: View, right: View, sizes: tuple[int, ...]) -> View:
    """start + left · right, matrices or stacks of them. What is the same for all rows is packed."""
    if not left.type == right.type == REAL:
        raise Unsupported("products of whole numbers")
    out = p.new(REAL, sizes)
    stack = len(sizes) == 3
    if not stack:
        left, right, whole = left.unsqueeze(0), right.unsqueeze(0), out.unsqueeze(0)
    else:
        whole = out
    begin = None if start is None else start.expand(sizes)
    begin = begin.unsqueeze(0) if begin is not None and not stack else begin
    if right.buffer.fixed or left.buffer.fixed:
        for i in range(whole.sizes[0]):
            a, b, o = (
                left.select(0, i if left.sizes[0] > 1 else 0),
                right.select(0, i if right.sizes[0] > 1 else 0),
                whole.select(0, i),
            )
            s = None if begin is None else begin.select(0, i)
            if not right.buffer.fixed:  # (a b)ᵀ = bᵀ aᵀ
                a, b, o, s = (
                    b.permute((1, 0)),
                    a.permute((1, 0)),
                    o.permute((1, 0)),
                    None if s is None else s.permute((1, 0)),
                )
            if o.sizes[1] > 1 and o.strides[1] != 1:
                product = p.new(REAL, o.sizes)
                p.product(a, b, s, product)
                p.copy(product, into=o)
            else:
                p.product(a, b, s, o)
        return out
    p.matmul(left, right, begin, whole)
    return out


@rule(aten.mm.default, aten.bmm.default)
def _mm(p: Builder, want: ResultSpec, left: View, right: View) -> View:
    return product(p, None, left, right, want.sizes)


@rule(aten.addmm.default, aten.baddbmm.default)
def _addmm(
    p: Builder, want: ResultSpec, start: View, left: View, right: View, beta: NUMBER = 1, alpha: NUMBER = 1
) -> View:
    if alpha != 1:
        left = p.map("mul", REAL, left.sizes, left, alpha)
    if beta != 1:
        start = p.map("mul", REAL, start.sizes, start, beta)
    return product(p, start if beta != 0 else None, left, right, want.sizes)
