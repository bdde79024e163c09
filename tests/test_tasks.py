"""What holds for every task: one table of them, and one test for each promise. A further task is a line in `CASES`."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from elman.app import jobs
from elman.app.options import command
from elman.data import ragged
from elman.errors import InputError
from elman.report import read_record
from elman.tasks import TASKS, task_of
from elman.tasks.settings import KeepingSettings, TrainingSettings
from elman.training import Diverged, Measure, Processes, Run, Training, fitted, locked
from tests import toy
from tests.precision import reduces
from tests.strangers import elman

TIMEOUT = 240.0


@dataclass(frozen=True)
class Case:
    """A task on next to nothing. write: makes its data in a folder and returns the words that name them on the command
    line; small: options that make it small."""

    write: Callable[[Path], list[str]]
    small: tuple[str, ...] = ("--hidden", "8", "--batch", "4")


def _text(folder: Path) -> list[str]:
    (folder / "text.txt").write_text("the cat sat on the mat; the rat sat on the cat.\n" * 40)
    return [str(folder / "text.txt")]


def _lines(folder: Path) -> list[str]:
    words = [f"{k:b}{k % 7:03b}"[: 2 + k % 9] for k in range(1, 200)]
    (folder / "lines.txt").write_text("".join(f"{word} {'ab'[int(word[1])]}\n" for word in words))
    return [str(folder / "lines.txt")]


def _sentences(folder: Path) -> list[str]:
    some = [
        ["the DET", "cat NOUN", "sat VERB"],
        ["a DET", "rat NOUN"],
        ["it PRON", "sat VERB", "on ADP", "mats NOUN"],
    ]
    (folder / "words.txt").write_text(
        "".join("\n".join(some[k % 3][: 1 + k % 5]) + "\n\n" for k in range(60))
    )
    return [str(folder / "words.txt")]


def _names(folder: Path) -> list[str]:
    names = [f"{a}{b}{c}\n" for a in "abcd" for b in ("an", "or", "i") for c in ("s", "ta", "o", "")]
    (folder / "names.txt").write_text("".join(names))
    return [str(folder / "names.txt")]


def _labelled(folder: Path) -> list[str]:
    rows = [f"{k * 2654435761 % 2**31:o}"[: 3 + k % 6] for k in range(1, 120)]
    (folder / "rows.csv").write_text(
        "text,label\n" + "".join(f"{row},{'ab'[row[0] < '4']}\n" for row in rows)
    )
    return [str(folder / "rows.csv")]


def _series(folder: Path) -> list[str]:
    rows = [
        f"{name},2020-01-{t + 1:02d},{(t % 5) + k + t * k % 3}\n"
        for k, name in enumerate("ab")
        for t in range(30)
    ]
    (folder / "series.csv").write_text("unique_id,ds,y\n" + "".join(rows))
    return [str(folder / "series.csv")]


CASES: dict[str, Case] = {
    "autoencode": Case(_names, ("--hidden", "8", "--embedding", "4", "--batch", "8")),
    "classify": Case(
        _labelled,
        (
            "--hidden",
            "8",
            "--layers",
            "1",
            "--embedding",
            "4",
            "--batch",
            "8",
            "--dropout",
            "0",
            "--input-dropout",
            "0",
            "--symbol-dropout",
            "0",
        ),
    ),
    "forecast": Case(
        _series, ("--hidden", "8", "--batch", "4", "--horizon", "3", "--season", "5", "--dropout", "0")
    ),
    "lm": Case(_text, ("--hidden", "16", "--embedding", "8", "--window", "8", "--batch", "4")),
    "tag": Case(
        _sentences,
        ("--hidden", "8", "--spelling", "4", "--dropout", "0", "--word-dropout", "0", "--batch", "4"),
    ),
    "toy": Case(_lines),
}


def mostly(*tasks: str) -> pytest.MarkDecorator:
    """What takes long: for these tasks by default, for all of them in `make conformance`."""
    return pytest.mark.parametrize(
        "task", [pytest.param(task, marks=[] if task in tasks else pytest.mark.conformance) for task in CASES]
    )


def test_every_task_is_in_the_table() -> None:
    assert set(CASES) == set(TASKS)


def words(task: str, folder: Path, out: str, *more: str) -> list[str]:
    """The words of a training command behind `elman`."""
    given = CASES[task].write(folder)
    return ["train", task, *given, *CASES[task].small, "--quiet", "--out", str(folder / out), *more]


def started(processes: int, *words: str) -> list[str]:
    """The command, in processes of its own; tests.toy knows the tests' task too."""
    many = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    return [sys.executable, *many, "-m", "tests.toy", *words]


def train(task: str, folder: Path, out: str, *more: str) -> str:
    said = elman(*words(task, folder, out, *more))
    assert said.status == 0, said.err
    return said.out


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Of each task the folder of a run of two steps, `run`, which nobody changes, with what it has learnt from."""

    @functools.cache
    def folder(task: str) -> Path:
        here = tmp_path_factory.mktemp(task)
        train(task, here, "run", "--steps", "2")
        return here

    return folder


Learnt = Callable[[str], Path]


def log(run: Path) -> list[dict[str, Any]]:
    """Without what the clock says, and with samples as short as a test's own process writes them (conftest.py)."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    shorter = [{**line, "sample": line["sample"][:20]} if "sample" in line else line for line in lines]
    return [{**line, "seconds": 0, "stages": 0} for line in shorter]


def job(task: str, folder: Path, *more: str) -> jobs.TrainingJob:
    """A task about to be trained, as its command prepares it."""
    kind = task_of(task)
    given = [*CASES[task].write(folder), *CASES[task].small, *more]
    made: dict[str, Any] = {}
    settings = {"own": kind.Settings, "training": TrainingSettings, "keeping": KeepingSettings}
    command(task, settings, made.update, "").main(given, standalone_mode=False)
    return jobs.prepare(kind, made["own"], made["training"], made["keeping"])


# --- a run survives ---------------------------------------------------------------------------------------------------


@pytest.mark.conformance  # a language model is killed in test_survival.py
@pytest.mark.slow
@mostly("tag")
def test_killed_it_ends_with_the_same_bits_and_goes_on_when_it_has_ended(task: str, tmp_path: Path) -> None:
    how = (
        "--dropout",
        "0.2",
        "--layers",
        "2",
        "--steps",
        "120",
        "--checkpoint-every",
        "7",
        "--resume",
        "auto",
    )
    train(task, tmp_path, "whole", *how)
    process = subprocess.Popen(started(1, *words(task, tmp_path, "run", *how)), stdout=subprocess.DEVNULL)
    end = time.monotonic() + TIMEOUT
    while not any((tmp_path / "run" / "checkpoints").glob("step-*")) and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert "going on from step" in train(task, tmp_path, "run", *how)
    whole, run = tmp_path / "whole", tmp_path / "run"
    for name in ("model.safetensors", "config.json", *task_of(task).files):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert log(run) == log(whole)
    longer = train(task, tmp_path, "run", *how, "--steps", "130")  # the later one counts
    assert "going on from step 120" in longer
    assert log(run)[-1]["step"] == 130
    assert "measured" in log(run)[-1]


@mostly("lm", "toy")
def test_a_folder_is_one_process_alone_and_one_run(task: str, learnt: Learnt) -> None:
    folder = learnt(task)
    with locked(folder / "run"):
        said = elman(*words(task, folder, "run", "--steps", "4", "--resume", "auto"))
    assert said.status == 2
    assert "another process is training in this run folder" in said.err
    assert "not empty" in elman(*words(task, folder, "run", "--steps", "2")).err
    said = elman(*words(task, folder, "run", "--steps", "2", "--resume", "auto", "--lr", "0.5"))
    assert "training.lr" in said.err


