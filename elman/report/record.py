"""What a run's log says, by what it is about; and what a task adds to its report."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elman.data.schema import Check, number, record, text, truth, whole
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
    """What the model made after so many steps. valid: its figure on held-out data there, if it looked."""

    step: int
    text: str
    valid: float | None


@dataclass(frozen=True)
class Record:
    """A run. Curves go by steps; what the log does not hold is empty.

    loss: of training. valid: the task's figure, of quick looks at held-out data. best: the look whose weights were
    kept. measured: what these weights reach, exactly: "value", "name", "unit" and the details of
    `elman.training.Measure`; empty where the run did not end. stages: seconds by stage. count: trained on. done: the
    share of the run that is over. more: the last of what the task logs besides, by name.
    """

    name: str
    config: dict[str, Any]
    loss: tuple[Point, ...]
    valid: tuple[Point, ...]
    lr: tuple[Point, ...]
    norm: tuple[Point, ...]
    samples: tuple[Sample, ...]
    plan: str
    stages: dict[str, float]
    count: int
    seconds: float
    done: float
    measured: dict[str, Any]
    best: Point | None
    more: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What the report says of one task.

    unit: what the log counts; counted: what that is to a reader, where it has another name. loss: what the loss is, in
    a few words. figure: the same of the figure on held-out data; None where it is the loss, and drawn with it. share:
    the figure is a share of 1, which readers are told in per cent. samples: the title over these. details: checks of
    what `measured` in the log holds besides; logged: of what else the task logs. facts: of a record, shown at its head,
    name and value. sections: titles and HTML, below the curves; `elman.report` has what draws them.
    """

    unit: str = "examples"
    counted: str = ""
    loss: str = "loss"
    figure: str | None = None
    share: bool = False
    samples: str = "What it made while it learned"
    details: Mapping[str, Check] = field(default_factory=dict)
    logged: Mapping[str, Check] = field(default_factory=dict)
    facts: Callable[[Record], Mapping[str, str]] | None = None
    sections: Callable[[Record], Mapping[str, str]] | None = None

    @property
    def checks(self) -> dict[str, Check]:
        """Of the lines of a log."""
        figure = {"value": number(-1e300, 1e300, finite=False), "name": text(100), "unit": text(100)}
        measured = record({}, {**figure, "lower_is_better": truth, **self.details})
        return {self.unit: whole(0, 10**18), "measured": measured, **self.logged}


def read_record(folder: str | Path, part: Part = Part()) -> Record:
    """The record of a run folder, finished or not. Raises DataError if it is none."""
    folder = Path(folder)
    run = Run(folder)
    if not (folder / "config.json").is_file():
        raise DataError(
            what="this is no run folder", where=folder,
            got="no config.json" if folder.is_dir() else "no such folder",
            mend="give what `elman train … --out` named",
        )  # fmt: skip
    config = run.config
    curves: dict[str, list[Point]] = {name: [] for name in ("loss", "valid", "lr", "norm")}
    samples: deque[Sample] = deque(maxlen=_SAMPLES)
    last: dict[str, Any] = {"plan": "", "stages": {}, part.unit: 0, "done": 0.0}
    seconds, measured, best, more = 0.0, {}, None, {}
    for count, line in enumerate(run.read_log(part.checks)):
        if count == _LINES:
            raise DataError(
                what=f"the log has more than {_LINES:,} lines", where=folder / "log.jsonl",
                mend="take every tenth line of it, in a copy of the folder",
            )  # fmt: skip
        figures = {name: _figure(line[name]) for name in curves if name in line and math.isfinite(line[name])}
        for name, value in figures.items():
            curves[name].append(Point(line["step"], value))
        if "sample" in line:
            samples.append(Sample(line["step"], line["sample"][:_SAMPLED], figures.get("valid")))
        if "loss" in line:  # a run that was gone on with has other weights since
            measured = {}
        measured = line.get("measured", measured)
        if line.get("best") and "valid" in figures:
            best = curves["valid"][-1]
        more |= {name: line[name] for name in part.logged if name in line}
        last |= {name: line[name] for name in last if name in line}
        seconds = max(seconds, line.get("seconds", 0.0))
    return Record(
        name=folder.resolve().name,
        config=config,
        **{name: tuple(points) for name, points in curves.items()},
        samples=tuple(samples),
        plan=last["plan"],
        stages=last["stages"],
        count=last[part.unit],
        seconds=seconds,
        done=last["done"],
        measured=measured,
        best=best,
        more=more,
    )


def finite(values: Sequence[float]) -> tuple[float, ...]:
    """Numbers as a figure has room for."""
    return tuple(map(_figure, values))


def _figure(value: float) -> float:
    """A number that an axis of floats has room for; what is no finite one is NaN."""
    return math.nan if not math.isfinite(value) else value if abs(value) > 1e-30 else 0.0
