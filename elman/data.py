"""Text -> symbols -> batches: reading, splitting, the tokenizer, and the windows that training walks through.

    files --read_corpus--> Corpus(train, held_out) --Tokenizer.encode--> [N] --windows--> x [T, B], y [T, B]

A symbol is an int64; a text of N symbols is a tensor [N]. Everything that goes to a model is time-major.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elman.errors import DataError, InputError

if TYPE_CHECKING:
    import tokenizers

UNKNOWN = "<unk>"
HELD_OUT = (
    0.1  # the share of the text, at its end, that is held out unless there is a text of its own for that
)
BUILT_IN = "the Python manual (pydoc_data.topics)"

# The tokenizer keeps some 200 bytes for every character that it is working on: pieces keep both cores busy, a
# group of pieces bounds the memory.
_PIECE, _GROUP = 4096, 64


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


class Tokenizer:
    """Text to symbols and back, through Hugging Face `tokenizers`: `tokenizer.json` is read everywhere.

        tokenizer = Tokenizer.characters(text)      # one symbol for each character of the text, and <unk>
        tokens = tokenizer.encode(text)             # int64 [N]
        assert tokenizer.decode(tokens) == text     # exact

    A character that the text did not hold becomes the symbol `<unk>`, number 0.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend

    @classmethod
    def characters(cls, text: str) -> Tokenizer:
        """A tokenizer whose symbols are the characters of `text`, in the order of their code points."""
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        vocabulary = {symbol: number for number, symbol in enumerate([UNKNOWN, *sorted(set(text))])}
        backend = Backend(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        # `.` would leave newlines out.
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        backend.decoder = decoders.Fuse()  # without a decoder, symbols are joined by spaces
        return cls(backend)

    @classmethod
    def from_json(cls, text: str, where: object = None) -> Tokenizer:
        """The tokenizer of a `tokenizer.json`. Raises DataError if it is none; `where` names the file."""
        from tokenizers import Tokenizer as Backend

        try:
            return cls(Backend.from_str(text))
        except Exception as error:  # the Rust side raises Exception itself
            raise DataError(
                what=f"this is no tokenizer: {error}",
                where=where,
                mend="restore tokenizer.json, or train the model again",
            ) from error

    def to_json(self) -> str:
        return self.backend.to_str(pretty=True)

    @property
    def size(self) -> int:
        """The number of symbols, `<unk>` included."""
        return self.backend.get_vocab_size()

    @property
    def unknown(self) -> int:
        """The number of the symbol that stands for every character that was not in the training text."""
        number = self.backend.token_to_id(UNKNOWN)
        assert number is not None  # every tokenizer that we make has it
        return number

    def encode(self, text: str) -> Tensor:
        """The symbols of a text: int64 [N]. About half a second for a megabyte on two cores."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                what="the text holds half a character (a lone surrogate)",
                where=f"character {error.start}",
                got=repr(text[error.start]),
                mend="give text that was decoded as UTF-8",
            ) from error
        # Cutting anywhere is right for characters, which do not depend on their neighbours.
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        parts = [torch.empty(0, dtype=torch.int64)]
        for start in range(0, len(pieces), _GROUP):
            for piece in self.backend.encode_batch_fast(
                pieces[start : start + _GROUP], add_special_tokens=False
            ):
                parts.append(torch.tensor(piece.ids, dtype=torch.int64))
        return torch.cat(parts)

    def decode(self, tokens: Tensor | Iterable[int]) -> str:
        """The text of symbols: the inverse of `encode`, except that `<unk>` stays what it is."""
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        return self.backend.decode(numbers, skip_special_tokens=False)


@dataclass(frozen=True)
class Window:
    """T steps of B lanes. x, y: int64 [T, B], y(t) = x(t+1). fresh: the lanes begin, no state is carried in."""

    x: Tensor
    y: Tensor
    fresh: bool


def windows(tokens: Tensor, window: int, batch: int, seed: int = 0) -> Iterator[Window]:
    """Endless windows over a text for training with carried state (truncated back-propagation through time).

    The text is cut into `batch` lanes of equal length, each contiguous; window k holds the steps k·T … k·T +
    T - 1 of every lane, so the state at the end of one window is the one that the next begins with:

        lanes = tokens[: batch * L].view(batch, L)        # window k: lanes[:, k*T : (k+1)*T].T

    After the last whole window of the lanes they are cut anew from a random place in the first window of the
    text, so that no symbol is always left over and windows do not always end at the same ones.

    tokens: int64 [N]. window: T, steps. batch: B, lanes. Raises InputError if the text is too short for that.
    """
    needed = batch * window + 1
    for name, value in (("window", window), ("batch", batch)):
        if value < 1:
            raise InputError(
                what=f"{name} must be at least 1", where=name, got=value, mend="leave it out for the default"
            )
    if len(tokens) < needed:
        raise InputError(
            what="the text is too short for one window of every lane",
            where="tokens",
            got=f"{len(tokens)} symbols",
            expected=f"at least {needed} (batch {batch} · window {window} + 1)",
            mend="take a smaller batch or window, or more text",
        )
    return _windows(tokens, window, batch, seed)


def _windows(tokens: Tensor, window: int, batch: int, seed: int) -> Iterator[Window]:
    generator = torch.Generator().manual_seed(seed)
    start = 0
    while True:
        length = (len(tokens) - 1 - start) // batch
        end = start + batch * length
        x = tokens[start:end].view(batch, length).T
        y = tokens[start + 1 : end + 1].view(batch, length).T
        for t in range(0, length - window + 1, window):
            yield Window(x[t : t + window].contiguous(), y[t : t + window].contiguous(), fresh=t == 0)
        spare = min(window, len(tokens) - batch * window)  # starts that leave every lane a whole window
        start = int(torch.randint(spare, (), generator=generator))
