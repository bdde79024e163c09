"""Forecasts beside what happened: figures, intervals, and what needs no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elman.data.files import read_file
from elman.data.grid import Grid
from elman.data.schema import Odd
from elman.data.series import Panel
from elman.data.series_ends import read_form
from elman.data.series_form import LONGEST, SeriesForm, context_for, expect_future
from elman.data.series_tables import Columns
from elman.data.series_windows import Origins
from elman.errors import DataError, InputError
from elman.models import pretrained
from elman.models.distributions import DIRECT, DISTRIBUTIONS, QUANTILES, SHARES, pinball
from elman.models.forecast_network import SETTINGS, ForecastNetwork, shapes
from elman.training import Measure

FILE = "series.json"  # beside the weights
DECAY, AVERAGE, BATCH = 0.01, 0.99, 32
_BEGUN, _LOOKED_AT = 500, 200  # windows that the linear forecast is taken from, and of a quick look
_LOOK_PATHS = 100
_MOST = 2**28  # bytes of series.json
_MEND = "restore the files of one model"
UNIT = "× naive error"
PATHS = 200  # drawn of each forecast that is measured
INTERVALS = (0.5, 0.8, 0.9, 0.95)
_TOGETHER = 512  # windows that are read side by side
_MIDDLE = QUANTILES.index(0.5)


@dataclass(frozen=True)
class Forecasts:
    """Of B windows, in the units of the series: mean [B, H], quantiles [B, H, Q] of QUANTILES, and the drawn paths
    [B, N, H], of which they are taken; a network of quantiles has none."""

    mean: np.ndarray
    quantiles: np.ndarray
    paths: np.ndarray | None

    @property
    def median(self) -> np.ndarray:
        return self.quantiles[..., _MIDDLE]


def forecasts(
    network: ForecastNetwork, origins: Origins, rows: Sequence[int] | None = None, *, paths: int = PATHS, seed: int = 0
) -> Forecasts:  # fmt: skip
    """What a network says of windows; the same draws every time. Its mode is left as it was."""
    rows = list(range(len(origins.places))) if rows is None else list(rows)
    device, parts = network.linear.weight.device, []
    for first in range(0, len(rows), _TOGETHER):
        w = origins.take(rows[first : first + _TOGETHER])
        # Not loc: some devices have no float64.
        w = replace(w, **{name: value.to(device) for name, value in vars(w).items() if name != "loc"})
        z = network.quantiles(w) if network.law is None else network.paths(w, paths, seed + first)
        y = z.double().cpu() * w.scale.double().cpu()[:, None, None] + w.loc[:, None, None]
        parts.append(y.numpy())
    every = np.concatenate(parts)
    if network.law is None:
        return Forecasts((every * SHARES).sum(-1), every, None)
    return Forecasts(every.mean(1), np.moveaxis(np.quantile(every, QUANTILES, axis=1), 0, -1), every)


def expect_numbers(origins: Origins, forecast: Forecasts) -> Forecasts:
    """Raise DataError where a forecast is none."""
    made = forecast.quantiles
    if (odd := np.isnan(made).any((1, 2))).any():
        i, step = origins.places[int(odd.argmax())]
        one = origins.panel.series[i]
        raise DataError(
            what="the model tells no number", where=f"series {one.name!r}, "
            f"{origins.form.grid.words(np.array([one.start + step]))[0]}", got=f"NaN in {odd.sum():,} of {len(made):,} "
            "forecasts", expected="numbers", mend="train it anew, with a lower learning rate",
        )  # fmt: skip
    return forecast


# --- figures ----------------------------------------------------------------------------------------------------------


def crps(paths: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The continuous ranked probability score [...] of samples [..., N] where y [...] happened.

        E|X - y| - E|X - X'| / 2

    Source: Gneiting and Raftery, Strictly proper scoring rules, prediction, and estimation, 2007.
    """
    x, n = np.sort(paths, -1), paths.shape[-1]
    spread = (x * (2 * np.arange(1, n + 1) - n - 1)).sum(-1) / n**2
    return np.abs(x - y[..., None]).mean(-1) - spread


