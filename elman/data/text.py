"""Files -> text: reading, splitting, and finding the same text again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elman.errors import DataError

HELD_OUT = 0.1  # the share of the text, at its end, that is held out where it has no text of its own
BUILT_IN = "the Python manual (pydoc_data.topics)"


def built_in_text() -> str:
    """The Python language manual that ships with CPython: `pydoc_data.topics`, its topics in sorted order.

    About 460,000 characters of English prose, grammar and code. It differs a little between versions of
    Python.
    """
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, newlines as they stand; a byte order mark is dropped.

    Raises DataError where the file cannot be read, is empty, or is not UTF-8; `where` then ends in the byte
    offset.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            what=f"the text cannot be read: {error.strerror or error}",
            where=path,
            mend="give the path of a readable text file",
        ) from error
    if not raw:
        raise DataError(what="the text is empty", where=path, mend="give a file with text in it")
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            what=f"the text is not UTF-8: {error.reason}",
            where=f"{path}, byte offset {error.start} (line {line})",
            got=raw[error.start : error.start + 4].hex(" "),
            expected="UTF-8",
            mend=f"convert it: iconv -f LATIN1 -t UTF-8 '{path}' > text.txt (put its encoding for LATIN1), "
            "or mend that byte",
        ) from error


@dataclass(frozen=True)
class Corpus:
    """What a model learns from, what it is measured on, and where the two came from.

    source: {"files": [path, …] (empty: the built-in text), "valid": path or None, "digest": of the held-out
    text}.
    """

    train: str
    held_out: str
    source: dict


def read_corpus(files: Sequence[str | Path] = (), valid: str | Path | None = None) -> Corpus:
    """The texts of `files` one after another (the built-in text if there is none), their last tenth held out.

    With `valid` nothing is cut off: that file is held out instead.

    Raises DataError for a file that cannot be used, and where a part is left with fewer than two characters.
    """
    text = "".join(read_text(path) for path in files) if files else built_in_text()
    if valid is not None:
        train, held_out = text, read_text(valid)
    else:
        cut = len(text) - int(len(text) * HELD_OUT)
        train, held_out = text[:cut], text[cut:]
    for part, role in ((train, "training"), (held_out, "held-out")):
        if len(part) < 2:
            raise DataError(
                what=f"the {role} text is too short to predict a symbol from another",
                where=", ".join(map(str, files if part is train or valid is None else [valid])) or BUILT_IN,
                got=f"{len(part)} characters",
                expected="at least 2",
                mend="give more text, or a file of its own with --valid",
            )
    source = {
        "files": [str(Path(path).resolve()) for path in files],
        "valid": None if valid is None else str(Path(valid).resolve()),
        "digest": digest(held_out),
    }
    return Corpus(train, held_out, source)


def reread_corpus(source: dict) -> Corpus:
    """The corpus that `source` describes, read again.

    Raises DataError if its held-out text is no longer the one that `source` was made from: figures measured
    on the two would not compare.
    """
    corpus = read_corpus(source["files"], source["valid"])
    if corpus.source["digest"] != source["digest"]:
        raise DataError(
            what="the held-out text is not the one of the training run any more",
            where=source["valid"] or ", ".join(source["files"]) or BUILT_IN,
            got=f"digest {corpus.source['digest'][:12]}",
            expected=f"digest {source['digest'][:12]}",
            mend="name the text to evaluate on"
            + ("" if source["files"] else " (the manual differs between versions of Python)"),
        )
    return corpus


def digest(text: str) -> str:
    """SHA-256 of the text as UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
