"""Time stamps as places on a grid: how far apart they lie, which season that suggests, and what a calendar says."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, date, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

SECOND = 10**6  # units of a time stamp that is no whole number: microseconds
DAY = 86_400 * SECOND
WHOLE, TIME, MONTHS = "whole", "time", "months"
_LONGEST_SEASON = 400
_FAR = 2**62  # whole numbers from here on are no time stamps: a difference of two has to have 64 bits
_WHOLE = re.compile(r"-?\d{1,1000}", re.ASCII)
# Of Python's own reading any sign may stand between date and time, digits among them.
_DATE = re.compile(r"(\d{4}-\d\d(-\d\d)?|\d{8}|\d{4}-?W\d\d(-?\d)?)([Tt ].*)?$", re.ASCII)
_END = 31  # of a month, whatever its last day is


class OffGrid(ValueError):
    """A time stamp that is none of the grid's. index: of the stamp."""

    def __init__(self, index: int) -> None:
        super().__init__(str(index))
        self.index = index


class Stamp(NamedTuple):
    """A time stamp. at: a whole number, where it is `whole`, or microseconds since 1970 in UTC, which a stamp without
    an offset is taken to be in. offset: microseconds by which its own time is ahead of UTC."""

    whole: bool
    at: int
    offset: int = 0


def parsed_stamp(text: str, *, days: bool = False) -> Stamp | None:
    """The stamp of a whole number or of a date as ISO 8601 has it; None for neither. days: digits alone are a date
    where they can be: see `are_days`."""
    text = text.strip()
    if _WHOLE.fullmatch(text) and not (days and _is_day(text)):
        return Stamp(True, int(text)) if abs(int(text)) < _FAR else None
    if not _DATE.match(text):
        return None
    try:
        return stamp_of(datetime.fromisoformat(text))
    except ValueError:
        if len(text) == 7 and text[4:5] == "-":  # 2020-01, a month
            return parsed_stamp(f"{text}-01")
        return None


def are_days(column: Iterable[Any]) -> bool:
    """Whether digits alone are dates in a column: all of them are, as 20200131 is, of the years 1800 … 2200. One that
    is none says that they count something."""
    texts = (value.strip() for value in column if isinstance(value, str))
    return all(_is_day(text) for text in texts if _WHOLE.fullmatch(text))


def _is_day(text: str) -> bool:
    if len(text) != 8 or not 1800 <= int(text[:4]) <= 2200:
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def like_months(stamps: np.ndarray) -> bool:
    """Whether several whole numbers may be meant as years and months, as 202001 is."""
    years, months = stamps // 100, stamps % 100
    return bool(
        len(stamps) > 1 and ((years >= 1800) & (years <= 2200) & (months >= 1) & (months <= 12)).all()
    )


def stamp_of(time: date) -> Stamp:
    if not isinstance(time, datetime):
        time = datetime(time.year, time.month, time.day)
    ahead = (time.utcoffset() or timedelta()) // timedelta(microseconds=1)
    own = np.datetime64(time.replace(tzinfo=None), "us") - np.datetime64(0, "us")
    return Stamp(False, int(own.astype(np.int64)) - ahead, ahead)


def in_own_time(utc: Sequence[np.ndarray], own: Sequence[np.ndarray], grid: Grid | None) -> bool:
    """Whether stamps of several series lie on a grid by the time of their own place: days (weeks, months, six hours)
    where clocks change are no whole number of steps apart in UTC. Midnights are dates, in any case.

    utc, own: int64, microseconds since 1970 by either. grid: which it is to be; None: as the stamps lie.
    """
    if all((a == b).all() for a, b in zip(utc, own, strict=True)) or not _fit(own, grid):
        return False
    return all((one % DAY == 0).all() for one in own) or not _fit(utc, grid)


def _fit(series: Sequence[np.ndarray], grid: Grid | None) -> bool:
    """Whether all stamps are of one grid, each series in ascending order."""
    if any((np.diff(one) <= 0).any() for one in series):
        return False
    grid = grid or Grid.of(series, whole=False)
    try:
        for one in series:
            grid.places(one)
    except OffGrid:
        return False
    return True


