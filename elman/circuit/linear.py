"""What a sum over rows may pass through and still be the sum over all steps' rows: f(a + b) = f(a) + f(b).

One table says in which of its operands an operation is linear. If those are sums over rows, or zero, and everything
else is the same at every step, then f of the whole sum is the sum of the steps' f, and it runs once, after the loop.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

# Operation -> its operands, by position, in which it is linear together.
LINEAR: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            # where numbers are
            "reshape", "view", "_unsafe_view", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "repeat",
            "slice", "select", "diagonal", "unfold", "flip", "roll", "cat", "tril", "triu", "gather", "index",
            "index_select", "split_with_sizes", "unbind", "detach", "clone", "alias", "_to_copy", "diag_embed",
            # sums
            "neg", "sum", "mean", "cumsum", "trace", "div",
            # the Fourier transform, and complex numbers
            "_fft_r2c", "_fft_c2r", "_fft_c2c", "view_as_real", "view_as_complex", "real", "imag", "conj", "_conj",
        ),
        (0,),
    ),
    "add": (0, 1),
    "sub": (0, 1),
    "rsub": (0, 1),
    "where": (1, 2),
    "masked_fill": (0, 2),
    "constant_pad_nd": (0, 2),
    "slice_scatter": (0, 1),
    "select_scatter": (0, 1),
    "scatter": (0, 3),
    "scatter_add": (0, 3),
    "index_add": (0, 3),
    "index_put": (0, 2),
    "_unsafe_index_put": (0, 2),
    # X of A X = B, in B
    "linalg_lu_solve": (2,),
    "linalg_solve_triangular": (1,),
    "triangular_solve": (0,),
    "cholesky_solve": (0,),
}  # fmt: skip
# Linear in one operand while the others stay.
PRODUCTS = ("mul", "mm", "bmm")
# Overloads of these that are not.
_NOT = {"Tensor_mode", "Scalar_mode", "reduce", "value_reduce"}
# All zeros, whatever they are made like.
_ZEROS = {"zeros", "new_zeros", "zeros_like"}
_FILLED = {"full": 1, "new_full": 2, "full_like": 1, "scalar_tensor": 0, "fill": 1}


def stays_summed(node: fx.Node, summed: set[fx.Node], constant: Callable[[fx.Node], bool]) -> bool:
    """Whether a node of batchless operands, some of them sums over rows, is again such a sum.

    summed: the nodes known to be sums over rows. constant: whether a node does not depend on time.
    """
    name = _packet(node)
    if name in _ZEROS:
        return True
    if isinstance(node.target, torch._ops.OpOverload) and node.target._overloadname in _NOT:
        return False
    if name == "_to_copy" and not (_value(node).is_floating_point() or _value(node).is_complex()):
        return False
    if node.target is operator.getitem:
        return node.args[0] in summed
    if name in PRODUCTS:
        linear = tuple(i for i, arg in enumerate(node.args[:2]) if arg in summed)
        if len(linear) != 1:
            return False
    # What autograd calls the backward of an operation is linear in its first operand, the gradient.
    elif name.endswith(("_backward", "_backward_data")):
        linear = (0,)
    elif name in LINEAR:
        linear = LINEAR[name]
    else:
        return False
    terms: list[Any] = []
    for position in linear:
        if position < len(node.args):
            arg = node.args[position]
            terms += arg if isinstance(arg, (list, tuple)) else [arg]
    if not all(term in summed or is_zero(term) for term in terms):
        return False
    others = [n for n in node.all_input_nodes if n not in terms]
    return all(n not in summed and (constant(n) or is_zero(n)) for n in others)


def is_zero(value: Any) -> bool:
    """Whether an argument is zero in every call: a number, or a tensor filled with it."""
    if not isinstance(value, fx.Node):
        return value is None or (isinstance(value, (bool, int, float, complex)) and value == 0)
    name = _packet(value)
    if name in _FILLED:
        position = _FILLED[name]
        return len(value.args) > position and is_zero(value.args[position])
    if name in ("expand", "reshape", "_to_copy"):
        return is_zero(value.args[0])
    return name in _ZEROS


def _packet(node: fx.Node) -> str:
    return node.target.overloadpacket.__name__ if isinstance(node.target, torch._ops.OpOverload) else ""


def _value(node: fx.Node) -> Any:
    return node.meta["val"]
