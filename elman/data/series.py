"""Series in long form, a row for each series and time stamp: files and frames -> Panel.

unique_id,ds,y,price          # unique_id: which series; without it there is one
a,2020-01-01,3.5,1.0          # ds: a date or a time as ISO 8601 has it, or a whole number
a,2020-01-02,,1.0             # y: empty, NA or NaN is a gap, and so is a time stamp that is missing
a,2020-01-04,4.0,1.1
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from elman.data.grid import DAY, WHOLE, Grid, OffGrid, are_days, expect_stamp, in_own_time, like_months
from elman.data.series_tables import Columns, Table, expect_columns, read_table, table_of_rows
from elman.data.tables import STDIN, Remarks, TableRows, number_in

LARGEST = 1e36  # of numbers: networks read scales in float32
_LONGEST = 2**24  # steps of a series, gaps included
_GAPS = {"", "na", "nan", "null", "none"}


@dataclass(frozen=True)
class Earlier:
    """What forecasts read of a series before the first step that is kept of it. last: its latest number, NaN for none.
    loc, scale: of all its numbers, those that are kept among them: where they lie, and how far apart."""

    last: float
    loc: float
    scale: float


@dataclass(frozen=True)
class Series:
    """One series on a grid.

    name: its unique_id. start: the place of its first step. y: float64 [T], NaN where there is a gap; neither its first
    nor its last is one. known: [T', K], T' ≥ T. past: [T, P], NaN where nothing is known. static: of each column
    a number or a word. earlier: of the end of a series, whose first step may be a gap.
    """

    name: str
    start: int
    y: np.ndarray
    known: np.ndarray
    past: np.ndarray
    static: tuple[Any, ...] = ()
    earlier: Earlier | None = None

    def before(self, step: int) -> Series:
        """What is known before a step: y up to there, and what is known of the future."""
        return replace(self, y=self.y[:step], past=self.past[:step])


def joined(first: Series, then: Series) -> Series:
    """A series that goes on later, with a gap between the two if need be."""
    apart = then.start - first.start - len(first.y)
    known = first.known[: len(first.y)]
    between = np.repeat(known[-1:], apart, 0) if apart else known[:0]
    return replace(
        then, start=first.start, y=np.concatenate([first.y, np.full(apart, np.nan), then.y]),
        known=np.concatenate([known, between, then.known]),
        past=np.concatenate([first.past, np.full((apart, first.past.shape[1]), np.nan), then.past]),
        earlier=first.earlier,
    )  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """Series on one grid."""

    grid: Grid
    columns: Columns
    series: tuple[Series, ...]

    @property
    def digest(self) -> str:
        digest = hashlib.sha256(repr((self.grid, self.columns)).encode())
        for one in self.series:
            digest.update(repr((one.name, one.start, one.static)).encode())
            for values in (one.y, one.known, one.past):
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def but(self, last: int) -> Panel:
        """Without the last steps of every series; of those that are not longer nothing is left."""
        return replace(
            self, series=tuple(one.before(len(one.y) - last) for one in self.series if len(one.y) > last)
        )


def read_series(
    paths: Sequence[Path],
    columns: Columns = Columns(),
    grid: Grid | None = None,
    remarks: Remarks | None = None,
) -> Panel:
    """The series of files, .csv, .tsv or .parquet; a series may go on from one file to the next. grid: which it is to
    be; None: as the time stamps lie. remarks: are added to. Raises DataError with file and line."""
    tables = [read_table(path, columns, remarks) for path in paths]
    panel = panel_of(tables, columns, grid)
    if remarks is not None and grid is None and panel.grid.kind == WHOLE:
        stamps = [panel.grid.stamps(one.start + np.flatnonzero(~np.isnan(one.y))) for one in panel.series]
        if like_months(np.concatenate(stamps)):
            one = stamps[0][0]
            remarks.say(
                f"{paths[0]}, {columns.time}: taken as whole numbers, {one} and so on look like a year and a month: "
                f"write {one // 100}-{one % 100:02d} for those"
            )
    return panel


def panel_of(tables: Sequence[Table], columns: Columns, grid: Grid | None = None) -> Panel:
    """Check what was read, and lay it on a grid."""
    rows: dict[str, list[tuple[int, int, Table]]] = {}
    ahead: dict[str, list[int]] = {}
    kinds: dict[bool, tuple[Table, int]] = {}
    for table in tables:
        expect_columns(table, columns)
    # Digits alone are what the grid says; without one, what they can be in all rows.
    days = (
        all(are_days(table.columns[columns.time]) for table in tables) if grid is None else grid.kind != WHOLE
    )
    for table in tables:
        ids = table.columns.get(columns.id)
        for i in range(table.rows):
            stamp = expect_stamp(table.columns[columns.time][i], days=days)
            if stamp is None:
                raise _no_stamp(table, i, columns)
            kinds.setdefault(stamp.whole, (table, i))
            name = "" if ids is None else str(ids[i])
            rows.setdefault(name, []).append((stamp.at, i, table))
            ahead.setdefault(name, []).append(stamp.offset)
    if not rows:
        table, where = tables[0], ", ".join(table.where for table in tables)
        raise table.words(
            what="there are no series", where=where, got=f"no rows under {', '.join(table.names)[:200]}",
            expected="a row for each time stamp", mend=f"give a {'frame' if table.handed else 'file'} that holds some",
        )  # fmt: skip
    whole = grid is not None and grid.kind == WHOLE
    if len(kinds) > 1 or (grid is not None and (True in kinds) != whole):
        table, i = kinds[not whole] if grid is not None else max(kinds.values(), key=lambda one: one[1])
        raise table.words(
            what="time stamps are dates in some rows and whole numbers in others" if len(kinds) > 1
            else "time stamps are of another kind than those learnt from",
            where=table.place(i), got=repr(table.columns[columns.time][i])[:60],
            expected="whole numbers" if whole else "dates, or whole numbers throughout", mend="write all in one way",
        )  # fmt: skip
    stamps = {name: np.array([stamp for stamp, _, _ in own], np.int64) for name, own in rows.items()}
    local = {name: stamps[name] + np.array(ahead[name], np.int64) for name in rows}
    if in_own_time(list(stamps.values()), list(local.values()), grid):
        stamps = local
    else:
        for name, own in rows.items():
            _expect_order(name, own, columns)
    grid = grid or Grid.of(list(stamps.values()), whole=True in kinds)
    series = [_series(name, stamps[name], own, columns, grid) for name, own in rows.items()]
    if all(one is None for one in series):
        table = tables[0]
        raise table.words(
            what="there is not one number in the series", where=f"{table.where}, {columns.target}",
            got="gaps alone", mend="give numbers",
        )  # fmt: skip
    return Panel(grid, columns, tuple(one for one in series if one is not None))


def read_rows(columns: Columns, grid: Grid, remarks: Remarks | None = None) -> Iterator[tuple[str, Series]]:
    """(where it stands, a series of one step) of each row of standard input, as it comes; its y may be a gap. The names
    of the columns are read at once."""
    rows = TableRows(Path(STDIN), remarks)
    _, names = next(rows, (1, []))
    names = [name.strip() for name in names]

    def one(number: int, row: list[str]) -> tuple[str, Series]:
        table = table_of_rows(Path("standard input"), names, [(number, row)], columns, rows.decimal_commas)
        expect_columns(table, columns)
        stamp = expect_stamp(table.columns[columns.time][0], days=grid.kind != WHOLE)
        if stamp is None or stamp.whole != (grid.kind == WHOLE):
            raise _no_stamp(table, 0, columns)
        name = str(table.columns[columns.id][0]) if columns.id in names else ""
        utc, local = np.array([stamp.at]), np.array([stamp.at + stamp.offset])
        at = local if in_own_time([utc], [local], grid) else utc
        series = _series(name, at, [(int(at[0]), 0, table)], columns, grid, gaps=True)
        assert series is not None
        return table.place(0), series

    return (one(number, row) for number, row in rows if row)


def _expect_order(name: str, rows: list[tuple[int, int, Table]], columns: Columns) -> None:
    for (before, j, first), (stamp, i, table) in zip(rows, rows[1:], strict=False):
        if stamp > before:
            continue
        twice = next((one for one in rows if one[0] == stamp and one[1:] != (i, table)), None)
        same = stamp == before or twice is not None
        other = (before, j, first) if stamp == before or twice is None else twice
        said: Any = table.columns[columns.time][i]
        back = (
            ":" in str(said) and stamp % DAY and before - stamp < DAY // 12
        )  # clocks go back by an hour at most
        mend = "; where clocks are put back, give UTC offsets, as in 2024-10-27T02:30+01:00" if back else ""
        raise table.words(
            what=f"a time stamp stands twice in series {name!r}" if same
            else f"series {name!r} is not in order of time",
            where=table.place(i), got=str(said),
            expected=f"later than {other[2].columns[columns.time][other[1]]}, {other[2].place(other[1])}",
            mend=(f"leave one of the two out, or tell the series apart by {columns.id!r}" if same
            else f"sort the rows by {columns.id} and {columns.time}") + mend,
        )  # fmt: skip


def _series(
    name: str, stamps: np.ndarray, rows: list[tuple[int, int, Table]], columns: Columns, grid: Grid,
    *, gaps: bool = False,
) -> Series | None:  # fmt: skip
    """A series of rows; None where there is not one number, unless there may be gaps alone."""
    try:
        places = grid.places(stamps)
    except OffGrid as off:
        _, i, table = rows[off.index]
        stamp = expect_stamp(table.columns[columns.time][i], days=True)
        zone = "; where clocks change, leave UTC offsets out, in what is learnt from too"
        raise table.words(
            what=f"a time stamp of series {name!r} lies between two steps", where=table.place(i),
            got=str(table.columns[columns.time][i]),
            expected=f"a whole number of steps of {grid.name} from {grid.words(np.zeros(1, np.int64))[0]}",
            mend="round time stamps to their steps, or add up what lies within one"
            + zone * bool(stamp and stamp.offset),
        ) from off  # fmt: skip
    steps = places - places[0]
    if steps[-1] >= min(_LONGEST, 1000 * len(steps) + 100_000):
        _, i, table = rows[int(np.diff(steps).argmax()) + 1]
        raise table.words(
            what=f"series {name!r} is nearly all gaps", where=table.place(i),
            got=f"{steps[-1] + 1:,} steps of {grid.name}",
            expected=f"fewer than {min(_LONGEST, 1000 * len(steps) + 100_000):,} for {len(steps):,} rows",
            mend="mend the time stamp, or leave the series out",
        )  # fmt: skip
    y, known, past = (np.full((steps[-1] + 1, n), np.nan) for n in (1, len(columns.known), len(columns.past)))
    kinds = ((y, (columns.target,), True), (known, columns.known, False), (past, columns.past, True))
    for values, names, missing in kinds:
        for k, column in enumerate(names):
            values[steps, k] = [
                _number(table, column, i, columns.target, gaps=missing) for _, i, table in rows
            ]
    static = tuple(_static(column, name, rows) for column in columns.static)
    there = np.flatnonzero(~np.isnan(y[:, 0]))
    if not len(there) and not gaps:
        return None
    begin, end = (there[0], there[-1] + 1) if len(there) else (0, len(y))
    return Series(
        name, int(places[0] + begin), y[begin:end, 0], _filled(known[begin:]), past[begin:end], static
    )


def _no_stamp(table: Table, i: int, columns: Columns) -> Exception:
    return table.words(
        what="this is no time stamp", where=table.place(i), got=repr(table.columns[columns.time][i])[:60],
        expected="a date or time such as 2020-01-31 or 2020-01-31T12:00, of the years 1 … 9999, or a whole "
        "number between -2^62 and 2^62",
        mend=f"write it so, in column {columns.time!r}",
    )  # fmt: skip


def _number(table: Table, column: str, i: int, target: str, *, gaps: bool) -> float:
    """A number of a row. How large those of the target may be is asked of a series as a whole (`expect_scales`)."""
    raw: Any = table.columns[column][i]
    try:
        gap = raw is None or (isinstance(raw, str) and raw.strip().lower() in _GAPS)
        value = math.nan if gap else number_in(raw or 0)
    except (TypeError, ValueError, OverflowError):  # a whole number may have any size
        value = math.inf
    if column != target:
        _expect_no_giant(table, column, i, value)
    if math.isinf(value) or abs(value) > 1e300 or (math.isnan(value) and not gaps):
        raise table.words(
            what=f"this is no number, in column {column!r}", where=table.place(i), got=repr(raw)[:60],
            expected="a finite number" + (", or nothing for a gap" if gaps else ""),
            mend="numbers are written as 1234.5" if gaps else "what is known of the future has no gaps: fill them in",
        )  # fmt: skip
    return value


def _expect_no_giant(table: Table, column: str, i: int, value: float) -> None:
    if LARGEST < abs(value) < math.inf:
        raise table.words(
            what="numbers are too large for a forecast", where=f"{table.place(i)}, {column}",
            got=repr(table.columns[column][i])[:60], expected=f"at most {LARGEST:g}",
            mend=f"write {column} in another unit",
        )  # fmt: skip


def _static(column: str, name: str, rows: list[tuple[int, int, Table]]) -> Any:
    first: Any = rows[0][2].columns[column][rows[0][1]]
    for _, i, table in rows:
        value = table.columns[column][i]
        empty = isinstance(value, str) and not value.strip()
        if value is None or empty or (isinstance(value, float) and math.isnan(value)):
            raise table.words(
                what=f"{column!r} is missing in series {name!r}", where=table.place(i), got=repr(value)[:60],
                expected="a number or a word in each row",
                mend="fill it in, with a word such as 'unknown' if need be, or leave the series out",
            )  # fmt: skip
        if value != first:
            raise table.words(
                what=f"{column!r} changes within series {name!r}", where=table.place(i),
                got=repr(value)[:60], expected=repr(first)[:60],
                mend="what belongs to a series as a whole is the same in each row; name it --known or --past",
            )  # fmt: skip
    try:
        value = number_in(first)
    except (TypeError, ValueError, OverflowError):
        return str(first)
    _expect_no_giant(rows[0][2], column, rows[0][1], value)
    return value if math.isfinite(value) else str(first)


def _filled(values: np.ndarray) -> np.ndarray:
    """What is known, at time stamps that are missing as it was before."""
    if not values.size:
        return values
    there = ~np.isnan(values[:, 0])
    return values[np.maximum.accumulate(np.where(there, np.arange(len(values)), 0))]
