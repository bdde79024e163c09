"""What a file that is no UTF-8 text seems to be, by its first bytes, and what to do about it."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

from elman.errors import DataError

HEAD = 4096  # bytes of the beginning of a file that are looked at
_TEXT = "give a text"
_TABLE = "save its table as .csv in UTF-8"
_KINDS = (
    (b"\x89PNG\r\n", "a picture (PNG)", _TEXT),
    (b"\xff\xd8\xff", "a picture (JPEG)", _TEXT),
    (b"GIF87a", "a picture (GIF)", _TEXT),
    (b"GIF89a", "a picture (GIF)", _TEXT),
    (b"%PDF-", "a PDF", "take its text out: pdftotext {name} {to}"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it: unzip {name}"),
    (
        b"\xd0\xcf\x11\xe0",
        "a document of an office program",
        "save it there as plain text, or as CSV, in UTF-8",
    ),
    (b"\x1f\x8b", "packed by gzip", "unpack it: gunzip -k {name}"),
    (b"BZh", "packed by bzip2", "unpack it: bunzip2 -k {name}"),
    (b"\xfd7zXZ\x00", "packed by xz", "unpack it: unxz -k {name}"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", "unpack it: unzstd {name}"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it: 7z x {name}"),
    (b"PAR1", "a table of parquet", "give it a name that ends in .parquet, to forecast from; or " + _TABLE),
    (b"SQLite format 3\x00", "a database (SQLite)", _TABLE),
    (b"\x89HDF", "an HDF5 file", _TABLE),
    (b"\x93NUMPY", "an array of NumPy", _TABLE),
    (b"MATLAB 5.0", "a MATLAB file", "give it a name that ends in .mat, to forecast piano rolls from"),
    (b"ID3", "a recording (MP3)", _TEXT),
    (b"OggS", "a recording (Ogg)", _TEXT),
    (b"MThd", "music (MIDI)", _TEXT),
    (b"\x7fELF", "a program", _TEXT),
)
_OFFICE = (b"[Content_Types].xml", b"mimetypeapplication/vnd.oasis", b"word/", b"xl/", b"_rels/")
_SHEETS = (".xlsx", ".xls", ".ods")
# What begins with letters alone may be a text that begins so.
_LETTERS = (b"BZh", b"PAR1", b"MATLAB 5.0", b"ID3", b"OggS", b"MThd", b"GIF87a", b"GIF89a")


def refuse_strange(head: bytes, where: object) -> None:
    """Raise DataError for the beginning of a file that is no text of single bytes. where: the file's name."""
    name = str(where)
    names = {"name": _quoted(name), "to": f"converted{Path(name).suffix or '.txt'}"}
    if (wide := _wide(head)) is not None:
        raise DataError(
            what=f"the text is {wide}", where=where, got=head[:8].hex(" "), expected="UTF-8",
            mend=f"save it as UTF-8, or convert it: iconv -f {wide} -t UTF-8 {names['name']} > {names['to']}",
        )  # fmt: skip
    for mark, kind, mend in _KINDS:
        if not head.startswith(mark) or (mark in _LETTERS and _is_text(head)):
            continue
        if mark == b"PK\x03\x04" and any(sign in head for sign in _OFFICE):
            kind = "a document of an office program"
            to = "CSV" if name.lower().endswith(_SHEETS) else "plain text"
            mend = f"save it there as {to} in UTF-8"
        if mark == b"%PDF-":
            names["to"] = "text.txt"
        raise DataError(
            what=f"this is no text: it is {kind}", where=where, got=head[:8].hex(" "), expected="text in UTF-8",
            mend=mend.format(**names),
        )  # fmt: skip


def mend_of(raw: bytes, name: object) -> str:
    """What to do about bytes that are no UTF-8."""
    if 0 in raw:
        return "give a text: this file holds zero bytes, as no text does"
    to = f"converted{Path(str(name)).suffix or '.txt'}"
    return (
        f"save it as UTF-8, or convert it: iconv -f LATIN1 -t UTF-8 {_quoted(str(name))} > {to} "
        "(put its encoding for LATIN1), or mend that byte"
    )


def _quoted(name: str) -> str:
    """For a shell, in which standard input has no name."""
    return "FILE" if name == "standard input" else shlex.quote(name)


def _wide(head: bytes) -> str | None:
    """Text of two or four bytes a character; UTF-16 that says so is read (`elman.data.utf16`). Without a mark at its
    beginning its letters have a zero beside them, and zeros are UTF-8."""
    if head.startswith(codecs.BOM_UTF32_LE):
        return "UTF-32"
    for zeros, letters, order in ((head[1::2], head[::2], "LE"), (head[::2], head[1::2], "BE")):
        if zeros.count(0) > 0.6 * len(zeros) > 0 and letters.count(0) < 0.1 * len(letters):
            return f"UTF-16{order}"
    return None


def _is_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # its end may be cut
    except UnicodeDecodeError:
        return False
    return 0 not in head


__all__ = ["HEAD", "mend_of", "refuse_strange"]