def naive_error(y: np.ndarray, season: int) -> float:
    """The mean of |y(t) - y(t - m)|, by which MASE measures: of the season, else of one step; 0 where there is none.

    Source: Hyndman and Koehler, Another look at measures of forecast accuracy, 2006.
    """
    for lag in (season, 1):
        off = np.abs(y[lag:] - y[:-lag])
        if len(off) and not np.isnan(off).all() and (error := float(np.nanmean(off))) > 0:
            return error
    return 0.0


def seasonal_naive(y: np.ndarray, season: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(forecast [steps], its standard deviation [steps]): what was there a season ago, and where that is a gap, two
    seasons ago and so on; deviations by what such forecasts were off before, growing with each season.

    Source: Hyndman and Athanasopoulos, Forecasting: principles and practice, 3rd edition, 2021, 5.2 and 5.5.
    """
    forecast, off = np.empty(steps), y[season:] - y[:-season] if len(y) > season else np.zeros(0)
    off = off[~np.isnan(off)]
    deviation = math.sqrt(float((off**2).mean())) if len(off) else 0.0
    last = y[~np.isnan(y)][-1] if (~np.isnan(y)).any() else 0.0
    for k in range(steps):
        before = y[len(y) - season + k % season :: -season] if len(y) >= season - k % season else y[:0]
        before = before[~np.isnan(before)]
        forecast[k] = before[0] if len(before) else last
    return forecast, deviation * np.sqrt(np.arange(steps) // season + 1)


def gaussian_crps(mean: np.ndarray, deviation: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The CRPS of normal distributions, in closed form (Gneiting and Raftery, 2007); |mean - y| without a deviation."""
    d = np.where(deviation > 0, deviation, 1.0)
    z = torch.from_numpy(np.asarray((y - mean) / d))
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    standard = z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi)
    return np.where(deviation > 0, d * standard.numpy(), np.abs(mean - y))


@dataclass(frozen=True)
class Scores:
    """mase, crps: means over series and steps, each in units of the series' seasonal naive error before the first
    place of a forecast. coverage: of each interval the share of what happened that lay inside. naive: MASE and CRPS of
    the seasonal naive forecast. count: of forecasts. steps: MASE and CRPS by step of the horizon."""

    mase: float
    crps: float
    coverage: dict[float, float]
    naive: tuple[float, float]
    count: int
    steps: tuple[tuple[float, float], ...]


def scored(origins: Origins, forecast: Forecasts) -> Scores:
    """Figures of forecasts of all places of `origins`."""
    y, places, series = origins.told(range(len(origins.places))), origins.places, origins.panel.series
    begin = {i: min(t for j, t in places if j == i) for i, _ in places}
    season = origins.form.season
    sizes = {i: naive_error(series[i].y[:t], season) for i, t in begin.items()}
    # A constant series has no error to measure by; where there is nothing else, figures are in its own units.
    sizes = {i: size or (0.0 if any(sizes.values()) else 1.0) for i, size in sizes.items()}
    size = np.array([sizes[i] or np.nan for i, _ in places])[:, None]
    there = ~np.isnan(y) & ~np.isnan(size)  # a forecast of NaN is one, and makes the figure NaN
    off = np.abs(forecast.median - y) / size
    if forecast.paths is None:
        losses = pinball(torch.from_numpy(forecast.quantiles), torch.from_numpy(y)).numpy()
    else:
        losses = crps(forecast.paths.transpose(0, 2, 1), y)
    guessed = [seasonal_naive(series[i].y[:t], season, origins.steps) for i, t in places]
    middle, deviation = (np.stack(parts) for parts in zip(*guessed, strict=True))
    naive = np.abs(middle - y) / size, gaussian_crps(middle, deviation, y) / size
    inside = {}
    for share in INTERVALS:
        low, high = (QUANTILES.index(round(level, 3)) for level in ((1 - share) / 2, (1 + share) / 2))
        right = (y >= forecast.quantiles[..., low]) & (y <= forecast.quantiles[..., high])
        inside[share] = float(right[~np.isnan(y)].mean()) if (~np.isnan(y)).any() else math.nan
    losses = losses / size

    def mean(values: np.ndarray, step: slice = slice(None)) -> float:
        counted = values[:, step][there[:, step]]
        return float(counted.mean()) if len(counted) else math.nan

    steps = tuple((mean(off, slice(k, k + 1)), mean(losses, slice(k, k + 1))) for k in range(origins.steps))
    return Scores(mean(off), mean(losses), inside, (mean(naive[0]), mean(naive[1])), len(places), steps)


