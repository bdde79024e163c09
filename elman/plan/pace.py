"""How long a plan takes on a machine, by three numbers about it: for choosing sizes before anything has run.

What a call has to do is counted by what it is bound by, and each kind has a price: in operations that the machine could
do in that time, in bytes that it could read, in calls that Python could make. The prices were fitted once to some 900
calls (GRU, LSTM and others, widths 32 to 512, batches 1 to 64, 1 to 400 steps; `python -m bench --cost` holds them to
other calls) and are the same for every machine; the three numbers are measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.form import Kind
from elman.circuit.operations import operation_of
from elman.plan.form import TIME_OPERATIONS, Plan
from elman.plan.work import numel, work

_CURVED = frozenset(
    {"tanh", "sigmoid", "exp", "log", "softplus", "gelu", "erf", "sin", "cos", "pow", "native_layer_norm"}
)
GAIN = 0.85  # what another thread adds to a team
ALONE = 1 << 18  # multiply-adds that are worth a thread
# Where threads share columns (native/shares.hpp): numbers of the widest weight, at least, and rows of a single step.
LARGE, FEW = 2 * 128 * 128, 64
# Rows of a single step that read weights as they lie (native/products.hpp), and of packing's time, what that takes.
UNPACKED, AS_THEY_LIE = 4, 0.7
NEAR, FAR = 512_000, 64_000_000  # bytes: what the second cache holds, and what lies in memory


@dataclass(frozen=True)
class Machine:
    """A machine in three numbers, for `elman.cost(plan, T, B, machine=)`; `elman.machine()` measures this one.

    flops: floating-point operations a second of a product of matrices. bandwidth: bytes a second that are read again
    and again, out of the second cache. call: seconds of an empty `autograd.Function` and its gradient. All on one
    thread; threads: how many a call may use.
    """

    flops: float
    bandwidth: float
    call: float
    threads: int = 1

    def bytes_a_second(self, size: float) -> float:
        """Of what is so large altogether: the larger, the slower, down to a quarter for what no cache holds."""
        far = math.log(max(size, NEAR) / NEAR) / math.log(FAR / NEAR)
        return self.bandwidth / 4 ** min(far, 1.0)


@dataclass(frozen=True)
class Counts:
    """The work of one run of a plan."""

    trained: float = 0  # 1 where it is one half of a training step, …
    tensors: float = 0  # … what goes in and comes out: in calls
    steps: float = 0  # operations of the loop, at every step
    flops: float = 0  # of products
    curved: float = 0  # numbers that exponentials and the like give in the loop, …
    plain: float = 0  # … and all others, …
    beside: float = 0  # … and operations beside the loop: in operations
    read: float = 0  # bytes of weights, at every step, …
    packed: float = 0  # … made ready once, …
    moved: float = 0  # … of sequences, …
    made: float = 0  # … and of the gradients of parameters

    def __add__(self, other: Counts) -> Counts:
        return Counts(*[getattr(self, f.name) + getattr(other, f.name) for f in fields(self)])

    def shared(self, team: int, columns: bool = False) -> Counts:
        """What each of a team has to do. columns: whether they share the columns of weights; else each reads all."""
        alone = {"trained", "tensors", "steps", *(() if columns else ("read",))}
        by = 1 + GAIN * (team - 1)
        return Counts(*[getattr(self, f.name) / (1 if f.name in alone else by) for f in fields(self)])

    def units(self, machine: Machine) -> dict[str, float]:
        """Each in seconds, before it has a price."""
        weights, sequences = map(machine.bytes_a_second, (self.packed, self.moved))
        by = {
            **dict.fromkeys(("trained", "tensors", "steps"), machine.call),
            **dict.fromkeys(("flops", "curved", "plain", "beside"), 1 / machine.flops),
            **dict.fromkeys(("read", "packed"), 1 / weights), "moved": 1 / sequences, "made": 1 / machine.bandwidth,
        }  # fmt: skip
        return {f.name: getattr(self, f.name) * by[f.name] for f in fields(self)}


PRICES = Counts(
    trained=0.9, tensors=0.048, steps=0.0006, flops=0.97, curved=64, plain=1, beside=80, read=0.5, packed=1.3,
    moved=1.25, made=6,
)  # fmt: skip


def seconds(plan: Plan, T: int, B: int, machine: Machine) -> float:
    """Of a run of a plan by the native engine on T steps of B rows; of a training step, the sum over its two plans."""
    found = counts(plan, T, B, machine.threads).units(machine)
    return sum(getattr(PRICES, name) * value for name, value in found.items())


def counts(plan: Plan, T: int, B: int, threads: int = 1) -> Counts:
    """What one run of a plan on T steps of B rows has to do; with several threads, what the busiest has."""
    ports = (*plan.circuit.inputs, *plan.circuit.outputs)
    kept = sum(port.kept is not None for port in ports)
    tensors = len(ports) - max(kept - 2, 0)  # what a small call keeps goes in one or two
    sums = [plan.circuit.wire(port.wire) for port in plan.circuit.outputs_of(Kind.SUM)]
    made = sum(math.prod(v.shape) * v.dtype.itemsize for node in sums for v in _tensors(node))
    found = Counts(trained=kept > 0, tensors=tensors, made=made)
    for stage, rows in ((plan.once, B), (plan.before, T * B), (plan.after, T * B)):
        here = sum((_beside(node, rows) for node in stage.nodes()), Counts())
        found += here.shared(_team((here.flops + here.beside) / 2, threads))
    if plan.loop is None:
        return found
    results = graphs.results_of(plan.loop.graph)
    passing = [results[name] for name in plan.loop.emits]
    passing += [n for n in plan.loop.graph.nodes if n.op == "placeholder" and n.target in plan.loop.sequences]
    moved = T * sum(numel(v, B) * v.dtype.itemsize for node in passing for v in _tensors(node))
    here = sum((_inside(node, T, B) for node in plan.loop.nodes()), Counts(moved=moved))
    widest = max((_inside(node, 1, B).packed / 4 for node in plan.loop.nodes()), default=0)
    columns = (threads > B or (T == 1 and B <= FEW)) and widest >= LARGE
    most = threads if columns else min(B, threads)
    if T == 1 and B <= UNPACKED:
        here = replace(here, packed=AS_THEY_LIE * here.packed)
    enough = here.flops + here.curved + here.plain >= 4 * ALONE
    return found + here.shared(most if enough else 1, columns)


def _team(work: float, threads: int) -> int:
    return max(1, min(threads, int(work / ALONE)))


def _beside(node: fx.Node, rows: int) -> Counts:
    if _addresses(node):
        return Counts()
    values = [*_tensors(node), *(v for source in node.all_input_nodes for v in _tensors(source))]
    moved = sum(numel(v, rows) * v.dtype.itemsize for v in values)
    if operation_of(node).contracts is not None:
        return Counts(flops=work(node, rows), packed=_weights(node), moved=moved)
    return Counts(beside=work(node, rows), moved=moved)


def _inside(node: fx.Node, T: int, B: int) -> Counts:
    if _addresses(node):
        return Counts()
    if operation_of(node).contracts is not None:
        return Counts(steps=T, flops=T * work(node, B), read=T * _weights(node), packed=_weights(node))
    numbers = T * work(node, B)
    curved = str(node.target).split(".")[1] in _CURVED
    return Counts(steps=T, curved=numbers) if curved else Counts(steps=T, plain=numbers)


def _addresses(node: fx.Node) -> bool:
    return node.target in TIME_OPERATIONS or operation_of(node).addresses


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    value = node.meta["val"]
    return [v for v in (value if isinstance(value, tuple | list) else [value]) if isinstance(v, torch.Tensor)]


def _weights(node: fx.Node) -> int:
    """Bytes of the operands of a product that have no rows."""
    return sum(
        math.prod(v.shape) * v.dtype.itemsize
        for source in node.all_input_nodes
        for v in _tensors(source)
        if v.dim() == 2 and all(isinstance(size, int) for size in v.shape)
    )