@dataclass(frozen=True)
class Grid:
    """Where time stamps lie: start + k · step, k a whole number.

    kind: "whole", of numbers that count something; "time", of microseconds; "months", of which step counts so many, on
    the same day of each (31: the last one). start: a stamp; of months, the microseconds into the month's day.
    """

    kind: str
    step: int
    start: int = 0
    day: int = 1

    @classmethod
    def of(cls, series: Sequence[np.ndarray], *, whole: bool) -> Grid:
        """The grid of int64 stamps of several series, each in ascending order.

        Of dates that lie on the same day of each month, or on its last, months; otherwise the difference that there is
        most often, the smaller one of two.
        """
        apart = [np.diff(one) for one in series if len(one) > 1]
        every = np.concatenate(apart) if apart else np.ones(0, np.int64)
        first = int(min((one[0] for one in series if len(one)), default=0))
        if not len(every):
            return cls(WHOLE if whole else TIME, 1 if whole else DAY, first)
        if not whole and every.min() >= 28 * DAY:
            split = _months(np.concatenate(list(series)))
            if split is not None:
                months, day, rest = split
                steps = np.concatenate([np.diff(_month_numbers(one)) for one in series if len(one) > 1])
                origin = int(months.min())
                return cls(MONTHS, math.gcd(*map(int, np.unique(steps))) or 1, origin * DAY + rest, day)
        counts = Counter(every.tolist())
        step = min(counts, key=lambda gap: (-counts[gap], gap))
        return cls(WHOLE if whole else TIME, int(step), first)

    def places(self, stamps: np.ndarray) -> np.ndarray:
        """k of int64 stamps. Raises OffGrid."""
        if self.kind == MONTHS:
            split = _months(stamps, self.day)
            if split is None or (stamps % DAY != self.start % DAY).any():
                raise OffGrid(next(i for i, one in enumerate(stamps) if not self._fits(one)))
            steps = split[0] - self.start // DAY
        else:
            steps = stamps - self.start
        if (off := steps % self.step != 0).any():
            raise OffGrid(int(off.argmax()))
        return steps // self.step

    def _fits(self, stamp: int) -> bool:
        one = np.array([stamp])
        return _months(one, self.day) is not None and stamp % DAY == self.start % DAY

    def stamps(self, places: np.ndarray) -> np.ndarray:
        """int64 stamps of places."""
        if self.kind != MONTHS:
            return self.start + places * self.step
        months = self.start // DAY + places * self.step
        last = _month_days(months)
        day = np.minimum(self.day, last)
        begin = months.astype("datetime64[M]").astype("datetime64[us]").astype(np.int64)
        return begin + (day - 1) * DAY + self.start % DAY

    def words(self, places: np.ndarray) -> list[str]:
        """Time stamps as a file has them."""
        stamps = self.stamps(places)
        if self.kind == WHOLE:
            return [str(one) for one in stamps.tolist()]
        times = stamps.astype("datetime64[us]")
        for unit, size in (("D", DAY), ("s", SECOND)):
            if self.start % size == 0 and (self.kind == MONTHS or self.step % size == 0):
                return np.datetime_as_string(times.astype(f"datetime64[{unit}]")).tolist()
        return np.datetime_as_string(times).tolist()

    @property
    def name(self) -> str:
        """What lies between two stamps, in words."""
        if self.kind == WHOLE:
            return f"{self.step}"
        if self.kind == MONTHS:
            return {1: "a month", 3: "a quarter", 12: "a year"}.get(self.step, f"{self.step} months")
        units = (
            (7 * DAY, "week"),
            (DAY, "day"),
            (3600 * SECOND, "hour"),
            (60 * SECOND, "minute"),
            (SECOND, "second"),
        )
        for size, word in units:
            if self.step % size == 0:
                many = self.step // size
                return f"{many} {word}s" if many > 1 else f"{'an' if word == 'hour' else 'a'} {word}"
        return f"{self.step} µs"

    @property
    def season(self) -> int:
        """Steps after which a calendar repeats itself: a year of months, quarters and weeks, a week of days, a day or
        an hour of less; 1 where it says nothing."""
        if self.kind == WHOLE:
            return 1
        if self.kind == MONTHS:
            return max(12 // self.step, 1)
        if self.step == 7 * DAY:
            return 52
        for long in (7 * DAY, DAY, 3600 * SECOND, 60 * SECOND):
            many = long // self.step
            if long % self.step == 0 and 2 <= many <= (7 if long == 7 * DAY else _LONGEST_SEASON):
                return many
        return 1

    def calendar(self, places: np.ndarray, span: int) -> np.ndarray:
        """[T, F] of what a calendar says of places, as sines and cosines of the share of a cycle that is over: of a
        day, a week, a year. A cycle is longer than a step, and was there twice in the `span` steps that are learnt
        from: what was there once cannot be told from a trend."""
        # Some lines of numpy: what libraries for this give beyond it (holidays) differs by country.
        if self.kind == WHOLE:
            return np.zeros((len(places), 0), np.float32)
        stamps = self.stamps(places)
        step = 30.4 * DAY * self.step if self.kind == MONTHS else self.step
        years = stamps.astype("datetime64[us]").astype("datetime64[Y]")
        begin, end = (
            y.astype("datetime64[us]").astype(np.int64) for y in (years, years + np.timedelta64(1, "Y"))
        )
        cycles = [
            (DAY, stamps % DAY / DAY, 2),
            (7 * DAY, (stamps + 3 * DAY) % (7 * DAY) / (7 * DAY), 3),  # 1970 began on a Thursday
            (364 * DAY, (stamps - begin) / (end - begin), 3),
        ]
        parts = [
            wave(2 * np.pi * k * share)
            for long, share, most in cycles if step < long and 2 * long <= span * step
            for k in range(1, most + 1) for wave in (np.sin, np.cos)
        ]  # fmt: skip
        return np.stack(parts, 1).astype(np.float32) if parts else np.zeros((len(places), 0), np.float32)


def _month_numbers(stamps: np.ndarray) -> np.ndarray:
    return stamps.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64)


