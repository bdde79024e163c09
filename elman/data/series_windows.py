"""Windows over series: what a forecaster reads, step by step, scaled by what came before.

    |<---- context ---->|<- horizon ->|
     past values           to be told         the scale is of the context alone

A window is an example, and all are of one length, so `Ragged` walks over them: every place at which a forecast could
have been made, once in a pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elman.data.batches import Ragged
from elman.data.grid import MONTHS, TIME, WHOLE, Grid
from elman.data.schema import Odd, each, maybe, number, parsed, record, text, whole
from elman.data.series import Earlier, Panel, Series
from elman.data.series_tables import Columns
from elman.errors import DataError

_NAMES = each(text(1000), 1000)
_CATEGORIES = 1000  # words of a static column, at most
FAR = 1e4  # scales from where numbers lie: what is farther is read as there
_EARLY = 3  # numbers that have to be there before a forecast is learnt from
LONGEST = 2**14  # steps of a context, a horizon or a season
_FORM = record(
    {
        "grid": record(
            {"kind": text(10), "step": whole(1, 2**62), "start": whole(-(2**62), 2**62), "day": whole(1, 31)}
        ),
        "columns": record(
            {
                **{name: text(1000) for name in ("id", "time", "target")},
                **dict.fromkeys(("known", "past", "static"), _NAMES),
            }
        ),
        "season": whole(1, LONGEST),
        "context": whole(1, LONGEST),
        "horizon": whole(1, LONGEST),
        "counts": lambda value, place: None,
        "means": each(number(-1e300, 1e300), 3000),
        "scales": each(number(0, 1e300), 3000),
        "words": each(each(text(1000), _CATEGORIES), 1000),
        "spread": number(0, 1e300),
        "span": whole(1, 2**62),
    }
)  # fmt: skip


@dataclass(frozen=True)
class SeriesForm:
    """How series become what a network reads; kept beside its weights.

    season: steps after which they repeat themselves, 1 for none. context: steps that are read before a forecast.
    horizon: steps of one. counts: y are counts, scaled but not shifted. means, scales: of the columns `known`, `past`,
    and static ones, which are standardised. words: of each static column those that there are, none for numbers.
    spread: of y about its median, the typical one, for series that say nothing of theirs. span: steps from the first
    to the last one of all series.
    """

    grid: Grid
    columns: Columns
    season: int
    context: int
    horizon: int
    counts: bool = False
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()
    spread: float = 1.0
    span: int = 1

    @classmethod
    def of(cls, panel: Panel, season: int, context: int, horizon: int, *, counts: bool = False) -> SeriesForm:
        """Of the series learnt from. Raises DataError for more words than a static column may have."""
        means, scales = [], []
        columns = panel.columns
        for kind, names in (("known", columns.known), ("past", columns.past)):
            for k in range(len(names)):
                values = np.concatenate([getattr(one, kind)[: len(one.y), k] for one in panel.series])
                values = values[~np.isnan(values)]
                means.append(float(values.mean()) if len(values) else 0.0)
                scales.append(float(values.std()) or 1.0 if len(values) else 1.0)
        words = []
        for k in range(len(columns.static)):
            values = [one.static[k] for one in panel.series]
            numbers = all(isinstance(value, float) for value in values)
            words.append(() if numbers else tuple(sorted(set(map(str, values)))))
            if len(words[-1]) > _CATEGORIES:
                raise DataError(
                    what="a static column has too many words", where=columns.static[k],
                    got=f"{len(words[-1]):,} different ones", expected=f"at most {_CATEGORIES:,}",
                    mend="write rare ones as one word, give numbers, or leave the column out: what tells series apart "
                    "says nothing of others",
                )  # fmt: skip
            means.append(float(np.mean(values)) if numbers else 0.0)
            scales.append(float(np.std(values)) or 1.0 if numbers else 1.0)
        spreads = [spread for one in panel.series if (spread := _scale(one.y[~np.isnan(one.y)])[1]) > 0]
        spread = float(np.median(spreads)) if spreads else 1.0
        begin = min(one.start for one in panel.series)
        end = max(one.start + len(one.y) for one in panel.series)
        return cls(
            panel.grid, columns, season, context, horizon, counts, tuple(means), tuple(scales), tuple(words), spread,
            max(end - begin, 1),
        )  # fmt: skip

    @property
    def lags(self) -> tuple[int, ...]:
        """Which past values are read at a step beside what the state holds of them: the last ones, and those about a
        season ago."""
        near = range(1, min(self.season + 1, 12) + 1) if self.season > 1 else range(1, 5)
        return tuple(sorted({*near, *(self.season + k for k in (-1, 0, 1) if self.season > 1)}))

    @property
    def register(self) -> int:
        """How many past values are held."""
        return max(self.lags)

    @property
    def features(self) -> int:
        """F, what is known of a step besides y."""
        return self.known_features + 2 * len(self.columns.past) + self.static_features

    @property
    def known_features(self) -> int:
        return self.calendar(0, 1).shape[1] + len(self.columns.known)

    def calendar(self, place: int, steps: int) -> np.ndarray:
        """[steps, …], of a calendar, from a place on."""
        return self.grid.calendar(place + np.arange(steps), self.span)

    @property
    def static_features(self) -> int:
        return sum(len(words) or 1 for words in self.words)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any, place: str = "") -> SeriesForm:
        """Raises Odd."""
        _FORM(value, place)
        grid, columns = (
            Grid(**{n: value["grid"][n] for n in ("kind", "step", "start", "day")}),
            value["columns"],
        )
        if grid.kind not in (WHOLE, TIME, MONTHS):
            raise Odd(f"{place}.grid.kind", grid.kind, "a grid")
        names = {name: tuple(columns[name]) for name in ("known", "past", "static")}
        form = cls(
            grid, Columns(columns["id"], columns["time"], columns["target"], **names), value["season"],
            value["context"], value["horizon"], bool(value["counts"]), tuple(value["means"]), tuple(value["scales"]),
            tuple(map(tuple, value["words"])), value["spread"], value["span"],
        )  # fmt: skip
        count = sum(map(len, names.values()))
        if (
            len(form.means) != count
            or len(form.scales) != count
            or len(form.words) != len(form.columns.static)
        ):
            raise Odd(f"{place}.means", f"{len(form.means)} numbers", f"one for each of {count} columns")
        return form

    def static(self, series: Series) -> np.ndarray:
        """[S] of a series. Raises DataError for a word that was not there in training."""
        values: list[float] = []
        first = len(self.columns.known) + len(self.columns.past)
        for k, (value, words) in enumerate(zip(series.static, self.words, strict=True)):
            if not words:
                if not isinstance(value, float):
                    raise self._unknown(series, k, value, "a number")
                values.append((value - self.means[first + k]) / self.scales[first + k])
            elif str(value) not in words:
                raise self._unknown(series, k, value, ", ".join(words)[:200])
            else:
                values += [float(str(value) == word) for word in words]
        return np.array(values, np.float32)

    def _unknown(self, series: Series, k: int, value: Any, expected: str) -> DataError:
        return DataError(
            what="a series has a static value that was not there in training",
            where=f"series {series.name!r}, {self.columns.static[k]}", got=repr(value)[:60], expected=expected,
            mend="leave the series out, or train with such",
        )  # fmt: skip


def context_for(season: int, horizon: int) -> int:
    """Steps that are read before a forecast, where nothing else is said."""
    return min(max(2 * season, 2 * horizon, 24), 512)


@dataclass
class SeriesWindows:
    """What a network reads of several windows, time-major, W = context + steps of the forecast.

    lags: [W, B, 2 L], scaled past values, then whether each is known. features: [W, B, F]. y: [W, B], scaled, 0 where
    there is none. there: [W, B]. loc, scale: [B], y = loc + scale · scaled; loc in float64, as series may lie far from
    0. register, held: [B, R], the last past values before the forecast, scaled and filled, and whether each is known.
    """

    lags: Tensor
    features: Tensor
    y: Tensor
    there: Tensor
    loc: Tensor
    scale: Tensor
    register: Tensor
    held: Tensor


@dataclass
class Origins:
    """Series laid out so that any window can be taken: see `take`. places: (series, step of the first that is told)."""

    form: SeriesForm
    panel: Panel
    steps: int = 0  # of a forecast; 0: the form's horizon
    places: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        form, self.steps = self.form, self.steps or self.form.horizon
        self.lead = form.context + form.register
        flat = {name: [] for name in ("y", "filled", "known", "past")}
        self.first, at = [], 0
        for one in self.panel.series:
            # Nothing is known before the first step and after the last one.
            size = self.lead + len(one.y) + self.steps
            y = np.full(size, np.nan)
            y[self.lead : self.lead + len(one.y)] = one.y
            flat["y"].append(y)
            last = np.maximum.accumulate(np.where(np.isnan(y), 0, np.arange(size)))
            flat["filled"].append(np.where(np.isnan(y[last]), _first(one), y[last]))
            flat["known"].append(self._known(one, size))
            flat["past"].append(self._past(one, size))
            self.first.append(at + self.lead)
            at += size
        self.y, self.filled, self.known, self.past = (np.concatenate(parts) for parts in flat.values())
        self.static = np.stack([form.static(one) for one in self.panel.series])

    def everywhere(self) -> Origins:
        """With a window at every step before which there are enough numbers to say how far they lie apart: half a
        context, or of a short series half of them."""
        self.places = [
            (i, int(t)) for i, one in enumerate(self.panel.series)
            for t in np.flatnonzero(self._enough(np.cumsum(~np.isnan(one.y))))[:-1] + 1
        ] or [(i, len(one.y)) for i, one in enumerate(self.panel.series)]  # fmt: skip
        return self

    def _enough(self, counts: np.ndarray) -> np.ndarray:
        least = (
            min(max(self.form.context // 2, _EARLY), max(int(counts[-1]) // 2, _EARLY)) if len(counts) else 0
        )
        return counts >= least

    def take(self, rows: Sequence[int]) -> SeriesWindows:
        """The windows of places."""
        form, (series, steps) = self.form, np.array([self.places[i] for i in rows], np.int64).T
        width, context, reach = form.context + self.steps, form.context, form.register
        origin = np.array(self.first, np.int64)[series] + steps
        at = origin[:, None] - context + np.arange(-reach, width)  # [B, R + W]
        y = self.y[at]
        loc, scale = self._scales(y[:, reach : reach + context], series, steps)
        filled = ((self.filled[at] - loc[:, None]) / scale[:, None]).clip(-FAR, FAR).astype(np.float32)
        there = ~np.isnan(y)
        behind = reach + np.arange(width)[:, None] - np.array(form.lags)  # [W, L]
        lags = np.concatenate([filled[:, behind], there[:, behind]], 2).astype(np.float32)
        known = self.known[at[:, reach:]]
        past, seen = _held(self.past[at[:, reach:] - 1], context)
        static = np.repeat(self.static[series][:, None], width, 1)
        features = np.concatenate([known, past, seen, static], 2)
        target = np.where(there, (y - loc[:, None]) / scale[:, None], 0.0).clip(-FAR, FAR)[:, reach:]
        before = slice(context, context + reach)

        def turned(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values.swapaxes(0, 1).astype(np.float32)))

        def plain(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values.astype(np.float32)))

        return SeriesWindows(
            turned(lags), turned(features), turned(target), turned(there[:, reach:]),
            torch.from_numpy(loc.copy()), plain(scale), plain(filled[:, before]), plain(there[:, before]),
        )  # fmt: skip

    def told(self, rows: Sequence[int]) -> np.ndarray:
        """What happened at the steps of the forecasts, float64 [B, steps], NaN where it is not known."""
        at = np.array([self.first[i] + t for i, t in (self.places[k] for k in rows)], np.int64)
        return self.y[at[:, None] + np.arange(self.steps)]

    def batches(self, batch: int, seed: int) -> Ragged:
        """Without end, each place once in a pass: batches of (Windows' fields …)."""
        width = self.form.context + self.steps

        def take(rows: list[int]) -> tuple[Any, ...]:
            w = self.take(rows)
            return w.lags, w.features, w.y, w.there, w.loc.float(), w.scale

        return Ragged([width] * len(self.places), take, batch, seed)

    def _known(self, one: Series, size: int) -> np.ndarray:
        form, first = self.form, one.start - self.lead
        calendar = form.calendar(first, size)
        count = len(form.columns.known)
        known = np.zeros((size, count), np.float32)
        if count:
            values = (one.known - form.means[:count]) / form.scales[:count]
            end = min(self.lead + len(values), size)
            known[self.lead : end] = values[: end - self.lead]
            known[end:] = values[-1]  # `expect_future` asks for more where that would be told
        return np.concatenate([calendar, known], 1)

    def _past(self, one: Series, size: int) -> np.ndarray:
        count, before = len(self.form.columns.past), len(self.form.columns.known)
        past = np.full((size, count), np.nan, np.float32)
        if count:
            how = slice(before, before + count)
            past[self.lead : self.lead + len(one.past)] = (
                one.past - self.form.means[how]
            ) / self.form.scales[how]
        return past

    def _scales(self, y: np.ndarray, series: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of contexts [B, context]; of one that says too little, by all that came before it."""
        scales = np.empty((2, len(y)))
        for k, (row, i, step) in enumerate(zip(y, series, steps, strict=True)):
            loc, scale = _scale(row[~np.isnan(row)], counts=self.form.counts)
            if not scale > 0:
                whole, scale = _scale_before(self.panel.series[i], step, counts=self.form.counts)
                loc = np.nan_to_num(whole) if np.isnan(loc) else loc
            scales[:, k] = loc, scale if scale > 0 else self.form.spread
        return scales[0], scales[1]


def digits_of(one: Series, form: SeriesForm, least: int) -> int:
    """How many digits tell numbers of a series apart, four of its scale among them."""
    y = one.y[~np.isnan(one.y)]
    scale = _scale_before(one, len(one.y), counts=form.counts)[1]
    apart = np.abs(y).max(initial=0.0) / (scale if scale > 0 else form.spread)
    return min(max(least, math.ceil(math.log10(max(apart, 1))) + 4), 17)


def _scale(y: np.ndarray, *, counts: bool = False) -> tuple[float, float]:
    """(where numbers lie, how far apart), by median and quartiles, which a few odd ones do not move; of none NaN and 0.
    Of counts 0 and the mean."""
    if counts:
        return 0.0, float(y.mean()) if len(y) else 0.0
    if not len(y):
        return np.nan, 0.0
    low, middle, high = np.quantile(y, [0.25, 0.5, 0.75])
    # Where more than half are one number, by the mean.
    scale = (high - low) / 1.35 or 1.25 * float(np.abs(y - middle).mean())
    return float(middle), float(scale) if scale > 1e-12 * abs(middle) and len(y) >= _EARLY else 0.0


def _scale_before(one: Series, step: int, *, counts: bool) -> tuple[float, float]:
    """`_scale` of all that came before a step; where that is less than what was learnt from, as it was of that."""
    if one.earlier is not None and one.earlier.scale > 0:
        return one.earlier.loc, one.earlier.scale
    return _scale(one.y[:step][~np.isnan(one.y[:step])], counts=counts)


def _first(one: Series) -> float:
    """What steps before the first number are read as."""
    y = one.y if one.earlier is None else np.concatenate([[one.earlier.last], one.y])
    there = y[~np.isnan(y)]
    return float(there[0]) if len(there) else 0.0


def end_of(one: Series, form: SeriesForm) -> Series:
    """The end of a series, as much as a forecast reads."""
    cut = max(len(one.y) - form.context - form.register, 0)
    if not cut:
        return one
    # Without these a gap at the cut would be filled with another number, and a constant end scaled otherwise.
    before = one.y[:cut][~np.isnan(one.y[:cut])]
    last = before[-1] if len(before) else np.nan if one.earlier is None else one.earlier.last
    earlier = Earlier(float(last), *_scale_before(one, len(one.y), counts=form.counts))
    return replace(
        one, start=one.start + cut, y=one.y[cut:], known=one.known[cut:], past=one.past[cut:], earlier=earlier
    )


def _held(past: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """[B, W, P] of what is not known of the future: from the forecast on as it was last; and whether it is known."""
    if not past.shape[2]:
        return past, past
    there = ~np.isnan(past)
    there[:, context + 1 :] = False
    steps = np.where(there, np.arange(past.shape[1])[None, :, None], 0)
    last = np.maximum.accumulate(steps, 1)
    return np.nan_to_num(np.take_along_axis(past, last, 1)), there.astype(np.float32)


def expect_future(panel: Panel, form: SeriesForm) -> None:
    """Raise DataError where what has to be known of a forecast's steps is not."""
    if not form.columns.known:
        return
    for one in panel.series:
        if len(one.known) < len(one.y) + form.horizon:
            raise DataError(
                what="what is known of the future ends too early", where=f"series {one.name!r}",
                got=f"{len(one.known) - len(one.y)} steps after the last y", expected=f"{form.horizon}",
                mend=f"add rows with {', '.join(form.columns.known)} and an empty {form.columns.target}",
            )  # fmt: skip


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
