"""Files -> text of any size: read a block at a time, checked once, and again each time it is read."""

from __future__ import annotations

import codecs
import fnmatch
import glob
import hashlib
import itertools
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from elman.data.files import refusing
from elman.data.kinds import HEAD, mend_of, refuse_strange
from elman.data.utf16 import as_utf8, is_utf16
from elman.errors import DataError

STDIN = "-"
_BLOCK = 2**20  # bytes that are read at a time
_MOST_FILES, _MOST_NAMES = 100_000, 1_000_000  # of a text; that patterns lead through
_SAID = 3  # files that are named in errors about a whole text


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
    characters: its length. crlf: how many lines of the files ended in carriage return and line feed (CR LF).
    """

    def __init__(
        self, parts: Sequence[_Part], name: str, digest: str, start: int, stop: int, crlf: int = 0
    ) -> None:
        self.parts, self.name, self.digest = tuple(parts), name, digest
        self.start, self.stop, self.crlf = start, stop, crlf

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
        return Text(self.parts, self.name, digest.hexdigest(), start, stop, self.crlf)

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


def open_text(files: Sequence[str | Path], *, spool: Path | None = None, unix_newlines: bool = False) -> Text:
    """The texts of files one after another, UTF-8 or UTF-16 with its byte order mark; these marks are dropped.

    A name may be a pattern (`books/**/*.txt`, in sorted order: see `expand`), and "-" is standard input, which is
    copied to a temporary file in the folder `spool`, as UTF-8; so is a file of UTF-16. Each file is read through here
    once, which finds what is wrong.
    unix_newlines: CR LF, and CR alone, are read as LF; otherwise newlines are as they stand.

    Raises DataError for what is no file of bytes (a folder, pipe or device, before it is opened), and where a file
    cannot be read, is empty, or is neither; `where` then ends in the byte offset.
    """
    return open_files(expand(files), spool=spool, unix_newlines=unix_newlines)


def open_files(names: Sequence[str], *, spool: Path | None = None, unix_newlines: bool = False) -> Text:
    """`open_text` of names that are no patterns, whatever they look like."""
    digest = hashlib.sha256()
    parts = [_File(name, digest, spool, unix_newlines) for name in names]
    characters, crlf = sum(part.characters for part in parts), sum(part.crlf for part in parts)
    shown = [part.name for part in parts[:_SAID]] + [f"{len(parts) - _SAID:,} more"] * (len(parts) > _SAID)
    return Text(parts, ", ".join(shown), digest.hexdigest(), 0, characters, crlf)


def read_text(path: str | Path) -> str:
    """The text of one file as a string. Raises as `open_text`."""
    return str(open_text([path]))


def expand(files: Sequence[str | Path]) -> list[str]:
    """The files that names and patterns stand for.

    Patterns are the shell's: `*`, `?`, `[a-z]`, and `**` for any folders, links to folders left out. Names that begin
    with a dot are found by patterns that do. Raises DataError for a pattern that no file matches, for one that leads
    through more than a million names, and where there are more than 100,000 files.
    """
    names: list[str] = []
    for name in map(str, files):
        if name == STDIN or not glob.has_magic(name) or os.path.lexists(name):
            names.append(name)
        else:
            names += _matching(name)
        if len(names) > _MOST_FILES:
            raise DataError(
                what="too many files", where=name, got=f"more than {_MOST_FILES:,}",
                mend="join them to fewer ones: find books -name '*.txt' -exec cat {} + > books.txt",
            )  # fmt: skip
    return names


def _matching(pattern: str) -> list[str]:
    """The files of a pattern, sorted. glob.glob would follow links in circles, and could not be stopped."""
    looked = 0

    def inside(folder: str) -> list[os.DirEntry[str]]:
        nonlocal looked
        try:
            with os.scandir(folder or os.curdir) as entries:
                there = list(itertools.islice(entries, _MOST_NAMES - looked + 1))
        except OSError:  # no folder, or none of ours
            return []
        looked += len(there)
        if looked > _MOST_NAMES:
            raise DataError(
                what="the pattern leads through too many names", where=pattern,
                got=f"more than {_MOST_NAMES:,}", mend="begin it with the folder that the texts are in",
            )  # fmt: skip
        return sorted(there, key=lambda entry: entry.name)

    def walk(folder: str, parts: list[str]) -> Iterator[str]:
        """folder: "" or with a separator at its end."""
        part, *rest = parts
        if part == "**" and rest:
            yield from walk(folder, rest)
            for entry in inside(folder):
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    yield from walk(f"{folder}{entry.name}{os.sep}", parts)
        elif not glob.has_magic(part):
            path = folder + part
            if rest:
                yield from walk(path + os.sep, rest)
            elif os.path.lexists(path):
                yield path
        else:
            for entry in inside(folder):
                if entry.name.startswith(".") and not part.startswith("."):
                    continue
                if fnmatch.fnmatch(entry.name, part):
                    path = folder + entry.name
                    yield from walk(path + os.sep, rest) if rest else [path]

    drive, tail = os.path.splitdrive(pattern)
    root = drive + tail[: len(tail) - len(tail.lstrip("/" + os.sep))]
    parts = [part for part in re.split(r"[/\\]" if os.sep == "\\" else "/", tail) if part]
    if parts and parts[-1] == "**":
        parts.append("*")
    matches = (path for path in walk(root, parts) if not os.path.isdir(path)) if parts else iter(())
    files = sorted(set(itertools.islice(matches, _MOST_FILES + 1)))
    if not files:
        raise DataError(
            what="no file matches the pattern", where=pattern, mend="mend it, or name the files themselves"
        )
    return files


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

    def __init__(self, name: str, digest: Any, spool: Path | None, unix_newlines: bool) -> None:
        self.name = "standard input" if name == STDIN else name
        self.path, self.unix_newlines = name, unix_newlines
        self.crlf = 0
        self._spooled: IO[bytes] | None = None  # removed with this object
        self.blocks: list[_Block] = []
        self.size = 0
        self._characters = 0
        mend = "give readable text files, or a pattern for those in a folder: 'folder/*.txt'"
        with refusing("the text cannot be read", self.name, mend):
            if name == STDIN:
                self._copy(sys.stdin.buffer, spool)
            else:
                _refuse_odd(name)
                with open(name, "rb") as file:
                    if is_utf16(file.read(HEAD)):
                        file.seek(0)
                        self._copy(file, spool)
            with open(self.path, "rb") as file:
                before = _stamp(file)
                self._survey(file, digest, before[0])
                if _stamp(file) != before or self.size != before[0]:
                    raise self._changed(self.size)
        if not self._characters:
            raise DataError(what="the text is empty", where=self.name, mend="give a file with text in it")

    @property
    def characters(self) -> int:
        return self._characters

    def _copy(self, opened: IO[bytes], spool: Path | None) -> None:
        """What can be read only once, and what is no UTF-8 yet, becomes a file of its own."""
        where = spool or tempfile.gettempdir()
        mend = "make room on the disk, or choose another folder with --cache"
        with refusing(f"{self.name} cannot be copied to a file", where, mend):
            if spool is not None:
                spool.mkdir(parents=True, exist_ok=True)
            self._spooled = tempfile.NamedTemporaryFile(dir=spool, prefix=".text.")  # noqa: SIM115
            try:
                shutil.copyfileobj(as_utf8(opened, self.name), self._spooled, _BLOCK)
                self._spooled.flush()
            except BaseException:
                self._spooled.close()
                raise
        self.path = self._spooled.name

    def _survey(self, file: IO[bytes], digest: Any, size: int) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        lines, returned = 0, False
        # Not beyond the size that the system told: some files of its own never end.
        while self.size < size and (raw := file.read(_BLOCK)):
            held = decoder.getstate()[0]  # the beginning of a character that the last block cut
            skip = 0
            if self.size == 0:
                refuse_strange(raw[:HEAD], self.name)
                skip = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
            try:
                text = decoder.decode(raw[skip:])
            except UnicodeDecodeError as error:
                raise self._broken(error, self.size + skip - len(held), lines) from error
            if held:
                skip = next((k for k, byte in enumerate(raw[:3]) if byte & 0xC0 != 0x80), 3)
            self.crlf += text.count("\r\n") + (returned and text.startswith("\n"))
            if self.unix_newlines:
                skip += returned and raw.startswith(b"\n")
                text = _unix(text, returned)
            returned = raw.endswith(b"\r")
            check = zlib.crc32(raw)
            self.blocks.append(_Block(self.size, len(raw), check, skip, self._characters + bool(held)))
            digest.update(text.encode() if self.unix_newlines else raw if held else raw[skip:])
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
        at, returned = self.blocks[first].before, False
        gone = refusing("the text cannot be read any more", self.name, "put it back and begin again")
        with gone, open(self.path, "rb") as file:
            file.seek(self.blocks[first].offset)
            for number, block in enumerate(self.blocks[first:]):
                if at >= stop:
                    return
                raw = file.read(block.size)
                if len(raw) != block.size or zlib.crc32(raw) != block.check:
                    raise self._changed(block.offset)
                text = decoder.decode(raw if number else raw[block.skip :])
                if self.unix_newlines:
                    text, returned = _unix(text, returned), raw.endswith(b"\r")
                yield text[max(start - at, 0) : stop - at]
                at += len(text)

    def _broken(self, error: UnicodeDecodeError, base: int, lines: int) -> DataError:
        """base: the offset in the file of the bytes that the error is about. lines: that ended before them."""
        line = lines + error.object.count(b"\n", 0, error.start) + 1
        return DataError(
            what=f"the text is not UTF-8: {error.reason}",
            where=f"{self.name}, byte offset {base + error.start} (line {line})",
            got=error.object[error.start : error.start + 4].hex(" "),
            expected="UTF-8",
            mend=mend_of(error.object, self.name),
        )

    def _changed(self, offset: int) -> DataError:
        return DataError(
            what="the file changed while it was being read",
            where=f"{self.name}, from byte offset {offset} on, or in the {_BLOCK:,} bytes after it",
            mend="wait until nobody writes to it any more, and begin again",
        )


def _refuse_odd(name: str) -> None:
    """Raise DataError for what is no regular file."""
    try:
        mode = os.stat(name).st_mode
    except ValueError as error:  # it holds a zero
        raise DataError(
            what=f"the text cannot be read: {error}", where=repr(name), mend="give names of files"
        ) from error
    kinds = {
        stat.S_ISDIR: ("a folder", f"a pattern for the files in it: '{name.rstrip('/')}/*.txt'"),
        stat.S_ISFIFO: ("a pipe", "standard input is named -: zcat text.gz | elman train lm -"),
        stat.S_ISCHR: ("a device", "standard input is named -: zcat text.gz | elman train lm -"),
    }
    if not stat.S_ISREG(mode):
        kind, mend = next(
            (told for check, told in kinds.items() if check(mode)), ("no file", "give text files")
        )
        raise DataError(
            what=f"the text cannot be read: it is {kind}", where=name, expected="a file", mend=mend
        )


def _unix(text: str, returned: bool) -> str:
    """A part of a text with LF for CR LF and for CR. returned: whether CR stands before the part: it was LF already."""
    if returned and text.startswith("\n"):
        text = text[1:]
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _stamp(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
