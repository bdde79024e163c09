"""A circuit made ready to run: its plans, each made when it is first needed and kept."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.fx import Node

from elman.adjoint import adjoint, expose
from elman.circuit.form import Circuit, InPort, Kind, OutPort
from elman.execute.body import Call, run
from elman.plan import Plan, plan
from elman.plan.cut import Pair, pair

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Training:
    """The two plans of training, for one choice of inputs that want gradients."""

    pair: Pair
    forward: Plan
    backward: Plan

    @functools.cached_property
    def shared(self) -> frozenset[str]:
        """The gradients that may lie in the memory of another, or of a cotangent."""
        circuit = self.backward.circuit
        return frozenset(
            out.name for out, shared in zip(circuit.outputs, sharing(circuit), strict=True) if shared
        )


class Program:
    """A circuit and its plans. Tensors are listed in the order of `inputs` and `outputs`."""

    def __init__(self, circuit: Circuit):
        self.circuit = circuit
        self.inputs: tuple[InPort, ...] = tuple(p for p in circuit.inputs if p.kind is not Kind.NOISE)
        self.outputs: tuple[OutPort, ...] = circuit.outputs
        self._training: dict[frozenset[str], Training] = {}
        self._adjoints: dict[frozenset[str], Program] = {}

    @functools.cached_property
    def plan(self) -> Plan:
        """The plan for a call that wants no gradient."""
        return plan(self.circuit)

    @functools.cached_property
    def has_noise(self) -> bool:
        return any(port.kind is Kind.NOISE for port in self.circuit.inputs)

    @functools.cached_property
    def carrying(self) -> tuple[bool, ...]:
        """For each output, whether gradients flow through it."""
        joint = self.circuit.joint()
        inputs = {port.name for port in self.inputs if port.differentiable}
        return tuple(out.wire in joint.cotangents or out.wire in inputs for out in self.outputs)

    @functools.cached_property
    def sharing(self) -> tuple[bool, ...]:
        """For each output, whether it may lie in the memory of an input, or of an output before it."""
        return sharing(self.circuit)

    def training(self, wants: frozenset[str]) -> Training:
        """The plans for a call in which the inputs `wants` require gradients."""
        found = self._training.get(wants)
        if found is None:
            both = pair(self.circuit, wants)
            found = self._training[wants] = Training(both, plan(both.forward), plan(both.backward))
        return found

    @functools.cached_property
    def exposed(self) -> Program:
        """The same with h(t-1) of every state as outputs, for derivatives of the gradient."""
        return Program(expose(self.circuit))

    def adjoint(self, wants: frozenset[str]) -> Program:
        """The program of the adjoint circuit."""
        found = self._adjoints.get(wants)
        if found is None:
            found = self._adjoints[wants] = Program(adjoint(self.circuit, wants))
        return found

    def run(self, call: Call, tensors: list[Tensor | None]) -> list[Tensor]:
        """Without gradients."""
        made = run(self.plan, call, self.named(tensors))
        return [made[port.name] for port in self.outputs]

    def named(self, tensors: list[Tensor | None]) -> Mapping[str, Tensor | None]:
        return {port.name: tensor for port, tensor in zip(self.inputs, tensors, strict=True)}


def sharing(circuit: Circuit) -> tuple[bool, ...]:
    """For each output of a circuit, whether it may lie in the memory of an input, or of an output before it."""
    seen: set[tuple[Kind, Node]] = set()
    found = []
    for out in circuit.outputs:
        base = _memory(circuit.wire(out.wire))
        found.append(base.op == "placeholder" or (out.kind, base) in seen)
        seen.add((out.kind, base))
    return tuple(found)


def _memory(node: Node) -> Node:
    """The node whose memory a value may lie in: itself, or what it is a view of."""
    while (
        isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.returns[0].alias_info is not None
    ):
        node = node.all_input_nodes[0]
    return node
