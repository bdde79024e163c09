"""The page of a forecaster: the latest numbers of its series, and what it says comes next as they are changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from elman.data.series_ends import tails
from elman.data.series_form import SeriesForm
from elman.data.words import plain
from elman.errors import InputError, NotSupported
from elman.export.page.content import Content, facts, layers_of
from elman.models.distributions import DIRECT, QUANTILES, SHARES
from elman.models.forecast_network import ForecastNetwork

SERIES, PLACES = 200, 20_000  # in a page, at most
MORE = 100  # numbers that may be added to a series


def forecasts(network: ForecastNetwork) -> Content:
    """Raises InputError for a network that does not know its series, NotSupported for one that reads other columns."""
    if network.ends is None:
        raise InputError(
            what="the network does not know the series that it goes on from", where="ends",
            mend="export the Forecaster, or its run",
        )  # fmt: skip
    form, panel = network.ends
    columns = form.columns
    if columns.known or columns.past:
        raise NotSupported(
            what="a page has the numbers of a series alone, and the model reads other columns",
            where="export(module, '.html')", got=", ".join((*columns.known, *columns.past)),
            mend="export it to .onnx or .pt2, or serve it",
        )  # fmt: skip
    last = max(one.start + len(one.y) for one in panel.series) + MORE + form.horizon
    window = form.context + form.register
    earliest = last - max(PLACES, 2 * window + MORE + form.horizon)
    kept = [
        {
            "name": tail["name"],
            "start": tail["start"],
            "y": tail["y"],
            "static": form.static(one).tolist(),
            "earlier": tail.get("earlier"),
        }
        for tail, one in zip(tails(panel, form), panel.series, strict=True)
        if tail["start"] - window >= earliest
    ][:SERIES]
    first = min(one["start"] for one in kept) - window
    calendar = form.calendar(first, last - first)
    width = 2 * len(form.lags) + form.features
    programs, layers, hidden = layers_of(network.stack, network.linear.weight.new_zeros(1, width), "read")
    # Small, and what a forecast hangs on: these keep their precision.
    arrays = {
        f"{name}.{part}": getattr(getattr(network, name), part).flatten()
        for name in ("readout", "linear") for part in ("weight", "bias")
    }  # fmt: skip
    ahead = network.ahead if network.law is None else None
    if ahead is not None:
        arrays["ahead.weight"] = ahead.weight.flatten()
    if calendar.size:
        arrays["calendar"] = torch.from_numpy(calendar).flatten()
    about: dict[str, Any] = {
        "layers": layers, "width": hidden, "lags": form.lags, "context": form.context,
        "horizon": form.horizon, "counts": form.counts, "spread": form.spread, "levels": QUANTILES, "shares": SHARES,
        "law": DIRECT if network.law is None else network.settings["distribution"], "ahead": ahead is not None,
        "first": first, "calendar": calendar.shape[1], "words": form.grid.words(np.arange(first, last)),
        "time": columns.time, "series": kept,
    }  # fmt: skip
    return Content(programs, arrays, "forecast.js", _body(network, form, kept, len(panel.series)), about)


def _body(network: ForecastNetwork, form: SeriesForm, kept: list[dict[str, Any]], count: int) -> str:
    steps = f"{form.horizon} step" + ("s" if form.horizon > 1 else "")
    options = "".join(f"<option>{plain(one['name'])}</option>" for one in kept)
    missing = f" {count - len(kept):,} further series are not in this page." if count > len(kept) else ""
    choice = (
        f"""<div class="controls"><label for="series">Series <select id="series">{options}</select></label></div>\n"""
        if len(kept) > 1
        else ""
    )
    return f"""{facts(network, f"A forecaster, {steps} of {plain(form.grid.name)} ahead,", missing)}{choice}\
<label for="text">Its latest numbers, the oldest first, a gap as -. Change one, or add some at the end.</label>
<textarea id="text" spellcheck="false" autocomplete="off" autocapitalize="off"></textarea>
<div class="controls"><button type="button" id="reset">As they were</button></div>
<svg id="chart" role="img" height="300"></svg>
<p id="said" aria-live="polite"></p>
<p class="soft">The line is the median; the bands hold what comes 1 time in 2, 4 in 5 and 19 in 20.</p>
<details><summary>The numbers</summary><div class="scroll"><table id="table"></table></div></details>
"""
