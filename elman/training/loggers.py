"""Where the figures of a training run go besides its log.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from elman.errors import NotSupported


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
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise NotSupported(
                what="TensorBoard is not installed", where=folder, mend="pip install 'elman[tensorboard]'"
            ) from error
        self.folder = folder
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def log(self, values: dict[str, Any], step: int) -> None:
        if self._writer is None:  # only now is it known where the run goes on: later steps are told again
            self._writer = self._make(str(self.folder), purge_step=step)
        for name, value in _flat(values):
            if isinstance(value, list) and all(isinstance(part, (int, float)) for part in value):
                for k, part in enumerate(value):
                    self._writer.add_scalar(name, part, k)
            elif isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, step)
            else:
                words = value if isinstance(value, str) else json.dumps(value)
                # It is read as Markdown, where an indented block keeps its lines and its signs.
                self._writer.add_text(name, "\n".join("    " + line for line in words.split("\n")), step)

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", part) for inner, part in _flat(value))
        else:
            yield name, value
