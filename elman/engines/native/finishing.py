"""A program after the walk: what nobody reads is dropped, products that may go together are found, scratch memory is
shared out by lifetime, and the places are marked where threads that share columns meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from elman.engines.native.builder import Builder, Op
from elman.engines.native.extension import compiled
from elman.engines.native.values import Buffer, View


def finish(p: Builder) -> tuple[int, int]:
    """Bytes of scratch memory for a row, and of what is prepared in a call."""
    p.ops = _alive(p.ops)
    p.prepare = _needed(p.prepare, p.ops)
    _together(p)
    scratch, prepared = _scratch(p), _prepared(p)
    _meetings(p)
    return scratch, prepared


def root(view: View) -> Buffer:
    return view.buffer.root()[0]


def _alive(ops: list[Op]) -> list[Op]:
    """Without operations whose results nobody reads; results that nobody reads are not written."""
    read: set[Buffer] = set()
    kept: list[Op] = []
    for op in reversed(ops):
        results = [v for v in op.operands[: op.results] if v is not None]
        if not any(root(v).kind in ("emit", "next") or root(v) in read for v in results):
            continue
        if op.results > 1:
            wanted = read | {b for b in map(root, results) if b.kind in ("emit", "next")}
            op.operands[: op.results] = [
                v if v is not None and root(v) in wanted else None for v in op.operands[: op.results]
            ]
        read.update(root(v) for v in op.operands if v is not None)
        kept.append(op)
    return kept[::-1]


def _needed(prepare: list[Op], ops: list[Op]) -> list[Op]:
    read = {root(v) for op in ops for v in op.operands if v is not None}
    kept = []
    for op in reversed(prepare):
        if any(root(v) in read for v in op.operands[: op.results] if v is not None):
            read.update(root(v) for v in op.operands if v is not None)
            kept.append(op)
    return kept[::-1]


def _up(size: int) -> int:
    return -(-size // compiled.LINE) * compiled.LINE


def _together(p: Builder) -> None:
    """Products behind one another go through their columns together (native/packed.hpp), where none waits for what
    another one makes, except for what it begins with, in the same columns."""
    run: list[Op] = []
    for op in p.ops:
        if op.code != "product":
            run = []
        elif run and op.size == run[0].size and all(_side_by_side(one, op) for one in run):
            run.append(op)
            run[0].together = len(run)
        else:
            run = [op]


def _runs(ops: list[Op]) -> Iterator[list[Op]]:
    """Operations, those together that run together."""
    at = 0
    while at < len(ops):
        yield ops[at : at + ops[at].together]
        at += ops[at].together


def _side_by_side(one: Op, other: Op) -> bool:
    """Whether columns of a product may be made before other columns of one in front of it. (A value is made once, so
    nothing that is read here is written over.)"""
    out, _, _ = _lines(one)
    _, left, start = _lines(other)
    return _apart(out, left) and (out == start or _apart(out, start))


def _lines(product: Op) -> list[tuple[Buffer, int, int] | None]:
    """Where result, left factor and start of a product lie: their memory, and from where to where in it."""
    made: list[tuple[Buffer, int, int] | None] = []
    for view in product.operands[:3]:
        if view is None:
            made.append(None)
            continue
        root, inner = view.buffer.root()
        made.append((root, inner + view.offset, inner + view.offset + view.numel))
    return made


def _apart(a: tuple[Buffer, int, int] | None, b: tuple[Buffer, int, int] | None) -> bool:
    return a is None or b is None or a[0] is not b[0] or a[2] <= b[1] or b[2] <= a[1]


def _scratch(p: Builder) -> int:
    """Give scratch buffers their places in a row of scratch: two that are not needed at the same time may share one."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for i, run in enumerate(_runs(p.ops)):
        for view in (view for op in run for view in op.operands):
            if view is not None and root(view).kind == "scratch":
                first.setdefault(root(view), i)
                last[root(view)] = i
    placed: list[Buffer] = []
    end = 0
    for buffer in first:  # in the order in which they are made
        size = _up(buffer.width * p.bytes_of(buffer.type))
        taken = sorted(
            (b.offset, b.offset + _up(b.width * p.bytes_of(b.type)))
            for b in placed
            if last[b] >= first[buffer]
        )
        at = 0
        for start, stop in taken:
            if at + size <= start:
                break
            at = max(at, stop)
        buffer.offset = at
        placed.append(buffer)
        end = max(end, at + size)
    return end


def _prepared(p: Builder) -> int:
    end = 0
    for op in p.prepare:
        for view in op.operands[: op.results]:
            assert view is not None
            root(view).offset = end
            end += _up(root(view).width * p.bytes_of(view.type))
    return end


SHARED = 64  # columns from which an operation is worth sharing out


class _Touched(NamedTuple):
    """What an operation reads or writes. memory: its root, scratch being one. row: where the root lies in a row, its
    elements, and bytes of each. begin, length, n: bytes of the view in a row, and the columns that are shared out."""

    memory: tuple[Any, ...]
    row: tuple[int, int, int]
    begin: int
    length: int
    n: int
    written: bool

    def clashes(self, other: _Touched) -> bool:
        """Whether one thread may write what another one touches. Rows of a block lie one behind another: those of roots
        of other widths, in the same place of scratch memory, overlap each other's columns."""
        if self.memory != other.memory or not (self.written or other.written):
            return False
        if self.row != other.row:
            return _overlap(self.row[0], self.row[1] * self.row[2], other.row[0], other.row[1] * other.row[2])
        here, there = ((one.begin, one.length, one.n) for one in (self, other))
        return here != there and _overlap(*here[:2], *there[:2])


def _overlap(begin: int, length: int, other: int, long: int) -> bool:
    return begin < other + long and other < begin + length


def _meetings(p: Builder) -> None:
    """Mark what is shared out by columns, and where the threads have to meet before it.

    A run of operations on lines of n elements is shared out alike, so nobody waits within it, unless one writes
    where another one looks with a different share. Around everything else the threads meet.
    """
    seen: list[_Touched] = []
    must = True
    for op in p.ops:
        line = op.count == op.size[3] and op.code not in _WHOLE
        strides = {own[3] for view, own in zip(op.operands, op.strides, strict=True) if view is not None}
        op.split = op.code == "product" or (line and op.size[3] >= SHARED and strides == {1})
        if not op.split or op.code == "product":
            op.wait, must = True, True
            seen.clear()
            continue
        touched = [
            _touched(p, view, op.size[3], i < op.results)
            for i, view in enumerate(op.operands)
            if view is not None and not view.buffer.fixed
        ]
        op.wait = must or any(a.clashes(b) for a in touched for b in seen)
        if op.wait:
            seen.clear()
        must = False
        seen += touched


def _touched(p: Builder, view: View, n: int, written: bool) -> _Touched:
    root, inner = view.buffer.root()
    scratch, size = root.kind == "scratch", p.bytes_of(view.type)
    row = (root.offset if scratch else 0, root.width, p.bytes_of(root.type))
    begin = row[0] + (inner + view.offset) * size
    return _Touched(("scratch",) if scratch else (root.kind, root.index), row, begin, n * size, n, written)


_WHOLE = {"matmul", "gather", "scatter", "scatter_add", "cumsum", "softmax", "log_softmax", "softmax_backward",
          "log_softmax_backward", "layer_norm", "layer_norm_backward", "sum", "prod", "amax", "amin", "argmax",
          "argmin", "any", "all"}  # fmt: skip
