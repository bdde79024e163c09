"""The circuits of the cases, each traced once per process, and what it takes to run them: shared by many tests."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from elman import noise
from elman.adjoint import adjoint, cotangent_ports, expose
from elman.circuit.form import Circuit, Kind
from elman.circuit.structure import flatten, paths
from elman.execute.executable import Call
from elman.plan import Plan, plan
from elman.plan.cut import Pair, pair
from elman.recurrent import Recurrent
from elman.trace.call import store_of
from elman.unfold import Unfolded, unfold
from tests import eager
from tests.cases import CASES
from tests.tensors import tensors

Tensor = torch.Tensor
SEED = 11


@functools.cache
def cell_of(name: str) -> torch.nn.Module:
    return CASES[name].make().double()


@functools.cache
def circuit_of(name: str, reverse: bool = False) -> Circuit:
    """The circuit of a case in float64, traced by a layer: layers of the same cell in other tests share it."""
    if reverse:
        return replace(circuit_of(name), reverse=True).check()
    case, generator = CASES[name], torch.Generator().manual_seed(0)
    layer, x = Recurrent(cell_of(name)), case.x(1, 2, generator)
    layer(x, case.state(2, generator), context=case.context(2, generator), steps=case.steps(1))
    return layer.circuit


@functools.cache
def exposed_of(name: str, reverse: bool = False) -> Circuit:
    return expose(circuit_of(name, reverse))


@functools.cache
def adjoint_of(name: str, reverse: bool = False) -> Circuit:
    return adjoint(circuit_of(name, reverse))


@functools.cache
def unfolded(circuit: Circuit, steps: int) -> Unfolded:
    return unfold(circuit, steps)


@functools.cache
def plan_of(name: str, reverse: bool = False) -> Plan:
    return plan(circuit_of(name, reverse))


@functools.cache
def pair_of(name: str, reverse: bool = False, policy: str = "cut") -> Pair:
    return pair(circuit_of(name, reverse), policy=policy)


@functools.cache
def training_of(name: str, reverse: bool = False, policy: str = "cut") -> tuple[Plan, Plan]:
    """The plans (forward, backward) of training."""
    both = pair_of(name, reverse, policy)
    return plan(both.forward), plan(both.backward)


@dataclass(frozen=True)
class Problem:
    """One run of a circuit: its inputs by port, and the same tensors as the cell takes them.

    inputs: port -> constant, sequence or noise [T, B, …], starting state [B, …]; differentiable ones want gradients.
    """

    name: str
    circuit: Circuit
    cell: torch.nn.Module
    T: int
    B: int
    x: Any
    state: Any
    context: Any
    steps: int | None
    inputs: dict[str, Tensor]

    def call(self) -> Call:
        """The call that draws the same noise as is in `inputs`."""
        return Call(self.T, self.B, SEED, "reference")

    def leaves(self) -> dict[str, Tensor]:
        """The inputs that want gradients."""
        return {port.name: self.inputs[port.name] for port in self.circuit.inputs if port.differentiable}

    def unrolled(self) -> dict[str, Tensor]:
        """The eager loop over the cell, its results by output port of the circuit."""
        drawn = [self.inputs[port.name] for port in self.circuit.inputs_of(Kind.NOISE)]
        outputs, final = eager.unroll(
            self.cell, self.x, self.state, context=self.context, steps=self.steps, reverse=self.circuit.reverse,
            replay=(lambda t: noise.Replay([numbers[t] for numbers in drawn])) if drawn else None,
        )  # fmt: skip
        return dict(zip([out.name for out in self.circuit.outputs], tensors(outputs, final), strict=True))


def problem(name: str, T: int, B: int, *, reverse: bool = False, seed: int = 1) -> Problem:
    case, cell, circuit = CASES[name], cell_of(name), circuit_of(name, reverse)
    generator = torch.Generator().manual_seed(seed)
    x, state, context = case.x(T, B, generator), case.state(B, generator), case.context(B, generator)
    by_path: dict[str, Tensor] = {}
    for value, word in ((x, "x"), (state, "state"), (context, "context")):
        found, structure = flatten(value, word)
        by_path |= dict(zip(paths(structure, word), found, strict=True))
    return Problem(
        name, circuit, cell, T, B, x, state, context, case.steps(T), inputs_of(circuit, cell, by_path, T, B)
    )


def inputs_of(
    circuit: Circuit, cell: torch.nn.Module, by_path: Mapping[str, Tensor], T: int, B: int
) -> dict[str, Tensor]:
    """Port -> tensor: the cell's own tensors, what is passed (by the user's word for it), and noise."""
    assert circuit.signature is not None
    inputs: dict[str, Tensor] = {}
    for port in circuit.inputs:
        if port.kind is Kind.NOISE:
            inputs[port.name] = noise.draw(port, port.number, SEED, 0, T, B)
        elif port.name in circuit.signature.owned:
            place = circuit.signature.owned[port.name][0]
            inputs[port.name] = store_of(cell, place)[place.key]
        elif port.name in circuit.signature.captured:
            inputs[port.name] = circuit.signature.captured[port.name]
        else:
            value = by_path[port.path]
            inputs[port.name] = value.requires_grad_() if port.differentiable else value
    return inputs


def cotangents(values: Mapping[str, Tensor], seed: int = 3) -> dict[str, Tensor]:
    """A random dL/d(value) for every value that carries a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, dtype=value.dtype, generator=generator)
        for name, value in values.items()
        if value.requires_grad
    }


def gradients(
    values: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    leaves: Mapping[str, Tensor],
    *,
    create_graph: bool = False,
) -> dict[str, Tensor]:
    """Autograd's gradient of the leaves, zeros where nothing flows."""
    outputs = [value for name, value in values.items() if name in given]
    found = torch.autograd.grad(
        outputs, list(leaves.values()), [given[name] for name in values if name in given],
        allow_unused=True, create_graph=create_graph,
    )  # fmt: skip
    return {
        name: torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }


def backward_inputs(
    circuit: Circuit,
    back: Circuit,
    inputs: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    T: int,
    B: int,
) -> dict[str, Tensor]:
    """What an adjoint takes in: the circuit's inputs, h(t-1) out of `values` of the exposed circuit, and cotangents."""
    known = dict(inputs)
    known |= {port.name: values[f"{port.name}_before"] for port in circuit.inputs_of(Kind.STATE)}
    ports = cotangent_ports(back)
    known |= {ports[name]: value for name, value in given.items() if name in ports}
    found = {}
    for port in back.inputs:
        size = (
            (() if port.kind in (Kind.STATE, Kind.CONSTANT) else (T,))
            + ((B,) if port.rows else ())
            + port.shape
        )
        value = known.get(port.name)
        found[port.name] = torch.zeros(size, dtype=port.dtype) if value is None else value
        assert found[port.name].shape == size, port
    return found


def assert_close(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-10) -> None:
    """The same names and numbers; an absent entry is a zero."""
    assert set(got) <= set(expected), set(got) - set(expected)
    for name, value in expected.items():
        other = got[name] if name in got else torch.zeros_like(value)
        torch.testing.assert_close(
            other, value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
