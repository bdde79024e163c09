"""Tables and lines of files that anybody may have written: UTF-8 or marked UTF-16, each with the number of its line."""

from __future__ import annotations

import csv
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from elman.data.files import read_file
from elman.data.kinds import HEAD, mend_of, refuse_strange
from elman.data.utf16 import as_utf8, is_utf16
from elman.errors import DataError

STDIN = "-"
TABLES = {".csv": ",", ".tsv": "\t"}
_SEPARATORS = (",", ";", "\t")
_SAID = {
    ",": "commas part the columns",
    ";": "semicolons part the columns; a comma in a number, if there is one, is its decimal mark",
    "\t": "tabs part the columns",
}
_COMMA = re.compile(r"\s*[+-]?\d*,\d+(e[+-]?\d+)?\s*", re.IGNORECASE)
_LARGEST = 2**31  # bytes of a file


def number_in(field: Any) -> float:
    """The number that stands in a field, or is one. Raises as `float` does, and ValueError for 1_0, a number in Python
    alone."""
    if isinstance(field, str) and "_" in field:
        raise ValueError(field)
    return float(field)


class Remarks:
    """What the user is to be told of tables that were read: where something else parts their fields than their names
    say, and what else can be meant in two ways."""

    def __init__(self) -> None:
        self._tables: dict[str, list[str]] = {}  # by the separator
        self._lines: list[str] = []

    def add(self, table: str, separator: str) -> None:
        self._tables.setdefault(separator, []).append(table)

    def say(self, line: str) -> None:
        """Of something else that was taken in one of two ways."""
        self._lines.append(line)

    def taken(self) -> list[str]:
        """A line for all tables of which the same is to be said, of those that were added since."""
        tables, self._tables = self._tables, {}
        lines, self._lines = self._lines, []
        more = {mark: f" and {len(names) - 1:,} more" if names[1:] else "" for mark, names in tables.items()}
        return [f"{names[0]}{more[mark]}: {_SAID[mark]}" for mark, names in tables.items()] + lines


class TableRows(Iterator[tuple[int, list[str]]]):
    """(line, fields) of a table, each as it comes; of standard input where the path is "-". Raises DataError.

    separator: what parts the fields: that of the file's name, or, where it does not stand in the first line, the one
    of comma, semicolon and tab that does, which goes into `remarks`. decimal_commas: semicolons part the fields of
    those who write 1,5.
    """

    def __init__(self, path: Path, remarks: Remarks | None = None) -> None:
        csv.field_size_limit(sys.maxsize)  # lengths are checked by what they hold
        lines = standard_input() if str(path) == STDIN else text_lines(path)
        first = next(lines, None)
        own = TABLES.get(path.suffix.lower(), ",")
        self._path, self._ended = path, False
        try:
            self.separator = own if first is None else _separator(first[1], own)
        except csv.Error as error:
            raise self._unreadable(error, 1) from error
        self.decimal_commas = self.separator == ";"
        if remarks is not None and self.separator != own:
            remarks.add("standard input" if str(path) == STDIN else str(path), self.separator)
        every = lines if first is None else itertools.chain([first], lines)
        self._reader = csv.reader(self._until_the_end(every), delimiter=self.separator)

    def __next__(self) -> tuple[int, list[str]]:
        line = self._reader.line_num + 1
        try:
            row = next(self._reader)
        except csv.Error as error:
            raise self._unreadable(error, self._reader.line_num) from error
        if self._ended:  # the reader looked for more of this row, and takes what there is
            raise DataError(
                what="a quote is left open: all that follows would be one field", where=f"{self._path}:{line}",
                mend='close it; inside of quotes a quote is written twice: ""',
            )  # fmt: skip
        return self._reader.line_num, row

    def _until_the_end(self, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
        yield from (f"{line}\n" for _, line in lines)
        self._ended = True

    def _unreadable(self, error: csv.Error, line: int) -> DataError:
        mend, where = "mend the line", f"{self._path}:{line}"
        if "new-line" in str(error):
            mend = "end lines by LF, or CR LF, not by CR alone: tr '\\r' '\\n' < FILE > converted"
        return DataError(
            what=f"the table cannot be read: {str(error).partition(' - ')[0]}", where=where, mend=mend
        )


def is_decimal_comma(field: str) -> bool:
    return _COMMA.fullmatch(field) is not None


def with_points(values: Sequence[str], place: Callable[[int], str]) -> Sequence[str]:
    """A column of numbers that are written with decimal commas, with points. Raises DataError where both stand in it,
    as one of them may then part thousands. place: of a row, in words."""
    comma = next((i for i, value in enumerate(values) if is_decimal_comma(value)), None)
    if comma is None:
        return values
    point = next((i for i, value in enumerate(values) if "." in value), None)
    if point is not None:
        raise DataError(
            what="numbers have a decimal comma in one row and a point in another", where=place(point),
            got=values[point].strip()[:60], expected=f"as {values[comma].strip()[:60]} in {place(comma)}",
            mend="write all in one way, and nothing between thousands",
        )  # fmt: skip
    return [value.replace(",", ".") if is_decimal_comma(value) else value for value in values]


def other_separators(names: Sequence[str]) -> str | None:
    """What to do where names of columns hold what may part them; None where they do not."""
    if not any(mark in name for name in names for mark in _SEPARATORS):
        return None
    return "part the columns by commas alone, or by semicolons alone, or by tabs alone"


def _separator(line: str, own: str) -> str:
    """What parts the fields of a table's first line. own: what its name says."""
    fields = {mark: next(csv.reader([line], delimiter=mark), []) for mark in _SEPARATORS}
    parting = [mark for mark in _SEPARATORS if len(fields[mark]) > 1]
    if own in parting:  # without names of columns, 1,5;2,5 holds both
        numbers = [is_decimal_comma(field) or field.strip().lstrip("+-").isdigit() for field in fields[";"]]
        return ";" if own == "," and len(numbers) > 1 and all(numbers) else own
    return parting[0] if len(parting) == 1 else own


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a file, without its end."""
    raw = read_file(path, _LARGEST, "the file", "give a file of UTF-8")
    if is_utf16(raw):
        raw = as_utf8(io.BytesIO(raw), path).read()
    if not raw.strip():
        raise DataError(
            what="the file is empty", where=path, got=f"{len(raw)} bytes", mend="give one that is not"
        )
    refuse_strange(raw[:HEAD], path)
    raw = raw.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n")
    for number, line in enumerate(raw.split(b"\n"), 1):
        yield number, decoded(line, f"{path}:{number}")


def standard_input() -> Iterator[tuple[int, str]]:
    for number, line in enumerate(as_utf8(sys.stdin.buffer, "standard input"), 1):
        if number == 1:
            refuse_strange(line[:HEAD], "standard input")
            line = line.removeprefix(b"\xef\xbb\xbf")
        yield number, decoded(line.removesuffix(b"\n"), f"standard input:{number}")


def decoded(line: bytes, where: str) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise DataError(
            what="this is not UTF-8", where=where, got=f"byte 0x{line[error.start]:02x} at {error.start}",
            mend=mend_of(line, where.rpartition(":")[0]),
        ) from error  # fmt: skip
