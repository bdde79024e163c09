"""Daily series with a week in them, and the settings of a forecaster that learns them in a second."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from elman.data.series import panel_of
from elman.data.series_tables import Columns, table_of

SMALL: dict[str, Any] = {"cell": "elman", "hidden": 8, "steps": 60, "lr": 0.01, "batch": 16, "season": 7}


def weeks(count: int = 3, days: int = 120, seed: int = 0, gaps: bool = True) -> dict[str, list[Any]]:
    """Daily series with a week in them, of different lengths and sizes, some of them with gaps of both kinds."""
    rng, rows = np.random.default_rng(seed), []
    for k in range(count):
        t = np.arange(days - 20 * k)
        y = 10.0**k * (5 + np.sin(2 * np.pi * t / 7) + 0.02 * t + 0.1 * rng.normal(size=len(t)))
        for day, value in zip(t, y, strict=True):
            if gaps and k and day % 23 == 5:
                continue
            stamp = str(np.datetime64("2024-01-01") + np.timedelta64(day, "D"))
            rows.append((f"s{k}", stamp, math.nan if gaps and day % 31 == 7 else float(value)))
    return {name: [row[i] for row in rows] for i, name in enumerate(("unique_id", "ds", "y"))}


def panel(**how: Any) -> Any:
    return panel_of([table_of(weeks(**how), Columns())], Columns())
