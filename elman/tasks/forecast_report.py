"""A forecaster's part of the report of a run: its figures, and some of its forecasts beside what happened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elman.data.schema import Check, each, number, record, text, whole
from elman.data.series_form import LONGEST
from elman.data.series_windows import Origins
from elman.models.distributions import QUANTILES
from elman.models.forecasting import UNIT, Forecasts
from elman.report import Band, Curve, Part, Point, Record, lines, plain
from elman.tasks.frames import DETAILS, frame_sections
from elman.training.measure import percent

_SHOWN, _PAST = 6, 4  # forecasts in a report; horizons of the past that are drawn before each


def shown(origins: Origins, forecast: Forecasts) -> list[dict[str, Any]]:
    """Some forecasts beside what happened, from different series where there are several."""
    last = {i: k for k, (i, _) in enumerate(origins.places)}
    rows = list(last.values())[:_SHOWN]
    if len(last) == 1:
        rows = np.linspace(0, len(origins.places) - 1, min(_SHOWN, len(origins.places))).astype(int).tolist()
    levels = [QUANTILES.index(level) for level in (0.025, 0.1, 0.5, 0.9, 0.975)]
    found = []
    for k in rows:
        i, t = origins.places[k]
        one = origins.panel.series[i]
        stamp = origins.form.grid.words(np.array([one.start + t]))[0]
        past = one.y[max(t - _PAST * origins.steps, 0) : t]
        found.append({
            "name": one.name[:1000], "ds": stamp, "past": _plain(past), "y": _plain(origins.told([k])[0]),
            "bands": [_plain(forecast.quantiles[k, :, q]) for q in levels],
        })  # fmt: skip
    return found


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _facts(record: Record) -> dict[str, str]:
    measured = record.measured
    name = f"held out, {measured.get('name', 'best look')}"
    figures = {
        name: measured.get("value"),
        "CRPS": measured.get("crps"),
        "MASE of seasonal naive": measured.get("naive"),
    }
    facts = {name: f"{value:.3f}" for name, value in figures.items() if value is not None}
    inside = measured.get("coverage", {})
    return facts | {f"inside of {name} intervals": percent(v) for name, v in inside.items() if name == "0.8"}


def _sections(record: Record) -> dict[str, str]:
    measured, sections = record.measured, frame_sections(record)
    for k, one in enumerate(measured.get("shown", [])):
        sections[f"Held out, {k + 1}: {one['name']} {one['ds']}".strip()] = _picture(one)
    if inside := measured.get("coverage"):
        rows = "".join(f"<tr><th>{plain(name)}</th><td>{percent(v)}</td></tr>" for name, v in inside.items())
        sections["Intervals: the share they are to hold, and what they hold"] = f"<table>{rows}</table>"
    rows = [
        (name, measured.get(mase), measured.get(score))
        for name, mase, score in (("this model", "value", "crps"), ("seasonal naive", "naive", "naive_crps"))
    ]
    if all(None not in row for row in rows):
        cells = "".join(f"<tr><th>{name}</th><td>{a:.3f}</td><td>{b:.3f}</td></tr>" for name, a, b in rows)
        sections["Beside it"] = f"<table><tr><th></th><th>MASE</th><th>CRPS</th></tr>{cells}</table>"
    steps = [row for row in measured.get("steps", []) if len(row) == 2]
    if len(steps) > 1:
        curves = [
            Curve(name, [Point(k + 1, row[i]) for k, row in enumerate(steps)], colour, marked=True)
            for i, (name, colour) in enumerate((("MASE", "first"), ("CRPS", "second")))
        ]
        sections["By the step of the forecast"] = lines(curves, x="step ahead", y=UNIT)
    return sections


def _picture(one: Mapping[str, Any]) -> str:
    past, happened, bands = one["past"], one["y"], one["bands"]
    if any(len(band) != len(happened) for band in bands) or len(bands) != 5:
        return ""

    def points(values: Sequence[Any], first: int) -> list[Point]:
        return [Point(first + k, value) for k, value in enumerate(values) if value is not None]

    low, inner, middle, outer, high = (points(band, 1) for band in bands)
    curves = [
        Curve("happened", points(past, 1 - len(past)) + points(happened, 1), "faint"),
        Curve("median", middle, "first"),
    ]
    drawn = [Band(low, high, "first"), Band(inner, outer, "first")]
    return lines(curves, x="steps ahead", y="", bands=drawn)


_figure = number(-1e300, 1e300, finite=False)
_gap: Check = lambda value, place: None if value is None else _figure(value, place)  # noqa: E731
_line = each(_gap, 10 * LONGEST)
PART = Part(
    unit="examples", loss="nats per step", figure=f"CRPS, {UNIT}",
    samples="The first forecast while it learned",
    details={
        "crps": _figure, "naive": _figure, "naive_crps": _figure, "mase": _figure, "count": whole(0, 10**12),
        "coverage": each(_figure, 10, named=True), "steps": each(each(_figure, 2), LONGEST),
        "shown": each(
            record({"name": text(1000), "ds": text(100), "past": _line, "y": _line, "bands": each(_line, 5)}), _SHOWN
        ),
        **DETAILS,
    },
    facts=_facts, sections=_sections,
)  # fmt: skip
