"""Tables and lines of files that anybody may have written: UTF-8, each with the number of its line."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from elman.data.files import read_file
from elman.errors import DataError

STDIN = "-"
TABLES = {".csv": ",", ".tsv": "\t"}
_LARGEST = 2**31  # bytes of a file


def table_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of a table; "-": of standard input, with commas, each as it comes."""
    csv.field_size_limit(sys.maxsize)  # lengths are checked by what they hold
    lines = standard_input() if str(path) == STDIN else text_lines(path)
    reader = csv.reader((f"{line}\n" for _, line in lines), delimiter=TABLES.get(path.suffix.lower(), ","))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(
            what=f"the table cannot be read: {error}", where=f"{path}:{reader.line_num}", mend="mend the line"
        ) from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a UTF-8 file, without its end."""
    raw = read_file(path, _LARGEST, "the file", "give a file of UTF-8")
    if not raw.strip():
        raise DataError(
            what="the file is empty", where=path, got=f"{len(raw)} bytes", mend="give one that is not"
        )
    raw = raw.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n")
    for number, line in enumerate(raw.split(b"\n"), 1):
        yield number, decoded(line, f"{path}:{number}")


def standard_input() -> Iterator[tuple[int, str]]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield number, decoded(line.removesuffix(b"\n"), f"standard input:{number}")


def decoded(line: bytes, where: str) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise DataError(
            what="this is not UTF-8", where=where, got=f"byte 0x{line[error.start]:02x} at {error.start}",
            mend="convert it: iconv -f latin1 -t utf-8",
        ) from error  # fmt: skip
