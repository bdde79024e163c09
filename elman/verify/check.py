"""One cell, run every way on every engine, against the plain loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from elman import noise
from elman.circuit.form import InPort, Kind
from elman.engines import Engine
from elman.errors import ElmanError, NotSupported, TraceError
from elman.recurrent import Recurrent
from elman.segments import Layout, Segments
from elman.trace.initial import starting_state
from elman.trace.refuse import message
from elman.verify import loop, referee, report
from elman.verify.compare import Distance, Parts, distance, largest, named, projection
from elman.verify.draw import Drawn, Example, copy_of
from elman.verify.report import Check

Tensor = torch.Tensor
PARTS = report.COLUMNS


@dataclass(frozen=True)
class Way:
    """A way to run sequences. said: of lengths, mask, reset. own: without a state. sizes: (T, B) of each batch. memory:
    as of `Recurrent`."""

    name: str
    said: tuple[str, ...] = ()
    reverse: bool = False
    own: bool = False
    sizes: tuple[tuple[int, int], ...] = ((1, 2), (7, 4))
    memory: Segments | None = None


_SIZES = ((1, 1), (2, 3), (7, 2), (17, 5))  # 17 steps are more than one block of noise
WAYS = (
    Way(report.WHOLE, sizes=_SIZES),
    Way("in reverse", reverse=True, sizes=_SIZES),
    Way("from its own start", own=True),
    Way("lengths", ("lengths",)),
    Way("a mask", ("mask",)),
    Way("resets", ("reset",)),
    Way("all of these in reverse", ("lengths", "mask", "reset"), reverse=True),
    Way("in segments of 3", sizes=((7, 2), (17, 5)), memory=Segments(3)),
)
WHOLE = WAYS[0]


@dataclass(frozen=True)
class Subject:
    """A cell and what is needed to run it: copies of it, exact and not, and where it starts from.

    exact, rough: (dtype, copy); rough is None where there is no coarser precision to look at.
    initial: rows -> the starting state of the exact copy, or why nobody knows it.
    """

    exact: tuple[torch.dtype, torch.nn.Module]
    rough: tuple[torch.dtype, torch.nn.Module] | None
    initial: Callable[[int], Any] | str
    example: Example
    seed: int
    note: str

    @classmethod
    def of(cls, cell: torch.nn.Module, example: Example, seed: int) -> Subject:
        own, note = _dtype(cell, example), ""
        double = (torch.float64, copy_of(cell, torch.float64))
        exact, rough = double, (torch.float32 if own == torch.float64 else own, cell)
        if own != torch.float64 and (reason := _fails(double[1], example, torch.float64)):
            exact, rough = (own, copy_of(cell, own)), None
            note = f"compared in {_short(own)}: in float64 the cell fails ({reason})"
        initial: Callable[[int], Any] | str
        trees = Drawn(1, 1, example.x, example.state, example.context, loop.Said()).to(exact[0])
        try:
            initial = starting_state(exact[1], trees.x, trees.context)
            initial(2)
        except ElmanError as error:
            initial = f"nobody knows what the cell starts from ({error.what})"
        if rough is not None:
            rough = rough[0], copy_of(cell, rough[0])
        return cls(exact, rough, initial, example, seed, note)

    def prevents(self, way: Way) -> str | None:
        """Why sequences cannot run in a way, whichever engine there is."""
        if way.own and not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(self.example.x)):
            return "without x, only a state says the batch size"
        starts = way.own or "reset" in way.said
        return self.initial if starts and isinstance(self.initial, str) else None

    @property
    def bound(self) -> float:
        """What rounding may do, as a share of the largest numbers."""
        return 1e-10 if self.exact[0] == torch.float64 else 1024 * torch.finfo(self.exact[0]).eps


def _dtype(cell: torch.nn.Module, example: Example) -> torch.dtype:
    tensors = [*cell.parameters(), *pytree.tree_leaves((example.x, example.state))]
    return next((t.dtype for t in tensors if isinstance(t, Tensor) and t.is_floating_point()), torch.float64)


def _fails(cell: torch.nn.Module, example: Example, dtype: torch.dtype) -> str | None:
    """Why a cell does not run in a precision, or None."""
    given = Drawn(1, 1, example.x, example.state, example.context, loop.Said()).to(dtype)
    try:
        layer = Recurrent(cell, generator=torch.Generator())
        one = pytree.tree_map(lambda leaf: leaf[None] if isinstance(leaf, Tensor) else leaf, given.x)
        layer(one, given.state, steps=given.steps, context=given.context)
    except (ElmanError, RuntimeError) as error:
        return error.what if isinstance(error, ElmanError) else message(error)
    return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- what is run ----------------------------------------------------------------------------------------------------


class _Fault(NamedTuple):
    """Why a run gave nothing. reason: it is not done, and says so; else it is wrong."""

    words: str
    refused: bool


@dataclass
class Bench:
    """One copy of a cell, its layer, and the numbers it runs on."""

    subject: Subject
    cell: torch.nn.Module
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.layer = Recurrent(self.cell, generator=torch.Generator())

    def ours(self, way: Way, engine: Engine, drawn: Drawn, second: bool = False) -> Parts | _Fault:
        """What the layer computes."""
        layer = self.layer
        layer.reverse, layer.engine, layer.memory = way.reverse, engine, way.memory  # type: ignore[assignment]
        assert layer.generator is not None
        layer.generator.manual_seed(self.subject.seed)
        state = None if way.own else drawn.state
        try:
            results = layer(
                drawn.poisoned(), state, steps=drawn.steps, context=drawn.context, **drawn.said.given()
            )
            return self._parts(results, drawn, way, second)
        except NotSupported as error:
            return _Fault(error.what, refused=True)
        except TraceError as error:
            return _Fault(error.what, refused=second)
        except Exception as error:  # the loop runs, so this is as wrong as another number
            return _Fault(message(error), refused=False)

    def theirs(
        self, way: Way, drawn: Drawn, numbers: Sequence[Tensor], second: bool = False
    ) -> Parts | _Fault:
        """What the loop computes, with the random numbers of `numbers_of`."""
        try:
            return self._parts(self._loop(way, drawn, numbers), drawn, way, second)
        except Exception as error:
            return _Fault(message(error), refused=True)

    def _loop(self, way: Way, drawn: Drawn, numbers: Sequence[Tensor] | torch.Generator) -> tuple[Any, Any]:
        ours = isinstance(numbers, torch.Generator)

        def replay(t: int, b: int | None) -> noise.Replay:
            if isinstance(numbers, torch.Generator):
                return noise.Replay(numbers)
            return noise.Replay([v[t] if b is None or not rows else v[t, b : b + 1] for v, rows in each])

        each = [] if ours else list(zip(numbers, [port.rows for port in self.ports()], strict=True))
        start = drawn.state if not way.own else self.initial(drawn.B)
        return loop.sequences(
            self.cell, drawn.x, start, drawn.context, (drawn.T, drawn.B), drawn.said, way.reverse,
            lambda: self.initial(1), replay if ours or each else None,
        )  # fmt: skip

    def initial(self, rows: int) -> Any:
        own = getattr(self.cell, "initial_state", None)
        assert callable(self.subject.initial)
        return own(rows) if callable(own) else _as(self.subject.initial(rows), self.dtype)

    def ports(self) -> Sequence[InPort]:
        return self.layer.circuit.inputs_of(Kind.NOISE)

    def numbers_of(self, drawn: Drawn) -> list[Tensor]:
        """The random numbers of the latest call, `[T, B, …]` for each draw of the step."""
        seed = int(
            torch.randint(2**62, (), generator=torch.Generator().manual_seed(self.subject.seed)).item()
        )
        layout = Layout.of(drawn.T, drawn.B, torch.device("cpu"), **drawn.said.given())
        if layout.is_packed:
            return [noise.draw(p, i, seed, 0, drawn.T, drawn.B) for i, p in enumerate(self.ports())]
        numbers: list[Tensor] = []
        for i, port in enumerate(self.ports()):
            if layout.packing is None:
                rows = noise.draw(port, i, seed, 0, layout.steps, layout.pieces)
            else:
                rows = noise.draw_rows(port, i, seed, 0, layout.packing.rows)
            numbers.append(layout.unpack(rows.cpu()).to(port.device))  # type: ignore[union-attr]
        return numbers

    def draw(self, way: Way, T: int, B: int) -> Drawn:
        """Sequences on which the loop stays finite, or those of the example's rows."""
        seed = self.subject.seed + 100 * T + B
        for rows in (False, True):
            drawn = self.subject.example.draw(T, B, way.said, seed, rows).to(self.dtype)
            if not rows:
                try:
                    with torch.no_grad():
                        results = self._loop(way, drawn, torch.Generator().manual_seed(seed))
                except Exception:
                    continue
                leaves = [t for t in pytree.tree_leaves(results) if isinstance(t, Tensor)]
                if all(bool(t.isfinite().all()) for t in leaves):
                    break
        return drawn

    def leaves(self, drawn: Drawn, way: Way) -> dict[str, dict[str, Tensor]]:
        """What wants a gradient."""
        parts = {
            "d inputs": {**named(drawn.x, "x"), **named(drawn.context, "context")},
            "d state": {} if way.own else named(drawn.state, "state"),
            "d parameters": dict(self.cell.named_parameters()),
        }
        return {
            part: {name: t for name, t in tensors.items() if t is not None and t.requires_grad}
            for part, tensors in parts.items()
        }

    def _parts(self, results: tuple[Any, Any], drawn: Drawn, way: Way, second: bool) -> Parts:
        values, leaves = _values(results), self.leaves(drawn, way)
        first = _gradients(values, leaves, 7, create_graph=second)
        if not second:
            return {**values, **first}
        return _gradients(first, leaves, 11)

    def settled(
        self, way: Way, drawn: Drawn, numbers: Sequence[Tensor], part: str, got: Parts, expected: Parts
    ) -> Distance | None:
        """How far second derivatives are from central differences, where those of the loop are wrong."""
        leaves = self.leaves(drawn, way)

        def total() -> Tensor:
            values = _values(self._loop(way, drawn, numbers))
            found = _projected(_gradients(values, leaves, 7, create_graph=True), 11)
            return torch.zeros(()) if found is None else found

        return referee.settled(got[part], expected[part], leaves[part], total, self.subject.bound)


