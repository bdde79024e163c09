"""The benchmark's peers: each computes the same as the plain loop, and what is printed about them is true."""

from __future__ import annotations

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from bench import busy, jaxed, measure, overhead, targets
from bench.__main__ import app
from bench.agree import Disagreement, check
from bench.bound import BOUND
from bench.contestants import ENTRIES
from bench.form import HOISTED, JAX, LOOP, OURS, TORCH, Eager, Shape

T, SHAPE = 4, Shape(2, 5)


def judged(name: str, peer: str, dtype: torch.dtype) -> float:
    """The error of a peer, in units of the error that it may have."""
    entry = ENTRIES[name]
    cell = entry.case.make(SHAPE.H, SHAPE.H).to(dtype)
    loop, other = (c for c in entry.contestants(cell) if c.name in (LOOP, peer))
    return check([loop, other], cell, measure.problem(entry, SHAPE, T, dtype))[peer]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.hoisted])
def test_a_hoisted_loop_agrees(name: str, dtype: torch.dtype) -> None:
    assert judged(name, HOISTED, dtype) <= 1


def test_the_issue_compares_these_with_the_hoisted_loop() -> None:
    assert {name for name, entry in ENTRIES.items() if entry.hoisted} >= {"leaky", "ln", "mgu"}


@pytest.mark.skipif(jaxed.version() is None, reason="jax is not installed")
@pytest.mark.grid(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.jax])
def test_jax_agrees(name: str, dtype: torch.dtype) -> None:
    assert judged(name, JAX, dtype) <= 1


def test_float64_is_held_to_more() -> None:
    """An error that float32 may have is refused in float64."""
    entry = ENTRIES["leaky"]
    cell = entry.case.make(SHAPE.H, SHAPE.H).double()
    _, loop, hoisted = entry.contestants(cell)
    given = measure.problem(entry, SHAPE, T, torch.float64)
    assert isinstance(hoisted, Eager)
    off = Eager(HOISTED, lambda x, h: hoisted.run(x * (1 + 1e-8), h), hoisted.weights)
    with pytest.raises(Disagreement, match=HOISTED):
        check([loop, off], cell, given)


# --- what is to be reached --------------------------------------------------------------------------------------------


def test_targets_are_of_cells_and_peers_that_are_there() -> None:
    for target in targets.TARGETS:
        entry = ENTRIES[target.cell]
        there = {LOOP: True, HOISTED: entry.hoisted, TORCH: entry.torch, JAX: entry.jax}
        assert there[target.peer], target
        assert len(target.prototype) == len(target.reach) == len(targets.STEPS)
    assert {target.cell for target in targets.TARGETS} == set(ENTRIES)
    assert [str(Shape.parse(shape)).replace(" ", "") for shape in targets.STEPS] == list(targets.STEPS)


def test_a_target_is_met_or_not() -> None:
    row = measure.Row("rnn", "B1 H1", measure.TRAINING, 1, {OURS: [1.0, 1.0], TORCH: [2.0, 2.0]})
    assert targets.Line(row, TORCH, None, 2.0).met is True
    assert targets.Line(row, TORCH, None, 2.1).met is False
    assert targets.Line(row, TORCH, 2.0, None).met is None


def test_a_line_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(targets.STEPS, "B1H128", 3)
    found = list(targets.lines("rnn", "B1H128", scale=0.01))
    assert {line.peer for line in found} == ({TORCH, JAX} if jaxed.version() else {TORCH})
    assert (found[0].prototype, found[0].reach) == (16, 20)
    assert found[0].ratio > 0
    assert BOUND in found[0].row.seconds
    assert not list(targets.lines("dale", "B1H128", scale=0.01))


# --- other reports ----------------------------------------------------------------------------------------------------


def test_ours_alone() -> None:
    training, inference = measure.alone(ENTRIES["rnn"], SHAPE, T, seconds=0.0)
    for row in (training, inference):
        assert set(row.seconds) == {OURS, BOUND}
        assert row.ratio(BOUND) > 0


def test_beside_a_busy_process() -> None:
    found = busy.run("rnn", "B2H5", T, seconds=0.0, blocks=1)
    assert set(found.seconds) == {(name, b) for name in (OURS, BOUND) for b in (False, True)}
    assert all(math.isfinite(found.factor(name, mean)) for name in (OURS, BOUND) for mean in (False, True))
    json.dumps(found.as_json())


def test_steps_beside_torchs_cells() -> None:
    found = overhead.step_seconds(times=3, width=5)
    assert set(found) == {"RNNCell", "GRUCell", "LSTMCell"}
    assert all(seconds > 0 for row in found.values() for seconds in row.values())


def test_a_step_beside_a_function_that_computes_nothing() -> None:
    found = overhead.training_seconds(times=2, width=5, calls=2)
    assert set(found) == {"elman", "gru", "lstm"}
    assert all(len(row) == 2 and min(row.values()) > 0 for row in found.values())


def test_the_command(tmp_path) -> None:  # type: ignore[no-untyped-def]
    words = "--cells leaky --shapes B2H5 --steps 4 --repeats 1 --dtype float64 --no-overheads --json"
    done = CliRunner().invoke(app, [*words.split(), str(tmp_path / "made.json")])
    assert done.exit_code == 0, done.output
    made = json.loads((tmp_path / "made.json").read_text())
    assert {"instructions", "engine", "commit"} <= set(made["about"])
    assert [row["what"] for row in made["rows"]] == [measure.TRAINING, measure.INFERENCE]
    assert all(HOISTED in row["ratio"] and BOUND in row["ratio"] for row in made["rows"])
