"""A step as flat memory and operations on it: what is written out in another language.

    flat = Flat.of(single(module))

One reading of the program that the native engine would run (`elman.engines.native.lower`): one row, everything in the
loop, what is the same at every step worked out now. Statements in C and JavaScript: `statements.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elman.circuit import graphs
from elman.circuit.form import ROWS, Kind
from elman.circuit.signature import identifier
from elman.engines import codegen
from elman.engines.native.builder import Op
from elman.engines.native.extension import why_not_built
from elman.engines.native.lower import Lowered, lower
from elman.engines.native.values import INT, Buffer, Unsupported, View
from elman.errors import NotSupported
from elman.export.step.fixed import evaluated
from elman.export.step.single import Single
from elman.plan.stepwise import stepwise
from elman.recurrent.programs import Argument

_DRAWS = "random numbers"


@dataclass(frozen=True)
class Operand:
    """Where an operand begins, and how far its elements are apart in each of the four dimensions of an operation.

    memory: "x" and "ids", real and whole numbers that go in; "state"; "out"; "scratch"; "whole", whole numbers, those
    of the state first; an array's name; or "", for the number `number` everywhere.
    """

    memory: str
    offset: int = 0
    strides: tuple[int, ...] = (0, 0, 0, 0)
    number: float | int = 0


@dataclass(frozen=True)
class FlatOp:
    """An operation, as `elman.engines.native.builder.Op`. A product's last operand is an array [N, K]."""

    code: str
    size: tuple[int, ...]
    places: tuple[Operand | None, ...]
    k: int = 0
    number: float = 0.0


@dataclass(frozen=True, eq=False)
class Array:
    """What is the same at every step. row: elements in a row of a matrix, None for what is none."""

    name: str
    values: Tensor
    row: int | None = None


@dataclass(frozen=True)
class Leaf:
    """A tensor that goes in, stays, or comes out: the user's word, its memory, where it lies there, its sizes."""

    path: str
    memory: str
    offset: int
    sizes: tuple[int, ...]

    @property
    def width(self) -> int:
        return math.prod(self.sizes)


@dataclass(frozen=True, eq=False)
class Flat:
    """A step. reals, ids, outs, state, scratch, wholes: how many numbers there are in each memory.

    kept: of the whole numbers, so many are part of the state; they come first. start: of the state, reals and whole
    numbers.
    """

    name: str
    inputs: tuple[Leaf, ...]
    states: tuple[Leaf, ...]
    outputs: tuple[Leaf, ...]
    arrays: tuple[Array, ...]
    steps: tuple[FlatOp, ...]
    reals: int
    ids: int
    outs: int
    state: int
    scratch: int
    wholes: int
    kept: int
    start: tuple[list[float], list[int]]

    @classmethod
    def of(cls, step: Single) -> Flat:
        """Raises NotSupported for a step with random numbers, without anything to compute, or with what the native
        engine has no form for."""
        missing = why_not_built()
        if missing is not None:
            raise NotSupported(
                what=f"a step is lowered by the native engine, and {missing}", where="export()"
            )
        try:
            return _Reading(step).flat()
        except Unsupported as reason:
            raise without_form(str(reason), step.name) from None

    def array(self, name: str) -> Array:
        return next(array for array in self.arrays if array.name == name)


def without_form(what: str, where: str) -> NotSupported:
    """The refusal of a step that has something in it for which there is no form. No target draws numbers."""
    return NotSupported(
        what=f"the step cannot be written out: there is no form for {what}", where=where,
        mend="call eval() before, or draw the numbers outside of the step and give them to it as a part of x"
        if what == _DRAWS
        else "write that part of the step in other operations, or export to .pt2, which holds any (.onnx holds some)",
    )  # fmt: skip


# --- reading --------------------------------------------------------------------------------------------------------


