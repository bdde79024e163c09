"""What a plan says to a reader: what is sequential, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from elman.plan.form import Plan


@dataclass(frozen=True)
class Explanation:
    plans: tuple[Plan, ...]
    engine: str = "auto"
    pair: Any = None
