"""Operations element by element, as nodes of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from elman.errors import NotSupported
from elman.export.onnx.nodes import Nodes, dtype_of

Rule = Callable[..., Any]


# What arithmetic with truths is, of which ONNX has none.
_TRUTHS = {"Mul": "And", "Add": "Or", "Max": "Or", "Min": "And"}


# What ONNX Runtime has for float32 alone: a file with another one is none that it opens.
_SINGLE = {"Erf", "Asin", "Acos", "Atan", "Asinh", "Acosh", "Atanh"}


def unary(kind: str, **attributes: Any) -> Rule:
    """An operation that ONNX has."""

    def rule(w: Nodes, node: Node, x: Any) -> str:
        return of_one(w, kind, w.tensor(x, dtype_of(node)), dtype_of(node), **attributes)

    return rule


def of_one(w: Nodes, kind: str, x: str, dtype: torch.dtype, **attributes: Any) -> str:
    if dtype == torch.float64 and kind in _SINGLE:
        raise NotSupported(
            what=f"ONNX Runtime has no {kind} of float64", where="export(…onnx)", mend="module.float()"
        )
    return w.add(kind, x, **attributes)


def binary(kind: str) -> Rule:
    """One of two operands, each in the dtype of the result."""

    def rule(w: Nodes, node: Node, x: Any, y: Any, alpha: Any = 1) -> str:
        dtype = dtype_of(node)
        chosen = _TRUTHS[kind] if dtype == torch.bool else kind
        return w.add(chosen, w.tensor(x, dtype), _times(w, y, alpha, dtype))

    return rule


def sign(w: Nodes, node: Node, x: Any) -> str:
    """-1, 0 or 1, of NaN 0; a truth is its own."""
    dtype = dtype_of(node)
    x = w.tensor(x, dtype)
    if dtype == torch.bool:
        return x
    signs = w.add("Sign", x)
    return (
        w.add("Where", w.add("IsNaN", x), w.constant(0, dtype), signs) if dtype.is_floating_point else signs
    )


def turned(w: Nodes, node: Node, x: Any, y: Any, alpha: Any = 1) -> str:
    """rsub: y - alpha x."""
    return w.add("Sub", w.tensor(y, dtype_of(node)), _times(w, x, alpha, dtype_of(node)))


def _times(w: Nodes, x: Any, alpha: Any, dtype: torch.dtype) -> str:
    x = w.tensor(x, dtype)
    times = _TRUTHS["Mul"] if dtype == torch.bool else "Mul"
    return x if alpha == 1 else w.add(times, x, w.constant(alpha, dtype))


def compare(kind: str, negated: bool = False) -> Rule:
    """One whose result is true or false."""

    def rule(w: Nodes, node: Node, x: Any, y: Any) -> str:
        dtype = torch.result_type(_value(x), _value(y))
        if dtype == torch.bool and kind != "Equal":
            dtype = torch.int32  # ONNX knows no order of truths
        result = w.add(kind, w.tensor(x, dtype), w.tensor(y, dtype))
        return w.add("Not", result) if negated else result

    return rule


def _value(x: Any) -> Any:
    return x.meta["val"] if isinstance(x, Node) else x


def logical(kind: str, bitwise: str) -> Rule:
    """Of truths, or bit by bit."""

    def rule(w: Nodes, node: Node, x: Any, y: Any) -> str:
        dtype = dtype_of(node)
        return w.add(kind if dtype == torch.bool else bitwise, w.tensor(x, dtype), w.tensor(y, dtype))

    return rule


def negation(w: Nodes, node: Node, x: Any) -> str:
    dtype = dtype_of(node)
    return w.add("Not" if dtype == torch.bool else "BitwiseNot", w.tensor(x, dtype))


def divided(w: Nodes, node: Node, x: Any, y: Any, rounding: str | None = None) -> str:
    dtype = dtype_of(node)
    a, b = w.tensor(x, dtype), w.tensor(y, dtype)
    if rounding is None or (rounding == "trunc" and not dtype.is_floating_point):
        return w.add("Div", a, b)
    if rounding == "floor" and not dtype.is_floating_point:
        return w.add("Div", w.add("Sub", a, w.add("Mod", a, b)), b)
    return _whole(w, w.add("Div", a, b), rounding == "floor", dtype)


def floor_divide(w: Nodes, node: Node, x: Any, y: Any) -> str:
    return divided(w, node, x, y, "floor")


def _whole(w: Nodes, x: str, down: bool, dtype: torch.dtype) -> str:
    whole = w.add("Floor", x)
    return whole if down else w.add("Where", w.add("Less", x, w.constant(0, dtype)), w.add("Ceil", x), whole)


def truncated(w: Nodes, node: Node, x: Any) -> str:
    return _whole(w, w.tensor(x, dtype_of(node)), False, dtype_of(node))


def rounded(w: Nodes, node: Node, x: Any, decimals: int = 0) -> str:
    """To so many places behind the point, or in front of it."""
    dtype = dtype_of(node)
    x, power = w.tensor(x, dtype), w.constant(10.0 ** abs(decimals), dtype)
    there, back = ("Mul", "Div") if decimals >= 0 else ("Div", "Mul")
    return w.add(back, w.add("Round", w.add(there, x, power)), power)


def remainder(w: Nodes, node: Node, x: Any, y: Any) -> str:
    dtype = dtype_of(node)
    a, b = w.tensor(x, dtype), w.tensor(y, dtype)
    if not dtype.is_floating_point:
        return w.add("Mod", a, b)
    rest, none = w.add("Mod", a, b, fmod=1), w.constant(0, dtype)
    other = w.add("Xor", w.add("Less", rest, none), w.add("Less", b, none))
    other = w.add("And", other, w.add("Not", w.add("Equal", rest, none)))
    return w.add("Where", other, w.add("Add", rest, b), rest)


def fmod(w: Nodes, node: Node, x: Any, y: Any) -> str:
    return w.add("Mod", w.tensor(x, dtype_of(node)), w.tensor(y, dtype_of(node)), fmod=1)


def power(w: Nodes, node: Node, x: Any, y: Any) -> str:
    dtype = dtype_of(node)
    a = w.tensor(x, dtype)
    if y == 2:
        return w.add("Mul", a, a)
    return w.add("Sqrt", a) if y == 0.5 else w.add("Pow", a, w.tensor(y, dtype))


def chosen(w: Nodes, node: Node, condition: Any, x: Any, y: Any) -> str:
    dtype = dtype_of(node)
    asked, a, b = w.tensor(condition, torch.bool), w.tensor(x, dtype), w.tensor(y, dtype)
    if dtype == torch.bool:  # ONNX Runtime chooses between numbers alone
        return w.add("Or", w.add("And", asked, a), w.add("And", w.add("Not", asked), b))
    return w.add("Where", asked, a, b)


def masked(w: Nodes, node: Node, x: Any, mask: Any, value: Any) -> str:
    return chosen(w, node, mask, value, x)


def clamped(w: Nodes, node: Node, x: Any, low: Any = None, high: Any = None) -> str:
    dtype, result = dtype_of(node), w.tensor(x, dtype_of(node))
    for kind, bound in (("Max", low), ("Min", high)):
        result = result if bound is None else w.add(kind, result, w.tensor(bound, dtype))
    return result


def defined(kind: str) -> Rule:
    """fmax and fmin: of a number and NaN the number."""

    def rule(w: Nodes, node: Node, x: Any, y: Any) -> str:
        dtype = dtype_of(node)
        if not dtype.is_floating_point:
            return binary(kind)(w, node, x, y)
        a, b = w.tensor(x, dtype), w.tensor(y, dtype)
        either = w.add("Where", w.add("IsNaN", b), a, w.add(kind, a, b))
        return w.add("Where", w.add("IsNaN", a), b, either)

    return rule


def is_what(kind: str) -> Rule:
    """Whether a number is none, or infinite; whole numbers are neither."""

    def rule(w: Nodes, node: Node, x: Any) -> str:
        dtype = dtype_of(x)
        return w.add(kind, w.tensor(x, dtype if dtype.is_floating_point else torch.float32))

    return rule


def at_most(w: Nodes, node: Node, x: Any, high: Any) -> str:
    return clamped(w, node, x, None, high)


def between(w: Nodes, node: Node, start: Any, end: Any, weight: Any) -> str:
    """lerp."""
    dtype = dtype_of(node)
    a = w.tensor(start, dtype)
    far = w.add("Sub", w.tensor(end, dtype), a)
    return w.add("Add", a, w.add("Mul", w.tensor(weight, dtype), far))


def added_product(w: Nodes, node: Node, x: Any, a: Any, b: Any, value: Any = 1) -> str:
    dtype = dtype_of(node)
    product = w.add("Mul", w.tensor(a, dtype), w.tensor(b, dtype))
    return w.add(
        "Add", w.tensor(x, dtype), product if value == 1 else w.add("Mul", product, w.constant(value, dtype))
    )


def added_quotient(w: Nodes, node: Node, x: Any, a: Any, b: Any, value: Any = 1) -> str:
    dtype = dtype_of(node)
    ratio = w.add("Div", w.tensor(a, dtype), w.tensor(b, dtype))
    return w.add(
        "Add", w.tensor(x, dtype), ratio if value == 1 else w.add("Mul", ratio, w.constant(value, dtype))
    )


def converted(w: Nodes, node: Node, x: Any, *_: Any) -> str:
    """The same numbers in another dtype."""
    return w.tensor(x, dtype_of(node))


def itself(w: Nodes, node: Node, x: Any, *_: Any) -> Any:
    """The same tensor."""
    return w.names[x]


def truths(kind: str) -> Rule:
    """logical_and and the like: what is not zero is true."""

    def rule(w: Nodes, node: Node, x: Any, y: Any) -> str:
        return w.add(kind, w.tensor(x, torch.bool), w.tensor(y, torch.bool))

    return rule


def not_true(w: Nodes, node: Node, x: Any) -> str:
    return w.add("Not", w.tensor(x, torch.bool))


def left_out(w: Nodes, node: Node, x: Any, p: Any, training: bool) -> str:
    """Dropout, which leaves everything in evaluation as it is."""
    if training and p:
        raise NotSupported(
            what="random numbers have no form in ONNX", where="dropout", mend="call model.eval()"
        )
    return w.names[x]
