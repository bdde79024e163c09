"""Operations element by element, as nodes of ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from elman.errors import NotSupported
from elman.export.onnx.nodes import Nodes, dtype_of

Rule = Callable[..., Any]


# What arithmetic with truths is, of which ONNX has none.
_TRUTHS = {"Mul": "And", "Add": "Or", "Max": "Or", "Min": "And"}


def unary(kind: str, **attributes: Any) -> Rule:
    """An operation that ONNX has."""

    def rule(w: Nodes, node: Node, x: Any) -> str:
        return w.add(kind, w.tensor(x, dtype_of(node)), **attributes)

    return rule


def binary(kind: str) -> Rule:
    """One of two operands, each in the dtype of the result."""

    def rule(w: Nodes, node: Node, x: Any, y: Any, alpha: Any = 1) -> str:
        dtype = dtype_of(node)
        chosen = _TRUTHS[kind] if dtype == torch.bool else kind
        return w.add(chosen, w.tensor(x, dtype), _times(w, y, alpha, dtype))

    return rule


def sign(w: Nodes, node: Node, x: Any) -> str:
    """-1, 0 or 1; a truth is its own."""
    dtype = dtype_of(node)
    return w.tensor(x, dtype) if dtype == torch.bool else w.add("Sign", w.tensor(x, dtype))


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
    return w.add("Floor", x) if down else w.add("Mul", w.add("Sign", x), w.add("Floor", w.add("Abs", x)))


def truncated(w: Nodes, node: Node, x: Any) -> str:
    return _whole(w, w.tensor(x, dtype_of(node)), False, dtype_of(node))


def remainder(w: Nodes, node: Node, x: Any, y: Any) -> str:
    dtype = dtype_of(node)
    a, b = w.tensor(x, dtype), w.tensor(y, dtype)
    if not dtype.is_floating_point:
        return w.add("Mod", a, b)
    return w.add("Sub", a, w.add("Mul", w.add("Floor", w.add("Div", a, b)), b))


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


# --- made of several -------------------------------------------------------------------------------------------------


def rsqrt(w: Nodes, node: Node, x: Any) -> str:
    return w.add("Reciprocal", w.add("Sqrt", w.tensor(x, dtype_of(node))))


def square(w: Nodes, node: Node, x: Any) -> str:
    return power(w, node, x, 2)


def _of_small(w: Nodes, x: str, dtype: torch.dtype) -> str:
    """log(1 + x), as exact for a small x as for a large one: x log(u) / (u - 1) with u = 1 + x, rounded (Kahan)."""
    one = w.constant(1, dtype)
    u = w.add("Add", x, one)
    less = w.add("Sub", u, one)
    none = w.add("Equal", less, w.constant(0, dtype))
    ratio = w.add("Div", w.add("Mul", x, w.add("Log", u)), w.add("Where", none, one, less))
    return w.add("Where", none, x, ratio)


def log1p(w: Nodes, node: Node, x: Any) -> str:
    return _of_small(w, w.tensor(x, dtype_of(node)), dtype_of(node))


def expm1(w: Nodes, node: Node, x: Any) -> str:
    """exp(x) - 1 = 2 sinh(x/2) exp(x/2), where the subtraction would lose what is small."""
    dtype = dtype_of(node)
    half = w.add("Mul", w.tensor(x, dtype), w.constant(0.5, dtype))
    return w.add("Mul", w.add("Mul", w.constant(2, dtype), w.add("Sinh", half)), w.add("Exp", half))


def softplus(w: Nodes, node: Node, x: Any, beta: Any = 1, threshold: Any = 20) -> str:
    """`_softplus` up to the threshold, and x itself where beta x lies above it."""
    dtype = dtype_of(node)
    x = w.tensor(x, dtype)
    result = _softplus(w, x, dtype, beta)
    if beta == 1 and threshold > 0 and math.exp(-threshold) < threshold * torch.finfo(dtype).eps / 4:
        return result  # above it what the sum adds to x is rounded away
    z = x if beta == 1 else w.add("Mul", x, w.constant(beta, dtype))
    return w.add("Where", w.add("Greater", z, w.constant(threshold, dtype)), x, result)


def _softplus(w: Nodes, x: str, dtype: torch.dtype, beta: Any = 1) -> str:
    """max(z, 0) + log1p(exp(-|z|)), z = beta x, over beta: ONNX's own loses what is small."""
    z = x if beta == 1 else w.add("Mul", x, w.constant(beta, dtype))
    small = _of_small(w, w.add("Exp", w.add("Neg", w.add("Abs", z))), dtype)
    result = w.add("Add", w.add("Relu", z), small)
    return result if beta == 1 else w.add("Div", result, w.constant(beta, dtype))


