"""Sentences with a tag for each word, from files.

.conllu, .conll    CoNLL-U: ten columns parted by tabs, a line a word, an empty line behind each sentence
.jsonl, .ndjson    {"words": ["the", "cat"], "tags": ["DET", "NOUN"]} on each line
any other          two columns, `word tag`, parted by a tab or blanks; an empty line behind each sentence
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from elman.data.files import reading
from elman.data.kinds import HEAD, mend_of, refuse_strange
from elman.data.schema import Odd, each, parsed, record, text
from elman.data.utf16 import as_utf8
from elman.errors import DataError

STDIN = "-"
COLUMNS = {"upos": 3, "xpos": 4}  # of CoNLL-U
_OF_WORDS = (3, 4, 5)  # its columns that say what a word is: the two, and features
CONLLU, JSON = (".conllu", ".conll"), (".jsonl", ".ndjson")
LONGEST = 1000  # characters of a word
_LINE, _WORDS = 2**20, 100_000  # bytes of a line, words of a sentence


@dataclass(frozen=True)
class Sentence:
    """Words in order. tags: as many, or none where they are not known. file, lines: where each word stands. also: what
    else is known of each word, each time as many."""

    words: tuple[str, ...]
    tags: tuple[str, ...] = ()
    file: str = ""
    lines: tuple[int, ...] = ()
    also: tuple[tuple[str, ...], ...] = ()

    def where(self, word: int) -> str:
        return f"{self.file}:{self.lines[word]}" if self.lines else f"word {word}"


def read_tagged(files: Iterable[Path], column: str = "upos") -> list[Sentence]:
    """The sentences of files, one after another. column: of CoNLL-U. Raises DataError, with file and line."""
    sentences, files = [], list(files)
    for file in files:
        suffix = file.suffix.lower()
        if suffix in JSON:
            sentences += read_json(file)
        else:
            sentences += _columns(file, COLUMNS[column] if suffix in CONLLU else None)
    if not sentences:
        raise DataError(
            what="there are no sentences", where=", ".join(map(str, files)), mend="give files that hold some"
        )
    return sentences


def read_words(file: Path) -> Iterator[list[str]]:
    """Of each line its words, parted by blanks; "-": of standard input, line by line as it comes."""
    for number, line in numbered_lines(file):
        words = line.split()
        _bounded(words, f"{file}:{number}")
        yield words


def numbered_lines(file: Path, ends: bool = False) -> Iterator[tuple[int, str]]:
    """(its number from 1, a line; with `ends`, its end too). Raises DataError for what is neither UTF-8 nor marked
    UTF-16, and for a line of more than 2²⁰ bytes, with file and line."""
    if str(file) == STDIN:
        yield from _decoded(sys.stdin.buffer, "standard input", ends)
        return
    with reading(file, "the file", "give one that is there") as opened:
        yield from _decoded(opened, file, ends)


def digest(sentences: Sequence[Sentence], others: bool = False) -> str:
    """SHA-256 of all words and tags, in hexadecimal. others: of what else is known of the words, too."""
    sha = hashlib.sha256()
    for sentence in sentences:
        fields = (sentence.words, sentence.tags)
        sha.update(repr((*fields, sentence.also) if others else fields).encode())
    return sha.hexdigest()


def _decoded(opened, where: object, ends: bool) -> Iterator[tuple[int, str]]:
    number, opened = 0, as_utf8(opened, where)
    while raw := opened.readline(_LINE + 1):
        number += 1
        if len(raw) > _LINE:
            raise DataError(
                what="a line is too long", where=f"{where}:{number}", expected=f"at most {_LINE:,} bytes",
                mend="put each sentence, or each word, on a line of its own",
            )  # fmt: skip
        if number == 1:
            refuse_strange(raw[:HEAD], where)
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            got = f"byte 0x{raw[error.start]:02x} at byte {error.start} of the line"
            raise DataError(
                what="this is no UTF-8", where=f"{where}:{number}", got=got, mend=mend_of(raw, where)
            ) from error
        line = line.removeprefix("\ufeff") if number == 1 else line
        yield number, line if ends else line.rstrip("\r\n")


def _columns(file: Path, column: int | None) -> Iterator[Sentence]:
    """column: of CoNLL-U; None: two columns."""
    others = [] if column is None else [other for other in _OF_WORDS if other != column]
    rows: list[tuple[str, ...]] = []  # word, tag, others
    lines: list[int] = []

    def sentence() -> Sentence:
        words, tags, *also = zip(*rows, strict=True)
        return Sentence(words, tags, str(file), tuple(lines), tuple(also))

    for number, line in numbered_lines(file):
        where = f"{file}:{number}"
        if not line.strip():
            if rows:
                yield sentence()
            rows, lines = [], []
            continue
        if column is None:
            fields = tuple(line.split("\t")) if "\t" in line else tuple(line.split())
            if len(fields) != 2:
                raise _odd(where, f"{len(fields)} columns", "a word and its tag, parted by a tab or blanks")
        elif (row := conllu_row(line, where)) is None:
            continue
        elif row[column] == "_":
            raise _odd(where, "_", "a tag", "tag the word, or name the column that is filled in: --column")
        else:
            fields = (row[1], row[column], *(row[other] or "_" for other in others))
        _bounded(fields, where)
        rows.append(tuple(map(sys.intern, fields)))
        lines.append(number)
        _bounded(fields[:1], where, len(rows))
    if rows:
        yield sentence()


def conllu_row(line: str, where: str) -> list[str] | None:
    """The ten columns of a word, the second of which is the word; None for a comment, a range of words that are written
    as one (1-2), an empty node (1.1), and an empty line. Raises DataError for anything else."""
    if "\r" in line.rstrip("\r\n"):  # all of a file would be one comment
        raise _odd(where, "a carriage return inside", "lines that end by LF, or CR LF")
    if line.startswith("#") or not line.strip():
        return None
    row = line.split("\t")
    if len(row) != 10:
        raise _odd(where, f"{len(row)} columns", "ten columns of CoNLL-U, parted by tabs")
    if row[0].isdigit():
        return row
    if not row[0].replace("-", "", 1).replace(".", "", 1).isdigit():
        raise _odd(where, f"{row[0][:20]!r} in the first column", "the number of a word")
    return None


_SENTENCE = record(
    {"words": each(text(LONGEST), _WORDS)},
    {"tags": each(text(LONGEST), _WORDS)},
)


def read_json(file: Path, tagged: bool = True) -> Iterator[Sentence]:
    """Of JSON lines; tagged: each has to have tags. Raises DataError."""
    for number, line in numbered_lines(file):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            fields = parsed(line, _SENTENCE)
        except Odd as odd:
            raise _odd(where, odd.got, f"{odd.place}: {odd.expected}" if odd.place else odd.expected) from odd
        words, tags = fields["words"], fields.get("tags") if tagged else []
        if tagged and (tags is None or len(tags) != len(words)):
            got = "no tags" if tags is None else f"{len(tags)} tags"
            raise _odd(where, got, f"a tag for each of the {len(words)} words")
        _bounded([*words, *tags], where)
        if words or not tagged:
            yield Sentence(tuple(words), tuple(tags or ()), str(file), (number,) * len(words))


def _bounded(words: Sequence[str], where: str, count: int | None = None) -> None:
    if any(not 0 < len(word) <= LONGEST for word in words):
        longest = max(map(len, words))
        raise _odd(where, "an empty word or tag" if longest <= LONGEST else f"{longest:,} characters",
                   f"1 … {LONGEST:,} characters in a word")  # fmt: skip
    if (count or len(words)) > _WORDS:
        raise _odd(
            where, f"{count or len(words):,} words", f"at most {_WORDS:,} in a sentence", "part it by empty lines"
        )  # fmt: skip


def _odd(
    where: str, got: object, expected: str, mend: str = "mend the line, or leave the sentence out"
) -> DataError:
    return DataError(
        what="this is no sentence with a tag for each word",
        where=where,
        got=got,
        expected=expected,
        mend=mend,
    )
