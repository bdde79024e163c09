"""Element by element: arithmetic, comparisons, logic, types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from elman.circuit.operations import OPERATIONS
from elman.engines.native.rules.table import RULES, Rule, Want, cast, rule, view_of
from elman.engines.native.values import BOOL, INT, REAL, Unsupported, View, type_of
from elman.engines.native.writer import NUMBER, Writer

aten = torch.ops.aten


def _unary(code: str) -> Rule:
    def lower(w: Writer, want: Want, x: View) -> View:
        if want.type == REAL:
            return w.map(code, REAL, want.sizes, cast(w, x, REAL))
        if want.type == INT and code in ("neg", "abs"):
            minus = w.map("int_sub", INT, want.sizes, w.number(0, INT, want.sizes), x)
            return minus if code == "neg" else w.map("int_maximum", INT, want.sizes, x, minus)
        raise Unsupported(f"{code} of {want.type} values")

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
            if rounding_mode == "floor":
                return _arithmetic("floordiv", a, b, w, want)
            return w.map(rounding_mode, REAL, want.sizes, _arithmetic(code, a, b, w, want))
        return _arithmetic(code, a, b, w, want)

    return lower


def _common(w: Writer, *values: View | NUMBER) -> tuple[str, list[View | NUMBER]]:
    """The type that numbers of several types meet in, and all of them in it."""
    types = {v.type if isinstance(v, View) else REAL if isinstance(v, float) else INT for v in values}
    if BOOL in types and types == {BOOL}:
        return BOOL, list(values)
    to = REAL if REAL in types else INT
    tensors = {v.type for v in values if isinstance(v, View)}
    if to == REAL and REAL not in tensors and w.real_bytes != torch.get_default_dtype().itemsize:
        raise Unsupported("whole numbers compared as another type of real numbers than the loop's")
    return to, [cast(w, v, to) for v in values]


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


_FAMILIES: dict[str, tuple[Callable[[str], Rule], tuple[str, ...]]] = {
    "unary": (_unary, ("default",)),
    "binary": (_binary, ("default", "Tensor", "Scalar", "Tensor_mode", "Scalar_mode")),
    "compare": (_compare, ("Tensor", "Scalar")),
}
COMPARE = {op.native.code for op in OPERATIONS.values() if op.native and op.native.family == "compare"}
for _operation in OPERATIONS.values():
    if _operation.native is not None:
        _lower, _overloads = _FAMILIES[_operation.native.family]
        for _overload in set(_overloads) & set(getattr(aten, _operation.name).overloads()):
            RULES[getattr(getattr(aten, _operation.name), _overload)] = _lower(_operation.native.code)


@rule(aten.floor_divide.default, aten.floor_divide.Scalar)
def _floor_divide(w: Writer, want: Want, a: Any, b: Any) -> View:
    return _binary("div")(w, want, a, b, rounding_mode="floor")


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
def where(w: Writer, want: Want, condition: View, a: Any, b: Any) -> View:
    a, b = (view_of(w, v, want.type, want.sizes) for v in (a, b))
    return w.map(f"where{w.bytes_of(want.type)}", want.type, want.sizes, cast(w, condition, BOOL), a, b)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(w: Writer, want: Want, x: View, mask: View, value: Any) -> View:
    return where(w, want, mask, value, x)


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
