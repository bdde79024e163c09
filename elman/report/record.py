"""What a run's log says, by what it is about."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from elman.errors import DataError
from elman.training import Run

Kind = TypeVar("Kind")


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
    lines = [line for line in run.read_log() if isinstance(line, dict) and _number(line.get("step"))]
    steps = [line for line in lines if "loss" in line]
    looks = [line for line in lines if _number(line.get("valid"))]
    end = steps[-1] if steps else {}
    return Record(
        name=folder.resolve().name,
        config=config,
        loss=_curve(steps, "loss"),
        valid=_curve(looks, "valid"),
        lr=_curve(steps, "lr"),
        norm=_curve(steps, "norm"),
        samples=tuple(
            Sample(line["step"], line["sample"], line["valid"] if _number(line.get("valid")) else None)
            for line in lines
            if isinstance(line.get("sample"), str)
        ),
        plan=_last(lines, "plan", ""),
        reach=tuple(value if _number(value) else math.nan for value in _last(lines, "reach", [])),
        stages={name: value for name, value in _last(lines, "stages", {}).items() if _number(value)},
        symbols=end.get("symbols", 0),
        seconds=max((line["seconds"] for line in lines if _number(line.get("seconds"))), default=0.0),
        done=end.get("done", 0.0),
        measured=_measured(lines, steps),
    )


def _measured(lines: list[dict[str, Any]], steps: list[dict[str, Any]]) -> dict[str, float]:
    """The exact figures, if they are those of the end: a run that was gone on with has other weights since."""
    for line in reversed(lines):
        found = line.get("measured")
        if isinstance(found, dict) and not (steps and line["step"] < steps[-1]["step"]):
            return {name: value for name, value in found.items() if isinstance(value, bool) or _number(value)}
    return {}


def _curve(lines: list[dict[str, Any]], name: str) -> tuple[Point, ...]:
    return tuple(Point(line["step"], line[name]) for line in lines if _number(line.get(name)))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _last(lines: list[dict[str, Any]], name: str, otherwise: Kind) -> Kind:
    """What the log said last of that name and of the kind of `otherwise`, which stands for nothing."""
    said = (line[name] for line in reversed(lines) if isinstance(line.get(name), type(otherwise)))
    return next(said, otherwise)
