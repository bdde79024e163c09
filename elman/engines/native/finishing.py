"""A program after the walk: what nobody reads is dropped, products that may go together are found, scratch memory is
shared out by lifetime, and the places are marked where threads that share columns meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


def _meetings(p: Builder) -> None:
    """Mark what is shared out by columns, and where the threads have to meet before it.

    A run of operations on lines of n elements is shared out alike, so nobody waits within it, unless one writes
    where another one looks with a different share. Around everything else the threads meet.
    """
    seen: list[tuple[tuple[Any, ...], int, int, int, bool]] = []  # memory, begin, length in bytes, n, written
    must = True
    for op in p.ops:
        line = op.count == op.size[3] and op.code not in _WHOLE
        strides = {own[3] for view, own in zip(op.operands, op.strides, strict=True) if view is not None}
        op.split = op.code == "product" or (line and op.size[3] >= SHARED and strides == {1})
        if not op.split or op.code == "product":
            op.wait, must = True, True
            seen.clear()
            continue
        touched = []
        for i, view in enumerate(op.operands):
            if view is None or view.buffer.fixed:
                continue
            root, inner = view.buffer.root()
            size = p.bytes_of(view.type)
            begin = (inner + view.offset) * size + (root.offset if root.kind == "scratch" else 0)
            memory = ("scratch",) if root.kind == "scratch" else (root.kind, root.index)
            touched.append((memory, begin, op.size[3] * size, op.size[3], i < op.results))
        clash = any(
            a[0] == b[0] and a[1] < b[1] + b[2] and b[1] < a[1] + a[2] and (a[4] or b[4]) and a[1:4] != b[1:4]
            for a in touched
            for b in seen
        )
        op.wait = must or clash
        if op.wait:
            seen.clear()
        must = False
        seen += touched


_WHOLE = {"matmul", "gather", "scatter", "scatter_add", "cumsum", "softmax", "log_softmax", "softmax_backward",
          "log_softmax_backward", "layer_norm", "layer_norm_backward", "sum", "prod", "amax", "amin", "argmax",
          "argmin", "any", "all"}  # fmt: skip
