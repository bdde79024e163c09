"""What a trained model reaches, as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measure:
    """A figure of a model.

        Measure(0.936, "accuracy", "%", lower_is_better=False)             # "accuracy 93.6 %"
        Measure(1.42, "error", "mm")                                       # "error 1.4200 mm"

    value: of a share, 0 … 1. name, unit: what it is, and of what; "%" for a share. lower_is_better: by this the best
    weights are chosen. details: what else was found out, by name, as JSON values: kept with the figure in the log.
    """

    value: float
    name: str
    unit: str = ""
    lower_is_better: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} {shown(self.value, self.unit)}"

    def beats(self, other: float | None) -> bool:
        """Whether it is better than another value of the same figure: any is than none, or than NaN."""
        if other is None or other != other:
            return True
        return self.value < other if self.lower_is_better else self.value > other


@dataclass(frozen=True)
class Validation:
    """A look at held-out data: a quick figure of them. best: whether it is the best so far."""

    step: int
    seconds: float
    measure: Measure
    best: bool


def shown(value: float, unit: str) -> str:
    """0.9361, "%" -> "93.6 %"; 1.42, "mm" -> "1.4200 mm"."""
    return percent(value) if unit == "%" else f"{value:.4f} {unit}".rstrip()


def percent(value: float, digits: int = 1) -> str:
    """0.9361 -> "93.6 %": how every share is written that is read by people."""
    return f"{100 * value:.{digits}f} %"
