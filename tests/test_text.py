"""Texts of any size: read in blocks, turned into symbols once, read in slices."""

from __future__ import annotations

import codecs
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from elman import data
from elman.data import text as reading
from elman.errors import DataError

TEXT = "The cat sat, ça va? €5 \U0001f600 漢字\n\n  two   spaces\tand\x1ca tab!\r\nend " * 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


@pytest.fixture(params=[5, 64, 2**20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(reading, "_BLOCK", request.param)
    return request.param


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_text_is_its_files_whatever_the_blocks(block: int, tmp_path: Path) -> None:
    parts = ["\ufeff" + TEXT[:701], TEXT[701:702], "\ufeff" + TEXT[702:]]
    names = [tmp_path / f"{k}.txt" for k in range(3)]
    for name, part in zip(names, parts, strict=True):
        name.write_bytes(part.encode())
    text = data.open_text(names)
    assert str(text) == TEXT
    assert text.characters == len(TEXT)
    assert text.digest == data.Text.of(TEXT).digest
    for start, stop in ((0, 0), (0, 1), (690, 710), (701, 702), (33, 1500), (1999, len(TEXT))):
        part = text.cut(start, stop)
        assert str(part) == TEXT[start:stop]
        assert str(part.cut(1, part.characters)) == TEXT[start:stop][1:] or start == stop


def test_every_place_of_a_text_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reading, "_BLOCK", 4)  # a character of four bytes lies in two blocks at most
    part = "a€😀é😀😀€bb漢"
    path = tmp_path / "text.txt"
    path.write_text(part, "utf-8")
    text = data.open_text([path])
    for start in range(len(part)):
        for stop in range(start, len(part) + 1):
            assert str(text.cut(start, stop)) == part[start:stop]


def test_equal_texts_have_equal_digests_and_others_do_not(path: Path) -> None:
    text = data.open_text([path])
    assert text.cut(0, text.characters).digest == text.digest
    digests = {text.cut(a, b).digest for a, b in ((0, 5), (0, 6), (1, 6))}
    assert len(digests | {text.digest}) == 4


@pytest.mark.parametrize(("at", "bad"), [(0, b"\xff"), (7, b"\xe2\x82"), (64, b"\xc3("), (130, b"\x80")])
def test_broken_utf_8_is_found_at_its_byte(block: int, at: int, bad: bytes, tmp_path: Path) -> None:
    good = ("é" * 3 + "\n") * 40
    raw = good.encode()
    at = len(raw[:at].decode("utf-8", "ignore").encode())
    (tmp_path / "bad.txt").write_bytes(raw[:at] + bad + b"a" + raw[at:])
    with pytest.raises(DataError) as caught:
        data.open_text([tmp_path / "bad.txt"])
    line = raw[:at].count(b"\n") + 1
    assert f"byte offset {at} (line {line})" in str(caught.value)


def test_a_text_that_ends_in_the_middle_of_a_character(block: int, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_bytes(b"abc\ndefg\xf0\x9f")
    with pytest.raises(DataError, match=r"byte offset 8 \(line 2\)"):
        data.open_text([tmp_path / "short.txt"])


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused_by_name(content: bytes, path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"the text is empty\n  where: .*empty.txt"):
        data.open_text([path, tmp_path / "empty.txt"])


@pytest.mark.parametrize("how", ["changed", "shorter"])
def test_a_file_that_changes_under_us_is_told_with_its_place(
    how: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_BLOCK", 100)
    text = data.open_text([path])
    raw = path.read_bytes()
    path.write_bytes(raw[:250] + (b"#" + raw[251:] if how == "changed" else b""))
    assert str(text.cut(0, 20)) == TEXT[:20]  # what is still there can be read
    with pytest.raises(DataError, match="changed while it was being read") as caught:
        str(text)
    assert f"{path}, from byte offset 200 on" in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read any more"):
        str(text)


def test_patterns_stand_for_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt", "d.md"):
        (tmp_path / name).write_text(name)
    assert str(data.open_text([tmp_path / "*.txt"])) == "a.txtb.txt"
    assert str(data.open_text([tmp_path / "**/*.txt"])) == "a.txtb.txtdeep/c.txt"
    (tmp_path / "[x].txt").write_text("a name that looks like a pattern")
    assert str(data.open_text([tmp_path / "[x].txt"])).startswith("a name")
    with pytest.raises(DataError, match="no file matches the pattern"):
        data.open_text([tmp_path / "*.tex"])
    (tmp_path / "deep" / "up").symlink_to(tmp_path)  # a circle
    (tmp_path / ".hidden.txt").write_text("hidden")
    assert str(data.open_text([tmp_path / "**/?.txt"])) == "a.txtb.txtdeep/c.txt"
    assert str(data.open_text([tmp_path / ".h*"])) == "hidden"
    assert [Path(name).name for name in reading.expand([tmp_path / "**"])] == [
        "[x].txt",
        "a.txt",
        "b.txt",
        "d.md",
        "c.txt",
    ]


def test_patterns_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text("text")
    monkeypatch.setattr(reading, "_MOST_FILES", 8)
    with pytest.raises(DataError, match="too many files"):
        data.open_text([tmp_path / "*"])
    monkeypatch.setattr(reading, "_MOST_NAMES", 7)
    with pytest.raises(DataError, match="too many names"):
        data.open_text([tmp_path / "**/nothing"])


@pytest.mark.parametrize(
    ("kind", "said"),
    [("pipe", "it is a pipe"), ("/dev/zero", "it is a device"), ("folder", "it is a folder")],
)
def test_what_is_no_file_is_refused_before_it_is_opened(kind: str, said: str, tmp_path: Path) -> None:
    place = tmp_path / kind  # of /dev/zero: that itself
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    link = tmp_path / "link"
    link.symlink_to(place)
    for name in (place, link):
        with pytest.raises(DataError, match=said):
            data.open_text([name])


def test_a_name_that_no_file_has_is_told() -> None:
    with pytest.raises(DataError, match=r"cannot be read: .*embedded null"):
        data.open_text(["a\0b"])


def test_a_run_names_files_not_patterns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    source = data.read_corpus([tmp_path / "a.txt"]).source
    with pytest.raises(DataError, match="No such file"):
        data.reread_held_out({**source, "files": [str(tmp_path / "*.txt")]})


@pytest.mark.parametrize("block", [4, 5, 6, 7, 2**20])
def test_newlines_are_read_as_unix_has_them(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_BLOCK", block)
    raw = "one\r\ntwo\n\r\n\r\r\nß€\r\n\rend\r"
    (tmp_path / "dos.txt").write_bytes(raw.encode())
    plain = raw.replace("\r\n", "\n").replace("\r", "\n")
    (tmp_path / "unix.txt").write_bytes(plain.encode())
    text, unix = (
        data.open_text([tmp_path / "dos.txt"], unix_newlines=True),
        data.open_text([tmp_path / "unix.txt"]),
    )
    assert (str(text), text.characters, text.digest) == (plain, len(plain), unix.digest)
    assert (text.crlf, unix.crlf) == (4, 0)
    for start in range(len(plain)):
        assert str(text.cut(start, len(plain))) == plain[start:]
    as_it_is = data.open_text([tmp_path / "dos.txt"])
    assert (str(as_it_is), as_it_is.crlf) == (raw, 4)
    source = data.read_corpus([tmp_path / "dos.txt"] * 3, unix_newlines=True).source
    assert "\r" not in str(data.reread_held_out(source))


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_utf_16_with_its_mark_is_the_same_text(
    mark: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = mark + TEXT.encode("utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-16-be")
    (tmp_path / "wide.txt").write_bytes(raw)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
    for name in (tmp_path / "wide.txt", "-"):
        text = data.open_text([name], spool=tmp_path / "spool")
        assert (str(text), text.digest) == (TEXT, data.Text.of(TEXT).digest)
        assert str(text.cut(5, 9)) == TEXT[5:9]
        del text
        assert not list((tmp_path / "spool").iterdir())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_of_unicode_are_told_by_their_names(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "wide.txt").write_bytes(TEXT.encode(encoding))
    name = "UTF-32" if "32" in encoding else "UTF-16"
    with pytest.raises(DataError, match=rf"the text is {name}[^\0]*iconv -f {name}"):
        data.open_text([tmp_path / "wide.txt"])


def test_standard_input_is_a_text_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(TEXT.encode())))
    spool = tmp_path / "spool"
    text = data.open_text(["-"], spool=spool)
    assert str(text) == TEXT
    assert str(text.cut(5, 9)) == TEXT[5:9]
    assert len(list(spool.iterdir())) == 1
    del text
    assert not list(spool.iterdir())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"standard input cannot be copied[^\0]*--cache"):
        data.open_text(["-"], spool=tmp_path / "file" / "cache")


def test_what_came_from_standard_input_cannot_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(TEXT.encode())))
    source = data.read_corpus(["-"]).source
    assert source["files"] == ["-"]
    with pytest.raises(DataError, match="standard input"):
        data.reread_held_out(source)
