"""A disk that is full wherever something is written: what was there stays whole, and the same command goes on."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from elman import training
from elman.data import files
from elman.errors import DataError, InputError
from elman.training import Run
from tests.test_loggers import keeper

FILES = {"tokenizer.json": b"{}"}


@contextmanager
def _files_of(size: int) -> Iterator[None]:
    """Inside, no file grows beyond so many bytes: what is written up to there lands, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_run_that_finds_no_room_at_first_is_begun_by_the_same_command(
    fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, [0]

    def full(handle: int) -> None:
        calls[0] += 1
        if calls[0] >= fails:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    (tmp_path / ".lock").touch()
    with pytest.raises(DataError, match="No space left"):
        Run.create(tmp_path, {}, FILES)
    monkeypatch.undo()
    Run.refuse_taken(tmp_path)
    assert Run.create(tmp_path, {"task": "lm"}, FILES).config["task"] == "lm"


def test_a_run_that_was_killed_as_it_began_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def write(run: Run, name: str, content: bytes) -> None:
        if name == "config.json":
            raise Killed
        (run.folder / name).write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_write", write)
        with pytest.raises(Killed):
            Run.create(tmp_path, {}, FILES)
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", *FILES}
    Run.refuse_taken(tmp_path)
    Run.create(tmp_path, {"task": "lm"}, FILES)
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").touch()  # no beginning: somebody took the configuration away
    with pytest.raises(InputError, match="not empty"):
        Run.refuse_taken(tmp_path)


def test_what_is_somebody_elses_is_no_run_to_go_on_with(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(InputError, match="not empty") as told:
        Run.refuse_taken(tmp_path)
    assert "--resume" not in str(told.value)


def test_a_line_of_the_log_that_found_no_room_takes_no_other_with_it(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {})
    run.log({"step": 1, "loss": 1.0})
    with _files_of((tmp_path / "log.jsonl").stat().st_size + 7):
        run.log({"step": 2, "loss": 2.0})
    run.log({"step": 3, "loss": 3.0})
    assert [line["step"] for line in run.read_log()] == [1, 3]


def test_a_logger_without_room_at_the_end_does_not_end_a_run(tmp_path: Path) -> None:
    class Full:
        def log(self, values: dict[str, Any], step: int) -> None:
            pass

        def finish(self) -> None:
            raise OSError(28, "No space left on device")

    told: list[str] = []
    list(keeper(tmp_path / "run", loggers=[Full()], notify=told.append))
    assert told == ["Full did not end well: No space left on device"]


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_tensorboard_without_room(size: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    told: list[str] = []
    board = training.TensorBoard(tmp_path / "board")
    kept = keeper(tmp_path / "run", loggers=[board], notify=told.append, checkpoint_every=10**12)
    events = iter(kept)
    next(events)
    with _files_of(size):
        for step in range(100):
            kept._log({"step": step, "sample": "words " * 100})
    list(events)
    assert told == ["TensorBoard writes no more: File too large; training goes on"]
    assert "Traceback" not in "".join(capfd.readouterr())
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["stages"]
