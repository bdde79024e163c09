"""What a plan costs: operations by stage, bytes kept for the backward pass, the sequential path, parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import fx

from elman.adjoint import carrying_on
from elman.circuit.form import Circuit, Kind, Wire
from elman.circuit.operations import operation_of
from elman.errors import InputError, expect
from elman.plan.cut import pair
from elman.plan.form import TIME_OPERATIONS, Plan
from elman.plan.memory import needs, schedule
from elman.plan.pace import Machine, seconds
from elman.plan.stages import plan as plan_of
from elman.plan.work import count, duration, size, total_work
from elman.segments.segment import Memory, read_memory


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
    peak: bytes that training needs at once besides what comes in, what is returned and the gradients handed back.
    again: operations that the backward pass does once more, since their results were not kept.
    segments, segment: how many, of how many steps, where there is a budget.
    seconds: about how long the native engine takes, where a machine is given (`elman.machine()`).
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
    peak: int = 0
    again: int = 0
    segments: int = 1
    segment: int = 0
    seconds: float | None = None

    @property
    def total(self) -> int:
        return self.once + self.before + self.loop + self.after

    @property
    def sequential_share(self) -> float:
        """The part of the work that lies in the loop, 0 to 1."""
        return self.loop / self.total if self.total else 0.0

    def __str__(self) -> str:
        share = f"{100 * self.sequential_share:.0f} % of the work"
        cut = []
        if self.segment:
            cut = [
                f"  segments   {self.segments:,} of {self.segment:,} steps",
                f"  peak       {size(self.peak)} at once",
                f"  again      {count(self.again)} operations, computed rather than kept",
            ]
        return "\n".join(
            [
                f"T = {self.steps}, B = {self.batch}",
                f"  once       {count(self.once)} operations",
                f"  before     {count(self.before)}",
                f"  loop       {count(self.loop)}, {share}",
                f"  after      {count(self.after)}",
                f"  kept       {size(self.kept)} for the backward pass",
                *cut,
                f"  path       {self.path:,} operations one after the other, {self.depth} at every step",
                f"  parameters {self.parameters:,}",
                *([] if self.seconds is None else [f"  time       about {duration(self.seconds)}"]),
            ]
        )


def cost(plan: Plan, T: int, B: int, memory: str | Memory = None, machine: Machine | None = None) -> Cost:
    """Count what a plan does on T steps of B rows; a plan of the adjoint counts the backward pass.

    memory: a budget as of `elman.Recurrent`, for the plan of a circuit itself: what training then keeps, needs at once,
        and computes again (for the native engine; the reference engine needs more for each step).
    machine: `elman.machine()` for this one: `seconds` then says about how long the call takes, in float32, of
        dense sequences and without a budget. A training step is two plans, those of `elman.pair(circuit)`.
    Raises InputError for negative sizes, and for a budget that is too small.
    """
    expect(plan, Plan, "the cost is that of a plan", "cost(plan, T, B)", "elman.plan(circuit) gives one")
    for name, given in (("T", T), ("B", B)):
        expect(given, int, f"{name} is a whole number", "cost(plan, T, B)")
    if T < 0 or B < 0:
        raise InputError("sizes are not negative", where="cost(plan, T, B)", got=f"T={T}, B={B}")
    loop = plan.loop.nodes() if plan.loop is not None else []
    depth = _depth(loop)
    around = sum(_depth(stage.nodes()) for stage in plan.stages())
    memory = read_memory(memory)
    return Cost(
        steps=T,
        batch=B,
        once=total_work(plan.once.nodes(), B),
        before=total_work(plan.before.nodes(), T * B),
        loop=T * total_work(loop, B),
        after=total_work(plan.after.nodes(), T * B),
        path=around + T * depth,
        depth=depth,
        parameters=sum(math.prod(p.shape) for p in plan.circuit.inputs_of(Kind.CONSTANT) if not p.rows),
        **(
            {"kept": bytes_kept(plan.circuit) * T * B}
            if memory is None
            else _under(plan.circuit, memory, T, B)
        ),
        seconds=None if machine is None else seconds(plan, T, B, machine),
    )


def _under(circuit: Circuit, memory: Memory, T: int, B: int) -> dict[str, int]:
    """What a budget says of training."""
    if any(port.kept is not None for port in (*circuit.inputs, *circuit.outputs)):
        raise InputError(
            what="a budget is that of a circuit, forward and backward", where="cost(…, memory=)", got=circuit.name,
            mend="take the plan of the circuit itself, elman.plan(rnn.circuit)",
        )  # fmt: skip
    whole = carrying_on(circuit)
    both = pair(whole)
    needed = needs(plan_of(whole), plan_of(both.forward), plan_of(both.backward), both.bytes_per_row)
    chosen = schedule(needed, memory, T, B, None, circuit.name)
    cuts = chosen.cuts
    rows = sum(cuts[cuts.count - 1 - i].end - cuts[cuts.count - 1 - i].start for i in range(chosen.kept))
    return {
        "kept": needed.residuals * rows + chosen.stored * needed.state * B,
        "peak": chosen.peak,
        "again": int(chosen.advances * min(cuts.worst[2], T * B) * needed.again),
        "segments": cuts.count,
        "segment": cuts.length,
    }


def bytes_kept(circuit: Circuit) -> int:
    """Bytes per row and step that training keeps of a circuit: 0 for one that takes in what was kept."""
    kept = [out for out in circuit.outputs if out.kept is not None]
    if kept or any(port.kept is not None for port in circuit.inputs):
        nodes = {circuit.wire(out.wire) for out in kept}
        # A state and what feeds its delay are one sequence.
        nodes -= {fed for port, fed in circuit.delays() if circuit.wire(Wire.input(port.name)) in nodes}
        return sum(math.prod(map(int, n.meta["val"].shape[1:])) * n.meta["val"].dtype.itemsize for n in nodes)
    return pair(circuit).bytes_per_row


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
