"""How many bytes a plan has in memory at once, as a function of how much it runs on.

The stages are gone through in the order in which they run, values dying where the engines let them go. What comes in
belongs to the caller and is not counted; what goes out is. An engine may need less (operations element by element are
merged), never more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.form import ROWS, Circuit, Kind
from elman.circuit.rows import factor
from elman.plan.form import TIMELINE, Loop, Plan, Stage, final_of, last, shift, spread, total

aten = torch.ops.aten

# What bytes are counted by: once, for each sequence, for each step, for each packed row.
_ONCE, _SEQUENCE, _STEP, _ROW = np.eye(4)
_NOTHING = np.zeros(4)
_SIZES = 16.0  # bytes that telling the rows of a step takes


@dataclass(frozen=True, eq=False)
class Footprint:
    """points: [M, 4], bytes at moments of the run, once, for each sequence, for each step and for each packed row."""

    points: np.ndarray

    def peak(self, sequences: float, steps: float, rows: float, viewed: float = 0.0) -> float:
        """Bytes at the worst moment.

        viewed: bytes that an engine needs besides for each step.
        """
        return float((self.points @ (1.0, sequences, steps, rows)).max()) + viewed * steps


@dataclass(frozen=True, eq=False)
class Counted:
    """The same of a plan that its engine runs as one function, which says what it needs.

    beside: what that does not count, as a point of a Footprint. bytes: (steps, sequences, packed rows) -> bytes.
    """

    beside: np.ndarray
    bytes: Callable[[int, int, int], int]

    def peak(self, sequences: float, steps: float, rows: float, viewed: float = 0.0) -> float:
        sizes = map(math.ceil, (steps, sequences, rows))
        return float(self.beside @ (1.0, sequences, steps, rows)) + self.bytes(*sizes) + viewed * steps


def handed(circuit: Circuit) -> np.ndarray:
    """What is drawn, and sequences that may not lie in order, which are put in order for the time of a pass."""
    sizes = _STEP * _SIZES
    for port in circuit.inputs:
        if port.kind in (Kind.NOISE, Kind.SEQUENCE) and port.kept is None:
            sizes = sizes + math.prod(port.shape) * port.dtype.itemsize * (_ROW if port.rows else _STEP)
    return sizes


def footprint(plan: Plan) -> Footprint:
    """The bytes of a plan, from its graphs alone."""
    return Footprint(_pruned(_Walk(plan).points))


def held_back(plan: Plan) -> int:
    """Bytes per row and step of what a forward pass that PyTorch runs keeps for the backward one: all of the memory in
    which a part of a value lies."""
    walk = _Walk(plan)
    kept = [plan.outputs[out.name] for out in plan.circuit.outputs if out.kept is not None]
    roots = {walk.root[name] for name in kept if name in walk.root}
    return int(sum(walk.memory[root][3] for root in roots if root in walk.memory))


class _Walk:
    """held: values that travel between stages -> their bytes, nothing for what lies in the memory of another.

    root: values that travel -> the node in whose memory they lie. memory: such a node -> the bytes of its memory.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.points: list[np.ndarray] = []
        self.now = handed(plan.circuit)
        self.held: dict[str, np.ndarray] = {}
        self.root: dict[str, fx.Node] = {}
        self.memory: dict[fx.Node, np.ndarray] = {}
        # Values that are one per sequence, not one per step of it.
        self.single = {p.name for p in plan.circuit.inputs if p.kind in (Kind.CONSTANT, Kind.STATE)}
        self.stage(plan.once, _SEQUENCE)
        names = self.stage(plan.before, _ROW)
        if plan.loop is not None:
            self.loop(plan.loop)
            later = {*plan.after.inputs(), *plan.outputs.values()}
            for name in names:
                if name not in later:
                    self.now = self.now - self.held.pop(name)
        self.stage(plan.after, _ROW)
        self.points.append(self.now)

    def stage(self, stage: Stage, rows: np.ndarray) -> list[str]:
        """Go through a stage; the names of what it makes that lies in memory of its own."""
        results = graphs.results_of(stage.graph)
        kept = set(results.values())
        root: dict[fx.Node, fx.Node] = {}
        left: dict[fx.Node, int] = {}  # readers of the memory of a node, and of views of it
        single: set[fx.Node] = set()
        sizes: dict[fx.Node, np.ndarray] = {}
        order = [node for node in stage.graph.nodes if node.op != "output"]
        for node in order:
            source = graphs.viewed(node) if node.op == "call_function" else None
            root[node] = node if source is None else root[source]
            for operand in node.all_input_nodes:
                left[root[operand]] = left.get(root[operand], 0) + 1
        for node in kept:
            left[root[node]] = left.get(root[node], 0) + 1
        for node in order:
            if node.op == "placeholder":
                if str(node.target) in self.single:
                    single.add(node)
                continue
            timed = [n for n in node.all_input_nodes if n.target not in (ROWS, TIMELINE) and _rows_in(n)]
            if node.target in (total, last) or (
                timed and node.target not in (spread, shift) and all(n in single for n in timed)
            ):
                single.add(node)
            if root[node] is node:
                sizes[node] = _bytes(node.meta.get("val"), _SEQUENCE if node in single else rows)
                self.now = self.now + sizes[node]
                self.points.append(self.now + _room_of(node))
            for operand in node.all_input_nodes:
                base = root[operand]
                left[base] -= 1
                if not left[base] and base in sizes:
                    self.now = self.now - sizes.pop(base)
        names = []
        for name, node in results.items():
            if node in single:
                self.single.add(name)
            base = root[node]
            if base in sizes:
                self.held[name] = self.memory[base] = sizes.pop(base)
                names.append(name)
            self.root[name] = self.root.get(str(base.target), base) if base.op == "placeholder" else base
        return names

    def loop(self, loop: Loop) -> None:
        results = graphs.results_of(loop.graph)
        inputs = {str(n.target): n for n in loop.graph.nodes if n.op == "placeholder"}
        for name in loop.emits:
            size = _bytes(results[name].meta["val"], _STEP if name in loop.stepped else _ROW)
            if name in loop.stepped:
                size = size[0] * _STEP + size[2:].sum() * _STEP
            else:
                size = size + size[3] * _SEQUENCE  # of a state, with the one that it starts from
            self.root[name], self.memory[results[name]] = results[name], size
            self.now = self.now + size
        for state in loop.states:
            self.now = self.now + _bytes(inputs[state.name].meta["val"], _SEQUENCE)
            self.single.add(final_of(state.name))
        for name in loop.sums:
            self.now = self.now + _bytes(results[name].meta["val"], _SEQUENCE)
        # For the time of the loop: weights in the order in which products read them, and one step's values.
        inside = [_bytes(inputs[name].meta["val"], _SEQUENCE) for name in loop.constants if name in inputs]
        inside += [_bytes(node.meta.get("val"), _SEQUENCE) for node in loop.nodes()]
        self.points.append(sum(inside, self.now))


