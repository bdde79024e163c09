"""The table of proof: goals that mean what they say, lines that are right, and a status that tells of a missed goal."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bench import agree, foreign, jaxed, limits, measure, newton, peers, proof, ragged
from bench.__main__ import app
from bench.contestants import ENTRIES, loop
from bench.form import (
    EQUINOX,
    FLAX,
    JAX,
    KERAS,
    LOOP,
    NEWTON,
    ONNX,
    OURS,
    PACKED,
    PADDED,
    TORCH,
    Eager,
    Shape,
)
from elman.engines.native import why_not_built

MISSED, MET, STATED = (3.9, 4.0), (4.0, 4.0), (0.1, None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No JAX, whose compiler takes seconds, and limits that are known."""
    monkeypatch.setattr(jaxed, "version", lambda: None)
    monkeypatch.setattr(foreign, "contestants", lambda kind, cell: [])
    monkeypatch.setattr(limits, "peak", lambda: 1e9)
    monkeypatch.setattr(limits, "bandwidth", lambda size: 1e9)


def test_goals_are_well_formed() -> None:
    every = [(row, goal) for row in peers.ROWS for goal in row.goals]
    assert len({str(row) for row in peers.ROWS}) == len(peers.ROWS)
    assert {JAX, FLAX, EQUINOX, ONNX, TORCH, PADDED, PACKED, NEWTON} <= {goal.peer for _, goal in every}
    for row, goal in every:
        assert goal.figure > 0
        assert set(goal.threads) <= set(row.threads) <= set(peers.THREADS), row
        assert sum((g.peer, g.ours) == (goal.peer, goal.ours) for g in row.goals) == 1, row
        assert row.goal(goal.peer, goal.ours, goal.threads[0]) is goal
    assert {row.T for row in peers.ROWS if row.kind == peers.TRAINING} >= {1, 10, 100, 1000}


@pytest.mark.parametrize(("ratio", "figure", "status"), [(*MISSED, 1), (*MET, 0), (*STATED, 0)])
def test_the_status_tells_of_a_missed_goal(
    ratio: float, figure: float | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any) -> Any:
        line = peers.Line("some row", 1, OURS, TORCH, 1e-6, ratio * 1e-6, ratio, 5e-7, figure)
        told = [{"limits": {"threads": 1, "GFLOP/s": 50.0}}, {"line": dataclasses.asdict(line)}, {"done": 1}]
        return iter(told)

    monkeypatch.setattr(peers, "run", run)
    done = CliRunner().invoke(app, ["--peers"])
    assert done.exit_code == status, done.output
    assert ("MISSED  some row" in done.output) == bool(status)
    assert "0.50" in done.output  # of the limit


def test_a_wrong_row_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "run", lambda *_: iter([{"wrong": "some row: it differs"}]))
    done = CliRunner().invoke(app, ["--peers"])
    assert (done.exit_code, "NOT TIMED  some row" in done.output) == (1, True)


def test_the_table_goes_between_its_marks() -> None:
    lines = [
        peers.Line("some row", threads, OURS, peer, 1e-6, ratio * 1e-6, ratio, 5e-7, figure)
        for threads, peer, ratio, figure in ((1, TORCH, 3.0, 4.0), (2, TORCH, 5.0, None), (1, JAX, 9.0, None))
    ]
    made = {
        "about": {"machine": "M", "instructions": "torch I, ours avx2", "versions": "V", "commit": "C"},
        "limits": [{"threads": 1, "GFLOP/s": 50.0}],
        "peers": [dataclasses.asdict(line) | {"met": line.met} for line in lines],
    }
    mark, other = (
        "<!-- the table of proof, avx2 -->",
        f"<!-- the table of proof, avx512 -->\nkept\n{proof.END}\n",
    )
    page = f"before\n{other}{mark}\nold\n{proof.END}\nafter"
    found = proof.put(page, json.loads(json.dumps(made)))
    head = "M; torch I, ours avx2; V; commit C. 1 thread: 50 GFLOP/s."
    assert found.startswith(f"before\n{other}{mark}\n\n{head}\n")
    assert f"| some row | {TORCH} | ≥ 4 | **3.00** | (5.00) | 0.50 and 0.50 |\n\n{proof.END}\nafter" in found
    assert ("old" in found, JAX in found) == (False, False)
    for without in ("before", other):
        with pytest.raises(ValueError, match=r"the page has no .*avx2"):
            proof.put(without, made)


def test_the_short_table_has_microseconds_of_a_step() -> None:
    told = [
        ("gru training, B16 H64 T100", OURS, TORCH, 2e-3, 6e-3), ("gru training, B16 H64 T100", OURS, JAX, 2e-3, 3e-3),
        ("gru training, B16 H64 T1000", OURS, TORCH, 1.0, 1.0), ("lstm stream, H64", OURS, ONNX, 2e-6, 5e-6),
        ("lstm stream, H64", OURS, "torch.nn.LSTMCell", 2e-6, 14e-6),
        ("gru stream, H64", peers.BFLOAT16, ONNX, 1.0, 1.0),
    ]  # fmt: skip
    lines = [
        peers.Line(row, threads, ours, peer, mine * (3 - threads), theirs, theirs / mine, 0.0)
        for threads in (1, 2) for row, ours, peer, mine, theirs in told
    ]  # fmt: skip
    about = {"machine": "M; load 1", "instructions": "I", "versions": "V", "commit": "C"}
    made = {"about": about, "peers": [dataclasses.asdict(line) for line in lines]}
    table = proof.put(f"before\n{proof.begin(proof.BRIEFLY, made)}\nold\n{proof.END}\nafter", made)
    assert "M, I, 2 threads; V; commit C." in table
    assert "| GRU, B 16 H 64 T 100 | 20 | 60 (3×) | 30 (1.5×) |  |  |" in table
    assert "| LSTM, H 64 | 2 | 5 (2.5×) | 14 (7×) |" in table
    assert [word in table for word in ("old", "T 1000", "GRU, H 64")] == [False] * 3