def log_sigmoid(w: Nodes, node: Node, x: Any) -> Any:
    value = node.meta["val"]
    dtype = value[0].dtype if isinstance(value, (tuple, list)) else value.dtype
    result = w.add("Neg", _softplus(w, w.add("Neg", w.tensor(x, dtype)), dtype))
    return (result, result) if isinstance(value, (tuple, list)) else result


def silu(w: Nodes, node: Node, x: Any) -> str:
    x = w.tensor(x, dtype_of(node))
    return w.add("Mul", x, w.add("Sigmoid", x))


def mish(w: Nodes, node: Node, x: Any) -> str:
    dtype = dtype_of(node)
    x = w.tensor(x, dtype)
    return w.add("Mul", x, w.add("Tanh", _softplus(w, x, dtype)))


def gelu(w: Nodes, node: Node, x: Any, approximate: str = "none") -> str:
    dtype = dtype_of(node)
    x, half, one = w.tensor(x, dtype), w.constant(0.5, dtype), w.constant(1, dtype)
    if approximate == "none":
        inner = w.add("Erf", w.add("Mul", x, w.constant(math.sqrt(0.5), dtype)))
    else:
        cube = w.add("Mul", w.add("Mul", w.add("Mul", x, x), x), w.constant(0.044715, dtype))
        inner = w.add("Tanh", w.add("Mul", w.add("Add", x, cube), w.constant(math.sqrt(2 / math.pi), dtype)))
    return w.add("Mul", w.add("Mul", x, half), w.add("Add", inner, one))


def elu(w: Nodes, node: Node, x: Any, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> str:
    dtype = dtype_of(node)
    x = w.tensor(x, dtype)
    low = w.add("Min", x, w.constant(0, dtype))
    low = low if input_scale == 1 else w.add("Mul", low, w.constant(input_scale, dtype))
    low = w.add(
        "Mul", w.add("Sub", w.add("Exp", low), w.constant(1, dtype)), w.constant(alpha * scale, dtype)
    )
    high = w.add("Relu", x)
    return w.add("Add", high if scale == 1 else w.add("Mul", high, w.constant(scale, dtype)), low)


def leaky_relu(w: Nodes, node: Node, x: Any, slope: Any = 0.01) -> str:
    return w.add("LeakyRelu", w.tensor(x, dtype_of(node)), alpha=float(slope))


def prelu(w: Nodes, node: Node, x: Any, slope: Any) -> str:
    dtype = dtype_of(node)
    x = w.tensor(x, dtype)
    low = w.add("Mul", w.add("Min", x, w.constant(0, dtype)), w.tensor(slope, dtype))
    return w.add("Add", w.add("Relu", x), low)


def _hard(w: Nodes, x: str, dtype: torch.dtype) -> str:
    """min(max(x + 3, 0), 6)."""
    raised = w.add("Max", w.add("Add", x, w.constant(3, dtype)), w.constant(0, dtype))
    return w.add("Min", raised, w.constant(6, dtype))


def hardsigmoid(w: Nodes, node: Node, x: Any) -> str:
    dtype = dtype_of(node)
    return w.add("Div", _hard(w, w.tensor(x, dtype), dtype), w.constant(6, dtype))


def hardswish(w: Nodes, node: Node, x: Any) -> str:
    dtype = dtype_of(node)
    x = w.tensor(x, dtype)
    return w.add("Div", w.add("Mul", x, _hard(w, x, dtype)), w.constant(6, dtype))


def hardtanh(w: Nodes, node: Node, x: Any, low: Any = -1, high: Any = 1) -> str:
    return clamped(w, node, x, low, high)


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
