"""Element by element: arithmetic, comparisons, logic, types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from elman.circuit.operations import OPERATIONS
from elman.engines.native.builder import NUMBER, Builder
from elman.engines.native.rules.table import RULES, ResultSpec, Rule, cast, rule, view_of
from elman.engines.native.values import BOOL, INT, REAL, Unsupported, View, type_of

aten = torch.ops.aten


def _unary(code: str) -> Rule:
    def lower(p: Builder, want: ResultSpec, x: View) -> View:
        if want.type == REAL:
            return p.map(code, REAL, want.sizes, cast(p, x, REAL))
        if want.type == INT and code in ("neg", "abs"):
            minus = p.map("int_sub", INT, want.sizes, p.number(0, INT, want.sizes), x)
            return minus if code == "neg" else p.map("int_maximum", INT, want.sizes, x, minus)
        raise Unsupported(f"{code} of {want.type} values")

    return lower


def _arithmetic(code: str, a: Any, b: Any, p: Builder, want: ResultSpec) -> View:
    if want.type == REAL:
        return p.map(code, REAL, want.sizes, cast(p, a, REAL), cast(p, b, REAL))
    if want.type == INT and code in ("add", "sub", "mul", "remainder", "maximum", "minimum"):
        return p.map(f"int_{code}", INT, want.sizes, *[view_of(p, v, INT, want.sizes) for v in (a, b)])
    if want.type == BOOL and code in ("add", "mul", "maximum", "minimum"):
        return p.map(
            "bool_or" if code in ("add", "maximum") else "bool_and", BOOL, want.sizes,
            *[view_of(p, v, BOOL, want.sizes) for v in (a, b)],
        )  # fmt: skip
    raise Unsupported(f"{code} of {want.type} values")


def _binary(code: str) -> Rule:
    def lower(
        p: Builder, want: ResultSpec, a: Any, b: Any, alpha: NUMBER = 1, rounding_mode: str | None = None
    ) -> View:
        if alpha != 1:
            b = b * alpha if isinstance(b, NUMBER) else _arithmetic("mul", b, alpha, p, want)
        if rounding_mode is not None:
            if want.type != REAL:
                if rounding_mode == "floor":
                    return p.map(
                        "int_floordiv", INT, want.sizes, *[view_of(p, v, INT, want.sizes) for v in (a, b)]
                    )
                raise Unsupported("division of whole numbers towards zero")
            if rounding_mode == "floor":
                return _arithmetic("floordiv", a, b, p, want)
            return p.map(rounding_mode, REAL, want.sizes, _arithmetic(code, a, b, p, want))
        return _arithmetic(code, a, b, p, want)

    return lower


def _common(p: Builder, *values: View | NUMBER) -> tuple[str, list[View | NUMBER]]:
    """The type that numbers of several types meet in, and all of them in it."""
    types = {v.type if isinstance(v, View) else REAL if isinstance(v, float) else INT for v in values}
    if BOOL in types and types == {BOOL}:
        return BOOL, list(values)
    to = REAL if REAL in types else INT
    tensors = {v.type for v in values if isinstance(v, View)}
    if to == REAL and REAL not in tensors and p.real_bytes != torch.get_default_dtype().itemsize:
        raise Unsupported("whole numbers compared as another type of real numbers than the loop's")
    return to, [cast(p, v, to) for v in values]


def _compare(code: str) -> Rule:
    def lower(p: Builder, want: ResultSpec, a: Any, b: Any) -> View:
        type, (a, b) = _common(p, a, b)
        if type == BOOL:
            if code not in ("eq", "ne"):
                raise Unsupported(f"{code} of bool values")
            differs = p.map("bool_xor", BOOL, want.sizes, a, b)
            return differs if code == "ne" else p.map("bool_not", BOOL, want.sizes, differs)
        if type == INT:
            return p.map(f"int_{code}", BOOL, want.sizes, *[view_of(p, v, INT, want.sizes) for v in (a, b)])
        return p.map(code, BOOL, want.sizes, a, b)

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
def _floor_divide(p: Builder, want: ResultSpec, a: Any, b: Any) -> View:
    return _binary("div")(p, want, a, b, rounding_mode="floor")


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(p: Builder, want: ResultSpec, a: Any, b: Any, alpha: NUMBER = 1) -> View:
    if alpha != 1:
        a = _arithmetic("mul", a, alpha, p, want)
    return _arithmetic("sub", b, a, p, want)


@rule(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar)
def _pow(p: Builder, want: ResultSpec, base: Any, exponent: Any) -> View:
    if want.type != REAL:
        raise Unsupported("powers of whole numbers")
    base, exponent = cast(p, base, REAL), cast(p, exponent, REAL)
    short = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
    if isinstance(exponent, NUMBER) and exponent in short:
        return p.map(short[exponent], REAL, want.sizes, base)
    if isinstance(exponent, NUMBER) and exponent == 3:
        return p.map("mul", REAL, want.sizes, p.map("square", REAL, want.sizes, base), base)
    return p.map("pow", REAL, want.sizes, base, exponent)


@rule(aten.tanh_backward.default)
def _tanh_backward(p: Builder, want: ResultSpec, g: View, y: View) -> View:
    return p.map("tanh_backward", REAL, want.sizes, g, y)


@rule(aten.sigmoid_backward.default)
def _sigmoid_backward(p: Builder, want: ResultSpec, g: View, y: View) -> View:
    return p.map("sigmoid_backward", REAL, want.sizes, g, y)


@rule(aten.threshold_backward.default)
def _threshold_backward(p: Builder, want: ResultSpec, g: View, x: View, threshold: NUMBER) -> View:
    return p.map("threshold_backward", REAL, want.sizes, g, x, threshold)


@rule(aten.clamp.default, aten.clamp.Tensor)
def _clamp(p: Builder, want: ResultSpec, x: View, low: Any = None, high: Any = None) -> View:
    if want.type != REAL:
        raise Unsupported("clamp of whole numbers")
    if low is not None and high is not None:
        return p.map("clamp", REAL, want.sizes, x, low, high)
    if low is not None:
        return p.map("maximum", REAL, want.sizes, x, low)
    assert high is not None
    return p.map("minimum", REAL, want.sizes, x, high)


RULES[aten.hardtanh.default] = lambda p, want, x, low=-1, high=1: _clamp(p, want, x, low, high)
RULES[aten.clamp_min.default] = lambda p, want, x, low: _clamp(p, want, x, low)
RULES[aten.clamp_max.default] = lambda p, want, x, high: _clamp(p, want, x, None, high)


@rule(aten.lerp.Tensor, aten.lerp.Scalar)
def _lerp(p: Builder, want: ResultSpec, a: View, b: View, weight: Any) -> View:
    return p.map("lerp", REAL, want.sizes, a, b, weight)


@rule(aten.addcmul.default)
def _addcmul(p: Builder, want: ResultSpec, x: View, a: View, b: View, value: NUMBER = 1) -> View:
    if value != 1:
        a = p.map("mul", REAL, a.sizes, a, value)
    return p.map("fma", REAL, want.sizes, a, b, x)


@rule(aten.addcdiv.default)
def _addcdiv(p: Builder, want: ResultSpec, x: View, a: View, b: View, value: NUMBER = 1) -> View:
    if value != 1:
        a = p.map("mul", REAL, a.sizes, a, value)
    return p.map("add", REAL, want.sizes, x, p.map("div", REAL, want.sizes, a, b))


@rule(aten.where.self)
def where(p: Builder, want: ResultSpec, condition: View, a: Any, b: Any) -> View:
    a, b = (view_of(p, v, want.type, want.sizes) for v in (a, b))
    return p.map(f"where{p.bytes_of(want.type)}", want.type, want.sizes, cast(p, condition, BOOL), a, b)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(p: Builder, want: ResultSpec, x: View, mask: View, value: Any) -> View:
    return where(p, want, mask, value, x)


@rule(aten.bitwise_not.default, aten.logical_not.default)
def _not(p: Builder, want: ResultSpec, a: View) -> View:
    if want.type != BOOL:
        raise Unsupported("the bits of whole numbers")
    return p.map("bool_not", BOOL, want.sizes, cast(p, a, BOOL))


def _logic(code: str) -> Rule:
    def lower(p: Builder, want: ResultSpec, a: Any, b: Any) -> View:
        if want.type != BOOL:
            raise Unsupported("the bits of whole numbers")
        return p.map(f"bool_{code}", BOOL, want.sizes, *[view_of(p, v, BOOL, want.sizes) for v in (a, b)])

    return lower


for _name in ("and", "or", "xor"):
    _bits = getattr(aten, f"bitwise_{_name}")
    RULES[getattr(aten, f"logical_{_name}").default] = RULES[_bits.Tensor] = RULES[_bits.Scalar] = _logic(
        _name
    )


@rule(aten.isnan.default)
def _isnan(p: Builder, want: ResultSpec, x: View) -> View:
    return p.map("ne", BOOL, want.sizes, x, x)


@rule(aten._to_copy.default)
def _to_copy(p: Builder, want: ResultSpec, x: View, dtype: torch.dtype | None = None, **_: Any) -> View:
    return cast(p, x, want.type if dtype is None else type_of(torch.empty(0, dtype=dtype)))  # type: ignore[return-value]


@rule(aten.native_dropout_backward.default)
def _dropout_backward(p: Builder, want: ResultSpec, g: View, mask: View, scale: NUMBER) -> View:
    return p.map("mul", REAL, want.sizes, p.map("mul", REAL, want.sizes, g, cast(p, mask, REAL)), scale)
