"""Convolutions: each tap of the kernel is a view of the padded input; side by side, they meet the weight in a product.

    correlate   y[o, p] = Σ W[o, i, k] x[i, p·stride + k·dilation - padding]
    spread      x[i, q] = Σ W[o, i, k] y[o, p], over all p and k with q = p·stride + k·dilation - padding

The second is the first one's adjoint: a correlation of y, with zeros between its elements, and the turned kernel.
Gradients of weights are no business of a loop: they are sums over rows, which the plan has after it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elman.engines.native.builder import Builder
from elman.engines.native.rules.table import ResultSpec, must, rule
from elman.engines.native.values import REAL, Unsupported, View

aten = torch.ops.aten
COLUMNS = 1 << 15  # bytes of the taps that one product reads


@dataclass(frozen=True)
class Geometry:
    """How a kernel goes over an input: stride, padding and dilation along each dimension, and groups of channels."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(
        cls, dims: int, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
    ) -> Geometry:
        def each(values: Sequence[int]) -> tuple[int, ...]:
            return tuple(values) if len(values) == dims else tuple(values) * dims

        return cls(each(stride), each(padding), each(dilation), groups)


def correlate(p: Builder, x: View, weight: View, bias: View | None, g: Geometry, out: View) -> None:
    """x [I, *in], weight [O, I / groups, *kernel], bias [O] or None, out [O, *positions]."""
    kernel = weight.sizes[2:]
    if any(g.padding):
        room = _zeros(p, (x.sizes[0], *(n + 2 * pad for n, pad in zip(x.sizes[1:], g.padding, strict=True))))
        inner = room
        for dim, (n, pad) in enumerate(zip(x.sizes[1:], g.padding, strict=True), start=1):
            inner = inner.slice(dim, pad, pad + n)
        p.copy(x, into=inner)
        x = room
    flat = must(weight.reshape((weight.sizes[0], weight.sizes[1], math.prod(kernel))))
    _product(p, x, flat, kernel, g.stride, g.dilation, g.groups, bias, out)


def spread(p: Builder, y: View, weight: View, bias: View | None, g: Geometry, out: View) -> None:
    """y [O, *positions], weight [O, I / groups, *kernel], bias [I] or None, out [I, *in]."""
    kernel, dims = weight.sizes[2:], range(len(weight.sizes) - 2)
    reach = [(kernel[d] - 1) * g.dilation[d] for d in dims]
    sizes = [out.sizes[1 + d] + reach[d] for d in dims]
    room = _zeros(p, (y.sizes[0], *sizes))
    inner = room
    for d in dims:
        # y[p] goes to p·stride + reach - padding, unless that lies beyond the room
        at = reach[d] - g.padding[d]
        first = -(min(at, 0) // g.stride[d])
        stop = min(y.sizes[1 + d], -((at - sizes[d]) // g.stride[d]))
        y = y.slice(1 + d, first, max(stop, first))
        begin = first * g.stride[d] + at
        inner = inner.slice(1 + d, begin, begin + max(y.sizes[1 + d] - 1, -1) * g.stride[d] + 1, g.stride[d])
    if y.numel:
        p.copy(y, into=inner)
    O, I = weight.sizes[:2]
    turned = (
        must(weight.reshape((g.groups, O // g.groups, I, math.prod(kernel)))).permute((0, 2, 1, 3)).flip([3])
    )
    turned = p.in_order(turned).reshape((g.groups * I, O // g.groups, math.prod(kernel)))
    _product(p, room, must(turned), kernel, (1,) * len(kernel), g.dilation, g.groups, bias, out)


def _product(
    p: Builder, x: View, weight: View, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
    groups: int, bias: View | None, out: View,
) -> None:  # fmt: skip
    """out [O, *positions] = bias [O] + weight [O, I / groups, taps] · the taps of x [I, *in]."""
    (O, *positions), I, taps = out.sizes, x.sizes[0], weight.sizes[2]
    left = must(p.in_order(weight).reshape((groups, O // groups, I // groups * taps)))
    start = None if bias is None else p.in_order(bias.unsqueeze(1).expand((O, math.prod(positions))))
    # Some places at a time along the first dimension, so that the columns stay in the nearest cache.
    many = max(COLUMNS // (I * taps * max(math.prod(positions[1:]), 1) * p.real_bytes), 1)
    for first in range(0, positions[0], many):
        here = (min(many, positions[0] - first), *positions[1:])
        columns = p.new(REAL, (I, taps, *here))
        for tap, at in enumerate(itertools.product(*map(range, kernel))):
            view = x
            for d, n in enumerate(here):
                begin = at[d] * dilation[d] + (first * stride[0] if d == 0 else 0)
                view = view.slice(1 + d, begin, begin + (n - 1) * stride[d] + 1, stride[d])
            p.copy(view, into=columns.select(1, tap))
        n, begin = math.prod(here), first * math.prod(positions[1:])
        right = must(columns.reshape((groups, I // groups * taps, n)))
        place = must(out.reshape((groups, O // groups, math.prod(positions)))).slice(2, begin, begin + n)
        added = None
        if start is not None:
            added = must(start.reshape((groups, O // groups, math.prod(positions)))).slice(
                2, begin, begin + n
            )
        p.matmul(left, right, added, place)


def _zeros(p: Builder, sizes: Sequence[int]) -> View:
    return p.copy(p.number(0, REAL, sizes))


def _convolved(
    p: Builder, want: ResultSpec, x: View, weight: View, bias: View | None, g: Geometry, transposed: bool
) -> View:
    out = p.new(REAL, want.sizes)
    if not out.numel:
        raise Unsupported("a convolution that gives nothing")
    run = spread if transposed else correlate
    for image in range(x.sizes[0]):
        run(p, x.select(0, image), weight, bias, g, out.select(0, image))
    return out


@rule(aten.convolution.default)
def _convolution(
    p: Builder, want: ResultSpec, x: View, weight: View, bias: View | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> View:  # fmt: skip
    g = Geometry.of(len(weight.sizes) - 2, stride, padding, dilation, groups)
    return _convolved(p, want, x, weight, bias, g, transposed)


@rule(aten.convolution_backward.default)
def _convolution_backward(
    p: Builder, want: ResultSpec, gradient: View, x: View, weight: View, bias_sizes: Any, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
    mask: Sequence[bool],
) -> Any:  # fmt: skip
    if list(mask) != [True, False, False]:
        raise Unsupported("sums over rows inside the loop (the gradient of a convolution's parameters)")
    g = Geometry.of(len(weight.sizes) - 2, stride, padding, dilation, groups)
    return _convolved(p, want, gradient, weight, None, g, not transposed), None, None
