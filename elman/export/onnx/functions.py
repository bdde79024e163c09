"""Functions and activations, element by element, each made of several nodes of ONNX."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from elman.export.onnx.nodes import Nodes, dtype_of
from elman.export.onnx.pointwise import Rule, clamped, of_one, power


def rsqrt(w: Nodes, node: Node, x: Any) -> str:
    return w.add("Reciprocal", w.add("Sqrt", w.tensor(x, dtype_of(node))))


def power_of(base: float) -> Rule:
    """exp2."""

    def rule(w: Nodes, node: Node, x: Any) -> str:
        return w.add("Pow", w.constant(base, dtype_of(node)), w.tensor(x, dtype_of(node)))

    return rule


def logarithm(base: float) -> Rule:
    """log2 and log10."""

    def rule(w: Nodes, node: Node, x: Any) -> str:
        dtype = dtype_of(node)
        return w.add("Div", w.add("Log", w.tensor(x, dtype)), w.constant(math.log(base), dtype))

    return rule


def angle(w: Nodes, node: Node, y: Any, x: Any) -> str:
    """atan2: atan(y / x), turned by half a circle where x is below 0 or -0."""
    dtype = dtype_of(node)
    y, x = w.tensor(y, dtype), w.tensor(x, dtype)
    none = w.constant(0, dtype)
    below_y, below_x = (
        w.add("Or", w.add("Less", v, none), w.add("Less", w.add("Reciprocal", v), none)) for v in (y, x)
    )
    nowhere = w.add("And", w.add("Equal", x, none), w.add("Equal", y, none))
    far = w.add("And", w.add("IsInf", x), w.add("IsInf", y))
    ratio = w.add("Where", nowhere, y, w.add("Div", y, x))
    ratio = w.add("Where", far, w.add("Mul", w.add("Sign", x), w.add("Sign", y)), ratio)
    near = of_one(w, "Atan", ratio, dtype)
    half = w.add("Where", below_y, w.constant(-math.pi, dtype), w.constant(math.pi, dtype))
    return w.add("Where", below_x, w.add("Add", near, half), near)


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
    x = w.tensor(x, dtype_of(node))
    return w.add("Where", w.add("IsInf", x, detect_negative=0), x, _of_small(w, x, dtype_of(node)))


def expm1(w: Nodes, node: Node, x: Any) -> str:
    return _less_one(w, w.tensor(x, dtype_of(node)), dtype_of(node))


def _less_one(w: Nodes, x: str, dtype: torch.dtype) -> str:
    """exp(x) - 1, as exact for a small x as for a large one: (u - 1) x / log(u) with u = exp(x), rounded (Kahan)."""
    one = w.constant(1, dtype)
    u = w.add("Exp", x)
    less = w.add("Sub", u, one)
    same = w.add("Equal", u, one)
    ratio = w.add("Mul", less, w.add("Div", x, w.add("Log", w.add("Where", same, w.constant(2, dtype), u))))
    ends = w.add("Or", w.add("IsInf", u), w.add("Equal", less, w.constant(-1, dtype)))
    return w.add("Where", same, x, w.add("Where", ends, less, ratio))


def sinh(w: Nodes, node: Node, x: Any) -> str:
    """(m + m / (m + 1)) / 2 with m = exp(|x|) - 1; ONNX Runtime has its own for float32 alone."""
    dtype = dtype_of(node)
    x = w.tensor(x, dtype)
    if dtype == torch.float32:
        return w.add("Sinh", x)
    more = _less_one(w, w.add("Abs", x), dtype)
    part = w.add("Div", more, w.add("Add", more, w.constant(1, dtype)))
    part = w.add("Where", w.add("IsInf", more), w.constant(1, dtype), part)
    half = w.add("Mul", w.add("Add", more, part), w.constant(0.5, dtype))
    return w.add("Mul", w.add("Sign", x), half)


def cosh(w: Nodes, node: Node, x: Any) -> str:
    dtype = dtype_of(node)
    x = w.tensor(x, dtype)
    if dtype == torch.float32:
        return w.add("Cosh", x)
    total = w.add("Add", w.add("Exp", x), w.add("Exp", w.add("Neg", x)))
    return w.add("Mul", total, w.constant(0.5, dtype))


def tan(w: Nodes, node: Node, x: Any) -> str:
    dtype = dtype_of(node)
    x = w.tensor(x, dtype)
    return w.add("Tan", x) if dtype == torch.float32 else w.add("Div", w.add("Sin", x), w.add("Cos", x))


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
        inner = of_one(w, "Erf", w.add("Mul", x, w.constant(math.sqrt(0.5), dtype)), dtype)
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
    dtype = dtype_of(node)
    x = w.tensor(x, dtype)
    if dtype == torch.float32:
        return w.add("LeakyRelu", x, alpha=float(slope))
    low = w.add("Mul", x, w.constant(slope, dtype))  # an attribute is a float32
    return w.add("Where", w.add("Greater", x, w.constant(0, dtype)), x, low)


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
