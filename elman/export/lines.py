"""Where in the user's code an operation stands: looked for when it is refused, and not before."""

from __future__ import annotations

from typing import Any

import torch

from elman.circuit.form import Kind
from elman.recurrent import Compound, Recurrent
from elman.trace.refuse import place_of


def line_of(module: torch.nn.Module, target: Any) -> str:
    """The cell, and where it is known the line, of an operation of ATen in a module's recurrences."""
    for layer in _layers(module):
        binding = layer._calls.latest
        if binding is None:
            continue
        circuit, node = binding.program.circuit, None
        for apart in (False, True):
            node = node or _found(circuit, target, apart)
        if node is not None:
            return place_of(circuit.name)(node)
    return type(module).__name__


def _layers(module: torch.nn.Module) -> list[Recurrent]:
    layers = []
    for part in module.modules():
        if isinstance(part, Recurrent):
            layers.append(part)
        elif isinstance(part, Compound):
            layers += _layers(part.as_layer())
    return layers


def _found(circuit: Any, target: Any, apart: bool) -> Any:
    """The first node of a cell's step that calls an operation, with its line. apart: as PyTorch takes things apart."""
    from torch._decomp import core_aten_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    ports = [port for port in circuit.inputs if port.kind is not Kind.NOISE]
    examples = [
        torch.zeros((2, *port.shape) if port.rows else port.shape, dtype=port.dtype, device=port.device)
        for port in ports
    ]

    def step(values: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(circuit.recorded().step({p.name: v for p, v in zip(ports, values, strict=True)}).values())

    table = core_aten_decompositions() if apart else {}
    traced = make_fx(step, decomposition_table=table, record_stack_traces=True)(examples)
    return next((node for node in traced.graph.nodes if node.target is target), None)
