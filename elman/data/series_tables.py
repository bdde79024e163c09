"""What series are read from, before it is laid on a grid: files, frames and numbers in a row -> Table; and columns as a
frame again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from elman.data.files import reading
from elman.data.tables import STDIN, TABLES, Remarks, TableRows, other_separators, with_points
from elman.errors import DataError, InputError, NotSupported, did_you_mean

_FIELD = 1000  # characters of a field
PARQUET = ".parquet"


@dataclass(frozen=True)
class Columns:
    """What columns are called. known: numbers that are known of the future too, such as a price that is set. past:
    numbers that are not. static: of a series as a whole, numbers or words."""

    id: str = "unique_id"
    time: str = "ds"
    target: str = "y"
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static: tuple[str, ...] = ()


@dataclass
class Table:
    """Columns as they were read. place: of a row, in words for errors. words: what an error is raised as."""

    names: list[str]
    columns: Mapping[str, Sequence[Any]]
    place: Callable[[int], str]
    words: Callable[..., Exception] = DataError
    where: str = ""
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = len(next(iter(self.columns.values()), ()))

    @property
    def handed(self) -> bool:
        """Whether it is no file, but a frame of a caller's."""
        return self.words is not DataError


def table_of(frame: Any, columns: Columns) -> Table:
    """The table of a frame of pandas, polars or pyarrow, through narwhals; of a mapping of columns; or of one series
    alone: numbers in a row, steps 0, 1, …, or, of a Series of pandas, those of its index."""

    def words(**parts: Any) -> Exception:
        return InputError(**parts)

    if isinstance(frame, Mapping):
        by_name = {str(name): list(values) for name, values in frame.items()}
    elif isinstance(frame, (list, tuple)) or (isinstance(frame, np.ndarray) and frame.ndim == 1):
        by_name = {columns.time: range(len(frame)), columns.target: list(frame)}
    else:
        try:
            import narwhals as nw
        except ImportError as error:
            raise NotSupported(
                what="frames are read through narwhals, which is not installed", where="frame",
                got=type(frame).__name__, mend="pip install 'elman[forecast]'; or give a mapping of columns",
            ) from error  # fmt: skip
        try:
            given: Any = frame
            own = nw.from_native(given, eager_only=True, allow_series=True)
        except TypeError as error:
            raise InputError(
                what="this is no frame", where="frame", got=type(frame).__name__,
                expected="a frame of pandas, polars or pyarrow, a mapping of columns, or numbers in a row",
                mend="give one of these",
            ) from error  # fmt: skip
        if isinstance(own, nw.Series):
            index: Any = nw.maybe_get_index(own)  # of pandas: it may hold the time stamps
            by_name = {
                columns.time: range(len(own)) if index is None else list(index),
                columns.target: _values(own),
            }
        else:
            by_name = {str(name): _values(own[name]) for name in own.columns}
    if len({len(values) for values in by_name.values()}) > 1:
        raise InputError(
            what="columns are not of one length", where="frame", mend="give a value for each row"
        )
    return Table(list(by_name), by_name, lambda i: f"frame, row {i}", words, "frame")


def _values(column: Any) -> list[Any]:
    """Of a column of narwhals. NA of pandas, which can be compared with nothing, is None."""
    values, gone = column.to_list(), column.is_null().to_list()
    return [
        None if null and not isinstance(value, (float, date)) else value
        for value, null in zip(values, gone, strict=True)
    ]


def frame_like(columns: Mapping[str, Any], like: Any) -> Any:
    """Columns as a frame of the library that another is of; without one, a dict."""
    if like is None:
        return dict(columns)
    import narwhals as nw

    return nw.from_dict(dict(columns), backend=like).to_native()


def backend_of(frame: Any) -> Any:
    """What `frame_like` makes the same kind of frame by; None for what is no frame."""
    if isinstance(frame, (Mapping, list, tuple, np.ndarray)):
        return None
    import narwhals as nw

    return nw.from_native(frame, eager_only=True, allow_series=True).implementation


