"""A circuit for several examples at once: a circuit again, in which what differs between them has one more dimension.

Running it is running the circuit once for each example, with what they share shared:

    vmapped(f)(θ, x(v), h(v)) = f(θ, x(v), h(v)) for v = 1 … V      [B, …] becomes [B, V, …], [H, I] becomes [V, H, I]

The examples' dimension stands behind the rows, which stay the first one: time is folded into them as in any circuit.
A product with weights that all share has V times as many rows; one with weights of each example's own is a batch of
products. What the operations of the step become is said by the batching rules of torch.vmap, on the graph that is
there: no cell runs again. It commutes with the adjoint, but for the gradient of what is shared, which is a sum over the
examples: so a derivative of such a circuit is such a circuit of the derivative.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Joint, Kind, StepFunction
from elman.errors import CircuitError
from elman.trace.joint import mark_primal
from elman.trace.outside import derived
from elman.vmapped.apart import apart
from elman.vmapped.record import example, places_of, recorded
from elman.vmapped.step import MappedStep
from elman.vmapped.together import beside, together

__all__ = ["apart", "beside", "differing", "together", "vmapped"]

Tensor = torch.Tensor


def vmapped(
    circuit: Circuit, size: int, over: Collection[str], noise: bool = False, summed: Collection[str] = ()
) -> Circuit:
    """The circuit for `size` examples. What comes out has the examples' dimension, `summed` outputs excepted.

    over: names of the input ports that differ between the examples; `differing` says which differ with them. noise:
        whether each example has its own random numbers. summed: outputs that come out added up over the examples.

    Raises NotSupported for an operation that has no batching rule.
    """
    differ = differing(circuit, over, noise)
    inputs = tuple(_widened(port, size) if port.name in differ else port for port in circuit.inputs)
    added = {out.wire.name for out in circuit.outputs if out.name in summed}
    record = _Examples(circuit, size, differ, noise, frozenset(added))
    if any(out.gradient_of or out.tangent_of for out in circuit.outputs):
        graph = _mapped(
            circuit.graph, circuit.name, size, differ, added
        )  # its joint is another graph, not there yet
    else:
        joint = record.joint
        results = graphs.results_of(joint.graph)
        graph = graphs.extract(joint.graph, {name: results[name] for name in joint.results})
        values = [(p.name, graphs.placeholder(joint.graph, p.name).meta["val"]) for p in inputs]
        graphs.with_placeholders(graph, values)
    return replace(circuit, graph=graph, inputs=inputs, record=record).check()


def differing(circuit: Circuit, over: Collection[str], noise: bool) -> frozenset[str]:
    """The input ports that differ between examples where `over` do: every state, for whatever feeds its delay does, and
    what goes out, or into a delay, as it came in."""
    wires = [out.wire for out in circuit.outputs]
    wires += [port.next for port in circuit.inputs_of(Kind.STATE) if port.next is not None]
    states = {port.name for port in circuit.inputs_of(Kind.STATE)}
    drawn = {port.name for port in circuit.inputs_of(Kind.NOISE)} if noise else set()
    inputs = {port.name for port in circuit.inputs}
    return frozenset((inputs & set(over)) | states | {wire.name for wire in wires if wire.is_input} | drawn)


@dataclass(frozen=True, eq=False)
class _Examples:
    """The record of `vmapped`: its joint is the circuit's own, for several examples."""

    of: Circuit
    size: int
    differ: frozenset[str]
    noise: bool
    summed: frozenset[str]

    @property
    def step(self) -> StepFunction:
        def step(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            raise CircuitError(
                what="a higher derivative for several examples is the circuit's own one, for several examples",
                where=self.of.name,
            )

        return step

    @property
    def dual(self) -> bool:
        return self.of.recorded().dual

    @property
    def joint(self) -> Joint:
        return self._joint

    @derived
    def _joint(self) -> Joint:
        joint, size = self.of.recorded().joint, self.size
        drawn = {port.name for port in joint.noise} if self.noise else set()
        differ = self.differ | drawn
        differ |= {placed for result, placed in joint.cotangents.items() if result not in self.summed}
        shared = {g for port, g in joint.gradients.items() if g is not None and port not in differ}
        graph = _mapped(joint.graph, self.of.name, size, differ, self.summed | shared)
        mark_primal(graph, set(joint.cotangents.values()))
        results = graphs.results_of(graph)
        return replace(
            joint,
            graph=graph,
            results={result: results[result].name for result in joint.results},
            noise=tuple(_widened(port, size) if port.name in differ else port for port in joint.noise),
        )


def _widened(port: InPort, size: int) -> InPort:
    return replace(port, shape=(size, *port.shape))


def _mapped(
    graph: fx.Graph, name: str, size: int, differ: Collection[str], added: Collection[str]
) -> fx.Graph:
    """A step's graph for several examples, in normal form. added: results that are added up over the examples."""
    from elman.trace.fakes import Fakes

    fakes, places = Fakes(), places_of(graph)
    values = [example(fakes, n.meta["val"], size if n.target in differ else None) for n in places]

    def examples(inputs: dict[fx.Node, Any]) -> dict[str, Tensor]:
        return MappedStep(size, {node for node in places if node.target in differ}).run(graph, inputs, added)

    return recorded(graph, name, fakes, values, examples)