def test_at_most_turns_the_ratio(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours takes 1, the padded batch 2, torch's packed one 3: ours / padded is 0.5, packed / ours is 3."""
    names = ragged.RAGGED, ragged.PADDED, ragged.PACKED
    timed = ragged.Line("", {name: [float(i)] for i, name in enumerate(names, 1)})
    monkeypatch.setattr(ragged, "lengths", lambda *_: timed)
    goals = (peers.Goal(PADDED, 0.4, at_most=True), peers.Goal(PACKED, 3))
    threads = (torch.get_num_threads(),)
    goals = tuple(dataclasses.replace(goal, threads=threads) for goal in goals)
    row = peers.Row(peers.RAGGED, "gru", 2, 5, 10, goals, threads)
    padded, packed = peers.lines(row, 0.0)
    assert (padded.peer, padded.ratio, padded.met) == (PADDED, 0.5, False)
    assert (packed.peer, packed.ratio, packed.met) == (PACKED, 3.0, True)


def test_rows_are_compared_and_timed(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a process of one row prints; a contestant that is wrong is told, and not timed."""
    threads = torch.get_num_threads()
    row = peers.Row(peers.TRAINING, "gru", 2, 5, 3, (peers.Goal(TORCH, 1e-9, (threads,)),), (threads,))
    monkeypatch.setattr(peers, "ROWS", (row,))
    monkeypatch.setattr(limits, "copied", lambda: 1e9)
    peers.main(threads, 0.0, "gru")
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    line = peers.Line(**second["line"])
    assert (first["limits"]["threads"], line.peer, line.met) == (threads, TORCH, True)
    assert third == {"done": threads}
    assert line.least == pytest.approx(1e-9 * 3 * 2 * 3 * 2 * 2 * 3 * 5 * 5)

    def off(kind: str, cell: Any) -> Any:
        return [Eager(KERAS, lambda x, h: loop(cell)(1.01 * x, h), dict(cell.named_parameters()))]

    monkeypatch.setattr(foreign, "contestants", off)
    peers.main(threads, 0.0, "gru")
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(each) for each in told] == [{"limits"}, {"wrong"}, {"done"}]


def test_a_contestant_says_what_it_lacks() -> None:
    """Without a word one that gives no gradient of c is refused."""
    entry, given = ENTRIES["gru"], measure.problem(ENTRIES["gru"], Shape(2, 5), 3)
    cell = entry.case.make(5, 5)
    _, plain, *_ = entry.contestants(cell)
    assert isinstance(plain, Eager)
    fewer = {name: weight for name, weight in plain.weights.items() if name != "c"}

    class Lacking(Eager):
        lacks = frozenset({"c"})

    assert agree.check([plain, Lacking("other", plain.run, fewer)], cell, given)["other"] <= 1
    with pytest.raises(agree.Disagreement, match="is wanted"):
        agree.check([plain, Eager("other", plain.run, fewer)], cell, given)


def test_the_limit_is_the_larger_part(quick: None) -> None:
    step = limits.one_step(3, 64)
    assert (step.flops, step.read) == (2 * 3 * 64 * 128, 4 * 3 * 64 * 128)
    assert step.seconds() == step.read / 1e9
    assert limits.training(1, 100, 16, 64).seconds() == 3 * 2 * 100 * 16 * 2 * 64 * 64 / 1e9


@pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")
def test_multiply_adds_are_counted() -> None:
    from elman import _native

    for isa in _native.instruction_sets():
        for wide in (False, True):
            one = _native.multiply_adds(10, wide, isa)
            assert one > 0
            assert _native.multiply_adds(30, wide, isa) == 3 * one


@pytest.mark.conformance
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_other_packages_layers_agree(kind: str) -> None:
    entry = ENTRIES[kind]
    cell = entry.case.make(5, 5)
    if kind == "gru":
        with pytest.raises(ValueError, match="c is not zero"):
            foreign.contestants(kind, cell)
        with torch.no_grad():
            cell.c.zero_()
    plain = next(c for c in entry.contestants(cell) if c.name == LOOP)
    theirs = foreign.contestants(kind, cell)
    if not theirs:
        pytest.skip("none of them is installed")
    found = agree.check([plain, *theirs], cell, measure.problem(entry, Shape(2, 5), 4))
    assert max(found.values()) <= 1


@pytest.mark.conformance
@pytest.mark.skipif(importlib.util.find_spec("pararnn") is None, reason="pararnn-torch is not installed")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_newtons_solver_agrees(kind: str) -> None:
    assert set(newton.ways(kind, 12, 2, 6)) == {OURS, NEWTON}


@pytest.mark.parametrize(("value", "said"), [(0.954, "0.95"), (8.84, "8.8"), (11.4, "11"), (103.2, "103")])
def test_ratios_of_any_size_are_written_as_numbers(value: float, said: str) -> None:
    assert proof._times(value) == said
