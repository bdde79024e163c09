"""Which parameters and which units reach which units of the state in one step: found from the adjoint, not declared.

One step of the adjoint runs with NaN as the cotangent of one unit. What comes out as NaN is what the unit depends on:
products, sums and norms hand a NaN on by themselves; what chooses between numbers, which might not choose it on the
numbers of the probe, is made to; and what looks numbers up, in a place that depends on the numbers, is taken to reach
everywhere.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from elman.circuit import graphs
from elman.circuit.form import ROWS, Circuit, InPort, Kind
from elman.circuit.operations import operation_of

Tensor = torch.Tensor
_ROWS = 2


@dataclass(frozen=True)
class Reach:
    """units: [n, n], whether unit j reaches unit i in a step. pairs: [2, K], unit and parameter number of each pair
    where the parameter reaches the unit, by unit. Numbers are places in what is flattened and put side by side."""

    units: Tensor
    pairs: Tensor


def reach(
    adjoint: Circuit, entering: Mapping[str, str], states: Sequence[InPort], parameters: Sequence[InPort] = ()
) -> Reach:
    """adjoint: with the gradients of states and parameters among its outputs. entering: state -> the port where the
    cotangent of what it is after the step comes in."""
    inputs = {port.name: _numbers(port, seed) for seed, port in enumerate(adjoint.inputs)}
    gradients = {out.gradient_of: out.wire.name for out in adjoint.outputs}
    units, pairs, number = [], [torch.zeros(2, 0, dtype=torch.int64)], 0
    for state in states:
        place = entering.get(state.name)
        for unit in range(math.prod(state.shape)):
            results: Mapping[str, Tensor] = {}
            if place is not None:
                seeded = inputs[place].clone()
                seeded.view(_ROWS, -1)[:, unit] = torch.nan
                results = _run(adjoint.graph, {**inputs, place: seeded})
            units.append(torch.cat([_hit(results.get(gradients.get(s.name, "")), s, True) for s in states]))
            first = 0
            for p in parameters:
                which = _hit(results.get(gradients.get(p.name, "")), p, False).nonzero().squeeze(1) + first
                pairs.append(torch.stack([torch.full_like(which, number), which]))
                first += math.prod(p.shape)
            number += 1
    return Reach(torch.stack(units), torch.cat(pairs, 1))


def _numbers(port: InPort, seed: int) -> Tensor:
    """Cotangents of zero, and numbers that are not."""
    size = [*([_ROWS] if port.rows else []), *port.shape]
    if port.cotangent_of is not None or port.kind is Kind.STATE or not port.dtype.is_floating_point:
        return torch.zeros(size, dtype=port.dtype, device=port.device)
    return (torch.rand(size, generator=torch.Generator().manual_seed(seed)) + 0.5).to(port.device, port.dtype)


def _hit(gradient: Tensor | None, port: InPort, rows: bool) -> Tensor:
    """[the numbers of a port], where a NaN has come."""
    if gradient is None:
        return torch.zeros(math.prod(port.shape), dtype=torch.bool)
    hit = gradient.isnan().cpu()
    return hit.reshape(_ROWS, -1).any(0) if rows else hit.reshape(-1)


def _run(graph: fx.Graph, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One step that hands every NaN on."""
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = _ROWS if node.target == ROWS else inputs[str(node.target)]
        elif node.op == "call_function":
            args, kwargs = (map_arg(part, values.__getitem__) for part in (node.args, node.kwargs))
            target: Any = node.target
            result = target(*args, **kwargs)
            values[node] = result if target is operator.getitem else _handed_on(node, args, result)
    return {name: values[node] for name, node in graphs.results_of(graph).items()}


# Every number of the result is made of all that stand in its line or window, so that a NaN goes its way.
_BY_ITSELF = {
    "convolution", "convolution_backward", "native_layer_norm_backward", "_softmax_backward_data",
    "_log_softmax_backward_data", "sum", "mean", "cumsum",
}  # fmt: skip


def _handed_on(node: fx.Node, args: tuple[Any, ...], result: Any) -> Any:
    """The result of an operation, NaN wherever one of its operands may have a share in it."""
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return result
    operands = [part for arg in args for part in (arg if isinstance(arg, (list, tuple)) else [arg])]
    bad = [o.isnan() for o in operands if isinstance(o, Tensor) and o.is_floating_point()]
    bad = [one for one in bad if one.any()]
    operation = operation_of(node)
    if not bad:
        return result
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        for one in bad:
            result = torch.where(one, torch.nan, result)
        return result
    natural = operation.contracts is not None or operation.name in _BY_ITSELF
    if natural or (operation.addresses and operation.lookup is None):
        return result
    return torch.full_like(result, torch.nan)
