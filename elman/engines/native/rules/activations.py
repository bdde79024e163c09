"""Activations and their backwards, out of simpler operations.

At NaN PyTorch's gradients are of two minds: what it computes a vector at a time falls through one comparison, what is
left over at the end through another. Ours are those of the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from elman.engines.native.builder import NUMBER, Builder
from elman.engines.native.rules.pointwise import COMPARE, where
from elman.engines.native.rules.table import RULES, ResultSpec, rule
from elman.engines.native.values import BOOL, REAL, View

aten = torch.ops.aten


class Sums:
    """Arithmetic on views of one size, written as it is read."""

    def __init__(self, p: Builder, sizes: tuple[int, ...]):
        self.p, self.sizes = p, sizes

    def __call__(self, code: str, *arguments: Any) -> View:
        return self.p.map(code, BOOL if code in COMPARE else REAL, self.sizes, *arguments)

    def between(self, x: View, low: Any, high: Any) -> View:
        return self.p.map("bool_and", BOOL, self.sizes, self("gt", x, low), self("lt", x, high))

    def where(self, condition: View, a: Any, b: Any) -> View:
        return where(self.p, ResultSpec(self.sizes, REAL, ()), condition, a, b)


def activation(target: Any) -> Callable[[Callable[..., View]], Callable[..., View]]:
    """Enter a rule that is written in terms of `Sums`."""

    def enter(function: Callable[..., View]) -> Callable[..., View]:
        RULES[target] = lambda p, want, *args, **kwargs: function(Sums(p, want.sizes), *args, **kwargs)
        return function

    return enter


@activation(aten.silu.default)
def _silu(f: Sums, x: View) -> View:
    return f("mul", x, f("sigmoid", x))


@activation(aten.silu_backward.default)
def _silu_backward(f: Sums, g: View, x: View) -> View:
    s = f("sigmoid", x)
    return f("mul", f("mul", g, s), f("fma", x, f("sub", 1.0, s), 1.0))


@activation(aten.hardsigmoid.default)
def _hardsigmoid(f: Sums, x: View) -> View:
    return f("div", f("clamp", f("add", x, 3.0), 0.0, 6.0), 6.0)


_SIXTH = 0.1666666716337204  # 1/6 in float32, which PyTorch takes in float64 as well


@activation(aten.hardsigmoid_backward.default)
def _hardsigmoid_backward(f: Sums, g: View, x: View) -> View:
    return f.where(f.between(x, -3.0, 3.0), f("mul", g, _SIXTH), 0.0)


@activation(aten.hardswish.default)
def _hardswish(f: Sums, x: View) -> View:
    return f("div", f("mul", x, f("clamp", f("add", x, 3.0), 0.0, 6.0)), 6.0)


@activation(aten.hardswish_backward.default)
def _hardswish_backward(f: Sums, g: View, x: View) -> View:
    middle = f("mul", g, f("add", f("div", x, 3.0), 0.5))
    return f.where(f("le", x, -3.0), 0.0, f.where(f("ge", x, 3.0), g, middle))


@activation(aten.hardtanh_backward.default)
def _hardtanh_backward(f: Sums, g: View, x: View, low: NUMBER, high: NUMBER) -> View:
    return f.where(f.between(x, low, high), g, 0.0)


@activation(aten.leaky_relu.default)
def _leaky_relu(f: Sums, x: View, slope: NUMBER = 0.01) -> View:
    return f.where(f("gt", x, 0.0), x, f("mul", x, slope))


@activation(aten.leaky_relu_backward.default)
def _leaky_relu_backward(f: Sums, g: View, x: View, slope: NUMBER, is_result: bool) -> View:
    return f.where(f("gt", x, 0.0), g, f("mul", g, slope))


@activation(aten.elu.default)
def _elu(f: Sums, x: View, alpha: NUMBER = 1, scale: NUMBER = 1, input_scale: NUMBER = 1) -> View:
    negative = f("mul", f("expm1", f("mul", x, input_scale) if input_scale != 1 else x), alpha * scale)
    return f.where(f("le", x, 0.0), negative, f("mul", x, scale) if scale != 1 else x)


@activation(aten.elu_backward.default)
def _elu_backward(
    f: Sums, g: View, alpha: NUMBER, scale: NUMBER, input_scale: NUMBER, is_result: bool, x: View
) -> View:
    if is_result:
        slope = f("mul", f("add", x, alpha * scale), input_scale)
    else:
        slope = f("mul", f("exp", f("mul", x, input_scale)), input_scale * alpha * scale)
    return f("mul", g, f.where(f("gt", x, 0.0), scale, slope))


@activation(aten.celu.default)
def _celu(f: Sums, x: View, alpha: NUMBER = 1) -> View:
    return _elu(f, x, alpha, 1, 1 / alpha)


@activation(aten.threshold.default)
def _threshold(f: Sums, x: View, threshold: NUMBER, value: NUMBER) -> View:
    return f.where(f("le", x, threshold), value, x)


@activation(aten.softplus.default)
def _softplus(f: Sums, x: View, beta: NUMBER = 1, threshold: NUMBER = 20) -> View:
    z = f("mul", x, beta) if beta != 1 else x
    return f.where(f("gt", z, threshold), x, f("div", f("log1p", f("exp", z)), beta))


@activation(aten.softplus_backward.default)
def _softplus_backward(f: Sums, g: View, x: View, beta: NUMBER, threshold: NUMBER) -> View:
    z = f("mul", x, beta) if beta != 1 else x
    return f.where(f("gt", z, threshold), g, f("mul", g, f("sigmoid", z)))


@rule(aten._prelu_kernel_backward.default)
def _prelu_backward(p: Builder, want: ResultSpec, g: View, x: View, slope: View) -> tuple[View, View]:
    f = Sums(p, want.sizes)
    positive = f("gt", x, 0.0)
    return f.where(positive, g, f("mul", g, slope)), f.where(positive, 0.0, f("mul", g, x))


@rule(aten.log_sigmoid_forward.default)
def _log_sigmoid(p: Builder, want: ResultSpec, x: View) -> tuple[View, View]:
    f = Sums(p, want.sizes)
    z = f("exp", f("neg", f("abs", x)))
    return f("sub", f("minimum", x, 0.0), f("log1p", z)), z


@activation(aten.log_sigmoid_backward.default)
def _log_sigmoid_backward(f: Sums, g: View, x: View, buffer: View) -> View:
    # σ(-x), out of the exp(-|x|) that the forward pass kept
    return f("mul", g, f("div", f.where(f("lt", x, 0.0), 1.0, buffer), f("add", buffer, 1.0)))


@activation(aten.gelu.default)
def _gelu(f: Sums, x: View, approximate: str = "none") -> View:
    if approximate == "tanh":
        return f("mul", f("mul", x, 0.5), f("add", f("tanh", _gelu_inner(f, x)), 1.0))
    return f("mul", f("mul", x, 0.5), f("add", f("erf", f("mul", x, math.sqrt(0.5))), 1.0))


def _gelu_inner(f: Sums, x: View) -> View:
    return f("mul", f("fma", f("mul", f("square", x), 0.044715), x, x), math.sqrt(2 / math.pi))


@activation(aten.gelu_backward.default)
def _gelu_backward(f: Sums, g: View, x: View, approximate: str = "none") -> View:
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
def _mish(f: Sums, x: View) -> View:
    return f("mul", x, f("tanh", _softplus(f, x)))


@activation(aten.mish_backward.default)
def _mish_backward(f: Sums, g: View, x: View) -> View:
    t = f("tanh", _softplus(f, x))
    slope = f("fma", f("mul", x, f("sigmoid", x)), f("sub", 1.0, f("square", t)), t)
    return f("mul", g, slope)


@activation(aten._prelu_kernel.default)
def _prelu(f: Sums, x: View, slope: View) -> View:
    return f.where(f("gt", x, 0.0), x, f("mul", x, slope))
