"""Along features: reductions, softmax, layer norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from elman.engines.native.builder import NUMBER, Builder
from elman.engines.native.rules.activations import Sums
from elman.engines.native.rules.table import RULES, ResultSpec, Rule, cast, must, rule
from elman.engines.native.values import BOOL, INT, REAL, Unsupported, View

aten = torch.ops.aten


def lines_of(p: Builder, x: View, dims: Sequence[int]) -> tuple[View, int, int]:
    """A view without `dims`, and length and stride of the line that they make; copied if they make none."""
    dims = sorted(d % len(x.sizes) for d in dims)
    rest = [d for d in range(len(x.sizes)) if d not in dims]
    n = math.prod(x.sizes[d] for d in dims)
    moved = x.permute([*rest, *dims])
    flat = moved.reshape([*(x.sizes[d] for d in rest), n])
    if flat is None:
        flat = must(p.copy(moved).reshape([*(x.sizes[d] for d in rest), n]))
    return View(flat.buffer, flat.offset, flat.sizes[:-1], flat.strides[:-1]), n, flat.strides[-1]


def dims_of(x: View, dims: Any) -> list[int]:
    if dims is None or dims == []:
        return list(range(len(x.sizes)))
    return [dims] if isinstance(dims, int) else list(dims)


def reduced(p: Builder, want: ResultSpec, code: str, x: View, dims: Any, type: str = REAL) -> View:
    """One operation over some dimensions; the result has the sizes that are wanted, kept dimensions or not."""
    view, n, stride = lines_of(p, x, dims_of(x, dims))
    if n == 0 and code in ("amax", "amin"):
        raise Unsupported("the largest of no elements")
    out = p.new(type, view.sizes)
    p.lines(code, view.sizes, n, [(out, 0), (view, stride)])
    return must(out.reshape(want.sizes))


@rule(aten.sum.dim_IntList)
def _sum(p: Builder, want: ResultSpec, x: View, dims: Any, keepdim: bool = False, dtype: Any = None) -> View:
    counts = x.type == BOOL and math.prod(x.sizes) < 1 << 24  # float32 has all of these numbers
    if want.type != REAL and not counts:
        raise Unsupported("sums of whole numbers")
    total = reduced(p, want, "sum", cast(p, x, REAL), dims)  # type: ignore[arg-type]
    return cast(p, total, want.type)  # type: ignore[return-value]


@rule(aten.mean.dim)
def _mean(p: Builder, want: ResultSpec, x: View, dims: Any, keepdim: bool = False, dtype: Any = None) -> View:
    n = math.prod(x.sizes[d] for d in dims_of(x, dims))
    return p.map("div", REAL, want.sizes, reduced(p, want, "sum", x, dims), float(n))


@rule(aten.prod.dim_int)
def _prod(p: Builder, want: ResultSpec, x: View, dim: int, keepdim: bool = False, dtype: Any = None) -> View:
    return reduced(p, want, "prod", x, dim)


@rule(aten.amax.default)
def _amax(p: Builder, want: ResultSpec, x: View, dims: Any = (), keepdim: bool = False) -> View:
    return reduced(p, want, "amax", x, list(dims))


@rule(aten.amin.default)
def _amin(p: Builder, want: ResultSpec, x: View, dims: Any = (), keepdim: bool = False) -> View:
    return reduced(p, want, "amin", x, list(dims))


@rule(aten.any.dim)
def _any(p: Builder, want: ResultSpec, x: View, dim: int, keepdim: bool = False) -> View:
    return reduced(p, want, "any", cast(p, x, BOOL), dim, BOOL)  # type: ignore[arg-type]


@rule(aten.all.dim)
def _all(p: Builder, want: ResultSpec, x: View, dim: int, keepdim: bool = False) -> View:
    return reduced(p, want, "all", cast(p, x, BOOL), dim, BOOL)  # type: ignore[arg-type]


def _extremes(code: str, values: bool) -> Rule:
    def lower(p: Builder, want: ResultSpec, x: View, dim: Any, keepdim: bool = False) -> Any:
        if x.type != REAL or dim is None:
            raise Unsupported("the largest of whole numbers, or over all dimensions")
        view, n, stride = lines_of(p, x, [dim])
        value = p.new(REAL, view.sizes) if values else None
        index = p.new(INT, view.sizes)
        p.lines(
            code,
            view.sizes,
            n,
            [None if value is None else (value, 0), (index, 0), (view, stride)],
            results=2,
        )
        results = tuple(must(v.reshape(want.sizes)) for v in (value, index) if v is not None)
        return results if values else results[0]

    return lower


RULES[aten.max.dim], RULES[aten.min.dim] = _extremes("argmax", True), _extremes("argmin", True)
RULES[aten.argmax.default], RULES[aten.argmin.default] = (
    _extremes("argmax", False),
    _extremes("argmin", False),
)


def variance(
    p: Builder, want: ResultSpec, x: View, dims: Any, correction: NUMBER | None
) -> tuple[View, View]:
    """(variance, mean), both in the sizes that are wanted."""
    dims = [d % len(x.sizes) for d in dims_of(x, dims)]
    kept = tuple(1 if d in dims else size for d, size in enumerate(x.sizes))
    n = math.prod(x.sizes[d] for d in dims)
    mean = _mean(p, ResultSpec(kept, REAL, ()), x, dims)
    squares = p.map("square", REAL, x.sizes, p.map("sub", REAL, x.sizes, x, mean))
    total = reduced(p, ResultSpec(kept, REAL, ()), "sum", squares, dims)
    divisor = n - (1 if correction is None else correction)
    variances = p.map("div", REAL, kept, total, float(max(divisor, 0)))
    return must(variances.reshape(want.sizes)), must(mean.reshape(want.sizes))


@rule(aten.var_mean.correction)
def _var_mean(
    p: Builder, want: ResultSpec, x: View, dims: Any = None, *, correction: Any = None, keepdim: bool = False
) -> Any:
    return variance(p, want, x, dims, correction)


@rule(aten.var.correction)
def _var(
    p: Builder, want: ResultSpec, x: View, dims: Any = None, *, correction: Any = None, keepdim: bool = False
) -> View:
    return variance(p, want, x, dims, correction)[0]


@rule(aten.std.correction)
def _std(
    p: Builder, want: ResultSpec, x: View, dims: Any = None, *, correction: Any = None, keepdim: bool = False
) -> View:
    return p.map("sqrt", REAL, want.sizes, variance(p, want, x, dims, correction)[0])


@rule(aten.linalg_vector_norm.default)
def _norm(
    p: Builder,
    want: ResultSpec,
    x: View,
    order: NUMBER = 2,
    dims: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> View:
    size = p.map("abs", REAL, x.sizes, x)
    if order == 2:
        return p.map(
            "sqrt", REAL, want.sizes, reduced(p, want, "sum", p.map("square", REAL, x.sizes, x), dims)
        )
    if order == 1:
        return reduced(p, want, "sum", size, dims)
    if order == math.inf:
        return reduced(p, want, "amax", size, dims)
    raise Unsupported(f"a norm of order {order}")


@rule(aten.logsumexp.default)
def _logsumexp(p: Builder, want: ResultSpec, x: View, dims: Any, keepdim: bool = False) -> View:
    dims = [d % len(x.sizes) for d in dims_of(x, dims)]
    kept = ResultSpec(tuple(1 if d in dims else size for d, size in enumerate(x.sizes)), REAL, ())
    f = Sums(p, kept.sizes)
    top = reduced(p, kept, "amax", x, dims)
    # of infinities alone, as torch has it
    finite = f.where(f("eq", f("abs", top), math.inf), 0.0, top)
    e = p.map("exp", REAL, x.sizes, p.map("sub", REAL, x.sizes, x, finite))
    return must(f("add", f("log", reduced(p, kept, "sum", e, dims)), finite).reshape(want.sizes))


@rule(aten.cumsum.default)
def _cumsum(p: Builder, want: ResultSpec, x: View, dim: int, dtype: Any = None) -> View:
    if want.type != REAL:
        raise Unsupported("sums of whole numbers")
    out = p.new(REAL, want.sizes)
    (a, n, so), (b, _, s) = lines_of(p, out, [dim]), lines_of(p, x, [dim])
    p.lines("cumsum", a.sizes, n, [(a, so), (b, s)])
    return out


def _along(code: str) -> Rule:
    """Softmax and its like: result and arguments are lines along one dimension."""

    def lower(p: Builder, want: ResultSpec, *args: Any) -> View:
        views = [a for a in args if isinstance(a, View)]
        dim = next(a for a in args if isinstance(a, int) and not isinstance(a, bool))
        out = p.new(REAL, want.sizes)
        lines = [lines_of(p, view, [dim]) for view in (out, *views)]
        p.lines(code, lines[0][0].sizes, lines[0][1], [(view, stride) for view, _, stride in lines])
        return out

    return lower


RULES[aten._softmax.default], RULES[aten._log_softmax.default] = _along("softmax"), _along("log_softmax")
RULES[aten._softmax_backward_data.default] = _along("softmax_backward")
RULES[aten._log_softmax_backward_data.default] = _along("log_softmax_backward")


def _line(p: Builder, x: View, dims: int) -> tuple[View, int]:
    """The last `dims` dimensions as lines whose elements lie side by side."""
    view, n, stride = lines_of(p, x, range(len(x.sizes) - dims, len(x.sizes)))
    if stride != 1 and n > 1:
        view, n, stride = lines_of(p, p.copy(x), range(len(x.sizes) - dims, len(x.sizes)))
    return view, n


def _flat(p: Builder, x: View | None, outer: Sequence[int]) -> tuple[View, int] | None:
    """A scale or shift, the same for every line."""
    if x is None:
        return None
    x = p.in_order(x)
    return View(x.buffer, x.offset, (1,) * len(outer), (0,) * len(outer)), 1


@rule(aten.native_layer_norm.default)
def _layer_norm(
    p: Builder, want: ResultSpec, x: View, shape: Sequence[int], scale: Any, shift: Any, epsilon: float
) -> Any:
    view, n = _line(p, x, len(shape))
    out, mean, inverse = (p.new(REAL, sizes) for sizes in want.all)
    lines, _ = _line(p, out, len(shape))
    flat = [View(v.buffer, 0, view.sizes, must(v.reshape(view.sizes)).strides) for v in (mean, inverse)]
    p.lines(
        "layer_norm", view.sizes, n,
        [(lines, 1), (flat[0], 0), (flat[1], 0), (view, 1), _flat(p, scale, view.sizes), _flat(p, shift, view.sizes)],
        results=3, number=epsilon,
    )  # fmt: skip
    return out, mean, inverse


@rule(aten.native_layer_norm_backward.default)
def _layer_norm_backward(
    p: Builder, want: ResultSpec, g: View, x: View, shape: Sequence[int], mean: View, inverse: View, scale: Any,
    shift: Any, mask: Sequence[bool],
) -> Any:  # fmt: skip
    if list(mask) != [True, False, False]:
        raise Unsupported("sums over rows inside the loop (the gradient of a layer norm's parameters)")
    out = p.new(REAL, x.sizes)
    (lines, n), (gradient, _), (view, _) = (_line(p, v, len(shape)) for v in (out, g, x))
    flat = [must(v.reshape(view.sizes)) for v in (mean, inverse)]
    p.lines(
        "layer_norm_backward", view.sizes, n,
        [(lines, 1), (gradient, 1), (view, 1), (flat[0], 0), (flat[1], 0), _flat(p, scale, view.sizes)],
    )  # fmt: skip
    return out, None, None
