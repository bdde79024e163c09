"""How series become what a network reads, as it was learnt from them: their columns, their scales, and what a window is
made of. It is kept beside the weights.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from elman.data.grid import MONTHS, TIME, WHOLE, Grid
from elman.data.schema import Odd, each, number, record, text, whole
from elman.data.series import LARGEST, Panel, Series
from elman.data.series_tables import Columns
from elman.errors import DataError

_NAMES = each(text(1000), 1000)
_CATEGORIES = 1000  # words of a static column, at most
FAR = 1e4  # scales from where numbers lie: what is farther is read as there
EARLY = 3  # numbers that have to be there before a forecast is learnt from
_CLOSEST = 1e-36  # of how far numbers lie apart: networks read scales in float32
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
        """Of the series learnt from. Raises DataError for numbers that float32 has no scale of, and for more words than
        a static column may have."""
        expect_scales(panel)
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
        spreads = [spread for one in panel.series if (spread := scale_of(one.y[~np.isnan(one.y)])[1]) > 0]
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
                scaled = (value - self.means[first + k]) / self.scales[first + k]
                values.append(min(max(scaled, -FAR), FAR))
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


def digits_of(one: Series, form: SeriesForm, least: int) -> int:
    """How many digits tell numbers of a series apart, four of its scale among them."""
    y = one.y[~np.isnan(one.y)]
    scale = scale_before(one, len(one.y), counts=form.counts)[1]
    apart = np.abs(y).max(initial=0.0) / (scale if scale > 0 else form.spread)
    return min(max(least, math.ceil(math.log10(max(apart, 1))) + 4), 17)


def expect_scales(panel: Panel) -> None:
    """Raise DataError for numbers that are too large, or lie too close together, for a scale of float32."""
    for one in panel.series:
        y = one.y[~np.isnan(one.y)]
        least, most = (float(y.min()), float(y.max())) if len(y) else (0.0, 0.0)
        where, mend = f"series {one.name!r}, {panel.columns.target}", "write y in another unit"
        if max(-least, most) > LARGEST:
            raise DataError(
                what="numbers are too large for a forecast", where=where, got=f"{max(-least, most):.3g}",
                expected=f"at most {LARGEST:g}", mend=mend,
            )  # fmt: skip
        told = one.earlier is not None and one.earlier.scale > 0  # by what came before
        if least < most and most - least < _CLOSEST and not told:
            raise DataError(
                what="numbers lie too close together for a forecast", where=where,
                got=f"{least:.6g} to {most:.6g}", expected=f"{_CLOSEST:g} apart or more, or all the same", mend=mend,
            )  # fmt: skip


def scale_of(y: np.ndarray, *, counts: bool = False) -> tuple[float, float]:
    """(where numbers lie, how far apart), by median and quartiles, which a few odd ones do not move; of none NaN and 0.
    Of counts 0 and the mean."""
    if counts:
        return 0.0, float(y.mean()) if len(y) else 0.0
    if not len(y):
        return np.nan, 0.0
    low, middle, high = np.quantile(y, [0.25, 0.5, 0.75])
    # Where more than half are one number, by the mean.
    scale = (high - low) / 1.35 or 1.25 * float(np.abs(y - middle).mean())
    least = max(1e-12 * abs(middle), _CLOSEST / 10)
    return float(middle), float(scale) if scale > least and len(y) >= EARLY else 0.0


def scale_before(one: Series, step: int, *, counts: bool) -> tuple[float, float]:
    """`scale_of` of all that came before a step; where that is less than what was learnt from, as it was of that."""
    if one.earlier is not None and one.earlier.scale > 0:
        return one.earlier.loc, one.earlier.scale
    return scale_of(one.y[:step][~np.isnan(one.y[:step])], counts=counts)


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
