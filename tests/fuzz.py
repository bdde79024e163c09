"""Cells that nobody has thought of, run every way: python -m tests.fuzz --cells 200 --seed 0 [--minutes M]

    make fuzz ARGS="--cells 2000"

Each cell (tests/strategies.py draws it) runs in every way of tests/ways.py. A cell that gives other numbers than the
plain loop, hangs, or ends the process is a miss: it is shrunk to the smallest cell that still misses, and printed as
Python that can be pasted and run. A cell that elman refuses is counted with its reason. Ends with 1 if there is a miss.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import multiprocessing
import sys
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import torch

import elman
from tests import random_cells, ways
from tests.random_cells import NESTINGS, RULES, Program, RandomCell
from tests.strategies import programs

BATCH = 50  # cells that one process runs
LONG = 120  # seconds, after which a cell is told to hang


@dataclasses.dataclass
class Found:
    """What came of some cells. refused: (way, reason) -> how often. misses: scripts that show them."""

    cells: int = 0
    runs: Counter[str] = dataclasses.field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    misses: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Found) -> None:
        self.cells += other.cells
        self.runs += other.runs
        self.refused += other.refused
        self.misses += [miss for miss in other.misses if miss not in self.misses]

    def __str__(self) -> str:
        counts = f"{self.runs.total()} runs, {self.refused.total()} refused, {len(self.misses)} misses"
        lines = [f"{self.cells} cells, {counts}"]
        refused = Counter[str]()
        for (way, _), count in self.refused.items():
            refused[way] += count
        lines += ["", "| way | runs | refused |", "| --- | --- | --- |"]
        lines += [f"| {way} | {self.runs[way]} | {refused[way]} |" for way in ways.WAYS]
        if self.refused:
            lines += ["", "| refused because | in | times |", "| --- | --- | --- |"]
            by_reason: dict[str, Counter[str]] = {}
            for (way, reason), count in self.refused.items():
                by_reason.setdefault(reason, Counter())[way] += count
            for reason, where in sorted(by_reason.items(), key=lambda item: -item[1].total()):
                lines.append(f"| {reason} | {', '.join(where)} | {where.total()} |")
        return "\n".join(lines)


# --- one cell -------------------------------------------------------------------------------------------------------


def runs_in(program: Program, way: str) -> bool:
    """Whether a program is run in a way: of some ways it is one in so many, and always the same."""
    share = zlib.crc32(f"{program!r} {way}".encode()) % ways.SHARES.get(way, 1) == 0
    if way == "second derivatives":  # of a gradient that is not linear in what comes in they are not defined
        share &= all(RULES[line.rule].linear for line in program.lines)
    return share and not (way in ways.QUIET and program.noise)


def run(program: Program, way: str) -> str | None:
    """Run a program in a way: None, or why it is refused. Raises where it misses."""
    cell = RandomCell(program).double()
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ways.WAYS[way](cell, lambda T, B, generator: example(cell, T, B, generator))
    except elman.errors.CircuitError:
        raise
    except elman.ElmanError as error:
        return str(error.what).splitlines()[0]
    return None


def example(cell: RandomCell, T: int, B: int, generator: torch.Generator) -> Any:
    return cell.sequence(T, B, generator), cell.start(B, generator), cell.surroundings(B, generator)


# --- many -----------------------------------------------------------------------------------------------------------


def batch(seed: int, cells: int, notify: Callable[[Any], None], until: float, first: int = 0) -> Found:
    """Draw cells and run them; the first that misses is shrunk, and ends the batch. notify: is told what runs now."""
    found = Found()
    latest: list[tuple[Program, str, str]] = []
    seen: set[Program] = set()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cells, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink], report_multiple_bugs=False,
    )  # fmt: skip
    @hypothesis.given(programs(rich=True))
    def look(program: Program) -> None:
        if time.monotonic() > until or (program in seen and not latest):
            return
        seen.add(program)
        found.cells += not latest
        for way in ways.WAYS:
            if not runs_in(program, way):
                continue
            notify((program, way))
            try:
                reason = run(program, way)
            except Exception as error:
                latest[:] = [(program, way, "".join(traceback.format_exception_only(error)).strip())]
                raise
            if not latest:
                found.runs[way] += 1
                found.refused.update([] if reason is None else [(way, reason)])

    try:
        look()
    except Exception:
        found.misses += [script(*miss) for miss in latest]
        if not latest:
            raise
    return found


def _work(seed: int, cells: int, until: float, channel: Any) -> None:
    torch.set_num_threads(1)
    try:
        channel.send(("found", batch(seed, cells, lambda now: channel.send(("runs", now)), until)))
    except BaseException:
        channel.send(("broken", traceback.format_exc()))


def batch_apart(seed: int, cells: int, until: float) -> Found:
    """A batch in a process of its own, which may hang or die."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(seed, cells, until, theirs), daemon=True)
    worker.start()
    theirs.close()
    now: tuple[Program, str] | None = None
    while True:
        try:
            kind, value = ours.recv() if ours.poll(LONG) else ("hangs", None)
        except EOFError:
            kind, value = "dead", None
        if kind == "runs":
            now = value
        elif kind == "found":
            worker.join()
            return value
        elif kind == "broken" or now is None:
            raise RuntimeError(value or kind)
        else:
            worker.kill()
            worker.join()
            words = (
                f"no end within {LONG} s" if kind == "hangs" else f"the process ended with {worker.exitcode}"
            )
            return Found(misses=[script(*now, words)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=str(__doc__).split("\n")[0])
    parser.add_argument("--cells", type=int, default=200, help="how many cells")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    until = began + 60 * given.minutes
    found, number = Found(), 0
    while found.cells < given.cells and time.monotonic() < until:
        made = batch_apart(1000 * given.seed + number, min(BATCH, given.cells - found.cells), until)
        before = len(found.misses)
        found.add(made)
        number += 1
        minutes = (time.monotonic() - began) / 60
        print(
            f"{minutes:6.1f} min  {found.cells:5} cells  {found.runs.total():6} runs  {found.refused.total():4} refused"
            f"  {len(found.misses)} misses",
            flush=True,
        )
        for miss in found.misses[before:]:
            print(f"\n{miss}\n", flush=True)
    print(f"\n{found}\n\nseed {given.seed}, {(time.monotonic() - began) / 60:.1f} minutes")
    sys.exit(bool(found.misses))


# --- a miss as Python -----------------------------------------------------------------------------------------------


@cache
def _sources() -> dict[str, str]:
    """Rule -> the text of its function; and the texts of the functions and classes that those name."""
    text = Path(random_cells.__file__).read_text("utf-8")
    tree = ast.parse(text)
    found = {
        node.name: ast.get_source_segment(text, node) or ""
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    table = next(
        node.value for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "RULES"
    )  # fmt: skip
    assert isinstance(table, ast.Dict)
    for key, value in zip(table.keys, table.values, strict=True):
        assert isinstance(key, ast.Constant)
        assert isinstance(value, ast.Call)
        function = value.args[1]
        if isinstance(function, ast.Lambda):
            names = ", ".join(argument.arg for argument in function.args.args)
            found[f"rule {key.value}"] = f"def {key.value}({names}):\n    return {ast.unparse(function.body)}"
        else:
            assert isinstance(function, ast.Name)
            found[f"rule {key.value}"] = found[function.id].replace(
                f"def {function.id}(", f"def {key.value}("
            )
    return found


def _names(text: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def cell_text(program: Program) -> str:
    """A program as a plain module: its rules as functions, and the class `Cell`."""
    sources = _sources()
    used = list(dict.fromkeys(line.rule for line in program.lines))
    texts = [sources[f"rule {rule}"] for rule in used]
    helpers: list[str] = []
    for text in texts:
        helpers += [
            n
            for n in sorted(_names(text))
            if n in sources and n not in helpers and f"rule {n}" not in sources
        ]
    constants = [f"MOST = {random_cells.MOST}"] if any("MOST" in _names(text) for text in texts) else []
    helpers.append("weight")
    parts = [*constants, *(sources[name] for name in helpers), *texts, _class_text(program)]
    return "\n\n\n".join(part.replace("Sequence[Tensor]", "list") for part in parts)


def _class_text(program: Program) -> str:
    widths, names = program.widths(), [*program.names]
    states = [f"h{i}" for i in range(len(program.states))]
    init, lines = ["super().__init__()", f"generator = torch.Generator().manual_seed({program.seed})"], []
    weight = "self.weights = nn.ParameterDict()"
    init.append(weight)
    names += [f"v{i}" for i in range(len(names), len(widths))]
    for i, line in enumerate(program.lines, start=len(program.given)):
        shapes = RULES[line.rule].weights(line.size, *(widths[o] for o in line.operands))
        for number, shape in enumerate(shapes):
            scale = f"1 / {shape[-1]}" if len(shape) > 1 else "0.5"
            init.append(
                f'self.weights["v{i}_{number}"] = weight({scale}, *{tuple(shape)}, generator=generator)'
            )
        weights = ", ".join(f'self.weights["v{i}_{number}"]' for number in range(len(shapes)))
        operands = ", ".join(names[o] for o in line.operands)
        lines.append(f"v{i} = {line.rule}([{weights}], {line.size}, {operands})  # [B, {widths[i]}]")
    for name, is_there, shape in (
        ("table", program.counter, (program.counter, random_cells.TABLE)),
        ("start", program.learned, (program.states[0],)),
    ):
        if is_there:
            init.append(f'self.weights["{name}"] = weight(1, *{shape}, generator=generator)')
    count = ["count"] if program.counter else []
    enter = [f"{', '.join([*states, *count])}, = leaves_of(state)"]
    enter += ["x, = leaves_of(x)"] if program.inputs is not None else []
    enter += ['row = self.weights["table"][count]'] if program.counter else []
    new = [
        names[n.value] if n.scale is None else f"torch.tanh({n.scale} * {names[n.value]})"
        for n in program.nexts
    ]
    new += [f"(count + 1 + (h0.sum(-1) > 0.0271).long()) % {program.counter}"] if program.counter else []
    state = nested(program.nesting, new)
    leave = (
        state if program.output is None else f"{nested(program.nesting, [names[program.output]])}, {state}"
    )
    start = [
        'self.weights["start"].expand(batch, -1)'
        if program.learned and i == 0
        else f"torch.zeros(batch, {width})"
        for i, width in enumerate(program.states)
    ] + ["torch.zeros(batch, dtype=torch.long)"] * len(count)
    drawn = [f"torch.rand(B, {width}, generator=generator) * 2 - 1" for width in program.states]
    drawn += [f"torch.randint({program.counter}, (B,), generator=generator)"] if program.counter else []
    xs = (
        nested(program.nesting, [f"torch.randn(T, B, {program.inputs}, generator=generator).clamp(-3, 3)"])
        if program.inputs is not None
        else "None"
    )
    around = (
        "None"
        if program.context is None
        else f"torch.rand(B, {program.context}, generator=generator) * 2 - 1"
    )
    context = "" if program.context is None else ", context"
    text = ["class Cell(nn.Module):", "    def __init__(self):", *(f"        {line}" for line in init), ""]
    text += [f"    def forward(self, x, state{context}):", *(f"        {line}" for line in (*enter, *lines))]
    text += [f"        return {leave}", "", "    def initial_state(self, batch):"]
    text += [f"        return {nested(program.nesting, start)}", "", "", "def example(T, B, generator):"]
    text += [f"    x = {xs}", f"    return x, {nested(program.nesting, drawn)}, {around}"]
    return "\n".join(text)


def nested(nesting: str, each: list[str]) -> str:
    """The text of NESTINGS[nesting](*each)."""
    shape = repr(NESTINGS[nesting](*(_Word(text) for text in each)))
    return shape if shape.startswith(("(", "{")) or len(each) == 1 else f"({shape})"


class _Word(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def script(program: Program, way: str, words: str) -> str:
    """Python that shows a miss: it ends with an AssertionError, or with nothing where it is mended."""
    head = "\n".join(f"# {line}" for line in [f"elman misses a cell, {way}:", *words.splitlines()[:6]])
    text = Path(ways.__file__).read_text("utf-8").split("from __future__ import annotations\n", 1)[1]
    return "\n".join(
        [
            head, "from __future__ import annotations", text, "# --- the cell", "from torch import nn",
            "from torch.nn import functional as F", "", "torch.set_default_dtype(torch.float64)", "", "",
            cell_text(program), "", "", f"WAYS[{way!r}](Cell(), example)", 'print("mended")',
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