def _month_days(months: np.ndarray) -> np.ndarray:
    """How many days months have."""
    begin = months.astype("datetime64[M]")
    end = begin + np.timedelta64(1, "M")
    return (end.astype("datetime64[D]") - begin.astype("datetime64[D]")).astype(np.int64)


def _months(stamps: np.ndarray, day: int | None = None) -> tuple[np.ndarray, int, int] | None:
    """(numbers of the months, the day on which all of them lie, microseconds into it); None where they do not."""
    months = _month_numbers(stamps)
    days = (stamps.astype("datetime64[us]").astype("datetime64[D]") - months.astype("datetime64[M]").astype(
        "datetime64[D]"
    )).astype(np.int64) + 1  # fmt: skip
    last = _month_days(months)
    rest = stamps % DAY
    candidates = [day] if day is not None else [int(days.max()), _END]
    for one in candidates:
        if (days == np.minimum(one, last)).all() and (rest == rest[0]).all():
            return months, one, int(rest[0])
    return None


def expect_stamp(value: Any, *, days: bool) -> Stamp | None:
    """`parsed_stamp` of what a frame holds: a text, a whole number, a date or a time; None, too, for what is too
    far away to be one."""
    if isinstance(value, str):
        return parsed_stamp(value, days=days)
    if isinstance(value, np.datetime64):
        year = 0 if np.isnat(value) else int(value.astype("datetime64[Y]").astype(np.int64)) + 1970
        near = MINYEAR <= year <= MAXYEAR
        return Stamp(False, int(value.astype("datetime64[us]").astype(np.int64))) if near else None
    if isinstance(value, date):
        if value != value:  # NaT of pandas, which is a date to Python
            return None
        return stamp_of(value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return Stamp(True, int(value)) if abs(int(value)) < _FAR else None
    return None
