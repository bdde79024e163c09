"""Where the values of a pass lie, and its pieces while they are written down, in native/pass.hpp's words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elman.engines.native.extension import compiled
from elman.engines.native.values import REAL, Buffer, Unsupported, View, contiguous, row_sizes, type_of
from elman.plan.form import Loop, Plan

Behind = tuple[int, int, int]  # elements: a number, and so many times B and N


@dataclass(eq=False)
class Memory(Buffer):
    """The place of a value in a pass: `count` rows (native/pass.hpp's Rows) of `width` elements.

    parent: the place that it lies in, `behind` its beginning. step: where that is a trail, the step that it begins at.
    """

    count: str = "one"
    place: str = "kept"
    parent: Memory | None = None
    behind: Behind = (0, 0, 0)
    step: int = -1
    first: int = -1  # pieces
    last: int = -1

    @property
    def home(self) -> Memory:
        """Where its memory comes from."""
        return self if self.parent is None else self.parent.home

    @property
    def from_home(self) -> Behind:
        """Where it begins there."""
        if self.parent is None:
            return (0, 0, 0)
        mine, more = self.behind, self.parent.from_home
        return (mine[0] + more[0], mine[1] + more[1], mine[2] + more[2])

    def put_within(self, parent: Memory, behind: Behind) -> None:
        self.place, self.parent, self.behind = "within", parent, behind


@dataclass(frozen=True, eq=False)
class Piece:
    flat: list[Any]  # as native/pass.hpp has it, places left as memories
    used: list[Memory]


class Places:
    """What the writers of a pass share. values: those that travel between stages, by name. ready: the interpreter of a
    loop, or raises Unsupported."""

    def __init__(self, plan: Plan, single: bool, ready: Callable[[Loop], Any]):
        self.plan, self.single, self.ready = plan, single, ready
        self.real = _real(plan)
        self.bytes = {REAL: 8 if self.real is torch.float64 else 4, "int": 8, "bool": 1}
        self.memories: list[Memory] = []
        self.pieces: list[Piece] = []
        self.values: dict[str, View] = {}

    def memory(self, type: str, width: int, count: str, **more: Any) -> Memory:
        memory = Memory("rows", type, width, count=count, **more)
        self.memories.append(memory)
        return memory

    def new(self, like: Any, count: str) -> View:
        """A place for a value like a traced one."""
        sizes = row_sizes(like)
        return View(self.memory(type_of(like), math.prod(sizes), count), 0, sizes, contiguous(sizes))

    def spot(self, value: View) -> list[Any]:
        """Where a value begins whose rows are in order themselves."""
        if not value.contiguous:
            raise Unsupported("a value whose rows do not lie in order")
        return [value.buffer, value.offset * self.bytes[value.type], value.buffer.width]

    def piece(self, flat: list[Any], used: Sequence[Buffer]) -> None:
        self.pieces.append(Piece(flat, list(used)))  # type: ignore[arg-type]

    def copy(self, source: View, target: View, count: str) -> None:
        if source.numel != target.numel or not (source.whole and target.whole) or source.type != target.type:
            raise Unsupported("a copy of a part of a value")
        width = source.numel * self.bytes[source.type]
        self.piece(
            ["copy", self.spot(source), self.spot(target), width, compiled.ROWS[count]],
            (source.buffer, target.buffer),
        )

    def move(self, order: str, source: View, target: View) -> None:
        """The same in another order of rows."""
        if not (source.whole and source.contiguous and source.numel == target.numel):
            raise Unsupported("a move of a part of a value")
        width = source.numel * self.bytes[source.type]
        flat = ["move", self.spot(source), self.spot(target), width, compiled.ORDERS[order]]
        self.piece(flat, (source.buffer, target.buffer))

    def in_time(self, kind: str, source: View, target: View, reverse: bool, *start: View) -> None:
        """A delay, or the ends of rows."""
        views = (source, target, *start)
        whole = all(view.whole and view.type == source.type for view in views)
        counts = [view.buffer.count for view in (source, *start)]  # type: ignore[attr-defined]
        if not whole or len({view.numel for view in views}) > 1 or counts != ["all", "batch"][: len(counts)]:
            raise Unsupported("a delay of a part of a value, or of other rows")
        width = source.numel * self.bytes[source.type]
        first, second, *third = map(self.spot, views)
        self.piece([kind, first, second, width, reverse, *third], [view.buffer for view in views])

    def within(self, value: View, count: str, batches: int, all: int) -> View:
        """A value's rows from some row on."""
        assert type(value.buffer) is Memory
        parent = value.buffer
        if parent.parent is not None:
            raise Unsupported("a part of a part")
        part = self.memory(value.type, parent.width, count, step=batches)
        part.put_within(parent, (0, batches * parent.width, all * parent.width))
        return View(part, value.offset, value.sizes, value.strides)


def delayed(name: str) -> str:
    return f"{name} delayed"


def _real(plan: Plan) -> torch.dtype:
    dtypes = {
        value.dtype
        for stage in (*plan.stages(), plan.loop)
        if stage is not None
        for node in stage.graph.nodes
        if isinstance(value := node.meta.get("val"), torch.Tensor) and value.dtype.is_floating_point
    }
    if not dtypes <= {torch.float32} and not dtypes <= {torch.float64}:
        raise Unsupported("real numbers of several types, or other than float32 and float64")
    return next(iter(dtypes), torch.float32)
