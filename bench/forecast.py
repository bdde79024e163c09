"""What well-kept libraries forecast from the same places: exponential smoothing and automatic ARIMA.

python -m bench.forecast co2 sunspots [--out FOLDER]      # writes FOLDER/co2.csv …, and prints a table of the baselines

The series come with statsmodels (CO2 weekly with gaps, sunspots yearly); ETS is statsmodels', the form with the least
AIC among those the series allows; AutoARIMA is statsforecast's (`pip install elman[bench]` brings both; it is left
out where it is not there). Each is fitted anew at every place; gaps, which they cannot read, are filled in linearly.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from elman.data.series import Panel, read_series
from elman.data.series_form import SeriesForm
from elman.data.series_tables import Columns
from elman.models.forecasting import Forecasts, Scores, folds_for, parted, rolling, scored

HORIZON, PATHS = 12, 1000
SEASONS = {"co2": 52, "sunspots": 11}
LEVELS = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)


def write(name: str, path: Path) -> None:
    """A series of statsmodels as a table."""
    from statsmodels import datasets

    data = getattr(datasets, name).load_pandas().data
    if name == "co2":
        rows = [(str(day)[:10], "" if math.isnan(value) else value) for day, value in data["co2"].items()]
    else:
        rows = [(int(year), value) for year, value in zip(data["YEAR"], data["SUNACTIVITY"], strict=True)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("ds", "y"), *rows])


def ets(y: np.ndarray, season: int, steps: int) -> np.ndarray:
    """[PATHS, steps] of exponential smoothing, its form chosen by AIC."""
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    best: Any = None
    shift = max(0.0, 1 - float(y.min()))  # so that multiplicative forms can be tried
    seasons = [None] if season == 1 else [None, "add"] + (["mul"] if season <= 24 else [])
    trends = [(None, False), ("add", False), ("add", True)]
    for error, (trend, damped), seasonal in itertools.product(("add", "mul"), trends, seasons):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model = ETSModel(
                    y + shift, error=error, trend=trend, damped_trend=damped, seasonal=seasonal,
                    seasonal_periods=season if seasonal else None,
                )  # fmt: skip
                fit: Any = model.fit(disp=False, maxiter=200)
            except Exception:  # a form that this series does not allow
                continue
        if np.isfinite(fit.aic) and (best is None or fit.aic < best.aic):
            best = fit
    rng = np.random.default_rng(0)
    return np.asarray(best.simulate(steps, anchor="end", repetitions=PATHS, rng=rng)).T - shift


def arima(y: np.ndarray, season: int, steps: int) -> np.ndarray:
    """[PATHS, steps] of normal numbers with the means and intervals of AutoARIMA."""
    from statsforecast.models import AutoARIMA

    said = AutoARIMA(season_length=season, approximation=season > 24, max_order=5).forecast(
        y, steps, level=[80]
    )
    mean, high = (np.asarray(said[name]) for name in ("mean", "hi-80"))
    deviation = (high - mean) / 1.2815515655446004
    return mean + deviation * np.random.default_rng(0).normal(size=(PATHS, steps))


def filled(y: np.ndarray) -> np.ndarray:
    there = np.flatnonzero(~np.isnan(y))
    return np.interp(np.arange(len(y)), there, y[there])


def measured(panel: Panel, season: int, method: Callable[[np.ndarray, int, int], np.ndarray]) -> Scores:
    """Figures of a method at the places at which `elman train forecast` measures."""
    folds = folds_for(panel, HORIZON)
    _, ends = parted(panel, folds * HORIZON, HORIZON + 3)
    origins = rolling(panel, SeriesForm.of(panel, season, 2 * season, HORIZON), ends, folds)
    paths = np.stack([method(filled(panel.series[i].y[:t]), season, HORIZON) for i, t in origins.places])
    return scored(
        origins, Forecasts(paths.mean(1), np.moveaxis(np.quantile(paths, LEVELS, axis=1), 0, -1), paths)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SEASONS), choices=list(SEASONS))
    parser.add_argument("--out", type=Path, default=Path("build/series"))
    parser.add_argument("--only", choices=["ets", "arima"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        write(name, arguments.out / f"{name}.csv")
        panel = read_series([arguments.out / f"{name}.csv"], Columns())
        for word, method in (("ets", ets), ("arima", arima)):
            if arguments.only not in (None, word):
                continue
            try:
                found = measured(panel, SEASONS[name], method)
            except ImportError as error:
                print(f"{name} {word}: left out, {error}")
                continue
            inside = ", ".join(f"{100 * share:.1f} % ({level})" for level, share in found.coverage.items())
            print(
                f"{name} {word}: MASE {found.mase:.4f}, CRPS {found.crps:.4f}, inside {inside}; seasonal naive "
                f"{found.naive[0]:.4f}, {found.naive[1]:.4f}; {found.count} forecasts", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