def _room_of(node: fx.Node) -> np.ndarray:
    """What PyTorch needs besides for an operation: a convolution's columns, its image in order, and its result."""
    if node.target is aten.convolution.default:
        image, kernel, out, groups = *node.args[:2], node, node.args[8]
    elif node.target is aten.convolution_backward.default:
        out, image, kernel, groups = *node.args[:3], node.args[9]
    else:
        return _NOTHING
    image, kernel, out = (operand.meta["val"] for operand in (image, kernel, out))  # type: ignore[union-attr]
    taps = math.prod(kernel.shape[1:]) * int(groups) / kernel.shape[0]  # type: ignore[arg-type]
    return _bytes(image, _ROW) + (1 + taps) * _bytes(out, _ROW)


def _rows_in(node: fx.Node) -> bool:
    return bool(_bytes(node.meta.get("val"), _ROW)[3])


def _bytes(value: Any, rows: np.ndarray) -> np.ndarray:
    """Of a fake value; rows: what the rows that it carries are."""
    if isinstance(value, (tuple, list)):
        return sum((_bytes(part, rows) for part in value), _NOTHING)
    if not isinstance(value, torch.Tensor):
        return _NOTHING
    factors = [factor(size) for size in value.shape]
    size = math.prod(k or int(n) for k, n in zip(factors, value.shape, strict=True)) * value.dtype.itemsize
    return size * (rows if any(factors) else _ONCE)


def _pruned(points: Iterable[np.ndarray]) -> np.ndarray:
    """Without those that another is never below."""
    kept: list[np.ndarray] = []
    for point in sorted(points, key=lambda p: -p.sum()):
        if not any((other >= point).all() for other in kept):
            kept.append(point)
    return np.array(kept)
