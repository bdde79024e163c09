"""What a plan costs: operations by stage, bytes kept for the backward pass, the sequential path, parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from elman.circuit.form import Circuit, Kind, Wire
from elman.circuit.operations import operation_of
from elman.circuit.rows import factor
from elman.errors import InputError, expect
from elman.plan.cut import pair
from elman.plan.form import TIME_OPERATIONS, Plan


@dataclass(frozen=True)
class Cost:
    """The cost of one call on T steps of B rows.

    once, before, loop, after: floating-point operations of each stage, a multiply-add counting as two; `loop`
        is the sum over all T steps.
    kept: bytes that the forward pass keeps for the backward pass, besides inputs, outputs and parameters' own.
    path: how many operations have to wait for one another. It grows with T times the depth of the loop: the book's
        "O(τ), and it cannot be parallelised".
    depth: the depth of one step of the loop, in operations.
    parameters: numbers in the circuit's constants.
    """

    steps: int
    batch: int
    once: int
    before: int
    loop: int
    after: int
    kept: int
    path: int
    depth: int
    parameters: int

    @property
    def total(self) -> int:
        return self.once + self.before + self.loop + self.after

    @property
    def sequential_share(self) -> float:
        """The part of the work that lies in the loop, 0 to 1."""
        return self.loop / self.total if self.total else 0.0

    def __str__(self) -> str:
        share = f"{100 * self.sequential_share:.0f} % of the work"
        return "\n".join(
            [
                f"T = {self.steps}, B = {self.batch}",
                f"  once       {count(self.once)} operations",
                f"  before     {count(self.before)}",
                f"  loop       {count(self.loop)}, {share}",
                f"  after      {count(self.after)}",
                f"  kept       {size(self.kept)} for the backward pass",
                f"  path       {self.path:,} operations one after the other, {self.depth} at every step",
                f"  parameters {self.parameters:,}",
            ]
        )


def cost(plan: Plan, T: int, B: int) -> Cost:
    """Count what a plan does on T steps of B rows; a plan of the adjoint counts the backward pass.

    Raises InputError for negative sizes.
    """
    expect(plan, Plan, "the cost is that of a plan", "cost(plan, T, B)", "elman.plan(circuit) gives one")
    for name, size in (("T", T), ("B", B)):
        expect(size, int, f"{name} is a whole number", "cost(plan, T, B)")
    if T < 0 or B < 0:
        raise InputError("sizes are not negative", where="cost(plan, T, B)", got=f"T={T}, B={B}")
    loop = plan.loop.nodes() if plan.loop is not None else []
    depth = _depth(loop)
    around = sum(_depth(stage.nodes()) for stage in plan.stages())
    return Cost(
        steps=T,
        batch=B,
        once=_work(plan.once.nodes(), B),
        before=_work(plan.before.nodes(), T * B),
        loop=T * _work(loop, B),
        after=_work(plan.after.nodes(), T * B),
        kept=bytes_kept(plan.circuit) * T * B,
        path=around + T * depth,
        depth=depth,
        parameters=sum(math.prod(p.shape) for p in plan.circuit.inputs_of(Kind.CONSTANT) if not p.rows),
    )


def bytes_kept(circuit: Circuit) -> int:
    """Bytes per row and step that training keeps of a circuit: 0 for one that takes in what was kept."""
    kept = [out for out in circuit.outputs if out.kept is not None]
    if kept or any(port.kept is not None for port in circuit.inputs):
        nodes = {circuit.wire(out.wire) for out in kept}
        # A state and what feeds its delay are one sequence.
        nodes -= {fed for port, fed in circuit.delays() if circuit.wire(Wire.input(port.name)) in nodes}
        return sum(math.prod(map(int, n.meta["val"].shape[1:])) * n.meta["val"].dtype.itemsize for n in nodes)
    return pair(circuit).bytes_per_row


def work(node: fx.Node, rows: int) -> int:
    """Floating-point operations of one node on the given number of rows."""
    operation = operation_of(node)
    if node.target in TIME_OPERATIONS or operation.addresses:
        return 0
    values = [
        source.meta["val"] for source in node.all_input_nodes if isinstance(source.meta["val"], torch.Tensor)
    ]
    if operation.contracts is not None:
        first = node.args[operation.contracts]
        assert isinstance(first, fx.Node)
        return 2 * _numel(node.meta["val"], rows) * _sizes(first.meta["val"], rows)[-1]
    made = node.meta["val"]
    out = made if isinstance(made, torch.Tensor) else made[0]
    return max(
        [_numel(value, rows) for value in (*values, out) if isinstance(value, torch.Tensor)], default=0
    )


def _work(nodes: list[fx.Node], rows: int) -> int:
    return sum(work(node, rows) for node in nodes)


def _sizes(value: torch.Tensor, rows: int) -> list[int]:
    return [size if isinstance(size, int) else factor(size) * rows for size in value.shape]


def _numel(value: torch.Tensor, rows: int) -> int:
    return math.prod(_sizes(value, rows))


def _depth(nodes: list[fx.Node]) -> int:
    """The longest chain of operations that compute, each waiting for the one before."""
    depths: dict[Any, int] = {}
    for node in nodes:
        own = 0 if node.target in TIME_OPERATIONS or operation_of(node).addresses else 1
        depths[node] = own + max((_reach(source, depths) for source in node.all_input_nodes), default=0)
    return max(depths.values(), default=0)


def _reach(node: fx.Node, depths: dict[Any, int]) -> int:
    """The depth of a value; reads of tuples are looked through."""
    if node in depths:
        return depths[node]
    return max((_reach(source, depths) for source in node.all_input_nodes), default=0)


def count(number: float) -> str:
    """1_234_567 -> `1.23 M`."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000 or unit == "T":
            return f"{number:.3g} {unit}".rstrip()
        number /= 1000
    raise AssertionError


def size(number: float) -> str:
    """Bytes for people: `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError
