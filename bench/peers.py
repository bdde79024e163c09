"""The table of proof: what elman claims beside each peer, as data, and the run that proves or refutes it.

Rows of one thread run in a process that may use one core, rows of two threads in one of two: JAX takes the cores that
it finds when it is imported. In a process contestants are compared before they are timed, and timed in turns.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench import agree, foreign, limits, measure, newton, ragged, streams
from bench.contestants import ENTRIES
from bench.form import (
    CELL,
    EQUINOX,
    EQUINOX_FAST,
    FLAX,
    FLAX_FAST,
    HOISTED,
    JAX,
    LOOP,
    NEWTON,
    ONNX,
    OURS,
    PACKED,
    PADDED,
    TORCH,
    Shape,
)
from bench.limits import Work

STREAM, TRAINING, RAGGED, SOLVER = "stream", "training", "ragged", "solver"
BFLOAT16 = "elman, bfloat16"
THREADS = (1, 2)
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
ROUNDS = 25


@dataclass(frozen=True)
class Goal:
    """What a peer's time / ours has to reach on so many threads; or, at_most, what ours / the peer's may be."""

    peer: str
    figure: float
    threads: tuple[int, ...] = THREADS
    at_most: bool = False
    ours: str = OURS


@dataclass(frozen=True)
class Row:
    """One contest. Every peer that takes part is printed; the goals say which of them are judged."""

    kind: str
    cell: str
    B: int
    H: int
    T: int
    goals: tuple[Goal, ...] = ()
    threads: tuple[int, ...] = THREADS

    def __str__(self) -> str:
        if self.kind == STREAM:
            return f"{self.cell} stream, H{self.H}"
        words = {TRAINING: "training", RAGGED: "lengths 1 … T", SOLVER: "diagonal cell"}[self.kind]
        return f"{self.cell} {words}, B{self.B} H{self.H} T{self.T}"

    def goal(self, peer: str, ours: str, threads: int) -> Goal | None:
        found = [g for g in self.goals if (g.peer, g.ours) == (peer, ours) and threads in g.threads]
        return found[0] if found else None


@dataclass(frozen=True)
class Line:
    """What was measured of a row beside one peer: seconds of a call. figure, at_most: of the goal; None: no goal.
    least: the seconds that no call can take less than, by the limits measured in the same process."""

    row: str
    threads: int
    ours: str
    peer: str
    ours_seconds: float
    peer_seconds: float
    ratio: float  # peer's / ours, or ours / peer's where the goal is one of at most
    least: float
    figure: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """None where nothing has to be reached."""
        if self.figure is None:
            return None
        return self.ratio <= self.figure if self.at_most else self.ratio >= self.figure

    @property
    def of_limit(self) -> float:
        """The fraction of the limit that our call reaches."""
        return self.least / self.ours_seconds


def _streamed(cell: str, H: int) -> Row:
    goals = [Goal(ONNX, 1.0 if H == 512 else 1.5)]
    if H == 512:
        goals.append(Goal(ONNX, 1.5, ours=BFLOAT16))
    if (cell, H) == ("gru", 128):
        goals.append(Goal(CELL, 8))
    return Row(STREAM, cell, 1, H, 1, tuple(goals))


_ON_JAX = tuple(Goal(peer, 1.15, (1,)) for peer in (FLAX, FLAX_FAST, EQUINOX, EQUINOX_FAST))
_OF_TORCH = {"rnn": (Goal(TORCH, 9),), "gru": (Goal(TORCH, 11),)}
ROWS = (
    *(_streamed(cell, H) for cell in ("gru", "lstm") for H in (64, 128, 256, 512)),
    Row(TRAINING, "rnn", 1, 128, 100, (Goal(JAX, 1.6),)),
    Row(TRAINING, "gru", 32, 256, 50, _ON_JAX),
    Row(TRAINING, "lstm", 32, 256, 50, (*_ON_JAX, Goal(TORCH, 1.2, (2,)))),
    *(
        Row(TRAINING, cell, 16, 64, T, _OF_TORCH.get(cell, ()) if T == 100 else ())
        for cell in ("rnn", "gru", "lstm")
        for T in (1, 10, 100, 1000)
    ),
    Row(RAGGED, "gru", 32, 64, 10, (Goal(PADDED, 0.9, at_most=True), Goal(PACKED, 4))),
    Row(RAGGED, "gru", 32, 256, 10),
    Row(SOLVER, "gru", 1, 128, 1000, (Goal(NEWTON, 5),)),
    Row(SOLVER, "lstm", 1, 128, 1000, (Goal(NEWTON, 5),)),
)


# --- one row, in this process -----------------------------------------------------------------------------------------


def lines(row: Row, seconds: float) -> list[Line]:
    """Compare and time one row with the threads that torch has. Raises Disagreement, Wrong or AssertionError if a
    contestant is wrong. seconds: for the timing, at least three rounds are run."""
    return {STREAM: _stream, TRAINING: _training, RAGGED: _ragged, SOLVER: _solver}[row.kind](row, seconds)


def _line(
    row: Row, peer: str, ours_seconds: float, peer_seconds: float, work: Work, ratio: float, ours: str = OURS
) -> Line:
    """ratio: the peer's / ours."""
    goal = row.goal(peer, ours, torch.get_num_threads())
    at_most = goal is not None and goal.at_most
    return Line(
        str(row), torch.get_num_threads(), ours, peer, ours_seconds, peer_seconds, 1 / ratio if at_most else ratio,
        work.seconds(), None if goal is None else goal.figure, at_most,
    )  # fmt: skip


def _in_turns(row: Row, timed: measure.Row, work: Work) -> list[Line]:
    ours = timed.per_step(OURS) * timed.steps / 1e6
    found = []
    for peer in timed.seconds:
        if peer != OURS:
            theirs = timed.per_step(peer) * timed.steps / 1e6
            found.append(_line(row, peer, ours, theirs, work, timed.ratio(peer)))
    return found


def _stream(row: Row, seconds: float) -> list[Line]:
    """The least of rounds. ONNX Runtime is the faster of its two ways."""
    found = {name: 1e-6 * value for name, value in streams.steps(row.cell, row.H, seconds).items()}
    onnx = [value for name, value in found.items() if name.startswith(ONNX)]
    peers = ({ONNX: min(onnx)} if onnx else {}) | {
        CELL.replace("GRU", row.cell.upper()): found["PyTorch's cell"]
    }
    made = []
    for ours, way, size in ((OURS, "stream, float32", 4), (BFLOAT16, "stream, bfloat16", 2)):
        work = limits.one_step(GATES[row.cell], row.H, size)
        made += [
            _line(row, peer, found[way], theirs, work, theirs / found[way], ours)
            for peer, theirs in peers.items()
            if ours == OURS or row.goal(peer, ours, torch.get_num_threads())
        ]
    return made


def _training(row: Row, seconds: float) -> list[Line]:
    entry, shape = ENTRIES[row.cell], Shape(row.B, row.H)
    cell = entry.case.make(row.H, row.H)
    if row.cell == "gru":
        with torch.no_grad():
            cell.c.zero_()  # a bias that not every peer has
    contestants = [c for c in entry.contestants(cell) if c.name != HOISTED] + foreign.contestants(
        row.cell, cell
    )
    given = measure.problem(entry, shape, row.T)
    agree.check(contestants, cell, given)
    timed = measure.Row(row.cell, str(shape), measure.TRAINING, row.T)
    ways = {c.name: c.training(given) for c in contestants if c.name != LOOP}
    timed.seconds.update(measure.in_turns(ways, ROUNDS, seconds))
    return _in_turns(row, timed, limits.training(GATES[row.cell], row.T, row.B, row.H))


