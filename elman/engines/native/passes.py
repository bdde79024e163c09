"""A plan as one native call (native/pass.hpp): its stages become programs on rows and groups of products.

    passed(plan, ends, single, …)  ->  Pass      or raises Unsupported with the reason

A stage's operations are programs as a loop's are, of one step on as many rows as there are: N beside the loop, B for
what is computed once on a context, one where there are no rows. What is only addressing becomes strides of what reads
it. A value that lives between two pieces of the pass has its place in the pass's memory; what goes out lies in tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from elman.circuit import graphs
from elman.circuit.form import InPort, Kind, OutPort
from elman.circuit.rows import Rows, rows_of
from elman.engines.base import Bundle, Laid
from elman.engines.lookups import failed
from elman.engines.native import bundles
from elman.engines.native.extension import compiled, empty_strided
from elman.engines.native.places import Behind, Memory, Places, delayed
from elman.engines.native.staged import StageWriter
from elman.engines.native.tiles import tiles_of
from elman.engines.native.values import Unsupported, View
from elman.plan.form import Loop, Plan, delays_of, final_of
from elman.segments import Layout
from elman.segments.timeline import Packing


def passed(
    plan: Plan,
    ends: Sequence[str],
    single: bool,
    isa: str,
    ready: Callable[[Loop], Any],
    plain: Callable[..., Any],
    ragged: bool,
    laid: Laid | None = None,
    keeps: Bundle | None = None,
    reads: Bundle | None = None,
) -> Callable[..., tuple[torch.Tensor, ...]]:
    """`(steps, batch, seed, first, *inputs) -> outputs` as `elman.execute.emit.emit` makes it, with the numbers of
    noise as inputs behind all others. Raises Unsupported.

    ready: the interpreter of a loop. plain: called in its stead where there is no step or no row.
    ragged: for rows of different lengths: `(packing, seed, *inputs) -> outputs` on packed rows.
    laid: what is packed, and put back, on the way: `(layout, swaps, seed, *inputs) -> outputs`.
    keeps, reads: what goes out, or comes in, bundled: see `elman.engines.base.Engine.passed`.
    """
    native = _Writer(plan, ends, single, isa, ready, plain, ragged, laid, keeps, reads).function()
    if laid is not None:
        return _Laid(native.laid)
    if not ragged:
        return native
    return _Packed(native.packed, native.bytes)


class _Laid(NamedTuple):
    """The function that packs what comes in, and puts back what goes out."""

    laid: Callable[..., Any]

    def __call__(self, layout: Layout, swaps: bool, seed: int, *inputs: torch.Tensor | None) -> Any:
        return self.laid(layout.told, swaps, *inputs)


class _Packed(NamedTuple):
    """The function on packed rows. bytes: `(steps, batch, rows) -> bytes` that a call needs, as of `compiled.Pass`."""

    packed: Callable[..., Any]
    bytes: Callable[[int, int, int], int]

    def __call__(self, packing: Packing, seed: int, *inputs: torch.Tensor | None) -> Any:
        return self.packed(packing.sizes, *inputs)


class _Writer:
    def __init__(
        self, plan: Plan, ends: Sequence[str], single: bool, isa: str, ready: Callable[[Loop], Any],
        plain: Callable[..., Any], ragged: bool, laid: Laid | None, keeps: Bundle | None, reads: Bundle | None,
    ):  # fmt: skip
        self.plan, self.ends, self.isa, self.plain = plan, ends, isa, plain
        self.single, self.ragged = single, ragged
        self.keeps, self.reads = keeps, reads
        self.ports = [port for port in plan.circuit.inputs if port.kind is not Kind.NOISE]
        self.laid = laid or Laid((None,) * len(self.ports), (None,) * len(plan.circuit.outputs))
        self.places = Places(plan, single, ready)
        self.made: list[tuple[Memory, torch.dtype, list[int] | Behind]] = []

    def function(self) -> Any:
        plan = self.plan
        laid = zip(self.ports, self.laid.inputs, strict=True)
        bundled = {} if self.reads is None else self.reads.lies
        given = [self._given(port, kind) for port, kind in laid if port.name not in bundled]
        given += [] if self.reads is None else bundles.read(self.places, self.reads)
        given += [self._given(port, None) for port in plan.circuit.inputs_of(Kind.NOISE)]
        StageWriter(self.places, plan.once, "batch").write()
        StageWriter(self.places, plan.before, "all").write()
        delays: dict[str, str] = {}
        if plan.loop is not None:
            # Where rows end, a trail's steps do not lie one batch apart.
            delays = {} if self.ragged else delays_of(plan.after, plan.loop.emits)
            self._loop(plan.loop, delays)
        StageWriter(self.places, plan.after, "all", delays).write()
        outcomes = self._outcomes()
        return self._native(given, outcomes)

    def _given(self, port: InPort, kind: Kind | None) -> Memory:
        timed = port.kind in (Kind.SEQUENCE, Kind.NOISE)
        count = ("all" if port.rows else "steps") if timed else "batch" if port.rows else "one"
        like = graphs.placeholder(self.plan.circuit.graph, port.name).meta["val"]
        value = self.places.new(like, _as_given(count, kind))
        assert type(value.buffer) is Memory
        value.buffer.place = "given"
        self.places.values[port.name] = value
        if kind is not None:
            self.places.values[port.name] = self.places.new(like, count)
            order = "pack" if kind is Kind.SEQUENCE else "start"
            self.places.move(order, value, self.places.values[port.name])
        return value.buffer

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _loop(self, loop: Loop, delays: dict[str, str]) -> None:
        results = graphs.results_of(loop.graph)
        given = [
            self.places.values[name]
            for name in (*loop.constants, *loop.sequences, *(s.name for s in loop.states))
        ]
        counts = [{"batch"} if name in loop.rowed else {"one"} for name in loop.constants]
        counts += [{"steps"} if name in loop.stepped else {"all", "trail"} for name in loop.sequences]
        counts += [{"batch"} for _ in loop.states]
        for value, allowed in zip(given, counts, strict=True):
            if value.buffer.count not in allowed:  # type: ignore[attr-defined]
                raise Unsupported("a value of the loop with other rows")
        emits = []
        for name in loop.emits:
            like = results[name].meta["val"]
            if name in loop.stepped or rows_of(like) != Rows(0, 1):
                raise Unsupported(f"'{name}', whose rows are not its first dimension")
            if name in delays and not self.single:
                trail, start = self.places.new(like, "trail"), self.places.values[delays[name]]
                reverse = self.plan.circuit.reverse
                emit = self.places.within(trail, "all", 0 if reverse else 1, 0)
                self.places.values[delayed(name)] = self.places.within(trail, "all", 1 if reverse else 0, 0)
                self.places.copy(start, self.places.within(trail, "batch", 0, 1 if reverse else 0), "batch")
            else:
                emit = self.places.new(like, "all")
            emits.append(emit)
            self.places.values[name] = emit
        finals = []
        inputs = {str(n.target): n for n in loop.graph.nodes if n.op == "placeholder"}
        for state in loop.states:
            node = inputs.get(state.name) or results[str(state.next)]
            finals.append(self.places.new(node.meta["val"], "batch"))
            self.places.values[final_of(state.name)] = finals[-1]
        spots = [self.places.spot(value) for value in (*given, *emits, *finals)]
        self.places.piece(
            ["loop", self.places.ready(loop), 0, self.plan.circuit.reverse, spots],
            [spot[0] for spot in spots],
        )

    # --- what goes out ------------------------------------------------------------------------------------------------

    def _outcomes(self) -> list[list[int]]:
        circuit = self.plan.circuit
        outcomes: list[list[int]] = []
        kept: list[tuple[OutPort, View]] = []
        ready = [self.places.values[self.plan.outputs[out.name]] for out in circuit.outputs]
        homes = [value.buffer.home for value in ready]  # type: ignore[attr-defined]
        for out, value, end, kind in zip(circuit.outputs, ready, self.ends, self.laid.outputs, strict=True):
            memory, like = value.buffer, circuit.wire(out.wire).meta["val"]
            assert type(memory) is Memory
            if self.keeps is not None and out.name in self.keeps.kept:
                kept.append((out, value))
                continue
            if not value.whole or (where := rows_of(like)) not in (None, Rows(0, 1)):
                raise Unsupported(f"'{out.name}', which is a part of another value")
            counts = ("all",) if out.kind is Kind.SEQUENCE else ("batch",) if where else ("one",)
            if memory.count not in counts:
                raise Unsupported(f"'{out.name}', whose rows are others")
            if kind is not None:
                value = self.places.new(like, _as_given(memory.count, kind))
                order = "unpack" if kind is Kind.SEQUENCE else "end"
                self.places.move(order, ready[len(outcomes)], value)
                memory = value.buffer
            elif memory.home.place == "given" or (end == "copy" and homes.count(memory.home) > 1):
                value = View(
                    self.places.memory(memory.type, memory.width, memory.count), 0, value.sizes, value.strides
                )
                self.places.copy(ready[len(outcomes)], value, memory.count)
                memory = value.buffer
            assert type(memory) is Memory
            index = self._made(memory.home, like, where is not None)
            alone = memory.step < 0 and homes.count(memory.home) <= 1
            outcomes.append([index, memory.step, int(end == "own" and not alone)])
        if self.keeps is not None:
            made = [memory for memory, _, _ in self.made]
            for memory, out in bundles.kept(self.places, kept, self.keeps):
                like = circuit.wire(out.wire).meta["val"]
                index = made.index(memory) if memory in made else self._made(memory, like, True)
                outcomes.append([index, -1, 0])
        return outcomes

    def _made(self, memory: Memory, like: torch.Tensor, rows: bool) -> int:
        """The number of the tensor that is made for a place."""
        every = [-2] if self.single else [-4] if self.ragged else [-1, -2]
        lead = {
            "one": [], "batch": [-2], "all": every, "trail": [-3, -2],
            "given steps": [-5, -6], "given batch": [-7],
        }[memory.count]  # fmt: skip
        sizes: list[int] | Behind = lead + [int(size) for size in (like.shape[1:] if rows else like.shape)]
        if memory.place == "bundle":
            sizes = memory.behind
        for i, (other, _, other_sizes) in enumerate(self.made):
            if other is memory:
                if other_sizes != sizes:
                    raise Unsupported("one value that goes out under two shapes")
                return i
        memory.place, memory.index = "made", len(self.made)
        self.made.append((memory, like.dtype, sizes))
        return memory.index

    def _native(self, given: list[Memory], outcomes: list[list[int]]) -> Any:
        tiles = None
        if not (self.single or self.ragged or self.keeps or self.reads):
            homes = [memory for memory, _, _ in self.made]
            tiles = tiles_of(self.places.pieces, self.plan.loop, homes, self.places.bytes)
        for i, piece in enumerate(self.places.pieces):
            for memory in piece.used:
                home = memory.home
                home.first = i if home.first < 0 else home.first
                home.last = i
        for _, end, _ in tiles[1] if tiles else ():
            end[0].home.last = len(self.places.pieces)  # the next tile begins there
        # A place comes after the one that it lies in.
        memories = [m for m in self.places.memories if m.home.first >= 0 or m.place == "made"]
        number = {memory: i for i, memory in enumerate(memories)}

        def numbered(item: Any) -> Any:
            if isinstance(item, Memory):
                return number[item]
            return [numbered(one) for one in item] if isinstance(item, list) else item

        places = [
            [compiled.PLACES[m.place], m.index if m.parent is None else number[m.parent],
             m.width * self.places.bytes[m.type], compiled.ROWS[m.count], m.first, m.last,
             *[elements * self.places.bytes[m.type] for elements in m.behind]]
            for m in memories
        ]  # fmt: skip
        made = [(dtype, sizes) for _, dtype, sizes in self.made]
        pieces = [[compiled.PIECES[piece.flat[0]], *numbered(piece.flat[1:])] for piece in self.places.pieces]
        return compiled.Pass(
            self.isa, self.places.real is torch.float64, places, [number.get(m, -1) for m in given], made, pieces,
            outcomes, numbered(tiles), failed, torch.get_num_threads, self.plain, empty_strided,
            torch.uint8,
        )  # fmt: skip


def _as_given(count: str, kind: Kind | None) -> str:
    """The rows of a value as users have it. Raises Unsupported for one that has other rows than they."""
    if kind is None:
        return count
    if count != ("all" if kind is Kind.SEQUENCE else "batch"):
        raise Unsupported("a sequence without rows of its own")
    return "given steps" if kind is Kind.SEQUENCE else "given batch"
