"""What a sum over rows may pass through and still be the sum over all steps' rows: f(a + b) = f(a) + f(b).

operations.py says in which of its operands an operation is linear. If those are sums over rows, or zero, and everything
else is the same at every step, then f of the whole sum is the sum of the steps' f, and it runs once, after the loop.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from elman.circuit.operations import operation_of


def stays_summed(node: fx.Node, summed: set[fx.Node], constant: Callable[[fx.Node], bool]) -> bool:
    """Whether a node of batchless operands, some of them sums over rows, is again such a sum.

    summed: the nodes known to be sums over rows. constant: whether a node does not depend on time.
    """
    if node.target is operator.getitem:
        return node.args[0] in summed
    operation = operation_of(node)
    if operation.zeros:
        return True
    linear = operation.linear
    if operation.bilinear:
        linear = tuple(i for i, arg in enumerate(node.args[:2]) if arg in summed)
        if len(linear) != 1:
            return False
    if not linear or _overload(node) in operation.nonlinear:
        return False
    terms: list[Any] = []
    for position in linear:
        if position < len(node.args):
            arg = node.args[position]
            terms += arg if isinstance(arg, (list, tuple)) else [arg]
    if not all(term in summed or is_zero(term) for term in terms):
        return False
    if not _is_real(node) and any(isinstance(term, fx.Node) and _is_real(term) for term in terms):
        return False  # a copy as whole numbers is rounded
    others = [n for n in node.all_input_nodes if n not in terms]
    return all(n not in summed and (constant(n) or is_zero(n)) for n in others)


def is_zero(value: Any) -> bool:
    """Whether an argument is zero in every call: a number, or a tensor filled with it."""
    if not isinstance(value, fx.Node):
        return value is None or (isinstance(value, (bool, int, float, complex)) and value == 0)
    operation = operation_of(value)
    if operation.filled is not None:
        return len(value.args) > operation.filled and is_zero(value.args[operation.filled])
    if operation.linear == (0,) and (operation.addresses or operation.name == "sum"):
        return is_zero(value.args[0])
    return operation.zeros


def _overload(node: fx.Node) -> str:
    assert isinstance(node.target, torch._ops.OpOverload)
    return node.target._overloadname


def _is_real(node: fx.Node) -> bool:
    value = node.meta["val"]
    return not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex()