def _as(tree: Any, dtype: torch.dtype) -> Any:
    def leaf(t: Any) -> Any:
        return t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t

    return pytree.tree_map(leaf, tree)


def _gradients(
    values: Parts, leaves: dict[str, dict[str, Tensor]], seed: int, create_graph: bool = False
) -> Parts:
    """Gradients of a random projection of all values."""
    total = _projected(values, seed)
    flat = [leaf for named in leaves.values() for leaf in named.values()]
    gradients: Sequence[Tensor | None] = [None] * len(flat)
    if total is not None and flat:
        gradients = torch.autograd.grad(total, flat, allow_unused=True, create_graph=create_graph)
    each = iter(gradients)
    return {part: {name: next(each) for name in named} for part, named in leaves.items()}


def _values(results: tuple[Any, Any]) -> Parts:
    return {"outputs": named(results[0], "outputs"), "final state": named(results[1], "state")}


def _projected(values: Parts, seed: int) -> Tensor | None:
    return projection({f"{part} {name}": v for part, of in values.items() for name, v in of.items()}, seed)


# --- what is compared -----------------------------------------------------------------------------------------------


def checked(
    subject: Subject, engines: Sequence[Engine], notify: Callable[[str], None]
) -> tuple[list[Check], dict[str, str | None]]:
    """All checks; and engine -> why it cannot run the cell, None if it can. notify: is told what is compared."""
    exact = Bench(subject, subject.exact[1], subject.exact[0])
    reasons: dict[str, str | None] = {}
    for engine in engines:
        drawn = exact.draw(WHOLE, 2, 3)
        tried = exact.ours(WHOLE, engine, drawn)
        reasons[engine.name] = tried.words if isinstance(tried, _Fault) and tried.refused else None
    able = [engine for engine in engines if reasons[engine.name] is None]
    checks: list[Check] = []
    second = Way("second derivatives", sizes=((2, 2), (5, 3)))
    for number, way in enumerate(WAYS, 1):
        notify(f"{way.name} ({number} of {len(WAYS) + 2})")
        if (why := subject.prevents(way)) is not None:
            checks += [_unchecked(engine, way.name, why) for engine in able]
            continue
        checks += _compare(exact, way, able)
    notify(f"{second.name} ({len(WAYS) + 1} of {len(WAYS) + 2})")
    checks += _compare(exact, second, able, second=True)
    notify(f"rounding ({len(WAYS) + 2} of {len(WAYS) + 2})")
    checks += _rounding(subject, exact, able)
    order = {engine.name: place for place, engine in enumerate(engines)}
    return sorted(checks, key=lambda check: order[check.engine]), reasons


