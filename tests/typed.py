"""Standard input that somebody types, and reads the answer to each line before the next."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from elman.app import jobs
from elman.tasks.task import Opening


class Typed:
    """lines: yet to be typed."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines, self.buffer = list(lines), self

    def readline(self, size: int = -1) -> bytes:
        assert size < 0 or not self.lines or len(self.lines[0]) <= size
        return self.lines.pop(0) if self.lines else b""

    read1 = readline


def expect_answers(folder: Path, lines: list[bytes], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `elman predict RUN -` says, which has to be one line for each, before the next is read."""
    run, task, model = jobs.opened(folder, Opening())
    monkeypatch.setattr(sys, "stdin", typed := Typed(lines))
    answers, found = task.predict(model, [Path("-")], run), []
    for left in reversed(range(len(lines))):
        found.append(next(answers))
        assert len(typed.lines) == left
    assert list(answers) == []
    return found
