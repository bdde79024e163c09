"""How many bytes a plan has in memory at once, as a function of how much it runs on.

The stages are gone through in the order in which they run, values dying where the engines let them go. What comes in
belongs to the caller and is not counted; what goes out is. An engine may need less (operations element by element are
merged), never more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.form import ROWS, Kind
from elman.circuit.rows import factor
from elman.plan.form import TIMELINE, Loop, Plan, Stage, final_of, last, shift, spread, total

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


def footprint(plan: Plan) -> Footprint:
    """The bytes of a plan, from its graphs alone."""
    return Footprint(_pruned(_Walk(plan).points))


class _Walk:
    """held: values that travel between stages -> their bytes, nothing for what lies in the memory of another."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.points: list[np.ndarray] = []
        self.now = _STEP * _SIZES
        self.held: dict[str, np.ndarray] = {}
        self.single: set[str] = set()  # values that are one per sequence, not one per step of it
        for port in plan.circuit.inputs:
            if port.kind is Kind.NOISE:
                size = math.prod(port.shape) * port.dtype.itemsize
                self.now = self.now + size * (_ROW if port.rows else _STEP)
            elif port.kind in (Kind.CONSTANT, Kind.STATE):
                self.single.add(port.name)
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
                self.points.append(self.now)
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
                self.held[name] = sizes.pop(base)
                names.append(name)
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
            self.now = self.now + size
        for state in loop.states:
            self.now = self.now + _bytes(inputs[state.name].meta["val"], _SEQUENCE)
            self.single.add(final_of(state.name))
        for name in loop.sums:
            self.now = self.now + _bytes(results[name].meta["val"], _SEQUENCE)
        # For the time of the loop: weights in the order in which products read them, one step's values, and sequences
        # that do not lie in order.
        kept = {port.name for port in self.plan.circuit.inputs if port.kept is not None}
        given = {p.name for p in self.plan.circuit.inputs_of(Kind.SEQUENCE)} - kept
        inside = [_bytes(inputs[name].meta["val"], _SEQUENCE) for name in loop.constants if name in inputs]
        inside += [_bytes(node.meta.get("val"), _SEQUENCE) for node in loop.nodes()]
        inside += [_bytes(inputs[name].meta["val"], _ROW) for name in loop.sequences if name in given]
        self.points.append(sum(inside, self.now))


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
