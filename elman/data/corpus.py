"""What a model learns from and what it is measured on; and finding the latter again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elman.data.text import STDIN, Text, expand, open_files, open_text
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


@dataclass(frozen=True)
class Corpus:
    """What a model learns from, what it is measured on, and where the two came from.

    source: {"files": [path, …] (empty: the built-in text), "valid": path or None, "digest": of all the files,
    "valid_digest": of `valid`}, and "unix_newlines": True if they were read so.
    """

    train: Text
    held_out: Text
    source: dict


def read_corpus(
    files: Sequence[str | Path] = (), valid: str | Path | None = None, *, spool: Path | None = None,
    unix_newlines: bool = False,
) -> Corpus:  # fmt: skip
    """The texts of `files` one after another (the built-in text if there is none), their last tenth held out.

    With `valid` nothing is cut off: that file is held out instead. The tenth is counted in characters, whatever the
    symbols, so that models on different ones are measured on the same text. spool,
    unix_newlines: see `open_text`.

    Raises DataError for a file that cannot be used, and where a part is left with fewer than two characters.
    """
    names = expand(files)
    how = {"spool": spool, "unix_newlines": unix_newlines}
    text = open_files(names, **how) if names else Text.of(built_in_text(), BUILT_IN)
    if valid is not None:
        train, held_out = text, open_text([valid], **how)
    else:
        train, held_out = _split(text)
    for part, role in ((train, "training"), (held_out, "held-out")):
        if part.characters < 2:
            raise DataError(
                what=f"the {role} text is too short to predict a symbol from another",
                where=part.name,
                got=f"{part.characters} characters",
                expected="at least 2",
                mend="give more text, or a file of its own with --valid",
            )
    source = {
        "files": [_absolute(name) for name in names],
        "valid": None if valid is None else _absolute(valid),
        "digest": text.digest,
        "valid_digest": None if valid is None else held_out.digest,
    } | ({"unix_newlines": True} if unix_newlines else {})
    return Corpus(train, held_out, source)


def reread_held_out(source: dict) -> Text:
    """The held-out text of the corpus that `source` describes, read again.

    Raises DataError if it is no longer the one that `source` was made from (figures measured on the two would not
    compare), or came from standard input.
    """
    own = source["valid"] is not None
    names = [source["valid"]] if own else source["files"]
    if STDIN in names:
        raise DataError(
            what="the held-out text came from standard input, and is not kept",
            where=STDIN,
            mend="name a text to evaluate on",
        )
    # What a run names are files: nobody's patterns are followed here.
    unix = source.get("unix_newlines", False)
    text = open_files(names, unix_newlines=unix) if names else Text.of(built_in_text(), BUILT_IN)
    expected = source["valid_digest" if own else "digest"]
    if text.digest != expected:
        raise DataError(
            what="the held-out text is not the one of the training run any more",
            where=text.name,
            got=f"digest {text.digest[:12]}",
            expected=f"digest {expected[:12]}",
            mend="name the text to evaluate on"
            + ("" if names else " (the manual differs between versions of Python)"),
        )
    return text if own else _split(text)[1]


def _split(text: Text) -> tuple[Text, Text]:
    cut = text.characters - int(text.characters * HELD_OUT)
    return text.cut(0, cut), text.cut(cut, text.characters)


def _absolute(name: str | Path) -> str:
    return STDIN if str(name) == STDIN else str(Path(name).resolve())
