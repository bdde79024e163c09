"""What is worked out once for a text: its tokenizer and its symbols, in files named by what they depend on.

    <folder>/<digest>.json       a tokenizer
    <folder>/<digest>.tokens     symbols, as unsigned integers one after another
    <folder>/<digest>.counts     what is known of them; written last, so where it is, they are whole

A name is a digest of everything that the content depends on, so nothing in here is ever out of date, and any of it can
be removed at any time; of more than `CACHED` bytes, the oldest are. Processes that work out the same thing at once
write the same file, and the last one stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from elman.data.files import refusing, writing
from elman.data.text import Text
from elman.data.tokenizer import Tokenizer
from elman.data.tokens import Counts, Tokens, width

_SMALL = 2**26  # characters that memory may hold
CACHED = 10 * 2**30  # bytes that stay in the folder
_OURS = re.compile(r"[0-9a-f]{40}\.(json|tokens|counts)|\.[0-9a-f]{40}\.(json|tokens|counts)\.\w+")
_used: set[Path] = set()  # by this process
_FORMAT = 1  # part of every name: raise it where other symbols come out of the same text


def cache_folder() -> Path:
    """Where symbols are kept when nothing is said: `$XDG_CACHE_HOME/elman`, by default `~/.cache/elman`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elman"


def learn(kind: str, text: Text, vocabulary: int | None, folder: Path | None) -> Tokenizer:
    """`Tokenizer.of`, once for every text, kind and size. folder: the cache; None keeps nothing."""
    if folder is None:
        return Tokenizer.of(kind, text, vocabulary)
    path = folder / f"{_name('tokenizer', kind, vocabulary, text.digest)}.json"
    if path.is_file():
        try:
            return Tokenizer.load(path)
        except (OSError, ValueError):  # spoiled: it is made again
            pass
    tokenizer = Tokenizer.of(kind, text, vocabulary)
    with contextlib.suppress(OSError):  # it is there all the same
        folder.mkdir(parents=True, exist_ok=True)
        with writing(path) as file:
            file.write(tokenizer.to_json().encode())
    return tokenizer


def tokenise(
    text: Text,
    tokenizer: Tokenizer,
    folder: Path | None,
    progress: Callable[[int, int], None] | None = None,
) -> Tokens:
    """The symbols of a text, worked out once for every text and tokenizer.

    folder: the cache; None keeps them in memory, and so does a folder that cannot be written, if the text is not
    large. Raises DataError if symbols cannot be kept. progress: called with (characters done, characters in all).
    """
    counter = _Counter(text, tokenizer, progress)
    if folder is None:
        return _in_memory(counter)
    path = folder / f"{_name('tokens', text.digest, tokenizer.to_json())}.tokens"
    about = path.with_suffix(".counts")
    tokens = _find(path, about, tokenizer.size)
    if tokens is not None:
        _used.update((path, about))
        with contextlib.suppress(OSError):  # not the oldest
            os.utime(path)
            os.utime(about)
        return tokens
    if text.characters < _SMALL and not _writable(folder):
        return _in_memory(counter)
    check = 0
    mend = "make room on the disk, or choose another folder with --cache"
    with refusing("symbols cannot be kept", folder, mend):
        folder.mkdir(parents=True, exist_ok=True)
        with writing(path) as file:
            for part in counter.arrays():
                raw = part.astype(width(tokenizer.size)).tobytes()
                check = zlib.crc32(raw, check)
                file.write(raw)
        with writing(about) as file:
            facts = {"check": check, **asdict(counter.counts())}
            file.write((json.dumps(facts) + "\n").encode())
    _used.update((path, about))
    trim(folder, keep=_used)
    return Tokens.open(path, tokenizer.size, counter.counts())


def trim(folder: Path, most: int = CACHED, keep: Collection[Path] = ()) -> None:
    """Remove the oldest files of a cache until those in it have at most so many bytes together.

    Only files named as ours are, and none of `keep`. What a process has mapped stays readable to it.
    """
    files = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                about = entry.stat(follow_symlinks=False)
                files.append((about.st_mtime_ns, about.st_size, folder / entry.name))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most:
            return
        if path not in keep:
            with contextlib.suppress(OSError):  # another process was first, or has it open (Windows)
                path.unlink()
                total -= size


def _in_memory(counter: _Counter) -> Tokens:
    vocabulary = counter.tokenizer.size
    parts = [part.astype(width(vocabulary)) for part in counter.arrays()]
    none = np.empty(0, dtype=width(vocabulary))
    return Tokens(np.concatenate([none, *parts]), vocabulary, counter.counts())


def _find(path: Path, about: Path, vocabulary: int) -> Tokens | None:
    try:
        facts = json.loads(about.read_bytes())
        if _checked(path) != facts.pop("check"):
            return None
        return Tokens.open(path, vocabulary, Counts(**facts))
    except (OSError, ValueError, KeyError, TypeError):  # not there, or spoiled: it is made again
        return None


def _checked(path: Path) -> int:
    """CRC-32 of a file. Symbols that a bad disk made up would crash the training that reads them, hours later."""
    check = 0
    with path.open("rb") as file:
        while raw := file.read(2**20):
            check = zlib.crc32(raw, check)
    return check


def _name(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, *parts]).encode()).hexdigest()[:40]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


class _Counter:
    """Symbols of a text on their way, counted with what they stand for."""

    def __init__(self, text: Text, tokenizer: Tokenizer, progress: Callable[[int, int], None] | None) -> None:
        self.text, self.tokenizer, self.progress = text, tokenizer, progress
        self.unknown = self.characters = self.bytes = self.words = 0

    def arrays(self) -> Iterator[np.ndarray]:
        for part in self.tokenizer.arrays(self._pieces()):
            if self.tokenizer.unknown is not None:
                self.unknown += int((part == self.tokenizer.unknown).sum())
            yield part

    def _pieces(self) -> Iterator[str]:
        # What the first symbol stands for is not counted. It may go on beyond the first piece.
        head = str(self.text.cut(0, min(self.text.characters, 4096)))
        characters, raw = self.tokenizer.first(head)
        self.characters, self.bytes = -characters, -raw
        inside = False  # of a word that the last piece cut
        for piece in self.text.pieces():
            if not piece:
                continue
            self.characters += len(piece)
            self.bytes += len(piece.encode())
            self.words += len(piece.split()) - (inside and not piece[0].isspace())
            inside = not piece[-1].isspace()
            yield piece
            if self.progress is not None:
                self.progress(self.characters, self.text.characters)

    def counts(self) -> Counts:
        return Counts(self.characters, self.bytes, self.words, self.unknown)