def _compare(bench: Bench, way: Way, engines: Sequence[Engine], second: bool = False) -> Iterator[Check]:
    """One way on each engine: a check for each part, the worst of all sizes."""
    worst: dict[tuple[str, str], tuple[Distance, str]] = {}
    wrong_loop: dict[tuple[str, str], Distance] = {}
    faults: dict[str, _Fault] = {}
    for T, B in way.sizes:
        drawn = bench.draw(way, T, B)
        expected: Parts | _Fault | None = None
        for engine in engines:
            if engine.name in faults:
                continue
            got = bench.ours(way, engine, drawn, second)
            if expected is None and not (isinstance(got, _Fault) and got.refused):
                expected = bench.theirs(way, drawn, bench.numbers_of(drawn), second)
            if isinstance(expected, _Fault):
                got = _Fault(f"the loop itself fails: {expected.words}", refused=True)
            if isinstance(got, _Fault):
                faults[engine.name] = got
                continue
            assert expected is not None
            assert not isinstance(expected, _Fault)
            least = 1e-2 * max(largest(expected), 1e-30)
            for part, theirs in expected.items():
                apart = distance(got[part], theirs, least)
                key = engine.name, part
                if second and apart.size > bench.subject.bound:
                    numbers = bench.numbers_of(drawn)
                    if (settled := bench.settled(way, drawn, numbers, part, got, expected)) is not None:
                        wrong_loop[key] = max(settled, wrong_loop.get(key, settled))
                        continue
                if theirs and (key not in worst or apart.size > worst[key][0].size):
                    worst[key] = apart, f"{apart.where} at T {T}, B {B}"
    for engine in engines:
        if (fault := faults.get(engine.name)) is not None:
            if fault.refused:
                yield _unchecked(engine, way.name, fault.words)
            else:
                yield Check(
                    engine.name, way.name, "outputs", False, math.inf, bench.subject.bound, fault.words
                )
            continue
        for part in PARTS:
            key = engine.name, part
            far, where = worst.get(key, (None, ""))
            if key in wrong_loop and (far is None or far.size <= bench.subject.bound):
                size = wrong_loop[key].size
                yield Check(
                    engine.name, way.name, part, True, size, referee.BOUND, referee.WORDS, settled=True
                )
            elif far is not None:
                yield _judged(engine, way.name, part, far, bench.subject.bound, where)


