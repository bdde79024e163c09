"""Files -> text of any size: read a block at a time, checked once, and again each time it is read."""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from elman.errors import DataError

STDIN = "-"
_BLOCK = 2**20  # bytes that are read at a time


class _Part(Protocol):
    @property
    def characters(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[str]: ...


class Text:
    """A text of any size: files one after another, or a string. Never all in memory.

        text = open_text(["one.txt", "two.txt"])
        head, tail = text.cut(0, 1000), text.cut(1000, text.characters)
        for piece in tail.pieces():
            …

    name: what it is called in errors. digest: of its content, in hexadecimal; equal digests are equal texts.
    characters: its length.
    """

    def __init__(self, parts: Sequence[_Part], name: str, digest: str, start: int, stop: int) -> None:
        self.parts, self.name, self.digest = tuple(parts), name, digest
        self.start, self.stop = start, stop

    @classmethod
    def of(cls, content: str, name: str = "the text") -> Text:
        """A text that is in memory. Raises DataError where it is no Unicode."""
        raw = encoded(content)
        digest = hashlib.sha256(raw).hexdigest()
        return cls([_String(content)], name, digest, 0, len(content))

    @property
    def characters(self) -> int:
        return self.stop - self.start

    def cut(self, start: int, stop: int) -> Text:
        """The characters from `start` to before `stop`, which are those of this text."""
        start, stop = self.start + start, self.start + stop
        if (start, stop) == (self.start, self.stop):
            return self
        digest = hashlib.sha256(f"{self.digest} {start - self.start} {stop - self.start}".encode())
        return Text(self.parts, self.name, digest.hexdigest(), start, stop)

    def pieces(self) -> Iterator[str]:
        """The text, some of it at a time. Raises DataError if a file is not what it was when it was opened."""
        before = 0
        for part in self.parts:
            if before < self.stop and before + part.characters > self.start:
                start, stop = max(self.start - before, 0), min(self.stop - before, part.characters)
                yield from part.read(start, stop)
            before += part.characters

    def __str__(self) -> str:
        return "".join(self.pieces())


def open_text(files: Sequence[str | Path], *, spool: Path | None = None) -> Text:
    """The UTF-8 texts of files one after another, newlines as they stand; byte order marks are dropped.

    A name may be a pattern (`books/**/*.txt`, in sorted order), and "-" is standard input, which is copied to a
    temporary file in the folder `spool`, as a pipe is. Each file is read through here once, which finds what is wrong.

    Raises DataError where a file cannot be read, is empty, or is not UTF-8; `where` then ends in the byte offset.
    """
    names = expand(files)
    digest = hashlib.sha256()
    parts = [_File(name, digest, spool) for name in names]
    characters = sum(part.characters for part in parts)
    return Text(parts, ", ".join(part.name for part in parts), digest.hexdigest(), 0, characters)


def read_text(path: str | Path) -> str:
    """The text of one file as a string. Raises as `open_text`."""
    return str(open_text([path]))


def expand(files: Sequence[str | Path]) -> list[str]:
    """The files that names and patterns stand for. Raises DataError for a pattern that no file matches."""
    found: list[str] = []
    for name in map(str, files):
        if name == STDIN or not glob.has_magic(name) or os.path.exists(name):
            found.append(name)
            continue
        matches = sorted(match for match in glob.glob(name, recursive=True) if not os.path.isdir(match))
        if not matches:
            raise DataError(
                what="no file matches the pattern", where=name, mend="mend it, or name the files themselves"
            )
        found += matches
    return found


def encoded(text: str) -> bytes:
    """A string as UTF-8. Raises DataError where it holds half a character."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            what="the text holds half a character (a lone surrogate)",
            where=f"character {error.start}",
            got=repr(text[error.start]),
            mend="give text that was decoded as UTF-8",
        ) from error


@dataclass(frozen=True)
class _String:
    content: str

    @property
    def characters(self) -> int:
        return len(self.content)

    def read(self, start: int, stop: int) -> Iterator[str]:
        for at in range(start, stop, _BLOCK):
            yield self.content[at : min(at + _BLOCK, stop)]


@dataclass(frozen=True)
class _Block:
    """Some bytes of a file. check: CRC-32 of them. skip: those at its beginning that belong to no character of its own.

    before: characters of the file that begin before the first one that begins in here.
    """

    offset: int
    size: int
    check: int
    skip: int
    before: int


class _File:
    """A file that was found to be text, as it was then."""

    def __init__(self, name: str, digest: Any, spool: Path | None) -> None:
        self.name = "standard input" if name == STDIN else name
        self.path = name
        self._spooled: IO[bytes] | None = None  # removed with this object
        self.blocks: list[_Block] = []
        self.size = 0
        self._characters = 0
        try:
            if name == STDIN or not stat.S_ISREG(os.stat(name).st_mode):
                self._copy(spool)
            with open(self.path, "rb") as file:
                before = _stamp(file)
                self._survey(file, digest)
                if _stamp(file) != before or self.size != before[0]:
                    raise self._changed(self.size)
        except OSError as error:
            raise DataError(
                what=f"the text cannot be read: {error.strerror or error}",
                where=self.name,
                mend="give readable text files, or a pattern for those in a folder: 'folder/*.txt'",
            ) from error
        if not self._characters:
            raise DataError(what="the text is empty", where=self.name, mend="give a file with text in it")

    @property
    def characters(self) -> int:
        return self._characters

    def _copy(self, spool: Path | None) -> None:
        """What can be read only once becomes a file."""
        with nullcontext(sys.stdin.buffer) if self.path == STDIN else open(self.path, "rb") as pipe:
            try:
                if spool is not None:
                    spool.mkdir(parents=True, exist_ok=True)
                self._spooled = tempfile.NamedTemporaryFile(dir=spool, prefix=".text.")  # noqa: SIM115
                shutil.copyfileobj(pipe, self._spooled, _BLOCK)
                self._spooled.flush()
            except OSError as error:
                raise DataError(
                    what=f"{self.name} cannot be copied to a file: {error.strerror or error}",
                    where=spool or tempfile.gettempdir(),
                    mend="make room on the disk, or choose another folder with --cache",
                ) from error
        self.path = self._spooled.name

    def _survey(self, file: IO[bytes], digest: Any) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        lines = 0
        while raw := file.read(_BLOCK):
            held = decoder.getstate()[0]  # the beginning of a character that the last block cut
            skip = 0
            if self.size == 0 and raw.startswith(codecs.BOM_UTF8):
                skip = len(codecs.BOM_UTF8)
            try:
                text = decoder.decode(raw[skip:])
            except UnicodeDecodeError as error:
                raise self._broken(error, self.size + skip - len(held), lines) from error
            if held:
                skip = next((k for k, byte in enumerate(raw[:3]) if byte & 0xC0 != 0x80), 3)
            check = zlib.crc32(raw)
            self.blocks.append(_Block(self.size, len(raw), check, skip, self._characters + bool(held)))
            digest.update(raw if held else raw[skip:])
            self._characters += len(text)
            self.size += len(raw)
            lines += raw.count(b"\n")
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise self._broken(error, self.size - len(error.object), lines) from error

    def read(self, start: int, stop: int) -> Iterator[str]:
        first = bisect_right(self.blocks, start, key=lambda block: block.before) - 1
        decoder = codecs.getincrementaldecoder("utf-8")()
        at = self.blocks[first].before
        try:
            with open(self.path, "rb") as file:
                file.seek(self.blocks[first].offset)
                for number, block in enumerate(self.blocks[first:]):
                    if at >= stop:
                        return
                    raw = file.read(block.size)
                    if len(raw) != block.size or zlib.crc32(raw) != block.check:
                        raise self._changed(block.offset)
                    text = decoder.decode(raw if number else raw[block.skip :])
                    yield text[max(start - at, 0) : stop - at]
                    at += len(text)
        except OSError as error:
            raise DataError(
                what=f"the text cannot be read any more: {error.strerror or error}",
                where=self.name,
                mend="put it back and begin again",
            ) from error

    def _broken(self, error: UnicodeDecodeError, base: int, lines: int) -> DataError:
        """base: the offset in the file of the bytes that the error is about. lines: that ended before them."""
        line = lines + error.object.count(b"\n", 0, error.start) + 1
        return DataError(
            what=f"the text is not UTF-8: {error.reason}",
            where=f"{self.name}, byte offset {base + error.start} (line {line})",
            got=error.object[error.start : error.start + 4].hex(" "),
            expected="UTF-8",
            mend=f"convert it: iconv -f LATIN1 -t UTF-8 '{self.name}' > text.txt (put its encoding for LATIN1), "
            "or mend that byte",
        )

    def _changed(self, offset: int) -> DataError:
        return DataError(
            what="the file changed while it was being read",
            where=f"{self.name}, from byte offset {offset} on, or in the {_BLOCK:,} bytes after it",
            mend="wait until nobody writes to it any more, and begin again",
        )


def _stamp(file: IO[bytes]) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns
