"""A training run survives: killed, cut short, flipped, full, locked, diverged, and gone on with to the same bits."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elman import data, training
from elman.errors import DataError, InputError, StateError
from elman.models import LanguageModel, estimate
from elman.training import Checkpoints, Measure, Run, Trainer, Training
from tests.strangers import elman

TEXT = "the cat sat on the mat; the rat sat on the cat.\n" * 40
SMALL = ["--hidden", "16", "--embedding", "8", "--window", "16", "--batch", "4", "--resume", "auto"]
Pair = namedtuple("Pair", "h count")


def small(cell: str = "gru") -> tuple[LanguageModel, data.Tokenizer, Tensor]:
    torch.manual_seed(0)
    tokenizer = data.Tokenizer.characters(TEXT)
    return LanguageModel(tokenizer.size, cell, hidden=16, embedding=8), tokenizer, tokenizer.encode(TEXT)


class Odd(nn.Module):
    """Its state is nested, holds a number and a NamedTuple, and it draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.E = nn.Embedding(20, 6)
        self.cell, self.V = nn.GRUCell(6, 6), nn.Linear(6, 20)

    def loss(self, x: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = torch.zeros(x.shape[1], 6) if state is None else state["pair"].h
        outputs = []
        for x_t in nn.functional.dropout(self.E(x), 0.2, self.training):
            h = self.cell(x_t, h)
            outputs.append(h)
        count = (0 if state is None else state["pair"].count) + len(x)
        logits = self.V(torch.stack(outputs)).flatten(0, 1)
        return nn.functional.cross_entropy(logits, y.flatten()), {"pair": Pair(h, count), "extra": [None]}


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


@pytest.mark.grid(1)
@pytest.mark.parametrize("kind", ["gru", "lstm", "odd"])
@pytest.mark.parametrize("stop", [1, 7, 23])
def test_a_restored_run_goes_on_to_the_same_bits(kind: str, stop: int, tmp_path: Path) -> None:
    def begin() -> tuple[Any, Training]:
        model, _, tokens = small() if kind == "odd" else small(kind)
        model = Odd() if kind == "odd" else model
        return model, Training(
            model, data.windows(tokens, 16, 8), steps=30, average=0.9 if stop == 7 else None
        )

    model, whole = begin()
    expected = [step.loss for step in whole]
    _, part = begin()
    for step in part:
        if step.step == stop:
            break
    training.save_checkpoint(tmp_path / "c", *part.state())
    again, rest = begin()
    torch.manual_seed(99)
    rest.restore(*training.load_checkpoint(tmp_path / "c"))
    assert [step.loss for step in rest] == expected[stop:]
    with rest.averaged(), whole.averaged():
        assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(model), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(model), strict=True))


def test_windows_go_on_from_a_position() -> None:
    tokens = torch.arange(4 * 25 + 9)
    stream = data.windows(tokens, 7, 4, seed=3)
    found = [(stream.position, next(stream).values[0]) for _ in range(12)]
    for position, x in found:
        other = data.windows(tokens, 7, 4, seed=3)
        other.position = position
        assert torch.equal(next(other).values[0], x)


def test_a_share_of_windows_begins_anew() -> None:
    """Which ones hangs on seed and position alone, so a resumed run and other processes choose the same."""
    tokens = torch.arange(4 * 700 + 9)

    def fresh(restart: float, seed: int = 3, part: tuple[int, int] | None = None) -> list[tuple[Any, bool]]:
        stream = data.windows(tokens, 7, 4, seed=seed, restart=restart)
        if part is not None:
            stream.split(*part)
        return [(stream.position, next(stream).fresh) for _ in range(300)]

    plain, some = fresh(0.0), fresh(0.2)
    assert [t == 0 for (_, t), _ in plain] == [is_fresh for _, is_fresh in plain]
    assert all(is_fresh for _, is_fresh in fresh(1.0))
    assert 40 < sum(is_fresh for _, is_fresh in some) < 80
    assert all(is_fresh for (_, t), is_fresh in some if t == 0)
    assert some == fresh(0.2, part=(1, 2)) != fresh(0.2, seed=4)
    for position, is_fresh in some[:50]:
        other = data.windows(tokens, 7, 4, seed=3, restart=0.2)
        other.position = position
        assert next(other).fresh == is_fresh
    with pytest.raises(InputError, match="restart"):
        fresh(1.5)


