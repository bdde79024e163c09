"""The same elements under other sizes and strides, put side by side, or filled with a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from elman.engines.native.builder import NUMBER, Builder
from elman.engines.native.rules.table import RULES, ResultSpec, Rule, cast, must, rule
from elman.engines.native.values import Unsupported, View

aten = torch.ops.aten

# --- numbers as tensors ---------------------------------------------------------------------------------------------


def _filled(value: NUMBER | None) -> Rule:
    def lower(p: Builder, want: ResultSpec, *args: Any, **_: Any) -> View:
        number = value if value is not None else next(a for a in reversed(args) if isinstance(a, NUMBER))
        return p.number(number, want.type, want.sizes)

    return lower


for _target in (aten.zeros_like, aten.new_zeros, aten.zeros, aten.empty_like, aten.new_empty):
    RULES[_target.default] = _filled(0)
RULES[aten.empty.memory_format] = _filled(0)
for _target in (aten.ones_like, aten.new_ones, aten.ones):
    RULES[_target.default] = _filled(1)
for _target in (aten.full_like, aten.new_full, aten.full, aten.scalar_tensor):
    RULES[_target.default] = _filled(None)
RULES[aten.fill.Scalar] = _filled(None)


# --- addressing -----------------------------------------------------------------------------------------------------


@rule(aten.alias.default, aten.detach.default, aten.clone.default, aten.lift_fresh_copy.default)
def _same(p: Builder, want: ResultSpec, x: View, **_: Any) -> View:
    return x


@rule(aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.squeeze.dim, aten.squeeze.dims,
      aten.squeeze.default, aten.unflatten.int, aten.flatten.using_ints)  # fmt: skip
def _reshape(p: Builder, want: ResultSpec, x: View, *_: Any) -> View:
    return x.reshape(want.sizes) or must(p.copy(x).reshape(want.sizes))


@rule(aten.permute.default)
def _permute(p: Builder, want: ResultSpec, x: View, order: Sequence[int]) -> View:
    return x.permute(order)


@rule(aten.t.default)
def _t(p: Builder, want: ResultSpec, x: View) -> View:
    return x.permute(range(len(x.sizes))[::-1])


@rule(aten.transpose.int)
def _transpose(p: Builder, want: ResultSpec, x: View, a: int, b: int) -> View:
    order = list(range(len(x.sizes)))
    order[a], order[b] = order[b], order[a]
    return x.permute(order)


@rule(aten.slice.Tensor)
def _slice(
    p: Builder, want: ResultSpec, x: View, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> View:
    dim %= len(x.sizes)
    if want.sizes[dim] == x.sizes[dim]:
        return x  # all of it (perhaps all rows)
    return x.slice(dim, start or 0, x.sizes[dim] if stop is None else stop, step)


@rule(aten.select.int)
def _select(p: Builder, want: ResultSpec, x: View, dim: int, index: int) -> View:
    return x.select(dim, index)


@rule(aten.unsqueeze.default)
def _unsqueeze(p: Builder, want: ResultSpec, x: View, dim: int) -> View:
    return x.unsqueeze(dim)


@rule(aten.expand.default, aten.expand_as.default)
def _expand(p: Builder, want: ResultSpec, x: View, *_: Any, **__: Any) -> View:
    return x.expand(want.sizes)


@rule(aten.flip.default)
def _flip(p: Builder, want: ResultSpec, x: View, dims: Sequence[int]) -> View:
    return x.flip([d % len(x.sizes) for d in dims])


@rule(aten.repeat.default)
def _repeat(p: Builder, want: ResultSpec, x: View, times: Sequence[int]) -> View:
    out = p.new(want.type, want.sizes)
    # [t₀ n₀, t₁ n₁] seen as [t₀, n₀, t₁, n₁], of which only the n are read
    sizes = (1,) * (len(want.sizes) - len(x.sizes)) + x.sizes
    split, source = out, View(x.buffer, x.offset, sizes, (0,) * (len(sizes) - len(x.sizes)) + x.strides)
    for d in reversed(range(len(sizes))):
        shape = (*split.sizes[:d], want.sizes[d] // sizes[d], sizes[d], *split.sizes[d + 1 :])
        split = must(split.reshape(shape))
        source = source.unsqueeze(d)
    p.copy(source.expand(split.sizes), into=split)
    return out


@rule(aten.roll.default)
def _roll(p: Builder, want: ResultSpec, x: View, shifts: Sequence[int], dims: Sequence[int] = ()) -> View:
    if not dims:
        raise Unsupported("roll over all dimensions at once")
    for shift, dim in zip(shifts, dims, strict=True):
        dim %= len(x.sizes)
        n = x.sizes[dim]
        shift %= n
        x = cat(p, [x.slice(dim, n - shift, n), x.slice(dim, 0, n - shift)], dim)
    return x


def cat(p: Builder, parts: Sequence[View], dim: int) -> View:
    """Side by side. A part that was made for this alone is made in its place."""
    sizes = list(parts[0].sizes)
    sizes[dim] = sum(part.sizes[dim] for part in parts)
    out = p.new(parts[0].type, sizes)
    at = 0
    for part in parts:
        place = out.slice(dim, at, at + part.sizes[dim])
        at += part.sizes[dim]
        whole = part.whole and part.buffer.kind == "scratch" and part.buffer.inside is None
        if whole and place.numel and place.strides_agree(part):
            part.buffer.inside = (out.buffer, place.offset)
        elif place.numel:
            p.copy(part, into=place)
    return out


@rule(aten.cat.default)
def _cat(p: Builder, want: ResultSpec, parts: Sequence[View], dim: int = 0) -> View:
    kept = [cast(p, part, want.type) for part in parts if len(part.sizes) == len(want.sizes)]
    return cat(p, kept, dim % len(want.sizes))  # type: ignore[arg-type]


@rule(aten.stack.default)
def _stack(p: Builder, want: ResultSpec, parts: Sequence[View], dim: int = 0) -> View:
    dim %= len(want.sizes)
    return cat(p, [part.unsqueeze(dim) for part in parts], dim)


@rule(aten.constant_pad_nd.default)
def _pad(p: Builder, want: ResultSpec, x: View, pads: Sequence[int], value: NUMBER = 0) -> View:
    out = p.map(
        p.copying(want.type),
        want.type,
        want.sizes,
        p.number(value, want.type, want.sizes),
        into=p.new(want.type, want.sizes),
    )
    target = out
    for i in range(len(pads) // 2):
        dim = len(x.sizes) - 1 - i
        left, right = pads[2 * i], pads[2 * i + 1]
        x = x.slice(dim, max(-left, 0), x.sizes[dim] - max(-right, 0))
        target = target.slice(dim, max(left, 0), target.sizes[dim] - max(right, 0))
    p.copy(x, into=target)
    return out


def _replaced(p: Builder, x: View, place: Callable[[View], View], source: View) -> View:
    out = p.copy(x, into=p.new(x.type, x.sizes))
    p.copy(source.expand(place(out).sizes), into=place(out))
    return out


@rule(aten.slice_scatter.default)
def _slice_scatter(
    p: Builder,
    want: ResultSpec,
    x: View,
    source: View,
    dim: int = 0,
    start: Any = None,
    stop: Any = None,
    step: int = 1,
) -> View:
    stop = x.sizes[dim] if stop is None else stop
    return _replaced(p, x, lambda out: out.slice(dim % len(out.sizes), start or 0, stop, step), source)


@rule(aten.select_scatter.default)
def _select_scatter(p: Builder, want: ResultSpec, x: View, source: View, dim: int, index: int) -> View:
    return _replaced(p, x, lambda out: out.select(dim, index), source)


@rule(aten.slice_backward.default)
def _slice_backward(
    p: Builder, want: ResultSpec, g: View, sizes: Any, dim: int, start: int, stop: int, step: int
) -> View:
    zero = p.number(0, want.type, want.sizes)
    return _replaced(p, zero, lambda out: out.slice(dim % len(out.sizes), start, stop, step), g)


@rule(aten.select_backward.default)
def _select_backward(p: Builder, want: ResultSpec, g: View, sizes: Any, dim: int, index: int) -> View:
    return _replaced(p, p.number(0, want.type, want.sizes), lambda out: out.select(dim, index), g)
