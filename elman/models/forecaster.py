"""The forecaster: series, and a distribution of what comes next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elman.data.series import Panel, panel_of
from elman.data.series_ends import kept_form
from elman.data.series_form import FAR, SeriesForm
from elman.data.series_tables import Columns, backend_of, frame_like, table_of
from elman.data.series_windows import Origins
from elman.errors import InputError, NotYet
from elman.models import pretrained
from elman.models.asked import expect_seed
from elman.models.distributions import FRAMES, QUANTILES, SHARES
from elman.models.forecast_network import ForecastNetwork
from elman.models.forecasting import (
    AVERAGE,
    BATCH,
    DECAY,
    FILE,
    Forecasts,
    Scores,
    ahead,
    begun,
    expect_numbers,
    expect_steps,
    expect_whole,
    folds_for,
    forecasts,
    form_of,
    looking,
    opened,
    parted,
    rolling,
    scored,
    table,
    too_short,
)
from elman.models.frame_forecaster import Frames, given
from elman.plan.explain import Explanation
from elman.training import Training, fitted

STEPS = 1000
STACK: dict[str, Any] = {"cell": "gru", "hidden": 64, "dropout": 0.1}
DEFAULTS = {"weight_decay": DECAY, "average": AVERAGE, "batch": BATCH}


class Forecaster:
    """Series -> what comes next, as a distribution.

        model = Forecaster(horizon=12, seed=0).fit(frame)        # columns unique_id, ds, y: see `elman.data.series`
        model.predict(12)                                        # unique_id, ds, mean, 0.025, 0.05, … 0.975
        Forecaster(horizon=12).backtest(frame)                   # what it would have said before the end

    A frame is one of pandas, polars or pyarrow, a mapping of columns, or numbers in a row, a Series among them, whose
    index, if it has one, are the time stamps; a result of the same kind.

    horizon: steps of a forecast. distribution: "gaussian", "student-t", "negative-binomial" (of counts), "quantiles",
    which are told for all steps of the horizon at once rather than drawn step by step; or "bernoulli", of sequences of
    vectors of 0 and 1, of which `predict` tells [horizon, I], how likely each is to be 1. season: steps after
    which series repeat themselves; None: by the time stamps, 1 for none. context: steps that are read before a
    forecast; None: two seasons or horizons, at least 24. id, time, target, known, past, static: names of columns, see
    `elman.data.series_tables.Columns`. folds: horizons at the end of each series by which the best weights are chosen;
    None: up to 5, 0: none, all is learnt from. cell, hidden, layers, dropout: see `ForecastNetwork`. steps, minutes,
    batch, lr, weight_decay, average, seed: see `elman.training.Training`. patience: looks, of which there are 16,
    without a better one. watch: is shown what training yields. progress: a bar on standard error with the time left;
    None: where that is a terminal.

    network, form: once there are some. Raises InputError and DataError for what are no series.
    """

    def __init__(
        self, horizon: int = 12, *, distribution: str = "gaussian", season: int | None = None,
        context: int | None = None, id: str = "unique_id", time: str = "ds", target: str = "y",
        known: Sequence[str] = (), past: Sequence[str] = (), static: Sequence[str] = (), folds: int | None = None,
        cell: Any = None, hidden: int | None = None, layers: int | None = None, dropout: float | None = None,
        steps: int | None = None, minutes: float | None = None, batch: int | None = None, lr: float | None = None,
        weight_decay: float | None = None, average: float | None = None, patience: int | None = 5, seed: int = 0,
        watch: Callable[[Any], None] | None = None, progress: bool | None = None,
    ) -> None:  # fmt: skip
        expect_steps(horizon, "horizon")
        self.horizon, self.distribution, self.season, self.context = horizon, distribution, season, context
        self.columns = Columns(id, time, target, tuple(known), tuple(past), tuple(static))
        self.folds, self.patience, self.seed = folds, patience, seed
        self.model = {"cell": cell, "hidden": hidden, "layers": layers, "dropout": dropout}
        self.training: dict[str, Any] = {
            "steps": steps, "minutes": minutes, "batch": batch, "lr": lr, "weight_decay": weight_decay,
            "average": average, "seed": seed,
        }  # fmt: skip
        self.watch, self.progress = watch or (lambda event: None), progress
        self._network: ForecastNetwork | None = None
        self._frames: Frames | None = None
        self._like: Any = None

    # --- learning -----------------------------------------------------------------------------------------------------

    def fit(self, frame: Any, valid: Any = None) -> Forecaster:
        """Learn from series; returns itself. The random numbers of torch go on as if nothing had been drawn.

        Of "bernoulli", frame is a list of arrays [T, I] of 0 and 1, and valid another one, by which the weights are
        chosen; None: one in ten of frame, those at its end.
        """
        expect_seed(self.seed)
        if self.distribution == FRAMES:
            self._frames = Frames.fitted(
                frame,
                valid,
                self.model,
                patience=self.patience,
                watch=self.watch,
                progress=self.progress,
                **self.training,
            )
            return self
        panel = panel_of([table_of(frame, self.columns)], self.columns)
        self._like = backend_of(frame)
        return self._fit(panel)

    def _fit(self, panel: Panel) -> Forecaster:
        if self.folds is not None:
            expect_whole(self.folds, "folds", 0)
        folds = min(folds_for(panel, self.horizon), 5) if self.folds is None else self.folds
        learnt, ends = parted(panel, folds * self.horizon, 2 * self.horizon)
        form = form_of(learnt, self.distribution, self.season, self.context, self.horizon)
        aside = rolling(panel, form, ends, folds, max(self.horizon // 4, 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network, origins = begun(form, learnt, self.distribution, **{**STACK, **given(self.model)})
            how = {"lr": network.learning_rate, **DEFAULTS, **given(self.training)}
            if "minutes" not in how:
                how.setdefault("steps", STEPS)
            batches = origins.batches(min(how.pop("batch"), len(origins.places)), self.seed)
            training = Training(network, batches, **how)
            fitted(
                training,
                looking(network, aside, origins),
                patience=self.patience if aside.places else None,
                watch=self.watch,
                progress=self.progress,
            )
        network.ends = form, panel
        self._network = network.eval()
        return self

    # --- what it is for -----------------------------------------------------------------------------------------------

    def predict(
        self, horizon: int | None = None, frame: Any = None, *, paths: int = 1000, seed: int = 0
    ) -> Any:
        """The forecast of `horizon` steps (None: those of the model) after the end of each series.

        frame: series to go on from; None: those learnt from. Columns `known` are there for the steps of the forecast
        too, in rows without a y. paths: futures drawn of each, of which the quantiles are taken.
        Returns columns unique_id, ds, mean, and one for each quantile.
        """
        if self._frames is not None:
            return self._frames.predict(self._steps(horizon), frame, seed)
        panel, forecast = self._forecast(horizon, frame, paths, seed)
        starts = [(one.name, one.start + len(one.y)) for one in panel.series]
        columns = table(panel.grid, starts, forecast, panel.columns)
        return frame_like(columns, self._like if frame is None else backend_of(frame))

    def paths(
        self, horizon: int | None = None, frame: Any = None, *, count: int = 1000, seed: int = 0
    ) -> dict[str, np.ndarray]:
        """unique_id -> [count, horizon], futures that are drawn. Raises InputError of a model of quantiles."""
        if self._frames is not None:
            expect_whole(count, "paths", 1)
            return {"": self._frames.paths(self._steps(horizon), frame, count, seed)}
        panel, forecast = self._forecast(horizon, frame, count, seed)
        if forecast.paths is None:
            raise InputError(
                what="a model of quantiles draws no paths",
                where="paths()",
                mend='take distribution="student-t"',
            )
        return {one.name: paths for one, paths in zip(panel.series, forecast.paths, strict=True)}

    def _forecast(self, horizon: int | None, frame: Any, paths: int, seed: int) -> tuple[Panel, Forecasts]:
        form, network = self.form, self.network
        expect_whole(paths, "paths", 1)
        expect_seed(seed)
        panel = self._series(frame)
        return panel, ahead(network, form, panel, self._steps(horizon), paths, seed)

    def _steps(self, horizon: int | None) -> int:
        horizon = self.horizon if horizon is None else horizon
        expect_whole(horizon, "horizon", 1)
        return horizon

    def backtest(self, frame: Any, *, folds: int | None = None, stride: int | None = None) -> Backtest:
        """What it would have said: a forecaster like this one, fitted to what came before the first of several places
        at the end of each series, tells the horizon that follows each; later numbers are read, not learnt from.

        folds: horizons that the places span; None: a fifth of the middle series, 10 at most. stride: steps between two
        places; None: a horizon. Series that are too short are learnt from alone.
        """
        _expect_places(folds, stride)
        panel = panel_of([table_of(frame, self.columns)], self.columns)
        folds = folds_for(panel, self.horizon) if folds is None else folds
        learnt, ends = parted(panel, folds * self.horizon, 2 * self.horizon)
        if all(end is None for end in ends):
            raise too_short(panel, folds * self.horizon, self.horizon)
        fresh = self._like_this()._fit(learnt)
        return fresh._tested(panel, ends, folds, stride, backend_of(frame))

    def evaluate(self, frame: Any, *, folds: int = 1, stride: int | None = None) -> Backtest:
        """What the fitted model says of the last horizons of series, given what came before each."""
        _expect_places(folds, stride)
        panel = self._series(frame)
        ends = [len(one.y) if len(one.y) > folds * self.form.horizon else None for one in panel.series]
        if all(end is None for end in ends):
            raise too_short(panel, folds * self.form.horizon, 1)
        return self._tested(panel, ends, folds, stride, backend_of(frame))

    def score(self, frame: Any) -> float:
        """By which share it is better than the seasonal naive forecast on the last horizon of series: 1 - MASE / its
        MASE. Of "bernoulli" the log-likelihood of a frame of sequences, in nats."""
        if self._frames is not None:
            return -self._frames.nats(frame)
        scores = self.evaluate(frame).scores
        return 1 - scores.mase / scores.naive[0]

    def _tested(
        self, panel: Panel, ends: list[int | None], folds: int, stride: int | None, like: Any
    ) -> Backtest:
        origins = rolling(panel, self.form, ends, folds, stride)
        forecast = expect_numbers(origins, forecasts(self.network, origins))
        starts = [(panel.series[i].name, panel.series[i].start + t) for i, t in origins.places]
        columns = table(panel.grid, starts, forecast, panel.columns)
        columns[panel.columns.target] = origins.told(range(len(starts))).reshape(-1).tolist()
        return Backtest(scored(origins, forecast), frame_like(columns, like))

    # --- a stream -----------------------------------------------------------------------------------------------------

    def begin(self, frame: Any = None, unique_id: str | None = None) -> SeriesStream:
        """The state from which `step` follows one series, whose past is known: in frame, or learnt from."""
        panel, form = self._series(frame), self.form
        matching = [one for one in panel.series if unique_id in (None, one.name)]
        if len(matching) != 1:
            raise InputError(
                what="a stream follows one series", where="begin(unique_id)", got=f"{len(matching)} of {unique_id!r}",
                expected=", ".join(one.name for one in panel.series)[:200], mend="name one of them",
            )  # fmt: skip
        if form.features > form.calendar(0, 1).shape[1]:
            raise InputError(
                what="a stream is of a series alone", where="begin()", got="a model that reads other columns too",
                mend="predict(frame=…) with all that is known so far",
            )  # fmt: skip
        one = matching[0]
        w = Origins(form, Panel(form.grid, form.columns, (one,)), 1, [(0, len(one.y))]).take([0])
        with torch.no_grad():
            _, states = self.network(w.lags[: form.context], w.features[: form.context])
        return SeriesStream(
            one.name, one.start + len(one.y), w.register[0], w.held[0], w.loc, w.scale, states
        )

    def step(self, y: Any, state: Any = None, *, paths: int = 1000) -> tuple[Any, Any]:
        """One number of a live stream: (ds, mean and quantiles of the next one, the state to go on from).

        Of "bernoulli": a vector [I] of 0 and 1 -> ([I], how likely each is to be 1 next; the state, at first None).

        y: None or NaN for a gap. state: of `begin`, whose scale is kept. The forecast is that of the distribution after
        y; it costs one step of the network, however long the stream is. Raises InputError for infinity.
        """
        if self._frames is not None:
            return self._frames.step(y, state)
        form, network = self.form, self.network
        expect_whole(paths, "paths", 1)
        if not isinstance(state, SeriesStream):
            raise InputError(
                what="a stream goes on from a state", where="step(state)", got=type(state).__name__,
                expected="that of begin(), or of the step before", mend="state = model.begin()",
            )  # fmt: skip
        try:
            number = math.nan if y is None else float(y)
        except (TypeError, ValueError, OverflowError):  # a whole number may have any size
            number = math.inf
        if math.isinf(number):
            raise InputError(
                what="this is no number", where="step(y)", got=repr(y)[:60], expected="a finite number, None for a gap",
                mend="None for a gap",
            )  # fmt: skip
        gap = math.isnan(number)
        scaled = (number - float(state.loc)) / float(state.scale)
        value = state.past[-1] if gap else torch.tensor(min(max(scaled, -FAR), FAR))
        # The step that y is of is read now that it is over: what it was told by is in the state.
        _, states = self._raw(state)
        after = replace(
            state, place=state.place + 1, past=torch.cat([state.past[1:], value.float().reshape(1)]),
            known=torch.cat([state.known[1:], torch.tensor([float(not gap)])]), states=states,
        )  # fmt: skip
        raw, _ = self._raw(after)
        if network.law is None:
            z = (
                network._quantiles(raw[None], self._calendar(after, form.horizon))
                .sort(-1)
                .values[0, 0, 0]
                .double()
            )
            levels, mean = z, float((z * torch.tensor(SHARES)).sum())
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                z = network.law.draw(raw.expand(paths, -1), after.scale.expand(paths)).double()
            levels, mean = z.quantile(torch.tensor(QUANTILES, dtype=torch.float64)), float(z.mean())
        loc, scale = float(after.loc), float(after.scale)
        forecast: dict[str, Any] = {
            "ds": form.grid.words(np.array([after.place]))[0],
            "mean": loc + scale * mean,
        }
        forecast |= {str(q): loc + scale * v for q, v in zip(QUANTILES, levels.tolist(), strict=True)}
        return forecast, after

    def _raw(self, state: SeriesStream) -> tuple[Tensor, Any]:
        places = torch.tensor([self.form.register - lag for lag in self.form.lags])
        lags = torch.cat([state.past[places], state.known[places]])[None]
        return self.network.step(lags, self._calendar(state, 1)[0], state.states)

    def _calendar(self, state: SeriesStream, steps: int) -> Tensor:
        return torch.from_numpy(self.form.calendar(state.place, steps))[:, None]

    # --- kept ---------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and series.json: the ends of the series, from which `predict` goes on.
        Raises InputError for a nameless cell."""
        if self._frames is not None:
            return self._frames.save(folder)
        network = self.network
        return pretrained.save(folder, network.settings, network, {FILE: kept_form(*self._ends)})

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, trust: bool = False, cell: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Forecaster:  # fmt: skip
        """What `save_pretrained` wrote, or a run folder: see `LanguageModel.from_pretrained`."""
        folder = pretrained.find(name)
        config = pretrained.settings_in(folder, "forecast")
        if config.get("distribution") == FRAMES:
            forecaster = cls(distribution=FRAMES)
            forecaster._frames = Frames.opened(config, folder, trust=trust, cell=cell, notify=notify)
            return forecaster
        form, _, network = opened(config, folder, trust=trust, cell=cell, notify=notify)
        how = {name: network.settings[name] for name in ("cell", "hidden", "layers", "dropout")}
        c = form.columns
        forecaster = cls(
            form.horizon, distribution=network.settings["distribution"], season=form.season, context=form.context,
            id=c.id, time=c.time, target=c.target, known=c.known, past=c.past, static=c.static, **how,
        )  # fmt: skip
        forecaster._network = network
        return forecaster

    def explain(self) -> Explanation:
        """What of its recurrences runs once, before, in and after the loop; after a call. See `elman.explain`."""
        return (self.network if self._frames is None else self._frames.network).explain()

    @property
    def network(self) -> ForecastNetwork:
        return self._there(self._network)

    @property
    def form(self) -> SeriesForm:
        return self._ends[0]

    @property
    def _ends(self) -> tuple[SeriesForm, Panel]:
        return self._there(self.network.ends)

    def _there(self, part: Any) -> Any:
        if self._frames is not None:
            raise InputError(
                what="a forecaster of vectors is measured by score(sequences)", where="Forecaster", got=FRAMES,
                expected="fit, predict, paths, step, score, save_pretrained", mend="call one of these",
            )  # fmt: skip
        if part is None:
            raise NotYet(
                what="this forecaster is not fitted yet", where="Forecaster", mend="call fit(frame) first"
            )
        return part

    def _series(self, frame: Any) -> Panel:
        form = self.form
        if frame is None:
            return self._ends[1]
        return panel_of([table_of(frame, form.columns)], form.columns, form.grid)

    def _like_this(self) -> Forecaster:
        c = self.columns
        return Forecaster(
            self.horizon, distribution=self.distribution, season=self.season, context=self.context, id=c.id,
            time=c.time, target=c.target, known=c.known, past=c.past, static=c.static, folds=self.folds, **self.model,
            **self.training, patience=self.patience, watch=self.watch, progress=self.progress,
        )  # fmt: skip


def _expect_places(folds: int | None, stride: int | None) -> None:
    """Raise InputError for places of forecasts that cannot be. None: what is taken where nothing is said."""
    if folds is not None:
        expect_whole(folds, "folds", 1)
    if stride is not None:
        expect_whole(stride, "stride", 1)


@dataclass(frozen=True)
class Backtest:
    """scores: see `Scores`. table: a row for each step of each forecast: unique_id, ds, mean, quantiles, and y, what
    happened."""

    scores: Scores
    table: Any


@dataclass(frozen=True)
class SeriesStream:
    """Where a live stream stands. place: of the next number. past, known: [R], scaled, as of `SeriesWindows`."""

    name: str
    place: int
    past: Tensor
    known: Tensor
    loc: Tensor
    scale: Tensor
    states: Any
