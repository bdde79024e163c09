"""A small example sent through a circuit and back: the numbers that a living picture shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.node import map_arg

from elman.circuit.form import ROWS, Circuit, Kind, results_of
from elman.draw.told import Loss, Told
from elman.draw.variables import word
from elman.unfold import unfold

Tensor = torch.Tensor


@dataclass(frozen=True)
class ExampleRun:
    """values: (node, t) -> its value [B, …]; gradients: the same -> ∂L/∂it; losses: L(t) for t = 1 … τ.

    sums: for each step from the last to the first, parameter -> its gradient summed over the steps so far. inputs: what
    goes into the unfolded graph; L = Σ L(t), and L(t) as a `Loss` says, summed over the rows.
    """

    inputs: dict[str, Tensor]
    values: dict[tuple[str, int], Tensor]
    gradients: dict[tuple[str, int], Tensor]
    losses: list[float]
    sums: list[dict[str, Tensor]]


def example(circuit: Circuit, rows: tuple[Told, ...], loss: Loss, steps: int, seed: int = 0) -> ExampleRun:
    """Run `steps` steps of a circuit on random numbers, one row, and its gradient back through time by autograd.

    Every step has its own copy of the parameters, as in the book, so that its share of their gradient is known.
    """
    inputs = _inputs(circuit, steps, seed)
    graph = unfold(circuit, steps).graph
    constants = {p.name: p for p in circuit.inputs_of(Kind.CONSTANT) if not p.rows}
    copies = {
        (name, t): inputs[name].clone().requires_grad_(constants[name].differentiable)
        for name in constants
        for t in range(steps)
    }
    value: dict[str, Tensor] = {}

    def value_of(node, t: int):  # type: ignore[no-untyped-def]
        return copies[str(node.target), t] if (str(node.target), t) in copies else value[node.name]

    for node in graph.nodes:
        if node.op == "placeholder" and node.target not in constants:
            name, _, t = str(node.target).rpartition("_t")
            if node.target == ROWS:
                value[node.name] = 1  # type: ignore[assignment]
                continue
            at = inputs[name][int(t)] if name in inputs and t.isdigit() else inputs[str(node.target)]
            differs = at.dtype.is_floating_point
            value[node.name] = at.clone().requires_grad_() if differs else at
        elif node.op == "call_function":
            t = int(node.name.rpartition("_t")[2])
            args = map_arg(node.args, lambda one, t=t: value_of(one, t))
            value[node.name] = node.target(*args, **map_arg(node.kwargs, lambda one, t=t: value_of(one, t)))  # type: ignore[operator]
    results = results_of(graph)
    losses: list[Any] = []
    for t in range(steps):
        parts = [value[results[part.name if loss.last else f"{part.name}_t{t}"].name] for part in loss.parts]
        parts = [part.sum() if loss.own else part.square().sum() / 2 for part in parts]
        losses.append(sum(parts) if t == steps - 1 or not loss.last else 0)
    values = {
        (row.key, t + 1): value[f"{row.key}_t{t}"]
        for row in rows
        for t in range(steps)
        if f"{row.key}_t{t}" in value
    }
    total = sum(losses)
    gradients: dict[tuple[str, int], Tensor] = {}
    sums: list[dict[str, Tensor]] = []
    if isinstance(total, Tensor) and total.requires_grad:
        wanted = {at: value for at, value in values.items() if value.requires_grad}
        leaves = {at: copy for at, copy in copies.items() if copy.requires_grad}
        got = torch.autograd.grad(total, [*wanted.values(), *leaves.values()], allow_unused=True)
        shares = dict(zip([*wanted, *leaves], got, strict=True))
        gradients = {
            at: shares[at] if shares[at] is not None else torch.zeros_like(wanted[at]) for at in wanted
        }
        so_far = {name: torch.zeros_like(inputs[name]) for name, t in leaves if t == 0}
        for t in reversed(range(steps)):
            so_far = {n: s if shares[n, t] is None else s + shares[n, t] for n, s in so_far.items()}
            sums.append({word(constants[n].path): s for n, s in so_far.items()})
    logs = {row.key for row in rows if row.log}
    detached = {
        (key, t): value.detach().exp() if key in logs else value.detach()
        for (key, t), value in values.items()
    }
    return ExampleRun(
        inputs, detached, gradients, [float(torch.as_tensor(one).detach()) for one in losses], sums
    )


def backward(circuit: Circuit, rows: tuple[Told, ...], steps: int, seed: int = 0) -> ExampleRun:
    """Run an adjoint on random numbers, one row, from the last step to the first, as it is unfolded."""
    inputs = _inputs(circuit, steps, seed)
    value: dict[str, Any] = {}
    for node in unfold(circuit, steps).graph.nodes:
        if node.op == "placeholder":
            name, _, t = str(node.target).rpartition("_t")
            at = inputs[name][int(t)] if name in inputs and t.isdigit() else inputs.get(str(node.target), 1)
            value[node.name] = at
        elif node.op == "call_function":
            args, more = (map_arg(given, lambda one: value[one.name]) for given in (node.args, node.kwargs))
            value[node.name] = node.target(*args, **more)  # type: ignore[operator]
    values = {
        (row.key, t + 1): value[f"{row.key}_t{t}"]
        for row in rows
        for t in range(steps)
        if f"{row.key}_t{t}" in value
    }
    sums: list[dict[str, Tensor]] = []
    for t in range(steps, 0, -1):
        shares = {
            row.name: values[row.key, t] for row in rows if row.role == "sum" and (row.key, t) in values
        }
        sums.append({name: share + sums[-1][name] if sums else share for name, share in shares.items()})
    return ExampleRun(inputs, values, {}, [], sums)


def _inputs(circuit: Circuit, steps: int, seed: int) -> dict[str, Tensor]:
    """A number for every input, the same for every τ up to 8. A state starts at zero where an input drives it."""
    driven = any(port.kind is Kind.SEQUENCE for port in circuit.inputs)
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for port in circuit.inputs:
        timed = port.kind in (Kind.SEQUENCE, Kind.NOISE)
        size = (
            *([8] if timed else []),
            *([1] if port.rows else []),
            *port.shape,
        )  # the same for every τ up to 8
        if not (port.dtype.is_floating_point or port.dtype.is_complex):
            value = torch.randint(0, 2, size, generator=generator).to(port.dtype)
        elif port.kind is Kind.STATE and driven:
            value = torch.zeros(size, dtype=port.dtype)
        else:
            value = torch.rand(size, generator=generator)
            value = value if port.draw == "uniform" else 2 * value - 1
            if port.kind is Kind.CONSTANT and not port.rows and port.shape:
                value = value / port.shape[-1] ** 0.5
        inputs[port.name] = value[:steps].to(port.dtype) if timed else value.to(port.dtype)
    return inputs


__all__ = ["ExampleRun", "backward", "example"]