def _ragged(row: Row, seconds: float) -> list[Line]:
    timed = ragged.lengths(row.T, row.B, row.H, seconds)
    names = {ragged.PADDED: PADDED, ragged.PACKED: PACKED}
    work = limits.training(
        GATES[row.cell], (row.T + 1) / 2, row.B, row.H
    )  # as many steps as happen on average
    ours = timed.milliseconds(ragged.RAGGED) / 1e3
    return [
        _line(row, peer, ours, timed.milliseconds(way) / 1e3, work, timed.ratio(way, ragged.RAGGED))
        for way, peer in names.items()
    ]


def _solver(row: Row, seconds: float) -> list[Line]:
    if newton.absent():
        return []
    timed = measure.Row(row.cell, str(Shape(row.B, row.H)), measure.TRAINING, row.T)
    timed.seconds.update(measure.in_turns(newton.ways(row.cell, row.T, row.B, row.H), ROUNDS, seconds))
    flops = 3 * 2 * row.T * row.B * 3 * row.H * row.H  # U x of three gates, and its gradients; W is diagonal
    weights = 4 * 3 * row.H * row.H
    return _in_turns(row, timed, Work(flops, 3 * weights, weights))


def missing() -> dict[str, str]:
    """Peer -> the package that is not installed. braintrace learns online and has no row: see `--online`."""
    found = foreign.missing()
    for peer, package in ((ONNX, "onnxruntime"), (NEWTON, "pararnn")):
        if importlib.util.find_spec(package) is None:
            found[peer] = package
    return found


# --- all rows, each number of threads in a process of its own ---------------------------------------------------------


def run(seconds: float, threads: tuple[int, ...] = THREADS, only: str = "") -> Iterator[dict[str, Any]]:
    """What the processes tell, as it comes: {"limits": …}, {"line": …}, {"done": threads} or
    {"wrong": row and reason}.

    seconds: for the timing of a row. only: rows whose words contain this.
    """
    for count in threads:
        with _cores(count) as enough:
            if not enough:
                yield {"wrong": f"{count} threads: this machine has fewer cores"}
                continue
            words = [sys.executable, "-m", "bench.peers", str(count), str(seconds), only]
            process = subprocess.Popen(
                words,
                cwd=Path(__file__).parents[1],
                stdout=subprocess.PIPE,
                text=True,
                env=_environment(count),
            )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):  # packages print as they like
                    yield json.loads(line)
            if process.wait():
                yield {"wrong": f"{count} threads: the process ended with status {process.returncode}"}
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _cores(count: int) -> Iterator[bool]:
    """A process started inside may use so many cores; False if there are fewer."""
    if not hasattr(os, "sched_setaffinity"):
        yield (os.cpu_count() or 1) >= count
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield len(allowed) >= count
    finally:
        os.sched_setaffinity(0, allowed)


def _environment(count: int) -> dict[str, str]:
    """Where a process cannot be held to a core, JAX is at least told to use one thread."""
    told = {"OMP_NUM_THREADS": str(count), "KERAS_BACKEND": "torch", "JAX_PLATFORMS": "cpu"}
    if count == 1:
        told["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return os.environ | told


def main(threads: int, seconds: float, only: str) -> None:
    """The rows of so many threads: a line of JSON for each result."""

    def notify(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    torch.set_num_threads(threads)
    notify(
        limits={
            "threads": threads,
            "GFLOP/s": limits.peak() / 1e9,
            "GB/s of a copy": limits.copied() / 1e9,
            "GB/s in 256 kB": limits.bandwidth(2**18) / 1e9,
        }
    )
    for row in ROWS:
        if threads in row.threads and only in str(row):
            try:
                for line in lines(row, seconds):
                    notify(line=asdict(line))
            except (agree.Disagreement, streams.Wrong, AssertionError) as reason:
                notify(wrong=f"{row}, {threads} threads: {reason}")
    notify(done=threads)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
