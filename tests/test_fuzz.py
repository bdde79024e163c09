"""The fuzzer itself: it finds what is wrong, shrinks it, and prints what can be run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

import elman
from tests import fuzz, ways
from tests.pairwise import examples, with_more
from tests.random_cells import NESTINGS, RULES, Instruction, Next, Program, RandomCell
from tests.strategies import programs

SMALL = Program(3, (2,), (Instruction("linear", (0,), 2), Instruction("add", (2, 1))), (Next(3, 0.25),), 3)
LINES = (
    ("attend", (0, 1, 1), 0), ("look", (5, 1), 0), ("rotate", (6,), 0), ("fire", (7,), 0), ("spectrum", (7,), 0),
    ("clip", (9,), 0), ("dropout", (10,), 0), ("sum", (4,), 0), ("slice", (11,), 2), ("columns", (13, 2), 0),
    ("swap", (6,), 0),
)  # fmt: skip
RICH = Program(
    4,
    (4, 2),
    tuple(Instruction(*line) for line in LINES),
    (Next(11, 0.5), Next(14, 0.5)),
    15,
    2,
    3,
    5,
    "deep",
    True,
)


def shown(text: str) -> dict[str, Any]:
    space: dict[str, Any] = {}
    exec(f"import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n{text}", space)
    return space


@pytest.mark.conformance  # every way runs below, on one cell
def test_some_cells_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make fuzz`, in this process: a few cells, all ways but the slow one."""
    monkeypatch.setitem(ways.SHARES, "compiled", 2**32)
    found = fuzz.batch(3, 1, lambda now: None, time.monotonic() + 600)
    assert found.misses == []
    assert found.cells == 1
    assert found.runs["whole"] == found.cells
    assert str(found).startswith(f"{found.cells} cells, {found.runs.total()} runs, ")
    assert fuzz.run(RICH, "all, reversed") is None


@pytest.mark.parametrize("way", with_more([way for way in ways.WAYS if way != "compiled"], ["compiled"]))
@pytest.mark.slow
def test_every_way_runs(way: str) -> None:
    assert fuzz.run(SMALL, way) is None


@examples(20, 300)
@hypothesis.example(RICH)
@hypothesis.given(programs(rich=True))
def test_a_program_is_printed_as_what_it_is(program: Program) -> None:
    """The class in the script computes the same numbers, and starts from the same ones."""
    space = shown(
        f"leaves_of = lambda tree: torch.utils._pytree.tree_leaves(tree)\n{fuzz.cell_text(program)}"
    )
    cell, ours = RandomCell(program).double(), space["Cell"]().double()
    assert all(torch.equal(a, b) for a, b in zip(cell.parameters(), ours.parameters(), strict=True))
    torch.set_default_dtype(torch.float64)
    try:
        given = space["example"](1, 3, torch.Generator().manual_seed(0))
        shapes = [[v.shape for v in ways.leaves_of(tree)] for tree in (given, (ours.initial_state(3),))]
    finally:
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(0)
    x, state, context = fuzz.example(cell, 1, 3, generator)
    assert shapes == [
        [v.shape for v in ways.leaves_of(t)] for t in ((x, state, context), (cell.initial_state(3),))
    ]
    x = torch.utils._pytree.tree_map(lambda v: v if v is None else v[0], x)
    step = (x, state, *([] if context is None else [context]))
    results = []
    for one in (cell, ours):
        torch.manual_seed(1)
        results.append(one(*step))
    assert str(torch.utils._pytree.tree_flatten(results[0])[1]) == str(
        torch.utils._pytree.tree_flatten(results[1])[1]
    )
    for a, b in zip(*map(ways.leaves_of, results), strict=True):
        assert torch.equal(a, b)


def test_cells_of_every_kind_are_drawn() -> None:
    drawn: list[Program] = []

    @hypothesis.settings(
        max_examples=220, derandomize=True, database=None, phases=[hypothesis.Phase.generate]
    )
    @hypothesis.given(programs(rich=True))
    def look(program: Program) -> None:
        drawn.append(program)

    look()
    used = {line.rule for program in drawn for line in program.lines}
    assert used == set(RULES)
    kinds = {
        "a context": [p.context is not None for p in drawn],
        "a counter": [p.counter > 0 for p in drawn],
        "a learned start": [p.learned for p in drawn],
        "a delay": [any(n.scale is None for n in p.nexts) for p in drawn],
        **{nesting: [p.nesting == nesting for p in drawn] for nesting in NESTINGS},
    }
    assert [kind for kind, found in kinds.items() if sum(found) < 5] == []


@pytest.mark.conformance
def test_a_miss_is_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(program: Program, way: str) -> None:
        assert way != "mask" or all(line.rule != "softmax" for line in program.lines), "result 0: another"

    monkeypatch.setattr(fuzz, "run", wrong)
    (miss,) = fuzz.batch(0, 500, lambda now: None, time.monotonic() + 600).misses
    assert miss.startswith("# elman misses a cell, mask:\n# AssertionError: result 0: another")
    lines = re.findall(r"^        v\d+ = (\w+)\(", miss, re.MULTILINE)
    assert "softmax" in lines
    assert len(lines) <= 2, "it is the smallest cell that shows it"


@pytest.mark.conformance
def test_a_miss_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = fuzz.script(RICH, "lengths", "AssertionError: result 0")
    assert text.startswith("# elman misses a cell, lengths:\n# AssertionError: result 0\n")
    assert "tests" not in "".join(re.findall("^(?:import|from) .*$", text, re.MULTILINE)), (
        "it stands by itself"
    )
    file = tmp_path / "miss.py"
    spoilt = text.replace(
        "        got = self.ours()\n", "        got = [v + 1 for v in leaves_of(self.ours())]\n"
    )
    file.write_text(spoilt, "utf-8")
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "AssertionError: result 0: " in done.stderr
    try:
        exec(compile(text, str(file), "exec", dont_inherit=True), {"__name__": "miss"})
    finally:
        torch.set_default_dtype(torch.float32)
    assert capsys.readouterr().out == "mended\n"  # nothing is wrong with the real one


def test_a_cell_that_ends_the_process_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "run", lambda program, way: os.kill(os.getpid(), signal.SIGKILL))
    found = fuzz.batch_apart(0, 3, time.monotonic() + 60)
    assert [miss.splitlines()[1] for miss in found.misses] == ["# the process ended with -9"]


def test_a_cell_that_hangs_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "LONG", 1)
    monkeypatch.setattr(fuzz, "run", lambda program, way: time.sleep(60))
    found = fuzz.batch_apart(0, 3, time.monotonic() + 60)
    assert [miss.splitlines()[1] for miss in found.misses] == ["# no end within 1 s"]


def test_what_is_refused_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise elman.errors.TraceError("it is not liked")

    monkeypatch.setattr(ways.Call, "ours", refuse)
    found = fuzz.batch(0, 2, lambda now: None, time.monotonic() + 60)
    assert found.misses == []
    assert found.refused["whole", "it is not liked"] == found.cells
    assert "| it is not liked | " in str(found)


def test_the_command_ends_with_1_where_there_is_a_miss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = fuzz.Found(cells=2, misses=["# a miss"])
    monkeypatch.setattr(fuzz, "batch_apart", lambda *given: made)
    monkeypatch.setattr(sys, "argv", ["fuzz", "--cells", "2"])
    with pytest.raises(SystemExit) as ended:
        fuzz.main()
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "2 cells" in said
    assert "\n# a miss\n" in said
