"""Tables of spreadsheets: semicolons, decimal commas, misspelt columns; and files that are no text at all."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from elman.app.cli import app
from elman.app.writing import put
from elman.data.grid import Grid
from elman.data.labelled import LabelledColumns, read_labelled
from elman.data.sequences import read_sequences
from elman.data.series import read_rows, read_series
from elman.data.series_tables import Columns
from elman.data.tables import Remarks, TableRows, standard_input
from elman.data.tagged import numbered_lines, read_tagged
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
WRITTEN = {
    "text": "Süd \U0001f600\r\n\nℎ",
    "tagged": "Süden NOUN\r\n\U0001f600 SYM\r\n\r\nℎ X",
    "sequences": "Süd\r\n\U0001f600\n\nℎ",
    "series": "unique_id;ds;y\r\nSüd;1;1,5\r\n\U0001f600;1;2,5\r\n\U0001f600;2;ℎ".replace("ℎ", "3"),
    "labelled": "text\tlabel\r\nSüd \U0001f600\tℎ\r\nb\tℎ\n",
}
UTF_16 = {
    name: lambda text, name=name, mark=mark: mark + text.encode(name)
    for name, mark in (("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE))
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("encoding", UTF_16)
def test_utf_16_that_says_so_is_read_as_utf_8(tmp_path: Path, reader: str, encoding: str) -> None:
    path, found = tmp_path / "a.csv", []
    for raw in (WRITTEN[reader].encode(), UTF_16[encoding](WRITTEN[reader])):
        path.write_bytes(raw)
        found.append(repr(READERS[reader](path)))
    assert found[0] == found[1]
    assert "Süd" in found[0]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("spoilt", "offset"),
    [(lambda raw: raw[:-1], -2), (lambda raw: raw[:6] + b"\x00\xdc" + raw[6:], 6)],
    ids=["cut", "half a character"],
)
def test_broken_utf_16_is_told(
    tmp_path: Path, reader: str, spoilt: Callable[[bytes], bytes], offset: int
) -> None:
    raw = UTF_16["utf-16-le"](WRITTEN[reader])
    (tmp_path / "a.csv").write_bytes(spoilt(raw))
    with pytest.raises(DataError, match="broken UTF-16") as caught:
        READERS[reader](tmp_path / "a.csv")
    assert caught.value.where == f"{tmp_path / 'a.csv'}, byte offset {offset % len(raw)}"


@pytest.mark.parametrize("encoding", UTF_16)
def test_utf_16_of_standard_input_is_read_line_by_line_as_it_comes(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line is there before the next one has come, over a real pipe."""
    end, begin = os.pipe()
    lines = [line.encode(encoding) for line in ("\ufeffSüd\n", "\U0001f600\n")]
    with open(end, "rb") as opened, open(begin, "wb", buffering=0) as writer:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=opened))
        for read in (standard_input(), numbered_lines(Path("-")), read_sequences([Path("-")])):
            got = []
            for line in lines:
                writer.write(line)
                got.append(next(read)[1])
            assert got == ["Süd", "\U0001f600"]


STRANGE = {
    "a picture": b"\x89PNG\r\n\x1a\n\x00\x00",
    "a PDF": b"%PDF-1.4\n%\xe2\xe3\n",
    "packed by gzip": gzip.compress(b"text"),
    "a ZIP": b"PK\x03\x04\x14\x00\x00\x00a.txt",
    "an office program": b"PK\x03\x04\x14\x00\x06\x00[Content_Types].xml\xff",
    "the text is UTF-32": "text;label\na;b\n".encode("utf-32"),
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
    assert ("iconv" in str(caught.value)) is ("UTF-" in kind)


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


def weeks(begin: int, end: int) -> str:
    return "ds;y\n" + "".join(f"{t};{t % 7},5\n" for t in range(begin, end))


NOTE = "note: {}: semicolons part the columns; a comma in a number, if there is one, is its decimal mark\n"
TRAINED = {
    "forecast": ("--horizon", 3, weeks(0, 80), weeks(80, 90)),
    "classify": ("--layers", 1, *["text;label\n" + "a b;x\nc d;y\n" * n for n in (40, 4)]),
}


@pytest.mark.parametrize("task", TRAINED)
def test_what_parts_the_columns_is_said_by_every_command(task: str, tmp_path: Path) -> None:
    flag, value, learnt, more = TRAINED[task]
    small = ("--steps", 2, "--hidden", 4, "--out", tmp_path / "run", flag, value)
    first, second = table(tmp_path, learnt), table(tmp_path, more, "b.csv")
    commands = (
        (("train", task, first, *small), first),
        (("evaluate", tmp_path / "run"), first),
        (("predict", tmp_path / "run", second), second),
    )
    for arguments, path in commands:
        found = CliRunner().invoke(app, list(map(str, arguments)))
        assert found.exit_code == 0, found.output
        assert found.stderr.count("note:") == 1
        assert NOTE.format(path) in found.stderr
        assert "note:" not in found.stdout


def test_what_parts_the_columns_is_said_in_one_line_and_where_it_is_not_what_the_name_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remarks = Remarks()
    table(tmp_path, "ds,y\n1,2\n")
    for label in "xy":
        (tmp_path / "d" / label).mkdir(parents=True)
        for k in range(3):
            table(tmp_path / "d" / label, "1\t2\n2\t3\n", f"{k}.csv")
    read_series([tmp_path / "a.csv"], remarks=remarks)
    assert remarks.taken() == []
    read_labelled([tmp_path / "d"], remarks=remarks)
    assert remarks.taken() == [f"{tmp_path / 'd' / 'x' / '0.csv'} and 5 more: tabs part the columns"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"ds;y\n1;2,5\n")))
    read_rows(Columns(), Grid("whole", 1), remarks)
    assert remarks.taken() == [NOTE.format("standard input").removeprefix("note: ").strip()]


@pytest.mark.parametrize("end", ["", "\n", '"" more\n'])
def test_a_quote_that_is_left_open_takes_no_rows_with_it(end: str, tmp_path: Path) -> None:
    path = table(tmp_path, f'text,label\na,x\n"b,x\nc,x\n{end}')
    with pytest.raises(DataError, match="a quote is left open") as told:
        read_labelled([path])
    assert told.value.where == f"{path}:3"


def test_lines_that_end_by_a_carriage_return_alone_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="new-line character") as told:
        read_labelled([table(tmp_path, "text,label\ra,x\rb,y\r")])
    assert "CR alone" in str(told.value)


@pytest.mark.parametrize(
    "raw",
    [gzip.compress(b"text"), "é\n".encode("latin1"), "text".encode("utf-16-le")],
    ids=["gzip", "latin", "wide"],
)
def test_a_mend_names_no_file_that_is_standard_input(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    with pytest.raises(DataError) as told:
        list(standard_input())
    assert " FILE" in (told.value.mend or "")
