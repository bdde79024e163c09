"""Windows over series: what a forecaster reads, step by step, scaled by what came before.

    |<---- context ---->|<- horizon ->|
     past values           to be told         the scale is of the context alone

A window is an example, and all are of one length, so `Ragged` walks over them: every place at which a forecast could
have been made, once in a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elman.data.batches import Ragged
from elman.data.series import Panel, Series
from elman.data.series_form import EARLY, FAR, SeriesForm, expect_scales, scale_before, scale_of


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
        expect_scales(self.panel)
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
            min(max(self.form.context // 2, EARLY), max(int(counts[-1]) // 2, EARLY)) if len(counts) else 0
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
            values = values.clip(-FAR, FAR)
            known[self.lead : end] = values[: end - self.lead]
            known[end:] = values[-1]  # `expect_future` asks for more where that would be told
        return np.concatenate([calendar, known], 1)

    def _past(self, one: Series, size: int) -> np.ndarray:
        count, before = len(self.form.columns.past), len(self.form.columns.known)
        past = np.full((size, count), np.nan, np.float32)
        if count:
            how = slice(before, before + count)
            values = (one.past - self.form.means[how]) / self.form.scales[how]
            past[self.lead : self.lead + len(one.past)] = values.clip(-FAR, FAR)
        return past

    def _scales(self, y: np.ndarray, series: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of contexts [B, context]; of one that says too little, by all that came before it."""
        scales = np.empty((2, len(y)))
        for k, (row, i, step) in enumerate(zip(y, series, steps, strict=True)):
            loc, scale = scale_of(row[~np.isnan(row)], counts=self.form.counts)
            if not scale > 0:
                whole, scale = scale_before(self.panel.series[i], step, counts=self.form.counts)
                loc = np.nan_to_num(whole) if np.isnan(loc) else loc
            scales[:, k] = loc, scale if scale > 0 else self.form.spread
        return scales[0], scales[1]


def _first(one: Series) -> float:
    """What steps before the first number are read as."""
    y = one.y if one.earlier is None else np.concatenate([[one.earlier.last], one.y])
    there = y[~np.isnan(y)]
    return float(there[0]) if len(there) else 0.0


def _held(past: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """[B, W, P] of what is not known of the future: from the forecast on as it was last; and whether it is known."""
    if not past.shape[2]:
        return past, past
    there = ~np.isnan(past)
    there[:, context + 1 :] = False
    steps = np.where(there, np.arange(past.shape[1])[None, :, None], 0)
    last = np.maximum.accumulate(steps, 1)
    return np.nan_to_num(np.take_along_axis(past, last, 1)), there.astype(np.float32)
