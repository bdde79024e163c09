"""What a run's log says, by what it is about."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elman.errors import DataError
from elman.training import Run

_LINES = 1_000_000  # of a log, which are held in memory
_SAMPLES, _SAMPLED = 200, 10_000  # samples on a page, the last ones, and characters of each


@dataclass(frozen=True)
class Point:
    """A figure at a step."""

    step: float
    value: float


@dataclass(frozen=True)
class Sample:
    """What the model wrote after so many steps. valid: nats per symbol on held-out text there, if it looked."""

    step: int
    text: str
    valid: float | None


@dataclass(frozen=True)
class Record:
    """A run. Curves go by steps; what the log does not hold is empty.

    loss, valid: nats per symbol; valid of looks at pieces of the held-out text. best: the look whose weights were kept.
    measured: what these weights reach, exactly, on held-out text: "nats_per_symbol", "bits_per_character", "symbols",
    of them "unknown", and whether that is the "whole" text; empty where the run did not end. reach: ‖∂L(t)/∂h(t-k)‖
    from k = 1. stages: seconds by stage. done: the share of the run that is over.
    """

    name: str
    config: dict[str, Any]
    loss: tuple[Point, ...]
    valid: tuple[Point, ...]
    lr: tuple[Point, ...]
    norm: tuple[Point, ...]
    samples: tuple[Sample, ...]
    plan: str
    reach: tuple[float, ...]
    stages: dict[str, float]
    symbols: int
    seconds: float
    done: float
    measured: dict[str, float]

    @property
    def best(self) -> Point | None:
        return min(self.valid, key=lambda point: point.value, default=None)


def read_record(folder: str | Path) -> Record:
    """The record of a run folder, finished or not. Raises DataError if it is none."""
    folder = Path(folder)
    run = Run(folder)
    if not (folder / "config.json").is_file():
        raise DataError(
            what="this is no run folder", where=folder,
            got="no config.json" if folder.is_dir() else "no such folder",
            mend="give what `elman train lm --out` named",
        )  # fmt: skip
    config = run.config
    curves: dict[str, list[Point]] = {name: [] for name in ("loss", "valid", "lr", "norm")}
    samples: deque[Sample] = deque(maxlen=_SAMPLES)
    last: dict[str, Any] = {"plan": "", "reach": [], "stages": {}, "symbols": 0, "done": 0.0}
    seconds, measured = 0.0, {}
    for count, line in enumerate(run.read_log()):
        if count == _LINES:
            raise DataError(
                what=f"the log has more than {_LINES:,} lines", where=folder / "log.jsonl",
                mend="take every tenth line of it, in a copy of the folder",
            )  # fmt: skip
        found = {name: _figure(line[name]) for name in curves if name in line and math.isfinite(line[name])}
        for name, value in found.items():
            curves[name].append(Point(line["step"], value))
        if "sample" in line:
            samples.append(Sample(line["step"], line["sample"][:_SAMPLED], found.get("valid")))
        if "loss" in line:  # a run that was gone on with has other weights since
            measured = {}
        measured = line.get("measured", measured)
        last |= {name: line[name] for name in last if name in line}
        seconds = max(seconds, line.get("seconds", 0.0))
    return Record(
        name=folder.resolve().name,
        config=config,
        **{name: tuple(points) for name, points in curves.items()},
        samples=tuple(samples),
        plan=last["plan"],
        reach=tuple(map(_figure, last["reach"])),
        stages=last["stages"],
        symbols=last["symbols"],
        seconds=seconds,
        done=last["done"],
        measured=measured,
    )


def _figure(value: float) -> float:
    """A number that an axis of floats has room for; what is no finite one is NaN."""
    return math.nan if not math.isfinite(value) else value if abs(value) > 1e-30 else 0.0