# --- parts of series --------------------------------------------------------------------------------------------------


def rolling(
    panel: Panel, form: SeriesForm, ends: Sequence[int | None], folds: int, stride: int | None = None
) -> Origins:
    """Places of forecasts, `stride` steps apart (None: a horizon), the last of which ends at the end of each series.

    ends: of each series the step where that is, None for a series that is passed over. folds: horizons that they span.
    """
    horizon = form.horizon
    places = [
        (i, t) for i, end in enumerate(ends) if end is not None
        for t in sorted(range(end - horizon, end - folds * horizon - 1, -(horizon if stride is None else stride)))
        if not np.isnan(panel.series[i].y[t : t + horizon]).all()
    ]  # fmt: skip
    return Origins(form, panel, places=places)


def folds_for(panel: Panel, horizon: int) -> int:
    """Horizons to measure on at the end of each series, where nothing else is said: a fifth of the middle one's."""
    middle = int(np.median([len(one.y) for one in panel.series]))
    return min(max(middle // (5 * horizon), 1), 10)


def parted(panel: Panel, held: int, least: int) -> tuple[Panel, list[int | None]]:
    """(series without their last `held` steps, where each of those ends): short ones, of which less than `least` steps
    would be left, as a whole, and None."""
    series, ends = [], []
    for one in panel.series:
        left = len(one.y) - held
        enough = left >= least and np.count_nonzero(~np.isnan(one.y[:left])) >= 3
        series.append(one.before(left) if enough else one)
        ends.append(len(one.y) if enough else None)
    return Panel(panel.grid, panel.columns, tuple(series)), ends


def table(
    grid: Grid, starts: Sequence[tuple[str, int]], forecast: Forecasts, columns: Columns
) -> dict[str, list[Any]]:
    """Rows of forecasts: unique_id, ds, mean, and a column for each quantile. starts: of each forecast, the series'
    name and the place of the first step."""
    steps = forecast.mean.shape[1]
    rows: dict[str, list[Any]] = {columns.id: [], columns.time: []}
    for name, place in starts:
        rows[columns.id] += [name] * steps
        rows[columns.time] += grid.words(place + np.arange(steps))
    rows["mean"] = forecast.mean.reshape(-1).tolist()
    for k, level in enumerate(QUANTILES):
        rows[str(level)] = forecast.quantiles[..., k].reshape(-1).tolist()
    return rows


# --- what an estimator and a task have in common ----------------------------------------------------------------------


def form_of(
    learnt: Panel, distribution: str, season: int | None, context: int | None, horizon: int
) -> SeriesForm:
    """How these series are read. Raises InputError for settings that cannot be, DataError for series that cannot."""
    if distribution not in (*DISTRIBUTIONS, DIRECT):
        raise InputError(
            what="there is no such distribution of series", where="distribution", got=distribution,
            expected=", ".join((*DISTRIBUTIONS, DIRECT)), mend="take one of them",
        )  # fmt: skip
    season = learnt.grid.season if season is None else season
    context = context_for(season, horizon) if context is None else context
    for name, value in (("season", season), ("context", context), ("horizon", horizon)):
        expect_steps(value, name)
    counts = distribution == "negative-binomial"
    for one in learnt.series if counts else ():
        y = one.y[~np.isnan(one.y)]
        if (y < 0).any() or (y != y.round()).any():
            odd = y[(y < 0) | (y != y.round())][0]
            raise DataError(
                what="a negative binomial distribution is of counts", where=f"series {one.name!r}", got=f"{odd:g}",
                expected="whole numbers, not below 0", mend="take another distribution",
            )  # fmt: skip
    return SeriesForm.of(learnt, season, context, horizon, counts=counts)


def begun(form: SeriesForm, learnt: Panel, distribution: str, **how: Any) -> tuple[ForecastNetwork, Origins]:
    """(a network that forecasts linearly as yet, every place from which it can learn)."""
    network = network_of(form, distribution, **how)
    origins = Origins(form, learnt).everywhere()
    every = max(len(origins.places) // _BEGUN, 1)
    network.begin(origins.take(range(0, len(origins.places), every)))
    return network, origins


def network_of(form: SeriesForm, distribution: str, **how: Any) -> ForecastNetwork:
    return ForecastNetwork(form.lags, form.features, form.context, form.horizon, distribution, **how)


def looking(network: ForecastNetwork, aside: Origins, learnt: Origins) -> Callable[[], Measure]:
    """A quick look: CRPS of forecasts of what was put aside; where nothing is long enough, of what is learnt from."""
    if not aside.places:
        aside = Origins(learnt.form, learnt.panel, places=[
            (i, max(t - learnt.form.horizon, 1)) for i, t in learnt.places[-_LOOKED_AT:]
        ])  # fmt: skip
    every = -(-len(aside.places) // _LOOKED_AT)
    some = replace(aside, places=aside.places[::every])

    def look() -> Measure:
        scores = scored(some, forecasts(network, some, paths=_LOOK_PATHS))
        return Measure(scores.crps, "CRPS", UNIT, details={"mase": scores.mase})

    return look


def ahead(
    network: ForecastNetwork, form: SeriesForm, panel: Panel, horizon: int, paths: int, seed: int = 0
) -> Forecasts:
    """Forecasts from the end of each series."""
    expect_steps(horizon, "horizon")
    if horizon != form.horizon and network.law is None and horizon > form.horizon:
        raise InputError(
            what="a model of quantiles tells no more steps than it was made for", where="horizon", got=horizon,
            expected=f"at most {form.horizon}", mend="train with a longer --horizon",
        )  # fmt: skip
    longer = replace(form, horizon=horizon) if network.law is not None else form
    expect_future(panel, longer)
    origins = Origins(form, panel, longer.horizon, [(i, len(one.y)) for i, one in enumerate(panel.series)])
    forecast = expect_numbers(origins, forecasts(network, origins, paths=paths, seed=seed))
    if horizon == longer.horizon:
        return forecast
    return Forecasts(forecast.mean[:, :horizon], forecast.quantiles[:, :horizon], None)


def opened(config: dict[str, Any], folder: Path, **opening: Any) -> tuple[SeriesForm, Panel, ForecastNetwork]:
    """The form, the ends of the series, and the network of a folder, whoever wrote it. Raises DataError, InputError."""
    path = folder / FILE
    try:
        form, panel = read_form(read_file(path, _MOST, "what the series are", _MEND))
    except Odd as odd:
        raise DataError(
            what="this does not say what the series are", where=f"{path}, {odd.place}", got=odd.got,
            expected=odd.expected, mend=_MEND,
        ) from odd  # fmt: skip
    network = pretrained.load(ForecastNetwork, "a forecaster", SETTINGS, shapes, config, folder, **opening)
    own = (list(network.lags), network.settings["features"], network.context, network.horizon)
    of_form = (list(form.lags), form.features, form.context, form.horizon)
    if own != of_form:
        raise DataError(
            what="the series and the model are not of one run", where=path, got=str(of_form)[:200],
            expected=str(own)[:200], mend=_MEND,
        )  # fmt: skip
    network.ends = form, panel
    return form, panel, network


def expect_steps(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LONGEST:
        raise InputError(
            what=f"{name} is a number of steps",
            where=name,
            got=value,
            expected=f"1 … {LONGEST:,}",
            mend="take fewer",
        )


def expect_whole(value: int, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(
            what=f"{name} is a whole number", where=name, got=repr(value)[:60], expected=f"{least} or more",
            mend=f"take {least} at least",
        )  # fmt: skip


def too_short(panel: Panel, held: int, least: int) -> DataError:
    longest = max(panel.series, key=lambda one: len(one.y))
    return DataError(
        what="the series are too short to measure on their ends", where=f"series {longest.name!r}, the longest",
        got=f"{len(longest.y)} steps", expected=f"more than {held} to hold out and {least} to learn from",
        mend="take a shorter horizon, or fewer folds",
    )  # fmt: skip
