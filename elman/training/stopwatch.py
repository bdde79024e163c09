"""Where the time of a training run goes."""

from __future__ import annotations

import time


class Stages:
    """A clock that gives the time since it was last looked at to the stage that has just ended.

        stages.begin()
        x, y = next(stream);  stages.end("data")
        loss = …;             stages.end("forward")

    seconds: by stage, so far. On a GPU, a stage that only hands its work over is short, and the one that waits for a
    result is long.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.perf_counter()

    def begin(self) -> None:
        self._at = time.perf_counter()

    def end(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._at
        self._at = now
