"""Forecasting as a task: series, and a distribution of what comes next."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elman.data.grid import Grid
from elman.data.rolls import are_rolls
from elman.data.schema import Check, each, file_name, record, text, whole
from elman.data.series import Panel, joined, read_rows, read_series
from elman.data.series_ends import end_of, kept_form
from elman.data.series_form import LONGEST, SeriesForm, digits_of
from elman.data.series_tables import Columns
from elman.data.series_windows import Origins
from elman.data.tables import STDIN, Remarks
from elman.errors import DataError, InputError
from elman.models.distributions import FRAMES, QUANTILES
from elman.models.forecasting import (
    AVERAGE,
    BATCH,
    DECAY,
    FILE,
    UNIT,
    Forecasts,
    ahead,
    begun,
    expect_numbers,
    expect_steps,
    folds_for,
    forecasts,
    form_of,
    looking,
    network_of,
    opened,
    parted,
    rolling,
    scored,
    table,
    too_short,
)
from elman.report import Part
from elman.tasks.forecast_report import PART, shown
from elman.tasks.frames import ForecastFrames
from elman.tasks.settings import StackSettings, TrainingSettings, argument, given, option
from elman.tasks.task import Notify, Opening, Prepared, Task, absolute, expect_memory, expect_one_reader
from elman.training import Measure, Processes, Run
from elman.training.measure import percent

_PATHS = 1000  # drawn of a forecast that is given out
_SAVED: dict[str, Check] = {
    "files": each(file_name, 100_000),
    "folds": whole(1, LONGEST),
    "digest": text(64),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """A forecaster: what comes next in series, as a distribution.

    A FILE is a table in long form, .csv, .tsv or .parquet, with a row for each
    series and time stamp: columns unique_id (may be missing where there is one
    series), ds (dates or times as in 2020-01-31T12:00, or whole numbers), and y
    (empty: a gap; time stamps that are missing are gaps too).

    At the end of every series as many horizons as --folds says are held out to
    measure on, and as many before them to choose the weights by.

    A .mat or .jsonl is of vectors of 0 and 1, such as piano rolls; what is told
    is which are 1 in the next frame, each by itself.
    """

    files: list[Path] = argument("Tables, .csv, .tsv or .parquet; of vectors .mat or .jsonl.", needed=True)
    horizon: int = option(12, "Steps of a forecast.", max=LONGEST)
    season: int | None = option(
        None,
        "Steps after which series repeat themselves; 1: never. (default: by the time stamps)",
        max=LONGEST,
    )
    distribution: str = option(
        "gaussian", "gaussian, student-t, negative-binomial (of counts), or quantiles, told without drawing."
    )
    folds: int | None = option(
        None,
        "Horizons at the end of each series to measure on. (default: a fifth of it, at most 10)",
        max=1000,
    )
    context: int | None = option(
        None,
        "Steps that are read before a forecast. (default: two seasons, two horizons, at least 24)",
        max=LONGEST,
    )
    id: str = option("unique_id", "The column that tells series apart.", metavar="NAME")
    time: str = option("ds", "Of time stamps.", metavar="NAME")
    target: str = option("y", "Of what is forecast.", metavar="NAME")
    known: str = option(
        "", "Columns of numbers that are known of the future too, with commas.", metavar="NAMES"
    )
    past: str = option("", "Columns of numbers that are not.", metavar="NAMES")
    static: str = option(
        "", "Columns of numbers or words that belong to a series as a whole.", metavar="NAMES"
    )
    stack: StackSettings = StackSettings(hidden=64, dropout=0.1)
    given: frozenset[str] = given()

    @property
    def columns(self) -> Columns:
        names = (
            tuple(filter(None, map(str.strip, listed.split(","))))
            for listed in (self.known, self.past, self.static)
        )
        return Columns(self.id, self.time, self.target, *names)


@dataclass
class HeldOut:
    """Places to measure on. look: a quick look at those by which weights are chosen; None once that is over."""

    origins: Origins
    look: Callable[[], Measure] | None = None


ForecastFrames.part = replace(PART, loss="nats per frame", figure="nats per frame")


class Forecast(Task):
    """form: how series are read. panel: those that forecasts go on from."""

    name, Settings, files, part, unit = "forecast", Settings, (FILE,), PART, "window"

    def __init__(self, form: SeriesForm, panel: Panel) -> None:
        self.form, self.panel = form, panel

    @classmethod
    def part_of(cls, config: Mapping[str, Any]) -> Part:
        return ForecastFrames.part if config.get("distribution") == FRAMES else cls.part

    # --- how it comes about -------------------------------------------------------------------------------------------

    @classmethod
    def prepare(
        cls, settings: Settings, training: TrainingSettings, processes: Processes, notify: Notify
    ) -> Prepared:
        expect_one_reader(settings.files, processes)
        expect_steps(settings.horizon, "--horizon")
        if are_rolls(settings.files):
            return ForecastFrames.begun(settings, training, processes, notify)
        notify("reading the series …")
        remarks = Remarks()

        def read() -> Panel:
            return read_series(settings.files, settings.columns, remarks=remarks)

        panel = processes.first_does(read) or read()
        horizon = settings.horizon
        folds = settings.folds or folds_for(panel, horizon)
        before, ends, learnt, chosen = _parts(panel, folds, horizon)
        form = form_of(learnt, settings.distribution, settings.season, settings.context, horizon)
        how = {**asdict(settings.stack), "cell": absolute(settings.stack.cell)}
        expect_memory(
            lambda: network_of(form, settings.distribution, **how),
            how["cell"],
            processes,
            "--hidden, --layers",
        )
        torch.manual_seed(training.seed)
        model, origins = begun(form, learnt, settings.distribution, **how)
        model = model.to(processes.device)
        batch = training.batch or max(min(BATCH, len(origins.places)), processes.count)
        training = replace(
            training, batch=batch, lr=training.lr or model.learning_rate,
            weight_decay=DECAY if training.weight_decay is None else training.weight_decay,
            average=AVERAGE if training.average is None else training.average,
        )  # fmt: skip
        aside = rolling(before, form, chosen, folds, max(horizon // 4, 1))
        held_out = HeldOut(rolling(panel, form, ends, folds), looking(model, aside, origins))
        data = {
            "files": ["-" if str(f) == STDIN else str(f.resolve()) for f in settings.files],
            "folds": folds, "digest": panel.digest,
        }  # fmt: skip
        longest = max(len(one.y) for one in panel.series)
        about = (
            f"{len(panel.series):,} series of up to {longest:,} steps of {panel.grid.name}, season {form.season}; "
            f"{len(origins.places):,} windows to learn from, {len(aside.places):,} forecasts to choose by, "
            f"{len(held_out.origins.places):,} to measure on"
        )
        notes = remarks.taken()
        if short := sum(end is None for end in ends):
            notes.append(
                f"{short:,} series are too short to hold anything out of, and are learnt from as a whole"
            )
        return Prepared(
            cls(form, panel), model, origins.batches(batch, training.seed), held_out, training,
            {**model.settings, "data": data}, about, notes,
        )  # fmt: skip

    @classmethod
    def opened(cls, run: Run, opening: Opening) -> tuple[Task, Any]:
        run = Run.open(run.folder, *cls.files)
        if run.config.get("distribution") == FRAMES:
            return ForecastFrames.of(run, opening)
        form, panel, model = opened(run.config, run.folder, **vars(opening))
        return cls(form, panel), model

    def kept(self) -> dict[str, bytes]:
        return {FILE: kept_form(self.form, self.panel)}

    def called(self, model: Any) -> None:
        model(torch.zeros(2, 1, 2 * len(model.lags)), torch.zeros(2, 1, model.settings["features"]))

    # --- what is learnt -----------------------------------------------------------------------------------------------

    def measure(self, model: Any, data: HeldOut, quick: bool) -> Measure:
        if quick:
            assert data.look is not None
            return data.look()
        origins = data.origins
        forecast = expect_numbers(origins, forecasts(model, origins))
        scores = scored(origins, forecast)
        details = {
            "crps": scores.crps, "naive": scores.naive[0], "naive_crps": scores.naive[1], "count": scores.count,
            "coverage": {str(share): value for share, value in scores.coverage.items()},
            "steps": [list(row) for row in scores.steps], "shown": shown(origins, forecast),
        }  # fmt: skip
        return Measure(scores.mase, "MASE", UNIT, details=details)

    def sample(self, model: Any) -> str:
        first = replace(self.panel, series=self.panel.series[:1])
        if self.form.columns.known:
            return ""
        forecast = ahead(model, self.form, first, self.form.horizon, 100)
        one = first.series[0]
        stamps = self.form.grid.words(one.start + len(one.y) + np.arange(min(self.form.horizon, 5)))
        low, high = QUANTILES.index(0.1), QUANTILES.index(0.9)
        many = digits_of(one, self.form, 6)
        return "\n".join(
            f"{one.name} {stamp} {forecast.median[0, k]:.{many}g} ({q[low]:.{many}g} … {q[high]:.{many}g})".strip()
            for k, (stamp, q) in enumerate(zip(stamps, forecast.quantiles[0], strict=False))
        )

    # --- what is said -------------------------------------------------------------------------------------------------

    def said(self, measure: Measure, data: HeldOut) -> Sequence[str]:
        details = measure.details
        inside = ", ".join(f"{percent(share)} ({name})" for name, share in details["coverage"].items())
        return [
            f"{measure}, CRPS {details['crps']:.4f}, of {details['count']:,} forecasts of {data.origins.steps} steps",
            f"  beside it: seasonal naive MASE {details['naive']:.4f}, CRPS {details['naive_crps']:.4f}",
            f"  inside of intervals: {inside}",
        ]

    # --- what is done with a run --------------------------------------------------------------------------------------

    def data(self, run: Run, files: Sequence[Path], cache: Path | None, notify: Notify) -> HeldOut:
        mend = "name a file to measure on"
        saved = run.section("data", record(_SAVED), "the run does not say what it learnt from", mend)
        form = self.form
        if files:
            panel, places = self._after(self._read(files, form.grid), saved["folds"])
            return HeldOut(Origins(form, panel, places=places))
        if STDIN in saved["files"]:
            raise DataError(
                what="what was held out came from standard input, and is not kept",
                where=run.folder,
                mend=mend,
            )
        panel = self._read(list(map(Path, saved["files"])), None)
        if panel.digest != saved["digest"]:
            raise DataError(
                what="the series are not those that were learnt from", where=saved["files"][0], mend=mend
            )
        _, ends, _, _ = _parts(panel, saved["folds"], form.horizon)
        return HeldOut(rolling(panel, form, ends, saved["folds"]))

    def _read(self, files: Sequence[Path], grid: Grid | None) -> Panel:
        remarks = Remarks()
        panel = read_series(files, self.form.columns, grid, remarks)
        for remark in remarks.taken():
            self.note(remark)
        return panel

    def _after(self, panel: Panel, folds: int) -> tuple[Panel, list[tuple[int, int]]]:
        """(series, places of forecasts): of one that goes on from where training ended, all of it is told; of another
        one its end."""
        learnt, series, places = {one.name: one for one in self.panel.series}, [], []
        for one in panel.series:
            before = learnt.get(one.name)
            if before is not None and one.start >= before.start + len(before.y):
                begin, one = len(before.y), joined(before, one)
            else:
                begin = max(len(one.y) - folds * self.form.horizon, 1)
            told = range(begin, len(one.y) - self.form.horizon + 1, self.form.horizon)
            places += [(len(series), t) for t in told if not np.isnan(one.y[t : t + self.form.horizon]).all()]
            series.append(one)
        if not places:
            raise too_short(panel, self.form.horizon, 1)
        return replace(panel, series=tuple(series)), places

    def predict(self, model: Any, files: Sequence[Path], run: Run) -> Iterator[str]:
        form = self.form
        head = _row([form.columns.id, form.columns.time, "mean", *map(str, QUANTILES)])
        if [str(file) for file in files] == [STDIN]:
            yield from self._followed(model, head)
            return
        panel = self._read(files, form.grid) if files else self.panel
        forecast = ahead(model, form, panel, form.horizon, _PATHS)
        yield head
        yield from self._rows(panel, forecast)

    def _followed(self, model: Any, head: str) -> Iterator[str]:
        """The next step of each series after every row of standard input."""
        form = self.form
        if form.columns.known:
            raise InputError(
                what="a stream has no rows of the future, which this model reads", where="-",
                got=f"the columns {', '.join(form.columns.known)}", mend="give a file",
            )  # fmt: skip
        series, seen = {one.name: one for one in self.panel.series}, set()
        remarks = Remarks()
        rows = read_rows(form.columns, form.grid, remarks)
        for remark in remarks.taken():
            self.note(remark)
        yield head  # a line for each that is read
        for where, one in rows:
            before = series.get(one.name)
            if before is not None and one.start >= before.start + len(before.y):
                one = joined(before, one)
            elif one.name in seen:
                raise DataError(
                    what=f"series {one.name!r} is not in order of time", where=where,
                    got=form.grid.words(np.array([one.start]))[0], expected="later than the row before",
                    mend="sort the rows by time",
                )  # fmt: skip
            seen.add(one.name)
            one = end_of(one, form)
            series[one.name] = one
            panel = Panel(form.grid, form.columns, (one,))
            forecast = ahead(model, form, panel, form.horizon if model.law is None else 1, _PATHS)
            forecast = Forecasts(forecast.mean[:, :1], forecast.quantiles[:, :1], None)
            yield from self._rows(panel, forecast)

    def _rows(self, panel: Panel, forecast: Forecasts) -> Iterator[str]:
        starts = [(one.name, one.start + len(one.y)) for one in panel.series]
        columns = table(panel.grid, starts, forecast, panel.columns)
        steps = forecast.mean.shape[1]
        digits = [digits_of(one, self.form, 7) for one in panel.series for _ in range(steps)]
        for many, row in zip(digits, zip(*columns.values(), strict=True), strict=True):
            yield _row([one if isinstance(one, str) else f"{one:.{many}g}" for one in row])


def _parts(panel: Panel, folds: int, horizon: int) -> tuple[Panel, list[int | None], Panel, list[int | None]]:
    """(what is not measured on, where each series ends or None; of that what is learnt from, where each of those that
    weights are chosen by ends). Raises DataError where nothing is long enough."""
    before, ends = parted(panel, folds * horizon, horizon + 3)
    if all(end is None for end in ends):
        raise too_short(panel, folds * horizon, horizon + 3)
    learnt, chosen = parted(before, folds * horizon, horizon)
    return before, ends, learnt, chosen


def _row(fields: Iterable[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(fields)
    return out.getvalue()