def _judged(engine: Engine, way: str, part: str, far: Distance, bound: float, said: str) -> Check:
    if far.nothing:
        return Check(engine.name, way, part, None, None, None, "the loop gives no finite number")
    return Check(engine.name, way, part, far.size <= bound, far.size, bound, said)


def _unchecked(engine: Engine, way: str, why: str) -> Check:
    return Check(engine.name, way, "", None, None, None, why)


def _rounding(subject: Subject, exact: Bench, engines: Sequence[Engine]) -> Iterator[Check]:
    """The error of a coarser precision beside that of the loop. Where a rounding error decides (a threshold), one batch
    says little: the best of three counts."""
    if subject.rough is None:
        yield from (_unchecked(engine, "float32", subject.note) for engine in engines)
        return
    dtype = subject.rough[0]
    name, least = _short(dtype), 8 * torch.finfo(dtype).eps
    bench = Bench(subject, subject.rough[1], dtype)
    for engine in engines:
        best: list[Check] = []
        for number in range(3):
            checks = list(_rounded(bench, exact, engine, name, least, number))
            if not best or _badness(checks) < _badness(best):
                best = checks
            if all(check.passed for check in best):
                break
        yield from best


def _badness(checks: Sequence[Check]) -> int:
    return sum(check.passed is False for check in checks)


def _rounded(
    bench: Bench, exact: Bench, engine: Engine, name: str, least: float, number: int
) -> Iterator[Check]:
    T, B = 9 + number, 3
    drawn = bench.draw(WHOLE, T, B)
    ours = bench.ours(WHOLE, engine, drawn)
    if isinstance(ours, _Fault):
        yield Check(engine.name, name, "", None if ours.refused else False, None, None, ours.words)
        return
    numbers = bench.numbers_of(drawn)
    theirs = bench.theirs(WHOLE, drawn, numbers)
    right = exact.theirs(WHOLE, drawn.to(exact.dtype), [_as(value, exact.dtype) for value in numbers])
    if isinstance(theirs, _Fault) or isinstance(right, _Fault):
        fault = theirs if isinstance(theirs, _Fault) else right
        assert isinstance(fault, _Fault)
        yield _unchecked(engine, name, f"the loop itself fails: {fault.words}")
        return
    size = 1e-2 * max(largest(right), 1e-30)
    for part in PARTS:
        if right[part]:
            far, own = distance(ours[part], right[part], size), distance(theirs[part], right[part], size)
            bound = max(4 * own.size, least)
            yield replace(_judged(engine, name, part, far, bound, far.where), own=own.size)
