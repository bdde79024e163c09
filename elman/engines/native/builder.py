"""A program while it is built: buffers and operations on views. What an ATen operation becomes stands in rules/."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from elman.engines.native.extension import compiled
from elman.engines.native.values import BOOL, INT, REAL, Buffer, Unsupported, View, collapse, contiguous

NUMBER = float | int | bool


@dataclass(eq=False)
class Op:
    """One operation. operands: results first; strides are in `strides`, one tuple of four for each operand.

    wait, split, together: as in native/program.hpp.
    """

    code: str
    size: tuple[int, ...]
    operands: list[View | None]
    strides: list[tuple[int, ...]]
    results: int = 1
    k: int = 0
    number: float = 0.0
    wait: bool = False
    split: bool = False
    together: int = 1

    @property
    def count(self) -> int:
        """Elements of a row that it computes, or products in them."""
        return math.prod(self.size) * (max(self.k, 1) if self.code == "matmul" else 1)


@dataclass(eq=False)
class Builder:
    """A program while it grows. real_bytes: 4 or 8. panel: columns of a packed panel."""

    real_bytes: int
    panel: int
    ops: list[Op] = field(default_factory=list)
    prepare: list[Op] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers: dict[tuple[str, bytes, int], View] = {}
        self._packed: dict[tuple[object, ...], View] = {}
        self._spread: dict[tuple[object, ...], View] = {}

    def bytes_of(self, type: str) -> int:
        return {REAL: self.real_bytes, INT: 8}.get(type, 1)

    def buffer(self, kind: str, type: str, width: int, index: int = 0) -> Buffer:
        buffer = Buffer(kind, type, width, index)
        self.buffers.append(buffer)
        return buffer

    def new(self, type: str, sizes: Sequence[int], kind: str = "scratch") -> View:
        """A value that is not there yet."""
        strides = contiguous(sizes)
        width = strides[0] * sizes[0] if sizes else 1
        return View(self.buffer(kind, type, width), 0, tuple(sizes), strides)

    # --- element by element ---------------------------------------------------------------------------------------

    def number(self, value: NUMBER, type: str, sizes: Sequence[int]) -> View:
        """A number as a tensor."""
        width = 1
        for size in sizes:
            width *= size
        if type == INT and not -(2**63) <= int(value) < 2**63:
            raise Unsupported("whole numbers of more than 64 bits")
        # By their bits: 0 and -0 are two numbers, and so are 2⁵³ and 2⁵³ + 1.
        key = (type, struct.pack("q", int(value)) if type == INT else struct.pack("d", value), width)
        if key not in self._numbers:
            line = self.new(type, (width,), "prepared")
            if type == INT:
                self._add("int_fill", [line], k=int(value), prepare=True)
            elif type == REAL:
                self._add("fill", [line], number=float(value), prepare=True)
            else:
                source = self.number(float(value), REAL, (width,))
                self._add("real_to_bool", [line, source], prepare=True)
            self._numbers[key] = line
        view = self._numbers[key].reshape(sizes)
        assert view is not None
        return view

    def map(
        self, code: str, type: str, sizes: Sequence[int], *arguments: View | NUMBER, into: View | None = None
    ) -> View:
        """An operation element by element, arguments broadcast to sizes; numbers are real unless said otherwise."""
        views = [self.number(a, REAL, sizes) if isinstance(a, NUMBER) else a.expand(sizes) for a in arguments]
        fixed = bool(views) and all(view.buffer.fixed for view in views)
        out = into or self.new(type, sizes, "prepared" if fixed else "scratch")
        if not fixed:
            views = [self.in_order(view) if view.buffer.fixed else view for view in views]
        self._add(code, [out, *views], prepare=fixed and out.buffer.fixed)
        return out

    def in_order(self, view: View) -> View:
        """A value as it is read, broadcast and turned; what is fixed is so once per call."""
        if view.contiguous:
            return view
        if not view.buffer.fixed:
            return self.copy(view)
        key = (view.buffer, view.offset, view.sizes, view.strides)
        if key not in self._spread:
            spread = self._spread[key] = self.new(view.type, view.sizes, "prepared")
            self._add(self.copying(view.type), [spread, view], prepare=True)
        return self._spread[key]

    def copying(self, type: str) -> str:
        return f"copy{self.bytes_of(type)}"

    def copy(self, view: View, into: View | None = None) -> View:
        into = into or self.new(view.type, view.sizes)
        return self.map(self.copying(view.type), view.type, view.sizes, view, into=into)

    def _add(
        self, code: str, views: list[View], number: float = 0.0, k: int = 0, prepare: bool = False
    ) -> None:
        _check_types(code, views[1:])
        sizes, strides = collapse(views)
        missing = _missing(code, sizes, compiled.DIMENSIONS)
        if not sizes:  # one element: any stride will do, so the plain one
            strides = [(1,) for _ in views]
            sizes, missing = (1,), compiled.DIMENSIONS - 1
        padded = [(0,) * missing + own for own in strides]
        (self.prepare if prepare else self.ops).append(
            Op(code, (1,) * missing + sizes, list(views), padded, k=k, number=number)
        )

    # --- along lines ------------------------------------------------------------------------------------------------

    def lines(
        self, code: str, outer: Sequence[int], n: int, operands: Sequence[tuple[View, int] | None], results: int = 1,
        k: int = 0, number: float = 0.0,
    ) -> None:  # fmt: skip
        """An operation on lines: each operand is a view of sizes `outer`, and its stride along the line."""
        given = [o for o in operands if o is not None]
        _check_types(code, [o[0] for o in operands[results:] if o is not None])
        sizes, strides = collapse([view.expand(outer) for view, _ in given])
        missing = _missing(code, sizes, compiled.DIMENSIONS - 1)
        padded = iter([(0,) * missing + own + (o[1],) for own, o in zip(strides, given, strict=True)])
        self.ops.append(
            Op(
                code, (1,) * missing + sizes + (n,), [o[0] if o is not None else None for o in operands],
                [next(padded) if o is not None else (0,) * compiled.DIMENSIONS for o in operands], results, k, number,
            )
        )  # fmt: skip

    # --- products ---------------------------------------------------------------------------------------------------

    def product(self, left: View, weight: View, start: View | None, out: View) -> None:
        """out [M, N] = start + left [M, K] · weight [K, N], where weight is fixed: packed once per call."""
        (M, K), (_, N) = left.sizes, weight.sizes
        if K > 1 and left.strides[1] != 1:
            left = self.copy(left)
        packed = self._pack(weight)
        if start is not None:
            start = start.expand((M, N))
            if N > 1 and start.strides[1] != 1:
                start = self.in_order(start)
        for m in range(M):
            row = [None if view is None else view.select(0, m) for view in (out, left, start)]
            operands: list[View | None] = [*row, packed]
            self.ops.append(Op("product", (1, 1, 1, N), operands, [(0, 0, 0, 1)] * 4, k=K))

    def _pack(self, weight: View) -> View:
        key = (weight.buffer, weight.offset, weight.sizes, weight.strides)
        if key not in self._packed:
            K, N = weight.sizes
            panels = self.new(REAL, (-(-N // self.panel) * self.panel * K,), "prepared")
            strides = [(0,) * compiled.DIMENSIONS, (*weight.strides, 0, 0)]
            self.prepare.append(Op("product", (1, 1, 1, N), [panels, weight], strides, k=K))
            self._packed[key] = panels
        return self._packed[key]

    def matmul(self, left: View, right: View, start: View | None, out: View) -> None:
        """out [i, M, N] = start + left [i, M, K] · right [i, K, N], row by row."""
        I, M, N = out.sizes
        K = left.sizes[2]
        strides = [
            (0, *out.strides), (0, *left.expand((I, M, K)).strides), (0, *right.expand((I, K, N)).strides),
            (0,) * 4 if start is None else (0, *start.expand((I, M, N)).strides),
        ]  # fmt: skip
        self.ops.append(Op("matmul", (1, I, M, N), [out, left, right, start], strides, k=K))


def _missing(code: str, sizes: Sequence[int], dimensions: int) -> int:
    """How many dimensions have to be put in front."""
    if len(sizes) > dimensions:
        raise Unsupported(f"{code} over more than {dimensions} dimensions that do not lie in order")
    return dimensions - len(sizes)


def _check_types(code: str, arguments: Sequence[View]) -> None:
    """No operation reads memory as another type than what was written there: that is a reason not to run a loop."""
    expected = _argument_types(code, len(arguments))
    if expected is not None:
        for view, type in zip(arguments, expected, strict=True):
            if view.type != type:
                raise Unsupported(f"{code} of {view.type} values")


def _argument_types(code: str, count: int) -> Sequence[str] | None:
    """Of an operation's arguments; None where all of one size in bytes will do."""
    if code.startswith("copy"):
        return None
    if code.startswith("where"):
        return None
    kind, _, rest = code.partition("_")
    if rest.startswith("to_"):
        return [kind]
    if code in ("gather", "scatter", "scatter_add"):
        return [REAL, INT]
    if code.startswith("int_"):
        return [INT] * count
    if code.startswith("bool_") or code in ("any", "all"):
        return [BOOL] * count
    return [REAL] * count
