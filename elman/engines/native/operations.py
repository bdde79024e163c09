"""What every ATen operation becomes: one table, `RULES`. An operation without an entry is a reason not to run a loop.

A rule is called with the program's writer, what it is to make (`Want`: sizes in a row, type), and the operation's
arguments, tensors as views; it returns a view (or a tuple of them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elman.engines.native.values import BOOL, INT, REAL, Unsupported, View, type_of
from elman.engines.native.writer import NUMBER, Writer

aten = torch.ops.aten
Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


@dataclass(frozen=True)
class Want:
    """What the traced node gives: sizes in a row and type (of its first result), and all of its results' sizes."""

    sizes: tuple[int, ...]
    type: str
    all: tuple[tuple[int, ...], ...]


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def enter(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return enter


# --- types ----------------------------------------------------------------------------------------------------------


def cast(w: Writer, x: View | NUMBER, type: str) -> View | NUMBER:
    """The same numbers in another type."""
    if not isinstance(x, View):
        return x
    return x if x.type == type else w.map(f"{x.type}_to_{type}", type, x.sizes, x)


def view_of(w: Writer, x: View | NUMBER, type: str, sizes: Sequence[int]) -> View:
    return cast(w, x, type) if isinstance(x, View) else w.number(x, type, sizes)  # type: ignore[return-value]


def _common(w: Writer, *values: View | NUMBER) -> tuple[str, list[View | NUMBER]]:
    """The type that numbers of several types meet in, and all of them in it."""
    types = {v.type if isinstance(v, View) else REAL if isinstance(v, float) else INT for v in values}
    if BOOL in types and types == {BOOL}:
        return BOOL, list(values)
    to = REAL if REAL in types else INT
    return to, [cast(w, v, to) for v in values]


# --- element by element ---------------------------------------------------------------------------------------------

UNARY = {
    "neg": aten.neg, "abs": aten.abs, "sign": aten.sign, "exp": aten.exp, "expm1": aten.expm1, "log": aten.log,
    "log1p": aten.log1p, "tanh": aten.tanh, "sigmoid": aten.sigmoid, "sqrt": aten.sqrt, "rsqrt": aten.rsqrt,
    "reciprocal": aten.reciprocal, "relu": aten.relu, "round": aten.round, "floor": aten.floor, "ceil": aten.ceil,
    "trunc": aten.trunc, "erf": aten.erf, "sin": aten.sin, "cos": aten.cos, "atan": aten.atan, "square": aten.square,
}  # fmt: skip
BINARY = {
    "add": aten.add, "sub": aten.sub, "mul": aten.mul, "div": aten.div, "maximum": aten.maximum,
    "minimum": aten.minimum, "remainder": aten.remainder, "atan2": aten.atan2,
}  # fmt: skip
COMPARE = ("lt", "le", "gt", "ge", "eq", "ne")


def _unary(code: str) -> Rule:
    def lower(w: Writer, want: Want, x: View) -> View:
        if x.type != REAL and code == "neg":
            return w.map("int_sub", INT, want.sizes, w.number(0, INT, want.sizes), x)
        return w.map(code, REAL, want.sizes, cast(w, x, REAL))

    return lower


def _arithmetic(code: str, a: Any, b: Any, w: Writer, want: Want) -> View:
    if want.type == REAL:
        return w.map(code, REAL, want.sizes, cast(w, a, REAL), cast(w, b, REAL))
    if want.type == INT and code in ("add", "sub", "mul", "remainder", "maximum", "minimum"):
        return w.map(f"int_{code}", INT, want.sizes, *[view_of(w, v, INT, want.sizes) for v in (a, b)])
    if want.type == BOOL and code in ("add", "mul", "maximum", "minimum"):
        return w.map(
            "bool_or" if code in ("add", "maximum") else "bool_and", BOOL, want.sizes,
            *[view_of(w, v, BOOL, want.sizes) for v in (a, b)],
        )  # fmt: skip
    raise Unsupported(f"{code} of {want.type} values")


def _binary(code: str) -> Rule:
    def lower(
        w: Writer, want: Want, a: Any, b: Any, alpha: NUMBER = 1, rounding_mode: str | None = None
    ) -> View:
        if alpha != 1:
            b = b * alpha if isinstance(b, NUMBER) else _arithmetic("mul", b, alpha, w, want)
        if rounding_mode is not None:
            if want.type != REAL:
                if rounding_mode == "floor":
                    return w.map(
                        "int_floordiv", INT, want.sizes, *[view_of(w, v, INT, want.sizes) for v in (a, b)]
                    )
                raise Unsupported("division of whole numbers towards zero")
            made = _arithmetic(code, a, b, w, want)
            return w.map(rounding_mode, REAL, want.sizes, made)
        return _arithmetic(code, a, b, w, want)

    return lower


def _compare(code: str) -> Rule:
    def lower(w: Writer, want: Want, a: Any, b: Any) -> View:
        type, (a, b) = _common(w, a, b)
        if type == BOOL:
            if code not in ("eq", "ne"):
                raise Unsupported(f"{code} of bool values")
            made = w.map("bool_xor", BOOL, want.sizes, a, b)
            return made if code == "ne" else w.map("bool_not", BOOL, want.sizes, made)
        if type == INT:
            return w.map(f"int_{code}", BOOL, want.sizes, *[view_of(w, v, INT, want.sizes) for v in (a, b)])
        return w.map(code, BOOL, want.sizes, a, b)

    return lower


for _name, _packet in UNARY.items():
    RULES[_packet.default] = _unary(_name)
RULES[aten.sgn.default] = _unary("sign")
for _name, _packet in BINARY.items():
    for _overload in ("default", "Tensor", "Scalar", "Tensor_mode", "Scalar_mode"):
        if hasattr(_packet, _overload):
            RULES[getattr(_packet, _overload)] = _binary(_name)
for _name in COMPARE:
    RULES[getattr(aten, _name).Tensor] = RULES[getattr(aten, _name).Scalar] = _compare(_name)


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(w: Writer, want: Want, a: Any, b: Any, alpha: NUMBER = 1) -> View:
    if alpha != 1:
        a = _arithmetic("mul", a, alpha, w, want)
    return _arithmetic("sub", b, a, w, want)


@rule(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar)
def _pow(w: Writer, want: Want, base: Any, exponent: Any) -> View:
    if want.type != REAL:
        raise Unsupported("powers of whole numbers")
    base, exponent = cast(w, base, REAL), cast(w, exponent, REAL)
    short = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
    if isinstance(exponent, NUMBER) and exponent in short:
        return w.map(short[exponent], REAL, want.sizes, base)
    if isinstance(exponent, NUMBER) and exponent == 3:
        return w.map("mul", REAL, want.sizes, w.map("square", REAL, want.sizes, base), base)
    return w.map("pow", REAL, want.sizes, base, exponent)


@rule(aten.tanh_backward.default)
def _tanh_backward(w: Writer, want: Want, g: View, y: View) -> View:
    return w.map("tanh_backward", REAL, want.sizes, g, y)


@rule(aten.sigmoid_backward.default)
def _sigmoid_backward(w: Writer, want: Want, g: View, y: View) -> View:
    return w.map("sigmoid_backward", REAL, want.sizes, g, y)


@rule(aten.threshold_backward.default)
def _threshold_backward(w: Writer, want: Want, g: View, x: View, threshold: NUMBER) -> View:
    return w.map("threshold_backward", REAL, want.sizes, g, x, threshold)


@rule(aten.clamp.default, aten.hardtanh.default, aten.clamp.Tensor)
def _clamp(w: Writer, want: Want, x: View, low: Any = None, high: Any = None) -> View:
    if want.type != REAL:
        raise Unsupported("clamp of whole numbers")
    if low is not None and high is not None:
        return w.map("clamp", REAL, want.sizes, x, low, high)
    if low is not None:
        return w.map("maximum", REAL, want.sizes, x, low)
    assert high is not None
    return w.map("minimum", REAL, want.sizes, x, high)


RULES[aten.clamp_min.default] = lambda w, want, x, low: _clamp(w, want, x, low)
RULES[aten.clamp_max.default] = lambda w, want, x, high: _clamp(w, want, x, None, high)


@rule(aten.lerp.Tensor, aten.lerp.Scalar)
def _lerp(w: Writer, want: Want, a: View, b: View, weight: Any) -> View:
    return w.map("lerp", REAL, want.sizes, a, b, weight)


@rule(aten.addcmul.default)
def _addcmul(w: Writer, want: Want, x: View, a: View, b: View, value: NUMBER = 1) -> View:
    if value != 1:
        a = w.map("mul", REAL, a.sizes, a, value)
    return w.map("fma", REAL, want.sizes, a, b, x)


@rule(aten.addcdiv.default)
def _addcdiv(w: Writer, want: Want, x: View, a: View, b: View, value: NUMBER = 1) -> View:
    if value != 1:
        a = w.map("mul", REAL, a.sizes, a, value)
    return w.map("add", REAL, want.sizes, x, w.map("div", REAL, want.sizes, a, b))


@rule(aten.where.self)
def _where(w: Writer, want: Want, condition: View, a: Any, b: Any) -> View:
    a, b = (view_of(w, v, want.type, want.sizes) for v in (a, b))
    return w.map(f"where{w.bytes_of(want.type)}", want.type, want.sizes, cast(w, condition, BOOL), a, b)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(w: Writer, want: Want, x: View, mask: View, value: Any) -> View:
    return _where(w, want, mask, value, x)


@rule(aten.bitwise_not.default, aten.logical_not.default)
def _not(w: Writer, want: Want, a: View) -> View:
    if want.type != BOOL:
        raise Unsupported("the bits of whole numbers")
    return w.map("bool_not", BOOL, want.sizes, cast(w, a, BOOL))


def _logic(code: str) -> Rule:
    def lower(w: Writer, want: Want, a: Any, b: Any) -> View:
        if want.type != BOOL:
            raise Unsupported("the bits of whole numbers")
        return w.map(f"bool_{code}", BOOL, want.sizes, *[view_of(w, v, BOOL, want.sizes) for v in (a, b)])

    return lower


for _name in ("and", "or", "xor"):
    _bits = getattr(aten, f"bitwise_{_name}")
    RULES[getattr(aten, f"logical_{_name}").default] = RULES[_bits.Tensor] = RULES[_bits.Scalar] = _logic(
        _name
    )


@rule(aten.isnan.default)
def _isnan(w: Writer, want: Want, x: View) -> View:
    return w.map("ne", BOOL, want.sizes, x, x)


@rule(aten._to_copy.default)
def _to_copy(w: Writer, want: Want, x: View, dtype: torch.dtype | None = None, **_: Any) -> View:
    return cast(w, x, want.type if dtype is None else type_of(torch.empty(0, dtype=dtype)))  # type: ignore[return-value]


@rule(aten.native_dropout_backward.default)
def _dropout_backward(w: Writer, want: Want, g: View, mask: View, scale: NUMBER) -> View:
    return w.map("mul", REAL, want.sizes, w.map("mul", REAL, want.sizes, g, cast(w, mask, REAL)), scale)


# --- activations, out of simpler ones -------------------------------------------------------------------------------


class _Sums:
    """Arithmetic on views of one size, written as it is read."""

    def __init__(self, w: Writer, sizes: tuple[int, ...]):
        self.w, self.sizes = w, sizes

    def __call__(self, code: str, *arguments: Any) -> View:
        return self.w.map(code, BOOL if code in COMPARE else REAL, self.sizes, *arguments)

    def where(self, condition: View, a: Any, b: Any) -> View:
        return _where(self.w, Want(self.sizes, REAL, ()), condition, a, b)


def activation(target: Any) -> Callable[[Callable[..., View]], Callable[..., View]]:
    """Enter a rule that is written in terms of `_Sums`."""

    def enter(function: Callable[..., View]) -> Callable[..., View]:
        RULES[target] = lambda w, want, *args, **kwargs: function(_Sums(w, want.sizes), *args, **kwargs)
        return function

    return enter


@activation(aten.silu.default)
def _silu(f: _Sums, x: View) -> View:
    return f("mul", x, f("sigmoid", x))


@activation(aten.silu_backward.default)
def _silu_backward(f: _Sums, g: View, x: View) -> View:
    s = f("sigmoid", x)
    return f("mul", f("mul", g, s), f("fma", x, f("sub", 1.0, s), 1.0))


@activation(aten.hardsigmoid.default)
def _hardsigmoid(f: _Sums, x: View) -> View:
    return f("div", f("clamp", f("add", x, 3.0), 0.0, 6.0), 6.0)


_SIXTH = 0.1666666716337204  # 1/6 in float32, which PyTorch takes in float64 as well


@activation(aten.hardsigmoid_backward.default)
def _hardsigmoid_backward(f: _Sums, g: View, x: View) -> View:
    inside = f.w.map("bool_and", BOOL, f.sizes, f("gt", x, -3.0), f("lt", x, 3.0))
    return f.where(inside, f("mul", g, _SIXTH), 0.0)


@activation(aten.hardswish.default)
def _hardswish(f: _Sums, x: View) -> View:
    return f("div", f("mul", x, f("clamp", f("add", x, 3.0), 0.0, 6.0)), 6.0)


@activation(aten.hardswish_backward.default)
def _hardswish_backward(f: _Sums, g: View, x: View) -> View:
    middle = f("mul", g, f("add", f("div", x, 3.0), 0.5))
    return f.where(f("le", x, -3.0), 0.0, f.where(f("lt", x, 3.0), middle, g))


@activation(aten.hardtanh_backward.default)
def _hardtanh_backward(f: _Sums, g: View, x: View, low: NUMBER, high: NUMBER) -> View:
    return f.where(f.w.map("bool_or", BOOL, f.sizes, f("le", x, low), f("ge", x, high)), 0.0, g)


@activation(aten.leaky_relu.default)
def _leaky_relu(f: _Sums, x: View, slope: NUMBER = 0.01) -> View:
    return f.where(f("gt", x, 0.0), x, f("mul", x, slope))


@activation(aten.leaky_relu_backward.default)
def _leaky_relu_backward(f: _Sums, g: View, x: View, slope: NUMBER, is_result: bool) -> View:
    return f.where(f("gt", x, 0.0), g, f("mul", g, slope))


@activation(aten.elu.default)
def _elu(f: _Sums, x: View, alpha: NUMBER = 1, scale: NUMBER = 1, input_scale: NUMBER = 1) -> View:
    negative = f("mul", f("expm1", f("mul", x, input_scale) if input_scale != 1 else x), alpha * scale)
    return f.where(f("le", x, 0.0), negative, f("mul", x, scale) if scale != 1 else x)


@activation(aten.elu_backward.default)
def _elu_backward(
    f: _Sums, g: View, alpha: NUMBER, scale: NUMBER, input_scale: NUMBER, is_result: bool, x: View
) -> View:
    if is_result:
        slope = f("mul", f("add", x, alpha * scale), input_scale)
    else:
        slope = f("mul", f("exp", f("mul", x, input_scale)), input_scale * alpha * scale)
    return f("mul", g, f.where(f("le", x, 0.0), slope, scale))


@activation(aten.softplus.default)
def _softplus(f: _Sums, x: View, beta: NUMBER = 1, threshold: NUMBER = 20) -> View:
    z = f("mul", x, beta) if beta != 1 else x
    return f.where(f("gt", z, threshold), x, f("div", f("log1p", f("exp", z)), beta))


@activation(aten.softplus_backward.default)
def _softplus_backward(f: _Sums, g: View, x: View, beta: NUMBER, threshold: NUMBER) -> View:
    z = f("mul", x, beta) if beta != 1 else x
    return f.where(f("gt", z, threshold), g, f("mul", g, f("sigmoid", z)))


@rule(aten.log_sigmoid_forward.default)
def _log_sigmoid(w: Writer, want: Want, x: View) -> tuple[View, View]:
    f = _Sums(w, want.sizes)
    z = f("exp", f("neg", f("abs", x)))
    return f("sub", f("minimum", x, 0.0), f("log1p", z)), z


@activation(aten.log_sigmoid_backward.default)
def _log_sigmoid_backward(f: _Sums, g: View, x: View, buffer: View) -> View:
    # σ(-x), out of the exp(-|x|) that the forward pass kept
    return f("mul", g, f("div", f.where(f("lt", x, 0.0), 1.0, buffer), f("add", buffer, 1.0)))


@activation(aten.gelu.default)
def _gelu(f: _Sums, x: View, approximate: str = "none") -> View:
    if approximate == "tanh":
        return f("mul", f("mul", x, 0.5), f("add", f("tanh", _gelu_inner(f, x)), 1.0))
    return f("mul", f("mul", x, 0.5), f("add", f("erf", f("mul", x, math.sqrt(0.5))), 1.0))


def _gelu_inner(f: _Sums, x: View) -> View:
    return f("mul", f("fma", f("mul", f("square", x), 0.044715), x, x), math.sqrt(2 / math.pi))


@activation(aten.gelu_backward.default)
def _gelu_backward(f: _Sums, g: View, x: View, approximate: str = "none") -> View:
    if approximate == "tanh":
        t = f("tanh", _gelu_inner(f, x))
        outer = f("mul", f("add", t, 1.0), 0.5)
        inner = f("mul", f("fma", f("square", x), 3 * 0.044715, 1.0), math.sqrt(2 / math.pi))
        slope = f("fma", f("mul", f("mul", x, 0.5), f("sub", 1.0, f("square", t))), inner, outer)
        return f("mul", g, slope)
    cdf = f("mul", f("add", f("erf", f("mul", x, math.sqrt(0.5))), 1.0), 0.5)
    pdf = f("mul", f("exp", f("mul", f("square", x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return f("mul", g, f("fma", x, pdf, cdf))


@activation(aten.mish.default)
def _mish(f: _Sums, x: View) -> View:
    return f("mul", x, f("tanh", _softplus(f, x)))


@activation(aten._prelu_kernel.default)
def _prelu(f: _Sums, x: View, slope: View) -> View:
    return f.where(f("gt", x, 0.0), x, f("mul", x, slope))


# --- numbers as tensors ---------------------------------------------------------------------------------------------


def _filled(value: NUMBER | None) -> Rule:
    def lower(w: Writer, want: Want, *args: Any, **_: Any) -> View:
        number = value if value is not None else next(a for a in reversed(args) if isinstance(a, NUMBER))
        return w.number(number, want.type, want.sizes)

    return lower


for _target in (aten.zeros_like, aten.new_zeros, aten.zeros, aten.empty_like, aten.new_empty):
    RULES[_target.default] = _filled(0)
RULES[aten.empty.memory_format] = _filled(0)
for _target in (aten.ones_like, aten.new_ones, aten.ones):
    RULES[_target.default] = _filled(1)
for _target in (aten.full_like, aten.new_full, aten.full, aten.scalar_tensor):
    RULES[_target.default] = _filled(None)


# --- addressing -----------------------------------------------------------------------------------------------------


@rule(aten.alias.default, aten.detach.default, aten.clone.default, aten.lift_fresh_copy.default)
def _same(w: Writer, want: Want, x: View, **_: Any) -> View:
    return x


@rule(aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.squeeze.dim, aten.squeeze.dims,
      aten.squeeze.default, aten.unflatten.int, aten.flatten.using_ints)  # fmt: skip
def _reshape(w: Writer, want: Want, x: View, *_: Any) -> View:
    made = x.reshape(want.sizes)
    if made is None:
        made = w.copy(x).reshape(want.sizes)
    assert made is not None
    return made


@rule(aten.permute.default)
def _permute(w: Writer, want: Want, x: View, order: Sequence[int]) -> View:
    return x.permute(order)


@rule(aten.t.default)
def _t(w: Writer, want: Want, x: View) -> View:
    return x.permute(range(len(x.sizes))[::-1])


@rule(aten.transpose.int)
def _transpose(w: Writer, want: Want, x: View, a: int, b: int) -> View:
    order = list(range(len(x.sizes)))
    order[a], order[b] = order[b], order[a]
    return x.permute(order)


@rule(aten.slice.Tensor)
def _slice(
    w: Writer, want: Want, x: View, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> View:
    dim %= len(x.sizes)
    if want.sizes[dim] == x.sizes[dim]:
        return x  # all of it (perhaps all rows)
    return x.slice(dim, start or 0, x.sizes[dim] if stop is None else stop, step)


@rule(aten.select.int)
def _select(w: Writer, want: Want, x: View, dim: int, index: int) -> View:
    return x.select(dim, index)


@rule(aten.unsqueeze.default)
def _unsqueeze(w: Writer, want: Want, x: View, dim: int) -> View:
    return x.unsqueeze(dim)


@rule(aten.expand.default, aten.expand_as.default)
def _expand(w: Writer, want: Want, x: View, *_: Any, **__: Any) -> View:
    return x.expand(want.sizes)


@rule(aten.flip.default)
def _flip(w: Writer, want: Want, x: View, dims: Sequence[int]) -> View:
    return x.flip([d % len(x.sizes) for d in dims])


@rule(aten.repeat.default)
def _repeat(w: Writer, want: Want, x: View, times: Sequence[int]) -> View:
    out = w.new(want.type, want.sizes)
    # [t₀ n₀, t₁ n₁] seen as [t₀, n₀, t₁, n₁], of which only the n are read
    sizes = (1,) * (len(want.sizes) - len(x.sizes)) + x.sizes
    split, source = out, View(x.buffer, x.offset, sizes, (0,) * (len(sizes) - len(x.sizes)) + x.strides)
    for d in reversed(range(len(sizes))):
        shape = (*split.sizes[:d], want.sizes[d] // sizes[d], sizes[d], *split.sizes[d + 1 :])
        split = _must(split.reshape(shape))
        source = source.unsqueeze(d)
    w.copy(source.expand(split.sizes), into=split)
    return out


@rule(aten.roll.default)
def _roll(w: Writer, want: Want, x: View, shifts: Sequence[int], dims: Sequence[int] = ()) -> View:
    if not dims:
        raise Unsupported("roll over all dimensions at once")
    for shift, dim in zip(shifts, dims, strict=True):
        dim %= len(x.sizes)
        n = x.sizes[dim]
        shift %= n
        x = cat(w, [x.slice(dim, n - shift, n), x.slice(dim, 0, n - shift)], dim)
    return x


def cat(w: Writer, parts: Sequence[View], dim: int) -> View:
    """Side by side. A part that was made for this alone is made in its place."""
    sizes = list(parts[0].sizes)
    sizes[dim] = sum(part.sizes[dim] for part in parts)
    out = w.new(parts[0].type, sizes)
    at = 0
    for part in parts:
        place = out.slice(dim, at, at + part.sizes[dim])
        at += part.sizes[dim]
        whole = part.whole and part.buffer.kind == "scratch" and part.buffer.inside is None
        if whole and place.numel and place.strides_agree(part):
            part.buffer.inside = (out.buffer, place.offset)
        elif place.numel:
            w.copy(part, into=place)
    return out


@rule(aten.cat.default)
def _cat(w: Writer, want: Want, parts: Sequence[View], dim: int = 0) -> View:
    kept = [cast(w, part, want.type) for part in parts if len(part.sizes) == len(want.sizes)]
    return cat(w, kept, dim % len(want.sizes))  # type: ignore[arg-type]


@rule(aten.stack.default)
def _stack(w: Writer, want: Want, parts: Sequence[View], dim: int = 0) -> View:
    dim %= len(want.sizes)
    return cat(w, [part.unsqueeze(dim) for part in parts], dim)


@rule(aten.constant_pad_nd.default)
def _pad(w: Writer, want: Want, x: View, pads: Sequence[int], value: NUMBER = 0) -> View:
    out = w.map(
        w.copying(want.type),
        want.type,
        want.sizes,
        w.number(value, want.type, want.sizes),
        into=w.new(want.type, want.sizes),
    )
    target = out
    for i in range(len(pads) // 2):
        dim = len(x.sizes) - 1 - i
        left, right = pads[2 * i], pads[2 * i + 1]
        x = x.slice(dim, max(-left, 0), x.sizes[dim] - max(-right, 0))
        target = target.slice(dim, max(left, 0), target.sizes[dim] - max(right, 0))
    w.copy(x, into=target)
    return out


def _replaced(w: Writer, x: View, place: Callable[[View], View], source: View) -> View:
    out = w.copy(x, into=w.new(x.type, x.sizes))
    w.copy(source.expand(place(out).sizes), into=place(out))
    return out


@rule(aten.slice_scatter.default)
def _slice_scatter(
    w: Writer,
    want: Want,
    x: View,
    source: View,
    dim: int = 0,
    start: Any = None,
    stop: Any = None,
    step: int = 1,
) -> View:
    stop = x.sizes[dim] if stop is None else stop
    return _replaced(w, x, lambda out: out.slice(dim % len(out.sizes), start or 0, stop, step), source)


@rule(aten.select_scatter.default)
def _select_scatter(w: Writer, want: Want, x: View, source: View, dim: int, index: int) -> View:
    return _replaced(w, x, lambda out: out.select(dim, index), source)


@rule(aten.slice_backward.default)
def _slice_backward(
    w: Writer, want: Want, g: View, sizes: Any, dim: int, start: int, stop: int, step: int
) -> View:
    zero = w.number(0, want.type, want.sizes)
    return _replaced(w, zero, lambda out: out.slice(dim % len(out.sizes), start, stop, step), g)


@rule(aten.select_backward.default)
def _select_backward(w: Writer, want: Want, g: View, sizes: Any, dim: int, index: int) -> View:
    return _replaced(w, w.number(0, want.type, want.sizes), lambda out: out.select(dim, index), g)


def _must(view: View | None) -> View:
    assert view is not None
    return view


# --- along features -------------------------------------------------------------------------------------------------


def _last(w: Writer, x: View, dims: Sequence[int]) -> tuple[View, int, int]:
    """A view without `dims`, and length and stride of the line that they make; copied if they make none."""
    dims = sorted(d % len(x.sizes) for d in dims)
    rest = [d for d in range(len(x.sizes)) if d not in dims]
    n = math.prod(x.sizes[d] for d in dims)
    moved = x.permute([*rest, *dims])
    flat = moved.reshape([*(x.sizes[d] for d in rest), n])
    if flat is None:
        flat = _must(w.copy(moved).reshape([*(x.sizes[d] for d in rest), n]))
    return View(flat.buffer, flat.offset, flat.sizes[:-1], flat.strides[:-1]), n, flat.strides[-1]


def _dims(x: View, dims: Any) -> list[int]:
    if dims is None or dims == []:
        return list(range(len(x.sizes)))
    return [dims] if isinstance(dims, int) else list(dims)


def reduced(w: Writer, want: Want, code: str, x: View, dims: Any, type: str = REAL) -> View:
    """One operation over some dimensions; the result has the sizes that are wanted, kept dimensions or not."""
    view, n, stride = _last(w, x, _dims(x, dims))
    if n == 0 and code in ("amax", "amin"):
        raise Unsupported("the largest of no elements")
    out = w.new(type, view.sizes)
    w.lines(code, view.sizes, n, [(out, 0), (view, stride)])
    return _must(out.reshape(want.sizes))


@rule(aten.sum.dim_IntList)
def _sum(w: Writer, want: Want, x: View, dims: Any, keepdim: bool = False, dtype: Any = None) -> View:
    if want.type != REAL:
        raise Unsupported("sums of whole numbers")
    return reduced(w, want, "sum", cast(w, x, REAL), dims)  # type: ignore[arg-type]


@rule(aten.mean.dim)
def _mean(w: Writer, want: Want, x: View, dims: Any, keepdim: bool = False, dtype: Any = None) -> View:
    n = math.prod(x.sizes[d] for d in _dims(x, dims))
    return w.map("div", REAL, want.sizes, reduced(w, want, "sum", x, dims), float(n))


@rule(aten.prod.dim_int)
def _prod(w: Writer, want: Want, x: View, dim: int, keepdim: bool = False, dtype: Any = None) -> View:
    return reduced(w, want, "prod", x, dim)


@rule(aten.amax.default)
def _amax(w: Writer, want: Want, x: View, dims: Any = (), keepdim: bool = False) -> View:
    return reduced(w, want, "amax", x, list(dims))


@rule(aten.amin.default)
def _amin(w: Writer, want: Want, x: View, dims: Any = (), keepdim: bool = False) -> View:
    return reduced(w, want, "amin", x, list(dims))


@rule(aten.any.dim)
def _any(w: Writer, want: Want, x: View, dim: int, keepdim: bool = False) -> View:
    return reduced(w, want, "any", cast(w, x, BOOL), dim, BOOL)  # type: ignore[arg-type]


@rule(aten.all.dim)
def _all(w: Writer, want: Want, x: View, dim: int, keepdim: bool = False) -> View:
    return reduced(w, want, "all", cast(w, x, BOOL), dim, BOOL)  # type: ignore[arg-type]


def _extremes(code: str, values: bool) -> Rule:
    def lower(w: Writer, want: Want, x: View, dim: Any, keepdim: bool = False) -> Any:
        if x.type != REAL or dim is None:
            raise Unsupported("the largest of whole numbers, or over all dimensions")
        view, n, stride = _last(w, x, [dim])
        value = w.new(REAL, view.sizes) if values else None
        index = w.new(INT, view.sizes)
        w.lines(
            code,
            view.sizes,
            n,
            [None if value is None else (value, 0), (index, 0), (view, stride)],
            results=2,
        )
        made = tuple(_must(v.reshape(want.sizes)) for v in (value, index) if v is not None)
        return made if values else made[0]

    return lower


RULES[aten.max.dim], RULES[aten.min.dim] = _extremes("argmax", True), _extremes("argmin", True)
RULES[aten.argmax.default], RULES[aten.argmin.default] = (
    _extremes("argmax", False),
    _extremes("argmin", False),
)


def variance(w: Writer, want: Want, x: View, dims: Any, correction: NUMBER | None) -> tuple[View, View]:
    """(variance, mean), both in the sizes that are wanted."""
    dims = [d % len(x.sizes) for d in _dims(x, dims)]
    kept = tuple(1 if d in dims else size for d, size in enumerate(x.sizes))
    n = math.prod(x.sizes[d] for d in dims)
    mean = _mean(w, Want(kept, REAL, ()), x, dims)
    squares = w.map("square", REAL, x.sizes, w.map("sub", REAL, x.sizes, x, mean))
    total = reduced(w, Want(kept, REAL, ()), "sum", squares, dims)
    divisor = n - (1 if correction is None else correction)
    made = w.map("div", REAL, kept, total, float(max(divisor, 0)))
    return _must(made.reshape(want.sizes)), _must(mean.reshape(want.sizes))


@rule(aten.var_mean.correction)
def _var_mean(
    w: Writer, want: Want, x: View, dims: Any = None, *, correction: Any = None, keepdim: bool = False
) -> Any:
    return variance(w, want, x, dims, correction)


@rule(aten.var.correction)
def _var(
    w: Writer, want: Want, x: View, dims: Any = None, *, correction: Any = None, keepdim: bool = False
) -> View:
    return variance(w, want, x, dims, correction)[0]


@rule(aten.std.correction)
def _std(
    w: Writer, want: Want, x: View, dims: Any = None, *, correction: Any = None, keepdim: bool = False
) -> View:
    return w.map("sqrt", REAL, want.sizes, variance(w, want, x, dims, correction)[0])


@rule(aten.linalg_vector_norm.default)
def _norm(
    w: Writer,
    want: Want,
    x: View,
    order: NUMBER = 2,
    dims: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> View:
    size = w.map("abs", REAL, x.sizes, x)
    if order == 2:
        return w.map(
            "sqrt", REAL, want.sizes, reduced(w, want, "sum", w.map("square", REAL, x.sizes, x), dims)
        )
    if order == 1:
        return reduced(w, want, "sum", size, dims)
    if order == math.inf:
        return reduced(w, want, "amax", size, dims)
    raise Unsupported(f"a norm of order {order}")


@rule(aten.logsumexp.default)
def _logsumexp(w: Writer, want: Want, x: View, dims: Any, keepdim: bool = False) -> View:
    dims = [d % len(x.sizes) for d in _dims(x, dims)]
    kept = Want(tuple(1 if d in dims else size for d, size in enumerate(x.sizes)), REAL, ())
    f = _Sums(w, kept.sizes)
    top = reduced(w, kept, "amax", x, dims)
    # of infinities alone, as torch has it
    finite = f.where(f("eq", f("abs", top), math.inf), 0.0, top)
    e = w.map("exp", REAL, x.sizes, w.map("sub", REAL, x.sizes, x, finite))
    made = f("add", f("log", reduced(w, kept, "sum", e, dims)), finite)
    return _must(made.reshape(want.sizes))


@rule(aten.cumsum.default)
def _cumsum(w: Writer, want: Want, x: View, dim: int, dtype: Any = None) -> View:
    if want.type != REAL:
        raise Unsupported("sums of whole numbers")
    out = w.new(REAL, want.sizes)
    (a, n, so), (b, _, s) = _last(w, out, [dim]), _last(w, x, [dim])
    w.lines("cumsum", a.sizes, n, [(a, so), (b, s)])
    return out


def _along(code: str) -> Rule:
    """Softmax and its like: result and arguments are lines along one dimension."""

    def lower(w: Writer, want: Want, *args: Any) -> View:
        views = [a for a in args if isinstance(a, View)]
        dim = next(a for a in args if isinstance(a, int) and not isinstance(a, bool))
        out = w.new(REAL, want.sizes)
        lines = [_last(w, view, [dim]) for view in (out, *views)]
        w.lines(code, lines[0][0].sizes, lines[0][1], [(view, stride) for view, _, stride in lines])
        return out

    return lower


RULES[aten._softmax.default], RULES[aten._log_softmax.default] = _along("softmax"), _along("log_softmax")
RULES[aten._softmax_backward_data.default] = _along("softmax_backward")
RULES[aten._log_softmax_backward_data.default] = _along("log_softmax_backward")


def _line(w: Writer, x: View, dims: int) -> tuple[View, int]:
    """The last `dims` dimensions as lines whose elements lie side by side."""
    view, n, stride = _last(w, x, range(len(x.sizes) - dims, len(x.sizes)))
    if stride != 1 and n > 1:
        view, n, stride = _last(w, w.copy(x), range(len(x.sizes) - dims, len(x.sizes)))
    return view, n


def _flat(w: Writer, x: View | None, outer: Sequence[int]) -> tuple[View, int] | None:
    """A scale or shift, the same for every line."""
    if x is None:
        return None
    if not x.contiguous:
        x = w._in_order(x) if x.buffer.fixed else w.copy(x)
    return View(x.buffer, x.offset, (1,) * len(outer), (0,) * len(outer)), 1


@rule(aten.native_layer_norm.default)
def _layer_norm(
    w: Writer, want: Want, x: View, shape: Sequence[int], scale: Any, shift: Any, epsilon: float
) -> Any:
    view, n = _line(w, x, len(shape))
    out, mean, inverse = (w.new(REAL, sizes) for sizes in want.all)
    lines, _ = _line(w, out, len(shape))
    flat = [View(v.buffer, 0, view.sizes, _must(v.reshape(view.sizes)).strides) for v in (mean, inverse)]
    w.lines(
        "layer_norm", view.sizes, n,
        [(lines, 1), (flat[0], 0), (flat[1], 0), (view, 1), _flat(w, scale, view.sizes), _flat(w, shift, view.sizes)],
        results=3, number=epsilon,
    )  # fmt: skip
    return out, mean, inverse


@rule(aten.native_layer_norm_backward.default)
def _layer_norm_backward(
    w: Writer, want: Want, g: View, x: View, shape: Sequence[int], mean: View, inverse: View, scale: Any, shift: Any,
    mask: Sequence[bool],
) -> Any:  # fmt: skip
    if list(mask) != [True, False, False]:
        raise Unsupported("sums over rows inside the loop (the gradient of a layer norm's parameters)")
    out = w.new(REAL, x.sizes)
    (lines, n), (gradient, _), (view, _) = (_line(w, v, len(shape)) for v in (out, g, x))
    flat = [_must(v.reshape(view.sizes)) for v in (mean, inverse)]
    w.lines(
        "layer_norm_backward", view.sizes, n,
        [(lines, 1), (gradient, 1), (view, 1), (flat[0], 0), (flat[1], 0), _flat(w, scale, view.sizes)],
    )  # fmt: skip
    return out, None, None


# --- products -------------------------------------------------------------------------------------------------------


def product(w: Writer, start: View | None, left: View, right: View, sizes: tuple[int, ...]) -> View:
    """start + left · right, matrices or stacks of them. What is the same for all rows is packed."""
    if not left.type == right.type == REAL:
        raise Unsupported("products of whole numbers")
    out = w.new(REAL, sizes)
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
                made = w.new(REAL, o.sizes)
                w.product(a, b, s, made)
                w.copy(made, into=o)
            else:
                w.product(a, b, s, o)
        return out
    w.matmul(left, right, begin, whole)
    return out


@rule(aten.mm.default, aten.bmm.default)
def _mm(w: Writer, want: Want, left: View, right: View) -> View:
    return product(w, None, left, right, want.sizes)


@rule(aten.addmm.default, aten.baddbmm.default)
def _addmm(
    w: Writer, want: Want, start: View, left: View, right: View, beta: NUMBER = 1, alpha: NUMBER = 1
) -> View:
    if alpha != 1:
        left = w.map("mul", REAL, left.sizes, left, alpha)
    if beta != 1:
        start = w.map("mul", REAL, start.sizes, start, beta)
    return product(w, start if beta != 0 else None, left, right, want.sizes)


# --- indices --------------------------------------------------------------------------------------------------------


def _typed(w: Writer, code: str, type: str) -> str:
    if type != REAL:
        raise Unsupported(f"{code} of {type} values")
    return code


def gather(w: Writer, x: View, dim: int, index: View) -> View:
    """out[…, i, …] = x[…, index[…, i, …], …], index in the sizes of the result."""
    dim %= len(x.sizes)
    out = w.new(x.type, index.sizes)
    outer = [*index.sizes[:dim], *index.sizes[dim + 1 :]]
    (a, n, so), (b, _, si) = _last(w, out, [dim]), _last(w, index, [dim])
    rest = x.slice(dim, 0, 1).select(dim, 0)
    source = View(rest.buffer, rest.offset, tuple(outer), rest.strides)
    w.lines(
        _typed(w, "gather", x.type), outer, n, [(a, so), (source, x.strides[dim]), (b, si)], k=x.sizes[dim]
    )
    return out


def scatter(w: Writer, code: str, x: View, dim: int, index: View, source: View) -> View:
    """A copy of x with out[…, index[…, i, …], …] = (or +=) source[…, i, …]."""
    dim %= len(x.sizes)
    out = w.copy(x, into=w.new(x.type, x.sizes))
    outer = [*index.sizes[:dim], *index.sizes[dim + 1 :]]
    source = View(source.buffer, source.offset, index.sizes, source.strides)
    (a, n, s), (b, _, si) = _last(w, source, [dim]), _last(w, index, [dim])
    rest = out.select(dim, 0)
    target = View(rest.buffer, rest.offset, tuple(outer), rest.strides)
    w.lines(_typed(w, code, x.type), outer, n, [(target, out.strides[dim]), (a, s), (b, si)], k=x.sizes[dim])
    return out


@rule(aten.gather.default)
def _gather(w: Writer, want: Want, x: View, dim: int, index: View, sparse_grad: bool = False) -> View:
    return gather(w, x, dim, index)


@rule(aten.scatter.src)
def _scatter(w: Writer, want: Want, x: View, dim: int, index: View, source: View) -> View:
    return scatter(w, "scatter", x, dim, index, source)


@rule(aten.scatter.value)
def _scatter_value(w: Writer, want: Want, x: View, dim: int, index: View, value: NUMBER) -> View:
    return scatter(w, "scatter", x, dim, index, w.number(value, x.type, index.sizes))


@rule(aten.scatter_add.default)
def _scatter_add(w: Writer, want: Want, x: View, dim: int, index: View, source: View) -> View:
    return scatter(w, "scatter_add", x, dim, index, source)


def _spread_index(index: View, dim: int, sizes: Sequence[int]) -> View:
    """A line of indices, in the sizes of what it chooses from along `dim`."""
    sizes = [*sizes[:dim], index.numel, *sizes[dim + 1 :]]
    strides = [0] * len(sizes)
    strides[dim] = index.strides[0] if index.sizes else 0
    return View(index.buffer, index.offset, tuple(sizes), tuple(strides))


def _one_index(x: View, indices: Sequence[View | None]) -> tuple[int, View]:
    given = [(d, index) for d, index in enumerate(indices) if index is not None]
    if len(given) != 1 or len(given[0][1].sizes) != 1 or given[0][1].type != INT:
        raise Unsupported("indexing by more than one tensor, or by one that is not a line of whole numbers")
    return given[0]


@rule(aten.index_select.default)
def _index_select(w: Writer, want: Want, x: View, dim: int, index: View) -> View:
    dim %= len(x.sizes)
    return gather(w, x, dim, _spread_index(index, dim, x.sizes))


@rule(aten.index.Tensor)
def _index(w: Writer, want: Want, x: View, indices: Sequence[View | None]) -> View:
    dim, index = _one_index(x, indices)
    return gather(w, x, dim, _spread_index(index, dim, x.sizes))


@rule(aten.index_put.default)
def _index_put(
    w: Writer, want: Want, x: View, indices: Sequence[View | None], values: View, accumulate: bool = False
) -> View:
    dim, index = _one_index(x, indices)
    spread = _spread_index(index, dim, x.sizes)
    return scatter(w, "scatter_add" if accumulate else "scatter", x, dim, spread, values.expand(spread.sizes))


@rule(aten.index_add.default)
def _index_add(
    w: Writer, want: Want, x: View, dim: int, index: View, source: View, alpha: NUMBER = 1
) -> View:
    dim %= len(x.sizes)
    if alpha != 1:
        source = w.map("mul", REAL, source.sizes, source, alpha)
    return scatter(w, "scatter_add", x, dim, _spread_index(index, dim, x.sizes), source)


@rule(aten.embedding.default)
def _embedding(w: Writer, want: Want, table: View, index: View, *_: Any) -> View:
    width = table.sizes[1]
    out = w.new(REAL, want.sizes)
    rows = index.expand(index.sizes).unsqueeze(len(index.sizes)).expand((*index.sizes, width))
    ahead = (0,) * len(index.sizes)
    source = View(table.buffer, table.offset, (*index.sizes, width), (*ahead, table.strides[1]))
    w.lines("gather", want.sizes, 1, [(out, 0), (source, table.strides[0]), (rows, 0)], k=table.sizes[0])
    return out