def test_nothing_is_left_of_a_run_that_another_task_replaces(learnt: Learnt, tmp_path: Path) -> None:
    shutil.copytree(learnt("lm") / "run", tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer.json").exists()
    train("toy", tmp_path, "run", "--steps", "2", "--overwrite")
    assert not (tmp_path / "run" / "tokenizer.json").exists()


@mostly("lm")
def test_a_full_disk_stops_no_run_that_has_room_again(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, tries = os.fsync, []

    def maybe(handle: int) -> None:
        tries.append(handle)
        if 8 < len(tries) < 12:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", maybe)
    said = train(task, tmp_path, "run", "--steps", "40", "--checkpoint-every", "5")
    assert "No space left on device" in said
    assert "tried again" in said
    assert log(tmp_path / "run")[-1]["step"] == 40


@mostly("lm", "tag")
def test_a_run_that_diverges_says_where(task: str, tmp_path: Path) -> None:
    made = job(task, tmp_path, "--steps", "20")
    with torch.no_grad():
        next(p for name, p in made.model.named_parameters() if name == "readout.bias").fill_(torch.nan)
    with pytest.raises(Diverged, match="step 1, the output of readout"):
        list(made.training)


# --- how it is trained ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@mostly()  # a language model: test_processes.py
def test_two_processes_take_the_steps_of_one(task: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="several processes need elman[accelerate]")
    how = ("--steps", "20", "--weight-decay", "0.3")
    train(task, tmp_path, "one", *how)
    both = started(2, *words(task, tmp_path, "two", *how))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(both, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (
        [line[name] for line in log(tmp_path / out) for name in ("loss", "norm", "valid") if name in line]
        for out in ("one", "two")
    )
    assert len(one) == 2 * 2 + 16
    assert two == pytest.approx(one, rel=1e-4)
    # A parameter that takes part in nothing is left as it was, not decayed: the same in one process and in several.
    weights = [Run(tmp_path / out).weights for out in ("one", "two")]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-3, atol=1e-4)
        if name.startswith("unused."):
            assert torch.equal(weights[1][name], weights[0][name])


@mostly("lm")
def test_bfloat16_learns_the_same(task: str, tmp_path: Path) -> None:
    losses, weights = [], []
    for precision in ("float32", "bfloat16"):
        train(task, tmp_path, precision, "--steps", "10", "--precision", precision)
        losses.append([line["loss"] for line in log(tmp_path / precision) if "loss" in line])
        weights.append((tmp_path / precision / "model.safetensors").read_bytes())
    assert weights[0] != weights[1] or not reduces()  # the log has five digits, which may be the same
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@mostly("toy")  # others from Python: each task's own file
def test_the_seed_makes_the_run(task: str, tmp_path: Path) -> None:
    for out, seed in (("one", "3"), ("two", "3"), ("three", "4")):
        train(task, tmp_path, out, "--steps", "3", "--seed", seed)
    one, two, three = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("one", "two", "three"))
    assert one == two != three


@mostly()  # a language model: tests/models; each task: its own file
def test_any_cell_will_do(task: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\nclass Mine(torch.nn.GRUCell): pass\n")
    how = ("--steps", "3", "--layers", "2", "--norm", "--residual", "--cell")
    train(task, tmp_path, "mine", *how, f"{tmp_path / 'mine.py'}:Mine")
    files = CASES[task].write(tmp_path)
    assert "--trust" in elman("evaluate", tmp_path / "mine", *files).err
    assert elman("evaluate", tmp_path / "mine", *files, "--trust").status == 0


# --- what is said of it -----------------------------------------------------------------------------------------------


@mostly("lm", "toy")
def test_a_run_is_measured_reported_and_shown(task: str, tmp_path: Path) -> None:
    said = train(task, tmp_path, "run", "--steps", "20", "--tensorboard")
    run, files = tmp_path / "run", CASES[task].write(tmp_path)
    part = task_of(task).part_of(json.loads((run / "config.json").read_text()))
    record = read_record(run, part)
    assert [point.step for point in record.loss] == [10, 20]
    assert len(record.valid) == 16
    assert record.best in record.valid
    assert record.count > 0
    assert {"value", "name", "unit"} <= record.measured.keys()
    assert "in the loop" in record.plan
    page = (run / "report.html").read_text()
    shutil.copy(run / "report.html", tmp_path / "before.html")
    assert elman("report", run).status == 0
    assert (run / "report.html").read_text() == page
    assert f"{part.counted or part.unit} a second" in page
    for title in part.sections(record) if part.sections else ():
        assert title in page
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    # The first figure that is printed is the measure, as at the end of training; the same every time.
    measured = elman("evaluate", run, *files)
    assert measured.status == 0, measured.err
    assert measured.out == elman("evaluate", run, *files).out
    assert len(said.splitlines()) > len(measured.out.splitlines())


@mostly("lm", "tag", "toy")  # what each task predicts on the command line: its own file
def test_predict_says_something_or_why_not(task: str, learnt: Learnt, tmp_path: Path) -> None:
    run, files = learnt(task) / "run", CASES[task].write(tmp_path)
    said = elman("predict", run, *files)
    if task == "lm":
        assert said.status == 2
        assert "elman generate" in said.err
        return
    assert said.status == 0, said.err
    assert said.out
    elman("predict", run, *files, "--out", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == said.out
    assert "only a language model writes" in elman("generate", run).err
    assert "leave --cold out" in elman("evaluate", run, *files, "--cold", "5").err


@mostly("lm", "tag", "toy")
def test_a_run_explains_itself_and_is_drawn(task: str, learnt: Learnt, tmp_path: Path) -> None:
    for name, *more in (["explain"], ["draw", "-o", str(tmp_path / "a.svg")]):
        done = elman(name, learnt(task) / "run", *more)
        assert done.status == 0, done.err


def test_a_run_of_a_task_that_nobody_knows_is_refused(learnt: Learnt, tmp_path: Path) -> None:
    shutil.copytree(learnt("toy") / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"task": "toy"', '"task": "conduct"'))
    for name in ("evaluate", "predict", "report"):
        said = elman(name, tmp_path / "run")
        assert said.status == 2
        assert "a task that this elman does not know" in said.err


# --- a figure that is better the higher it is -------------------------------------------------------------------------


def test_the_best_weights_are_those_of_the_highest_accuracy(tmp_path: Path) -> None:
    train("toy", tmp_path, "run", "--steps", "60", "--lr", "0.02")
    lines = [line for line in log(tmp_path / "run") if "valid" in line]
    best = max(line["valid"] for line in lines)
    assert Run(tmp_path / "run").validation == pytest.approx(best)
    kept = [line["valid"] for line in lines if line["best"]]
    assert kept == sorted(kept)
    assert kept[-1] == best
    assert best > lines[0]["valid"]


def test_a_measure_is_said_with_its_unit() -> None:
    share = Measure(0.936, "accuracy", "%", lower_is_better=False)
    assert str(share) == "accuracy 93.6 %"
    assert share.beats(0.9)
    assert not share.beats(0.95)
    assert str(Measure(1.25, "error", "mm")) == "error 1.2500 mm"
    assert Measure(1.0, "").beats(float("nan"))
    assert Measure(1.0, "").beats(None)
    assert not Measure(float("nan"), "").beats(1.0)


def test_a_model_is_fitted_without_a_folder(tmp_path: Path) -> None:
    made = job("toy", tmp_path, "--steps", "400", "--lr", "0.02")
    task, data = made.task, made.prepared.held_out
    look = lambda: task.measure(made.model, data, True)  # noqa: E731
    best = fitted(made.training, look, patience=2)
    assert best == look().value
    assert made.training.step < 400  # it had no more patience


# --- batches of examples that differ in length ------------------------------------------------------------------------


def _examples(count: int = 23) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    x = [torch.arange(1 + (7 * k) % 11, dtype=torch.float32)[:, None] + 100 * k for k in range(count)]
    return x, [one[:, 0].long() for one in x]


@pytest.mark.parametrize("batch", [1, 4, 30])
def test_each_example_comes_once_in_a_pass(batch: int) -> None:
    x, y = _examples()
    stream, orders = ragged(x, y, batch, seed=1), []
    for turn in range(3):
        seen: list[int] = []
        while stream.position[0] == turn:
            item = next(stream)
            inputs, targets, lengths = item.values
            assert inputs.shape == (int(lengths.max()), len(lengths), 1)
            assert item.fresh
            assert item.count == int(lengths.sum())
            for k, length in enumerate(lengths.tolist()):
                number = int(inputs[0, k]) // 100
                assert torch.equal(inputs[:length, k], x[number])
                assert torch.equal(targets[:length, k], y[number])
                assert not inputs[length:, k].any()
                seen.append(number)
        assert sorted(seen) == list(range(len(x)))
        orders.append(seen)
    assert batch == 30 or orders[0] != orders[1] != orders[2]


def test_examples_of_like_length_go_together() -> None:
    x = [torch.zeros(1 + k % 50, 1) for k in range(1000)]
    stream = ragged(x, torch.zeros(1000), 20)
    sizes = [next(stream).values[2] for _ in range(50)]
    padded = sum(int(lengths.max()) * len(lengths) for lengths in sizes)
    assert padded < 1.1 * sum(map(len, x))


def test_ragged_batches_go_on_from_a_position() -> None:
    x, y = _examples()
    stream = ragged(x, y, 4, seed=3)
    found = [(stream.position, next(stream).values) for _ in range(20)]
    for position, values in found:
        other = ragged(x, y, 4, seed=3)
        assert other.holds(position)
        other.position = position
        assert all(torch.equal(a, b) for a, b in zip(next(other).values, values, strict=True))
    assert not stream.holds((0, 6))
    assert not stream.holds((-1, 0))
    assert not stream.holds((0,))


@pytest.mark.parametrize("steps", [True, False])
def test_processes_share_every_batch(steps: bool) -> None:
    x, y = _examples(9)
    y = y if steps else torch.arange(9)
    whole = ragged(x, y, 4)
    parts = [ragged(x, y, 4) for _ in range(5)]
    for rank, part in enumerate(parts):
        part.split(rank, 5)
    for _ in range(12):
        one, shared = next(whole), [next(part) for part in parts]
        assert sum(item.part for item in shared) == pytest.approx(1)
        assert {item.count for item in shared} == {one.count}
        mine = sum(
            item.part * float(item.values[0].sum() / (item.part * one.count)) for item in shared if item.part
        )
        assert mine == pytest.approx(float(one.values[0].sum()) / one.count)


def test_examples_that_cannot_be_are_refused() -> None:
    x, y = _examples(3)
    with pytest.raises(InputError, match="one target for each example"):
        ragged(x, y[:2])
    with pytest.raises(InputError, match="one target for each step"):
        ragged(x, [one[:-1] if len(one) > 1 else one for one in y])
    with pytest.raises(InputError, match="nothing to learn from"):
        ragged([], None)
    with pytest.raises(InputError, match="an example is empty"):
        ragged([torch.zeros(0, 1)], None)


# --- parameters that take part in nothing -----------------------------------------------------------------------------


def test_what_no_step_uses_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = toy.Labeller(2)
    before = model.unused.weight.clone()
    x, _ = _examples(8)
    batches = ragged([(one[:, 0] % 2).long() for one in x], torch.arange(8) % 2, 4)
    for _ in Training(model, batches, steps=5, weight_decay=0.3, processes=Processes()):
        pass
    assert torch.equal(model.unused.weight, before)
