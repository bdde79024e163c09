"""Directions of what does not change, while a tangent's step is traced, or one that takes derivatives forward itself.

PyTorch has a kind of tensor without numbers for them, which it can only compute with where all sizes are known. Here
they are zeros, marked in the graph, and what is computed with them is left away again as PyTorch would have done.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from elman.circuit import graphs
from elman.circuit.linear import is_zero
from elman.circuit.operations import operation_of
from elman.trace.record import recorded_as

aten = torch.ops.aten
MARK = "unchanging"  # in the meta of a node


class WithZeros(TorchDispatchMode):
    """Inside, the direction of what does not change is zeros."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not aten._efficientzerotensor.default:
            return func(*args, **kwargs)
        if not args[0] and kwargs.get("device", torch.device("cpu")).type == "cpu":
            # That of a number in the code, which PyTorch reads again as a number: it has to be a tensor that has one.
            with _disable_current_modes():
                return torch.zeros(*args, **kwargs)
        zeros = torch.zeros(*args, **kwargs)
        if (node := recorded_as(zeros)) is not None:
            node.meta[MARK] = True
        return zeros


def without_unchanging(graph: fx.Graph, whole: bool = True) -> set[str]:
    """Leave away what is computed with directions of what does not change; the names of results that are such ones,
    which go as well.

    whole: the graph is a tangent. One of a step that pushes directions forward itself keeps its results, and what it
        says with the number 0.
    """
    still: set[fx.Node] = {node for node in graph.nodes if MARK in node.meta}
    if not (still or whole):
        return set()
    for node in list(graph.nodes):
        if node.op != "call_function" or not any(_is_still(arg, still) for arg in node.args):
            continue
        if not whole and still.isdisjoint(node.all_input_nodes):
            continue
        if _stands_still(node, still):
            still.add(node)
        elif node.target in (aten.add.Tensor, aten.sub.Tensor):
            other = _other(graph, node, still)
            if other is not None:
                node.replace_all_uses_with(other)
    results = graphs.results_of(graph)
    gone = {name for name, node in results.items() if node in still and whole}
    out = next(node for node in reversed(graph.nodes) if node.op == "output")
    out.args = ({name: node for name, node in results.items() if name not in gone},)
    graphs.drop_dead(graph)
    return gone


def _is_still(value: Any, still: set[fx.Node]) -> bool:
    """Whether an operand is a direction that is zero: a number in the code has one, too."""
    if isinstance(value, (list, tuple)):
        return any(_is_still(part, still) for part in value)
    return value in still if isinstance(value, fx.Node) else type(value) in (int, float) and value == 0


def _stands_still(node: fx.Node, still: set[fx.Node]) -> bool:
    """Whether an operation makes nothing out of directions that are zero."""
    if node.target is operator.getitem:
        return node.args[0] in still
    operation = operation_of(node)
    if operation.bilinear:
        return any(_is_still(arg, still) for arg in node.args[:2])
    if not operation.linear or str(getattr(node.target, "_overloadname", "")) in operation.nonlinear:
        return False
    terms: list[Any] = []
    for position in operation.linear:
        if position < len(node.args):
            arg = node.args[position]
            terms += arg if isinstance(arg, (list, tuple)) else [arg]
    return all(term in still or is_zero(term) for term in terms)


def _other(graph: fx.Graph, node: fx.Node, still: set[fx.Node]) -> fx.Node | None:
    """The operand of a sum that is left where the other one is zero; None where it would have to be worked on."""
    first, second = node.args[:2]
    kept = second if _is_still(first, still) else first
    factor = node.kwargs.get("alpha", 1) if kept is second else 1
    if not isinstance(kept, fx.Node) or factor != 1:
        return None
    if _form(kept) != _form(node):
        return None
    if kept is second and node.target is aten.sub.Tensor:
        with graph.inserting_before(node):
            return graphs.insert(graph, aten.neg.default, kept, like=node)
    return kept


def _form(node: fx.Node) -> tuple[Any, ...]:
    """Shape and dtype, symbolic sizes by what they are called."""
    value = node.meta["val"]
    return value.dtype, *(str(size) for size in value.shape)