def read_table(path: Path, columns: Columns, remarks: Remarks | None) -> Table:
    """The table of a file, .csv, .tsv or .parquet, or of standard input. Raises DataError."""
    suffix = path.suffix.lower()
    if suffix == PARQUET:
        return _parquet(path, columns)
    if suffix not in TABLES and str(path) != STDIN:
        raise DataError(
            what="series are read from tables" if path.exists() else "there is no such file", where=path,
            expected=".csv, .tsv or .parquet", mend="give one of these",
        )  # fmt: skip
    rows = TableRows(path, remarks)
    _, names = next(rows, (1, []))
    return table_of_rows(path, [name.strip() for name in names], rows, columns, rows.decimal_commas)


def table_of_rows(
    path: Path,
    names: list[str],
    rows: Iterable[tuple[int, list[str]]],
    columns: Columns,
    decimal_commas: bool,
) -> Table:
    """The table of rows of fields, (number of the line, fields); names: those of the columns. Raises DataError."""
    places: list[int] = []
    fields: list[list[str]] = []
    for number, row in rows:
        if not row:
            continue
        where = f"{path}:{number}"
        if len(row) != len(names):
            raise DataError(
                what="a row has more or fewer fields than the first line has names", where=where, got=len(row),
                expected=len(names),
                mend="put fields that hold what parts the others in quotes; numbers take a decimal point",
            )  # fmt: skip
        if max(map(len, row)) > _FIELD:
            raise DataError(
                what="a field is too long", where=where, got=f"{max(map(len, row)):,} characters",
                expected=f"at most {_FIELD:,}", mend="mend the line: a quote may be left open",
            )  # fmt: skip
        fields.append(row)
        places.append(number)
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(what="two columns have one name", where=f"{path}:1", got=twice, mend="rename one")
    read = zip(*fields, strict=True) if fields else [()] * len(names)
    by_name: dict[str, Sequence[Any]] = dict(zip(names, read, strict=True))

    def place(i: int) -> str:
        return f"{path}:{places[i]}"

    if decimal_commas:
        numbers = {columns.target, *columns.known, *columns.past, *columns.static}
        by_name |= {name: with_points(by_name[name], place) for name in names if name in numbers}
    return Table(names, by_name, place, DataError, f"{path}:1")


def _parquet(path: Path, columns: Columns) -> Table:
    try:
        import polars
    except ImportError as error:
        raise NotSupported(
            what="parquet is read by polars, which is not installed",
            where=path,
            mend="pip install 'elman[forecast]'",
        ) from error
    with reading(path, "the table", "give a file of parquet") as file:
        try:
            table = table_of(polars.read_parquet(file), columns)
        except Exception as error:  # whatever the library says of what is no parquet
            raise DataError(
                what=f"the table cannot be read: {str(error)[:200]}",
                where=path,
                mend="give a file of parquet",
            ) from error
    return Table(table.names, table.columns, lambda i: f"{path}, row {i}", DataError, str(path))


def expect_columns(table: Table, columns: Columns) -> None:
    """Raise where a column is missing."""
    needed = [columns.time, columns.target, *columns.known, *columns.past, *columns.static]
    if not table.names and table.handed:
        raise table.words(
            what="the frame is empty", where=table.where, got="no columns and no rows", expected=", ".join(needed),
            mend="give one with a row for each time stamp",
        )  # fmt: skip
    if missing := [name for name in needed if name not in table.names]:
        flags = "name the columns: --id, --time, --target, --known, --past, --static"
        if table.handed:
            flags = "name the columns: Forecaster(id=, time=, target=, known=, past=, static=)"
        others = [name for name in table.names if name not in needed]
        raise table.words(
            what=f"there is no column {missing[0]!r}", where=table.where, got=", ".join(table.names)[:200] or "nothing",
            expected=", ".join(needed),
            mend=other_separators(table.names) or did_you_mean(missing[0], others) + flags,
        )  # fmt: skip