class _Reading:
    def __init__(self, step: Single) -> None:
        binding = step.binding
        self.step, self.circuit, self.sources = step, binding.program.circuit, binding.sources
        if self.circuit.inputs_of(Kind.NOISE):
            raise Unsupported(_DRAWS)
        plan = stepwise(self.circuit)
        if plan.loop is None:
            raise Unsupported("a step in which nothing is computed")
        self.plan, self.loop = plan, plan.loop
        if self.loop.stepped:
            raise Unsupported("values without rows")
        self.low: Lowered = lower(self.loop, 1, 1)
        if self.low.real is not torch.float32:
            raise NotSupported(
                what="a step is written out in float32", where=self.step.name, got="float64", mend="module.float()"
            )  # fmt: skip
        self.values = self._constants(binding)
        self.arrays: dict[Any, Array] = {}
        self.names: set[str] = set()
        self.memory: dict[
            tuple[str, int], tuple[str, int]
        ] = {}  # kind and index of a buffer -> its memory, and where
        self.counts = {"x": 0, "ids": 0, "state": 0, "out": 0, "scratch": 0, "whole": 0}

    def _constants(self, binding: Any) -> dict[str, Tensor]:
        """By name: the cell's tensors, and what depends on them alone."""
        values = {
            name: value.detach().cpu()
            for name, value in binding.values(self.step.cell, self.step.xs, self.step.states, []).items()
        }
        stage = self.plan.once
        rows = [ROWS] if any(n.op == "placeholder" and n.target == ROWS for n in stage.graph.nodes) else []
        compute = codegen.function(stage.graph, [*stage.inputs(), *rows], stage.outputs())
        with torch.no_grad():
            results = compute(*[values[name] for name in stage.inputs()], *(1 for _ in rows))
        return values | dict(zip(stage.outputs(), results, strict=True))

    def flat(self) -> Flat:
        inputs = self._inputs()
        states, start = self._states()
        outputs = self._outputs()
        self.fixed = evaluated(self.low.prepare, lambda b: self.values[self.loop.constants[b.index]])
        self.packed = {
            op.operands[0].buffer.root()[0]: op
            for op in self.low.prepare
            if op.code == "product" and op.operands[0]
        }
        kept = self.counts["whole"]
        inplace = self._next()
        self._share_out()
        steps = [self._step(op) for op in self.low.ops]
        steps += [
            _copy(self.memory["next", i], self.memory["state", i], width)
            for i, (emit, width, _) in enumerate(self.low.states)
            if emit < 0 and i not in inplace
        ]
        steps += [
            _copy(self.memory["emit", emit], self.memory["state", i], width)
            for i, (emit, width, _) in enumerate(self.low.states)
            if emit >= 0
        ]
        counts = self.counts
        return Flat(
            self.step.name, inputs, states, outputs, tuple(self.arrays.values()), tuple(steps),
            counts["x"], counts["ids"], counts["out"], counts["state"], counts["scratch"], counts["whole"], kept, start,
        )  # fmt: skip

    # --- memory -----------------------------------------------------------------------------------------------------

    def _take(self, memory: str, width: int) -> int:
        self.counts[memory] += width
        return self.counts[memory] - width

    def _inputs(self) -> tuple[Leaf, ...]:
        leaves = []
        for port, source in zip(self.step.binding.program.inputs, self.sources, strict=True):
            if not (isinstance(source, Argument) and source.name == "x"):
                continue
            memory = "x" if port.dtype.is_floating_point or port.dtype is torch.bool else "ids"
            leaves.append(
                Leaf(port.path, memory, self._take(memory, math.prod(port.shape)), tuple(port.shape))
            )
            if port.name in self.loop.sequences:
                self.memory["sequence", self.loop.sequences.index(port.name)] = memory, leaves[-1].offset
        return tuple(leaves)

    def _states(self) -> tuple[tuple[Leaf, ...], tuple[list[float], list[int]]]:
        places = {state.name: i for i, state in enumerate(self.loop.states)}
        leaves, reals, wholes = [], [], []
        values = iter(self.step.states)
        for port, source in zip(self.step.binding.program.inputs, self.sources, strict=True):
            if not (isinstance(source, Argument) and source.name == "state"):
                continue
            if port.name not in places:
                raise Unsupported(f"the state {port.path}, which no step reads")
            value = next(values).flatten()
            memory = "whole" if port.dtype is torch.int64 else "state"
            leaves.append(
                Leaf(port.path, memory, self._take(memory, math.prod(port.shape)), tuple(port.shape))
            )
            self.memory["state", places[port.name]] = memory, leaves[-1].offset
            (wholes if memory == "whole" else reals).extend(value.tolist())
        return tuple(leaves), ([float(one) for one in reals], wholes)

    def _outputs(self) -> tuple[Leaf, ...]:
        """What the step emits, in the order of the output's tensors; what it hands through is copied."""
        leaves = []
        after = graphs.results_of(self.plan.after.graph)
        for slot in self.step.binding.outputs:
            port = self.circuit.outputs[slot]
            value = self.circuit.wire(port.wire).meta["val"]
            if not (value.dtype.is_floating_point or value.dtype is torch.bool):
                raise Unsupported("an output of whole numbers")
            name = self.plan.outputs[port.name]
            source = str(after[name].target) if name in after and after[name].op == "placeholder" else name
            if source not in self.loop.emits:
                raise Unsupported(f"the output {port.path}, which is made outside of the step")
            sizes = tuple(int(size) for size in value.shape[1:])
            number = self.loop.emits.index(source)
            if ("emit", number) in self.memory:
                raise Unsupported(f"the output {port.path}, which comes out twice")
            leaves.append(Leaf(port.path, "out", self._take("out", math.prod(sizes)), sizes))
            self.memory["emit", number] = "out", leaves[-1].offset
        return tuple(leaves)

    def _next(self) -> set[int]:
        """States whose next value is written over the one before: nobody looks at that any more but the operation
        itself, each element at its own."""
        overwritten = set()
        for i, (emit, _, _) in enumerate(self.low.states):
            writes = [
                n for n, op in enumerate(self.low.ops) if _touches(op.operands[: op.results], "next", i)
            ]
            reads = [
                n for n, op in enumerate(self.low.ops) if _touches(op.operands[op.results :], "state", i)
            ]
            if emit >= 0 or len(writes) != 1:
                continue
            (n,) = writes
            op = self.low.ops[n]
            same = all(
                own == op.strides[0] and view is not None and _start(view) == _start(op.operands[0])
                for view, own in zip(op.operands[1:], op.strides[1:], strict=True)
                if _touches([view], "state", i)
            )
            if max(reads, default=-1) < n or (max(reads) == n and op.code in _ELEMENTWISE and same):
                overwritten.add(i)
                self.memory["next", i] = self.memory["state", i]
        return overwritten

    def _share_out(self) -> None:
        """Scratch memory by lifetime: two values that are not needed at the same time may share a place."""
        end = len(self.low.ops)
        first: dict[Buffer, int] = {}
        last: dict[Buffer, int] = {}
        for n, op in enumerate(self.low.ops):
            for view in op.operands:
                buffer = None if view is None else view.buffer.root()[0]
                if (
                    buffer is None
                    or (buffer.kind, buffer.index) in self.memory
                    or buffer.kind not in ("scratch", "next")
                ):
                    continue
                first.setdefault(buffer, n)
                last[buffer] = end if buffer.kind == "next" else n
        self.at: dict[Buffer, tuple[str, int]] = {}
        base = self.counts["whole"]
        for buffer, begun in first.items():
            memory = "whole" if buffer.type == INT else "scratch"
            taken = sorted(
                (place, place + other.width)
                for other, (kind, place) in self.at.items()
                if kind == memory and last[other] >= begun
            )
            at = base if memory == "whole" else 0
            for start, stop in taken:
                if at + buffer.width <= start:
                    break
                at = max(at, stop)
            self.at[buffer] = memory, at
            self.counts[memory] = max(self.counts[memory], at + buffer.width)
            if buffer.kind == "next":
                self.memory["next", buffer.index] = memory, at

    # --- operations -------------------------------------------------------------------------------------------------

    def _step(self, op: Op) -> FlatOp:
        if op.code == "product":
            out, left, start = (
                self._place(v, s) for v, s in zip(op.operands[:3], op.strides[:3], strict=True)
            )
            assert op.operands[3] is not None
            return FlatOp("product", op.size, (out, left, start, self._matrix(op.operands[3])), op.k)
        places = tuple(
            self._place(v, s, rows=op.code == "gather") for v, s in zip(op.operands, op.strides, strict=True)
        )
        return FlatOp(op.code, op.size, places, op.k, op.number)

    def _place(self, view: View | None, strides: tuple[int, ...], rows: bool = False) -> Operand | None:
        if view is None:
            return None
        buffer, inner = view.buffer.root()
        offset = inner + view.offset
        if buffer.fixed or buffer.kind == "rowed":
            return self._constant(buffer, offset, strides, rows)
        memory, at = self.at[buffer] if buffer in self.at else self.memory[buffer.kind, buffer.index]
        return Operand(memory, at + offset, strides)

    def _constant(self, buffer: Buffer, offset: int, strides: tuple[int, ...], rows: bool) -> Operand:
        value = (
            self.fixed[buffer]
            if buffer.kind == "prepared"
            else self.values[self.loop.constants[buffer.index]]
        )
        flat = value.contiguous().flatten()
        if flat.numel() and bool((flat == flat[0]).all()) and buffer.kind == "prepared":
            return Operand("", number=flat[0].item())
        row = value.shape[1] if rows and value.dim() == 2 else None
        return Operand(self._array(flat, row, self._key(buffer), buffer).name, offset, strides)

    def _matrix(self, packed: View) -> Operand:
        """The array [N, K] of a packed weight: each row makes one number of the result."""
        op = self.packed[packed.buffer.root()[0]]
        view = op.operands[1]
        assert view is not None
        (buffer, inner), (k, n) = view.buffer.root(), (op.k, op.size[3])
        value = (
            self.fixed[buffer]
            if buffer.kind == "prepared"
            else self.values[self.loop.constants[buffer.index]]
        )
        flat = value.contiguous().flatten()
        sk, sn = op.strides[1][:2]
        whole = (
            inner + view.offset == 0 and n * k == flat.numel() and (sk == 1 or k == 1) and (sn == k or n == 1)
        )
        if whole:
            return Operand(self._array(flat, k, self._key(buffer), buffer).name)
        turned = flat.as_strided((n, k), (sn, sk), inner + view.offset).contiguous().flatten()
        return Operand(self._array(turned, k, (self._key(buffer), view.offset, sk, sn, k, n), buffer).name)

    def _key(self, buffer: Buffer) -> Any:
        if buffer.kind == "prepared":
            return buffer
        value = self.values[self.loop.constants[buffer.index]]
        return value.data_ptr(), value.shape  # tied weights are one array

    def _array(self, flat: Tensor, row: int | None, key: Any, buffer: Buffer) -> Array:
        array = self.arrays.get(key)
        if array is None:
            word = self.loop.constants[buffer.index] if buffer.kind != "prepared" else "made"
            name = identifier("w_" + re.sub(r"[^A-Za-z0-9_]", "_", word), self.names)
            array = self.arrays[key] = Array(name, flat, row)
        elif array.row is None and row is not None:
            array = self.arrays[key] = Array(array.name, flat, row)
        return array


def _touches(views: Sequence[View | None], kind: str, index: int) -> bool:
    roots = [view.buffer.root()[0] for view in views if view is not None]
    return any(root.kind == kind and root.index == index for root in roots)


def _start(view: View | None) -> int:
    assert view is not None
    return view.buffer.root()[1] + view.offset


def _copy(source: tuple[str, int], to: tuple[str, int], width: int) -> FlatOp:
    ahead = (0, 0, 0, 1)
    return FlatOp("copy4", (1, 1, 1, width), (Operand(*to, ahead), Operand(*source, ahead)))


# Of whose results each element is made of the arguments' elements at the same place.
_ELEMENTWISE = frozenset({
    "neg", "abs", "sign", "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "sqrt", "rsqrt", "reciprocal", "relu",
    "round", "floor", "ceil", "trunc", "erf", "sin", "cos", "atan", "square", "add", "sub", "mul", "div", "maximum",
    "minimum", "pow", "fmod", "remainder", "floordiv", "atan2", "fma", "fnma", "fms", "lerp", "clamp", "copy1", "copy4",
    "copy8", "where1", "where4", "where8",
})  # fmt: skip