def test_windows_take_slices_only() -> None:
    class Slices:
        def __len__(self) -> int:
            return 10**12

        def __getitem__(self, where: slice) -> Tensor:
            assert where.stop - where.start == 8
            return torch.arange(where.start, where.stop)

    stream = data.windows(Slices(), 7, 4)
    length = (10**12 - 1) // 4
    for k in range(3):
        assert next(stream).values[0][:, 2].tolist() == list(
            range(2 * length + 7 * k, 2 * length + 7 * k + 7)
        )


# --- checkpoints ------------------------------------------------------------------------------------------------------


def keeper(folder: Path, steps: int = 40, **options: Any) -> Trainer:
    model, tokenizer, tokens = small()
    run = (
        Run(folder)
        if (folder / "config.json").exists()
        else Run.create(folder, {"task": "lm"}, {"tokenizer.json": tokenizer.to_json().encode()})
    )
    return Trainer(
        Training(model, data.windows(tokens, 16, 8), steps=steps),
        run,
        options.pop("measure", lambda: Measure(estimate(model, tokens[:400]), "cross entropy")),
        checkpoint_every=5,
        **options,
    )


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        kept.save({"t": torch.arange(100.0) + step}, {"step": step})
    paths = kept.paths()
    assert [path.name for path in paths] == ["step-0000000003.safetensors", "step-0000000002.safetensors"]
    whole = paths[0].read_bytes()
    told: list[DataError] = []
    for spoiled in (whole[:-1], whole[: len(whole) // 2], b"", _flipped(whole, -7), _flipped(whole, 90)):
        paths[0].write_bytes(spoiled)
        found = kept.newest(told.append)
        assert found is not None
        assert found[1] == {"step": 2}
        assert str(paths[0]) in str(told[-1])
    assert len(told) == 5
    paths[1].write_bytes(b"")
    assert kept.newest() is None


def test_what_was_just_saved_is_kept_whatever_stands_above_it(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for step in (200, 300):
        kept.save({"t": torch.zeros(2)}, {"step": step})
    for path in kept.paths():
        path.write_bytes(b"spoiled")
    for step, left in ((50, [50, 300]), (60, [60, 50]), (70, [70, 60])):
        saved = kept.save({"t": torch.zeros(2)}, {"step": step})
        assert sorted(kept.paths()) == sorted(saved.with_name(f"step-{n:010}.safetensors") for n in left)
        found = kept.newest()
        assert found is not None
        assert found[1] == {"step": step}


def _flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


def test_a_spoiled_checkpoint_costs_the_steps_since_the_one_before(tmp_path: Path) -> None:
    list(keeper(tmp_path / "whole"))
    broken = keeper(tmp_path / "run")
    for event in broken:
        if isinstance(event, training.Step) and event.step == 30:
            break
    newest = broken.run.checkpoints.paths()[0]
    newest.write_bytes(newest.read_bytes()[:100])
    told: list[str] = []
    list(keeper(tmp_path / "run", resume=True, notify=told.append))
    assert newest.name in told[0]
    times = {"seconds": 0, "stages": 0}
    for name in ("model.safetensors", "log.jsonl"):
        mine, right = ((tmp_path / folder / name).read_text("latin1") for folder in ("run", "whole"))
        if name == "log.jsonl":
            mine, right = ([{**json.loads(x), **times} for x in t.splitlines()] for t in (mine, right))
        assert mine == right


def test_a_full_disk_stops_no_run_that_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, told = os.fsync, []
    full = threading.Event()

    def maybe(handle: int) -> None:
        if full.is_set():
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", maybe)
    kept = keeper(tmp_path / "run", notify=told.append)
    kept.best = -1.0  # no weights are written on the way
    for event in kept:
        if isinstance(event, training.Step):
            full.set() if event.step in (10, 20) else full.clear()
    assert any("No space left" in words and "tried again" in words for words in told)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    assert kept.run.checkpoints.newest() is not None


def test_a_disk_that_stays_full_is_an_error_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keeper(tmp_path / "run")
    kept.best = -1.0
    events = iter(kept)
    for event in events:
        if isinstance(event, training.Step) and event.step == 20:
            break
    monkeypatch.setattr(os, "fsync", _no_room)
    with pytest.raises(DataError, match="No space left"):
        list(events)
    found = kept.run.checkpoints.newest()
    assert found is not None
    assert found[1]["step"] in (15, 20)


def _no_room(handle: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    kept = keeper(tmp_path / "run")
    for event in kept:
        if isinstance(event, training.Step) and event.step == 20:
            shutil.rmtree(tmp_path / "run" / "checkpoints")
    found = kept.run.checkpoints.newest()
    assert found is not None
    assert found[1]["step"] == 40


@pytest.mark.parametrize("room_again", [True, False])
def test_best_weights_that_find_no_room_are_written_later(
    room_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([2.0, 2.5, *[3.0] * 16])
    write, tries, told = Run.save, [], []

    def save(run: Run, model: nn.Module, **options: Any) -> None:
        tries.append(weights(model))
        if len(tries) == 1 or not room_again:
            raise DataError(what="the run cannot be saved: No space left on device", where=run.folder)
        write(run, model, **options)

    monkeypatch.setattr(Run, "save", save)
    kept = keeper(tmp_path / "run", notify=told.append, measure=lambda: Measure(next(figures), "figure"))
    if not room_again:
        with pytest.raises(DataError, match="No space left"):
            list(kept)
        return
    list(kept)
    assert len(told) == 1
    assert "tried again" in told[0]
    assert len(tries) == 2
    assert kept.run.validation == 2.0
    assert all(
        torch.equal(a, b) for a, b in zip(*tries, strict=True)
    )  # those of the look, not of the second try


def test_weights_that_never_found_room_are_not_taken_for_the_best(tmp_path: Path) -> None:
    kept = keeper(tmp_path / "run")
    for event in kept:
        if isinstance(event, training.Validation):
            break
    kept._save()
    tensors, facts = kept.run.checkpoints.newest() or pytest.fail("no checkpoint")
    kept.run.checkpoints.save(tensors, {**facts, "best": -1.0})
    assert keeper(tmp_path / "run", resume=True).best == kept.run.validation


def test_a_run_whose_folder_goes_ends_with_an_error(tmp_path: Path) -> None:
    for end in (lambda run: run.rename(tmp_path / "elsewhere"), shutil.rmtree):
        kept = keeper(tmp_path / "run")
        events = iter(kept)
        while next(events).step < 10:
            pass
        end(tmp_path / "run")
        with pytest.raises(training.FolderGone, match="removed or renamed"):
            list(events)
        assert kept.training.step < 20  # at the next look or checkpoint
        assert not (tmp_path / "run").exists()


def test_a_finished_run_goes_on_to_more_steps(tmp_path: Path) -> None:
    list(keeper(tmp_path / "run", steps=20))
    longer = keeper(tmp_path / "run", steps=40, resume=True)
    assert (longer.training.step, longer.training.done) == (20, 0.5)
    steps = [event.step for event in longer if isinstance(event, training.Step)]
    assert steps == [30, 40]
    assert keeper(tmp_path / "run", steps=20, resume=True).finished


# --- the best weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [True, False])
def test_the_best_weights_are_kept_and_patience_ends_the_run(lower: bool, tmp_path: Path) -> None:
    sign = 1 if lower else -1
    figures = iter([sign * value for value in (3.0, 2.0, 2.5, 2.6, 2.7, 1.0)])
    kept = keeper(
        tmp_path / "run", steps=64, patience=3, measure=lambda: Measure(next(figures), "", "", lower)
    )
    best: list[Tensor] = []
    found = []
    for event in kept:
        if isinstance(event, training.Validation):
            found.append((sign * event.measure.value, event.best))
            if event.best:
                best = weights(kept.training.model)
    assert found == [(3.0, True), (2.0, True), (2.5, False), (2.6, False), (2.7, False)]
    assert kept.finished
    assert kept.run.validation == sign * 2.0
    assert all(torch.equal(a, b) for a, b in zip(weights(kept.training.model), best, strict=True))
    again = keeper(tmp_path / "run", steps=64, patience=3, resume=True)
    assert again.finished
    assert (again.best, again.lower_is_better) == (sign * 2.0, lower)


def test_any_figure_is_better_than_no_number(tmp_path: Path) -> None:
    figures = iter([float("nan"), 3.0, *[4.0] * 14])
    kept = keeper(tmp_path / "run", measure=lambda: Measure(next(figures), ""))
    list(kept)
    assert kept.best == kept.run.validation == 3.0


# --- whole processes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [1, pytest.param(4, marks=pytest.mark.conformance)])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_any_moment_it_ends_with_the_same_bits(wanted: int, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def command(out: str) -> list[str]:
        steps = "60" if wanted == 1 else "800"
        more = ["--steps", steps, "--checkpoint-every", "7", "--out", str(tmp_path / out)]
        return ["train", "lm", str(text), *SMALL, *more]

    assert elman(*command("whole")).status == 0
    chance, kills, begun = random.Random(5), 0, set()
    for attempt in range(12):
        log, kept = tmp_path / "run" / "log.jsonl", tmp_path / "run" / "checkpoints"
        before = log.stat().st_mtime_ns if log.exists() else 0
        process = os.fork()  # which imports nothing anew
        if process == 0:
            try:
                elman(*command("run"))
            finally:
                os._exit(0)
        while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and not (
            log.exists() and log.stat().st_mtime_ns != before and log.read_text()
            and (wanted > 1 or any(kept.glob("step-*")))  # one kill alone is one with something to go on from
        ):  # fmt: skip
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.25) if wanted > 1 else chance.uniform(0, 0.02))
        if attempt < wanted:
            os.kill(process, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        begun |= {path.name for path in kept.glob("step-*")}
        if kills >= wanted:
            break
    assert kills >= wanted
    assert begun
    assert "going on from step" in elman(*command("run")).out
    names = ["model.safetensors", "tokenizer.json"]
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    logs = []
    for out in ("run", "whole"):
        lines = map(json.loads, (tmp_path / out / "log.jsonl").read_text().splitlines())
        logs.append([{**line, "seconds": 0, "stages": 0} for line in lines])
    assert logs[0] == logs[1]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    inside, say = os.pipe()
    process = os.fork()  # which imports nothing anew
    if process == 0:
        try:
            with training.locked(tmp_path):
                os.write(say, b"in")
                time.sleep(600)
        finally:
            os._exit(1)
    os.close(say)
    try:
        assert os.read(inside, 2) == b"in"
        with pytest.raises(StateError, match=f"process {process}"), training.locked(tmp_path):
            pass
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    os.close(inside)
    with training.locked(tmp_path):
        pass


def test_other_settings_than_the_run_began_with_are_refused(tmp_path: Path) -> None:
    _, tokenizer, _ = small()
    config = {"task": "lm", "hidden": 16, "training": {"lr": 0.1, "steps": 30}}
    Run.create(tmp_path, config, {"tokenizer.json": tokenizer.to_json().encode()})
    assert Run.unfinished(tmp_path, config) is not None
    assert Run.unfinished(tmp_path / "elsewhere", config) is None
    with pytest.raises(InputError, match=r"training\.lr\n  got: 0\.2\n  expected: 0\.1"):
        Run.unfinished(tmp_path, {**config, "training": {"lr": 0.2, "steps": 30}})
    there = json.loads((tmp_path / "config.json").read_text())
    there["training"]["steps"] = "30"
    (tmp_path / "config.json").write_text(json.dumps(there))
    with pytest.raises(InputError, match=r"training\.steps\n  got: 40\n  expected: 30"):
        Run.unfinished(tmp_path, {**config, "training": {"lr": 0.1, "steps": 40}})


@pytest.mark.parametrize("name", ["名" * 84, "n" * 255, "é" * 127 + "\udcff"], ids=["三", "n", "é"])
def test_a_file_may_have_any_name_that_the_system_takes(name: str, tmp_path: Path) -> None:
    training.write_atomically(tmp_path / name, b"content")
    assert [path.name for path in tmp_path.iterdir()] == [name]


# --- divergence -------------------------------------------------------------------------------------------------------


def test_what_went_wrong_first_is_named() -> None:
    model, _, tokens = small()
    run = Training(model, data.windows(tokens, 16, 8), steps=20)
    for step in run:
        if step.step == 3:
            model.layers[0].cell.U.register_hook(lambda gradient: gradient * torch.inf)
            break
    before = weights(model)
    with pytest.raises(training.Diverged, match=r"step 4, the gradient of layers\.0\.cell\.U went first"):
        list(run)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
    assert run.step == 3
