"""The ends of series, as much as a forecast reads, kept beside a network's weights with the form: from there a forecast
goes on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from elman.data.schema import Odd, each, maybe, number, parsed, record, text, whole
from elman.data.series import Earlier, Panel, Series
from elman.data.series_form import LONGEST, SeriesForm, scale_before


def end_of(one: Series, form: SeriesForm) -> Series:
    """The end of a series, as much as a forecast reads."""
    cut = max(len(one.y) - form.context - form.register, 0)
    if not cut:
        return one
    # Without these a gap at the cut would be filled with another number, and a constant end scaled otherwise.
    before = one.y[:cut][~np.isnan(one.y[:cut])]
    last = before[-1] if len(before) else np.nan if one.earlier is None else one.earlier.last
    earlier = Earlier(float(last), *scale_before(one, len(one.y), counts=form.counts))
    return replace(
        one, start=one.start + cut, y=one.y[cut:], known=one.known[cut:], past=one.past[cut:], earlier=earlier
    )


def tails(panel: Panel, form: SeriesForm) -> list[dict[str, Any]]:
    """The ends of series, as much as a forecast reads, as JSON values."""

    def plain(values: np.ndarray) -> list[Any]:
        return [
            plain(row) if isinstance(row, np.ndarray) else None if np.isnan(row) else float(row)
            for row in values
        ]

    return [
        {
            "name": one.name, "start": one.start, "y": plain(one.y), "known": plain(one.known),
            "past": plain(one.past), "static": list(one.static),
            **({} if one.earlier is None else {"earlier": asdict(one.earlier)}),
        }
        for one in (end_of(one, form) for one in panel.series)
    ]  # fmt: skip


def from_tails(value: Any, form: SeriesForm) -> Panel:
    """Raises Odd."""
    size = 2 * LONGEST + form.register
    figure = number(-1e300, 1e300)
    gap = maybe(figure)
    rows = each(each(gap, 1000), size)
    one = record(
        {"name": text(1000), "start": whole(-(2**62), 2**62), "y": each(gap, size), "known": rows, "past": rows,
         "static": each(lambda value, place: None, 1000)},
        # Not in folders of before: their first gaps are filled with the first number.
        {"earlier": record({"last": figure, "loc": figure, "scale": number(0, 1e300)})},
    )  # fmt: skip
    each(one, 10**7)(value, "tails")
    series = []
    for tail in value:
        count, known, past = len(tail["y"]), len(form.columns.known), len(form.columns.past)
        for name, width in (("known", known), ("past", past)):
            if len(tail[name]) < count or any(len(row) != width for row in tail[name]):
                raise Odd(f"tails.{name}", "other rows", f"{width} numbers for each step")
        if len(tail["static"]) != len(form.words) or not tail["y"]:
            raise Odd("tails.static", "other values", f"{len(form.words)}")
        arrays = {
            name: np.array(tail[name], float).reshape(len(tail[name]), width)
            for name, width in (("known", known), ("past", past))
        }
        static = tuple(float(v) if isinstance(v, (int, float)) else str(v) for v in tail["static"])
        names = ("last", "loc", "scale")
        earlier = Earlier(*(float(tail["earlier"][n]) for n in names)) if "earlier" in tail else None
        y = np.array(tail["y"], float)
        series.append(Series(tail["name"], tail["start"], y, **arrays, static=static, earlier=earlier))
    return Panel(form.grid, form.columns, tuple(series))


def read_form(raw: bytes) -> tuple[SeriesForm, Panel]:
    """What `kept_form` wrote. Raises Odd."""
    fields = parsed(raw, record({"form": record({}), "tails": each(record({}), 10**7)}))
    form = SeriesForm.from_json(fields["form"], "form")
    return form, from_tails(fields["tails"], form)


def kept_form(form: SeriesForm, panel: Panel) -> bytes:
    """A form with the ends of the series, from which a forecast goes on."""
    return json.dumps({"form": form.to_json(), "tails": tails(panel, form)}).encode()
