"""Tables of spreadsheets: semicolons, decimal commas, misspelt columns; and files that are no text at all."""

from __future__ import annotations

import gzip
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from elman.app.writing import put
from elman.data.grid import Grid
from elman.data.labelled import LabelledColumns, read_labelled
from elman.data.sequences import read_sequences
from elman.data.series import Columns, read_rows, read_series
from elman.data.tables import TableRows
from elman.data.tagged import read_tagged
from elman.data.text import read_text
from elman.errors import DataError

EUROPEAN = "Datum;Menge;Preis;Region\n2024-01-01;1,5;2;Süd\n2024-01-02;-0,25;3,5e1;Süd\n2024-01-03;;7;Süd\n"
COLUMNS = Columns(time="Datum", target="Menge", known=("Preis",), static=("Region",))


def table(folder: Path, text: str, name: str = "a.csv") -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


def test_semicolons_and_decimal_commas_are_read(tmp_path: Path) -> None:
    (one,) = read_series([table(tmp_path, EUROPEAN)], COLUMNS).series
    assert one.y.tolist() == [1.5, -0.25]
    assert one.known[:, 0].tolist() == [2, 35, 7]
    assert one.static == ("Süd",)


def test_so_are_those_of_a_live_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO(b"\xef\xbb\xbf" + EUROPEAN.encode())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=raw))
    rows = list(read_rows(COLUMNS, Grid("time", 86_400_000_000)))
    assert [one.y.tolist()[0] for _, one in rows[:2]] == [1.5, -0.25]


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("a,b\n", ","),
        ("a;b\n", ";"),
        ("a\tb\n", "\t"),
        ("a,b;c\n", ","),  # both stand there: what the name says
        ('"a, or b";c\n', ";"),
        ("text\n", ","),
        ("1,5;2,5\n", ";"),
        ("1,5,2\n", ","),
    ],
)
def test_what_parts_the_fields_is_found_where_it_is_plain(tmp_path: Path, text: str, separator: str) -> None:
    assert TableRows(table(tmp_path, text)).separator == separator


def test_a_comma_and_a_point_in_one_column_may_part_thousands(tmp_path: Path) -> None:
    path = table(tmp_path, EUROPEAN + "2024-01-04;1.234;7;Süd\n")
    with pytest.raises(DataError, match="decimal comma") as caught:
        read_series([path], COLUMNS)
    assert caught.value.where == f"{path}:5"


def test_labelled_tables_are_read_so_too(tmp_path: Path) -> None:
    words = read_labelled([table(tmp_path, "text;label\n1,5;x\nb, c;y\n")])
    assert (words.x, words.y) == (["1,5", "b, c"], ["x", "y"])
    numbers = read_labelled([table(tmp_path, "id;label;u;v\n1;x;1,5;2\n1;x;2,5;3\n")])
    assert numbers.x[0].tolist() == [[1.5, 2], [2.5, 3]]
    (tmp_path / "d" / "x").mkdir(parents=True)
    table(tmp_path / "d" / "x", "1,5;2\n2,5;3\n")
    assert read_labelled([tmp_path / "d"]).x[0].tolist() == [[1.5, 2], [2.5, 3]]


def test_columns_parted_by_two_marks_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="semicolons alone"):
        read_series([table(tmp_path, "Datum;Menge, Preis\n2024-01-01;1,2\n")], COLUMNS)


@pytest.mark.parametrize("name", ["price", "prise", "PRICE"])
def test_a_misspelt_column_is_told_of_the_one_that_is_there(tmp_path: Path, name: str) -> None:
    path = table(tmp_path, "ds,y,Price\n2024-01-01,1,2\n2024-01-02,1,2\n")
    with pytest.raises(DataError, match="did you mean 'Price'"):
        read_series([path], Columns(known=(name,)))
    with pytest.raises(DataError, match="did you mean 'lable'"):
        read_labelled([table(tmp_path, "text,lable\na,b\n")])
    with pytest.raises(DataError, match="did you mean 'text'"):
        read_labelled([table(tmp_path, "text,label\na,b\n")], LabelledColumns(text="texts"))


READERS = {
    "text": read_text,
    "tagged": lambda path: read_tagged([path]),
    "sequences": lambda path: list(read_sequences([path])),
    "series": lambda path: read_series([path]),
    "labelled": lambda path: read_labelled([path]),
}
STRANGE = {
    "a picture": b"\x89PNG\r\n\x1a\n\x00\x00",
    "a PDF": b"%PDF-1.4\n%\xe2\xe3\n",
    "packed by gzip": gzip.compress(b"text"),
    "a ZIP": b"PK\x03\x04\x14\x00\x00\x00a.txt",
    "an office program": b"PK\x03\x04\x14\x00\x06\x00[Content_Types].xml\xff",
    "the text is UTF-16": "text;label\na;b\n".encode("utf-16"),
    "the text is UTF-16LE": "text;label\na;b\n".encode("utf-16-le"),
    "zero bytes": b"\x00\x01\x02\xff\xfe\n",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_text_is_told_by_its_kind(tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(STRANGE[kind])
    with pytest.raises(DataError, match=kind) as caught:
        READERS[reader](path)
    assert ("iconv" in str(caught.value)) is ("UTF-16" in kind)


def test_a_text_that_begins_as_a_file_of_music_is_a_text(tmp_path: Path) -> None:
    path = table(tmp_path, "MThd is what a file of MIDI begins with, and BZh one of bzip2.")
    assert read_text(path).startswith("MThd")


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="a system without names for what is open")
def test_what_is_no_file_is_written_into_and_not_replaced() -> None:
    """Whoever may write into /dev would otherwise replace /dev/stdout, or /dev/null, by a file."""
    master, slave = os.openpty()
    end, begin = os.pipe()
    try:
        for name, read in ((os.ttyname(slave), master), (f"/dev/fd/{begin}", end)):
            put(["a line"], Path(name))
            assert os.read(read, 100).split() == [b"a", b"line"]
            assert not Path(name).is_file()
    finally:
        for number in (master, slave, end, begin):
            os.close(number)
