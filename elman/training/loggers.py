"""Where the figures of a training run go besides its log.jsonl."""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from elman.errors import NotSupported

_numbers = itertools.count()  # one file for each writer of a process


class Logger(Protocol):
    """Whatever is told of a training run while it goes; hand one to `Trainer(loggers=[…])`.

        class Print:
            def log(self, values, step): print(step, values)
            def finish(self): pass

    values: names to numbers, and now and then words (`sample`, `plan`), a list of numbers or a dict of
    numbers (`stages`). step: its number, from 1. A run that is gone on with tells again of the steps after its last
    checkpoint. finish: called once, however the run ends.
    """

    def log(self, values: dict[str, Any], step: int) -> None: ...

    def finish(self) -> None: ...


class TensorBoard:
    """Writes a run for TensorBoard into a folder: `tensorboard --logdir runs`.

    Raises NotSupported where TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
            from torch.utils.tensorboard import summary
        except ImportError as error:
            raise NotSupported(
                what="TensorBoard is not installed", where=folder, mend="pip install 'elman[tensorboard]'"
            ) from error
        self.folder = folder
        self._events: Any = event_pb2
        self._records: Any = RecordWriter
        self._form: Any = summary
        self._path: Path | None = None

    def log(self, values: dict[str, Any], step: int) -> None:
        # By hand: `SummaryWriter` writes in a thread, which prints a traceback where there is no room.
        begins = self._path is None
        if self._path is None:  # only now is it known where the run goes on: later steps are told again
            self.folder.mkdir(parents=True, exist_ok=True)
            me = f"{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
            self._path = self.folder / f"events.out.tfevents.{time.time():010.0f}.{me}"
        with self._path.open("ab") as file:
            records = self._records(file)
            for number, what in [*(self._opening(step) if begins else ()), *self._summaries(values, step)]:
                event = self._events.Event(wall_time=time.time(), step=number, **what)
                records.write(event.SerializeToString())

    def finish(self) -> None:
        pass

    def _opening(self, step: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """That nothing holds which was told of later steps before."""
        yield step, {"file_version": "brain.Event:2"}
        yield step, {"session_log": self._events.SessionLog(status=self._events.SessionLog.START)}

    def _summaries(self, values: dict[str, Any], step: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for name, value in _flat(values):
            if isinstance(value, list) and all(isinstance(part, (int, float)) for part in value):
                yield from ((k, {"summary": self._form.scalar(name, part)}) for k, part in enumerate(value))
            elif isinstance(value, (int, float)):
                yield step, {"summary": self._form.scalar(name, value)}
            else:
                words = value if isinstance(value, str) else json.dumps(value)
                # It is read as Markdown, where an indented block keeps its lines and its signs.
                lines = "\n".join("    " + line for line in words.split("\n"))
                yield step, {"summary": self._form.text(name, lines)}


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", part) for inner, part in _flat(value))
        else:
            yield name, value
