"""Text -> symbols and back, through Hugging Face `tokenizers`."""

from __future__ import annotations

import builtins
import codecs
import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from elman.data.files import read_file
from elman.data.schema import each, from_json, maybe, record, text, whole
from elman.data.text import Text, encoded
from elman.errors import DataError, InputError

if TYPE_CHECKING:
    import tokenizers

UNKNOWN = "<unk>"

# The tokenizer keeps some 200 bytes for every character that it is working on: pieces keep all cores busy, a
# group of pieces bounds the memory. All in characters.
_PIECE, _GROUP = 2**12, 2**18
_LONGEST = 2**20  # of a piece
# Words and byte pairs are learnt from so many characters, in so many places of a text.
_SAMPLE, _PLACES = 2**25, 64

KINDS = ("characters", "bytes", "words", "bpe")
_FILE = 2**25  # bytes of a tokenizer.json
_MEND = "restore tokenizer.json, or train the model again"
_FORM = record(
    {"model": record({"type": text(20), "vocab": each(whole(0, 2**32), 2**24, named=True)})},
    {"added_tokens": maybe(each(record({"id": whole(0, 2**32), "content": text(100)}), 1))},
)
_ANY = r"[\s\S]"
_WORDS = r"\w+|[^\w\s]+|\n"
# A place where words and byte pairs may be cut apart: before a space or newline that follows what is no white space.
# The patterns take white space at the beginning of a word, never within it or at its end, so they begin anew there
# whatever stands further left. Not \s: Python takes some control characters for white space that they do not.
_CUT = re.compile(r"(?<=\S)[ \n]")


class Tokenizer:
    """Text to symbols and back, through Hugging Face `tokenizers`: `tokenizer.json` is read everywhere.

        tokenizer = Tokenizer.characters(text)      # one symbol for each character of the text, and <unk>
        tokens = tokenizer.encode(text)             # int64 [N]
        assert tokenizer.decode(tokens) == text     # exact

    characters: a character that the text did not hold becomes the symbol `<unk>`, number 0.
    bytes: 256 symbols, exact for any text.
    words: the most frequent words, runs of punctuation, and newlines; others are `<unk>`, and white space is lost.
    bpe: byte pairs, merged as often as the vocabulary allows; exact for any text.

    Words and byte pairs are learnt from at most 32 million characters, taken evenly from all over a longer text.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend

    @classmethod
    def of(cls, kind: str, text: Text | str, vocabulary: int | None = None) -> Tokenizer:
        """The tokenizer of a kind, made of a text. vocabulary: how many symbols, for words (default 10,000) and bpe
        (default 4,096). Raises InputError for other kinds and for sizes that cannot be."""
        if kind not in KINDS:
            raise InputError(
                what="there is no such tokenizer", where="tokenizer", got=kind, expected=", ".join(KINDS),
                mend="take one of them",
            )  # fmt: skip
        if kind in ("characters", "bytes"):
            if vocabulary is not None:
                raise InputError(
                    what=f"the size of the vocabulary of {kind} is what it is", where="vocabulary", got=vocabulary,
                    mend="leave it out, or take words or bpe",
                )  # fmt: skip
            return cls.characters(text) if kind == "characters" else cls.bytes()
        least = 2 if kind == "words" else 257
        if vocabulary is not None and vocabulary < least:
            raise InputError(
                what=f"the vocabulary of {kind} has at least {least} symbols", where="vocabulary", got=vocabulary,
                mend="take more, or leave it out",
            )  # fmt: skip
        return cls.words(text, vocabulary or 10_000) if kind == "words" else cls.bpe(text, vocabulary or 4096)

    @classmethod
    def bytes(cls) -> Tokenizer:
        """A tokenizer whose symbols are the bytes of UTF-8, by their values."""
        return cls(_backend("bytes"))

    @classmethod
    def bpe(cls, text: Text | str, vocabulary: int) -> Tokenizer:
        """Byte pairs, merged within words (GPT-2's pattern).

        Source: Sennrich et al., Neural machine translation of rare words with subword units, 2016.
        """
        from tokenizers import trainers

        backend = _backend("bpe")
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, initial_alphabet=list(_byte_letters()), show_progress=False
        )
        backend.train_from_iterator(_learnt_from(text), trainer)
        return cls(backend)

    @classmethod
    def words(cls, text: Text | str, vocabulary: int) -> Tokenizer:
        """The most frequent words, runs of punctuation, and newlines."""
        from tokenizers import trainers

        backend = _backend("words")
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocabulary, special_tokens=[UNKNOWN], show_progress=False
        )
        backend.train_from_iterator(_learnt_from(text), trainer)
        return cls(backend)

    @classmethod
    def characters(cls, text: Text | str) -> Tokenizer:
        """A tokenizer whose symbols are the characters of `text`, in the order of their code points."""
        pieces = [text] if isinstance(text, str) else text.pieces()
        seen: set[str] = set()
        for piece in pieces:
            seen.update(piece)
        vocabulary = {symbol: number for number, symbol in enumerate([UNKNOWN, *sorted(seen)])}
        return cls(_backend("characters", vocabulary))

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """The tokenizer of a `tokenizer.json`. Raises DataError if it is none."""
        return cls.from_json(read_file(path, _FILE, "the tokenizer", _MEND), path)

    @classmethod
    def from_json(cls, text: str | builtins.bytes, where: object = None) -> Tokenizer:
        """The tokenizer of the text of a `tokenizer.json`: one of KINDS, as it is written here.

        Raises DataError if it is none; `where` names the file. Others (with rules of their own, a length at which they
        cut or to which they fill up) would give wrong figures per character, or run whatever pattern they bring.
        """
        from tokenizers import Tokenizer as Backend

        content = from_json(text, _FORM, what="this is no tokenizer", where=where, mend=_MEND)
        try:
            _check(content)
            tokenizer = cls(Backend.from_str(text if isinstance(text, str) else text.decode()))
            tokenizer._check()
            return tokenizer
        except (
            BaseException
        ) as error:  # the Rust side raises Exception itself, and panics, which are no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise DataError(
                what=f"this is no tokenizer: {str(error)[:300]}",
                where=where,
                expected=f"one that elman wrote, of {', '.join(KINDS)}",
                mend=_MEND,
            ) from error

    def _check(self) -> None:
        """Raise ValueError unless every part but the vocabulary is that of the kind."""
        mine, right = (_rules(backend) for backend in (self.backend, _backend(self.kind)))
        for name in mine | right:
            if mine.get(name) != right.get(name):
                raise ValueError(f"its {name} is not that of {self.kind}")
        vocabulary = self.backend.get_vocab(with_added_tokens=False)
        if self.kind in ("bytes", "bpe"):
            letters = _byte_letters()
            wrong = not letters.keys() <= vocabulary.keys() or any(
                set(token) - letters.keys() for token in vocabulary
            )
            if wrong or (self.kind == "bytes" and vocabulary != letters):
                raise ValueError("its symbols are not made of bytes")
        elif UNKNOWN not in vocabulary:
            raise ValueError(f"it has no {UNKNOWN}")
        elif self.kind == "characters" and any(len(token) != 1 for token in vocabulary if token != UNKNOWN):
            raise ValueError("a symbol is more than a character")

    def to_json(self) -> str:
        return self.backend.to_str(pretty=True)

    @property
    def size(self) -> int:
        """The number of symbols, `<unk>` included."""
        return self.backend.get_vocab_size()

    @property
    def unknown(self) -> int | None:
        """The number of the symbol that stands for all that the training text did not hold; None if nothing does."""
        return self.backend.token_to_id(UNKNOWN)

    @cached_property
    def kind(self) -> str:
        """Which of KINDS it is."""
        content = json.loads(self.backend.to_str())
        how = content["pre_tokenizer"] or {}
        if content["model"]["type"] == "BPE":
            return "bpe" if how.get("use_regex") or content["model"]["merges"] else "bytes"
        return "words" if how.get("pattern") == {"Regex": _WORDS} else "characters"

    def encode(self, text: str) -> Tensor:
        """The symbols of a text: int64 [N]. For a megabyte some 10 ms of characters, half a second of byte pairs."""
        encoded(text)
        parts = [part.astype(np.int64) for part in self.arrays([text])]
        return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *parts]))

    def arrays(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        """The symbols of a text of any size, in unsigned integers. How the text is cut makes no difference."""
        if self.kind == "bytes":
            yield from (np.frombuffer(piece.encode(), dtype=np.uint8) for piece in pieces)
        elif self.kind == "characters":
            for piece in pieces:
                yield self._numbers[np.frombuffer(piece.encode("utf-32-le"), dtype=np.uint32)]
        else:
            for group in _groups(_cut(pieces)):
                for encoding in self.backend.encode_batch_fast(group, add_special_tokens=False):
                    yield np.array(encoding.ids, dtype=np.uint32)

    @staticmethod
    def parts(pieces: Iterable[str]) -> Iterator[str]:
        """A text in parts of some thousand characters, whose symbols one after another are those of the text."""
        return _cut(pieces)

    def spans(self, part: str) -> tuple[Tensor, list[tuple[int, int]]]:
        """The symbols of a text, int64 [N], and the characters that each stands for, all or part: (first, last + 1)."""
        if self.kind in ("words", "bpe"):
            encoded(part)
            encoding = self.backend.encode(part, add_special_tokens=False)
            return torch.tensor(encoding.ids, dtype=torch.int64), encoding.offsets
        numbers = self.encode(part)
        if self.kind == "characters":
            return numbers, [(k, k + 1) for k in range(len(part))]
        return numbers, [(k, k + 1) for k, letter in enumerate(part) for _ in letter.encode()]

    @cached_property
    def symbols(self) -> list[str]:
        """What each symbol stands for, by number; bytes that are no character by themselves are written as \\xe2."""
        if self.unknown is None:
            return [raw.decode("utf-8", "backslashreplace") for raw in self.raw]
        return sorted(vocabulary := self.backend.get_vocab(), key=vocabulary.__getitem__)

    @cached_property
    def _numbers(self) -> np.ndarray:
        """The number of each code point's symbol: what the backend finds for characters, many times as fast."""
        numbers = np.full(0x110000, self.unknown, dtype=np.uint32)
        for token, number in self.backend.get_vocab().items():
            if token != UNKNOWN:
                numbers[ord(token)] = number
        return numbers

    @cached_property
    def raw(self) -> list[builtins.bytes]:
        """The bytes of each symbol, of bytes and byte pairs, which have no symbol for what is unknown."""
        letters = _byte_letters()
        ordered = sorted(self.backend.get_vocab().items(), key=lambda pair: pair[1])
        return [builtins.bytes(letters[letter] for letter in token) for token, _ in ordered]

    @cached_property
    def merges(self) -> list[str]:
        """Of byte pairs, what is merged, the earliest learnt first: two pieces and a space between them, in the letters
        that stand for bytes; of other kinds nothing."""
        pairs = json.loads(self.backend.to_str())["model"].get("merges", [])
        return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]

    def first(self, text: str) -> tuple[int, int]:
        """(characters, bytes) of a text up to the end of its first symbol, which nothing predicts.

        Characters that the symbol only begins do not count.
        """
        if not text:
            return 0, 0
        if self.unknown is None:
            raw = self.raw[int(next(self.arrays([text]))[0])]
            return len(raw.decode("utf-8", "ignore")), len(raw)
        offsets = self.backend.encode(text, add_special_tokens=False).offsets
        length = offsets[0][1] if offsets else 0
        return length, len(text[:length].encode())

    def decode(self, tokens: Tensor | Iterable[int]) -> str:
        """The text of symbols: the inverse of `encode`, but `<unk>` stays what it is, and words are one space apart."""
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        text = self.backend.decode(numbers, skip_special_tokens=False)
        return _NEWLINE.sub("\n", text) if self.kind == "words" else text

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of symbols as they come, in pieces that join to what `decode` gives; the bytes of a character are
        held back until it is whole."""
        if self.unknown is None:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            for token in tokens:
                if piece := decoder.decode(self.raw[token]):
                    yield piece
            if rest := decoder.decode(b"", final=True):
                yield rest
            return
        kept: list[int] = []  # what comes next is decoded behind the last symbol
        for token in tokens:
            told = self.decode(kept)
            kept = [*kept, int(token)]
            yield self.decode(kept)[len(told) :]
            kept = kept[-1:]


def _backend(kind: str, vocabulary: dict[str, int] | None = None) -> tokenizers.Tokenizer:
    """A tokenizer of that kind before it has learnt anything; with a vocabulary for characters."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    if kind in ("bytes", "bpe"):
        backend = Backend(models.BPE(_byte_letters(), []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bpe")
        backend.decoder = decoders.ByteLevel()
        return backend
    backend = Backend(models.WordLevel(vocabulary or {UNKNOWN: 0}, unk_token=UNKNOWN))
    if kind == "words":
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
        backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    else:
        # `.` would leave newlines out.
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(_ANY), behavior="isolated")
        backend.decoder = decoders.Fuse()  # without a decoder, symbols are joined by spaces
    return backend


def _rules(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """Everything of a tokenizer but its vocabulary, as JSON values."""
    content = json.loads(backend.to_str())
    model = {f"model's {name}": value for name, value in content.pop("model").items()}
    left_out = ("version", "added_tokens", "model's vocab", "model's merges")
    return {name: value for name, value in (content | model).items() if name not in left_out}


def _check(content: dict[str, Any]) -> None:
    """Raise ValueError for what a backend would crash on, or need more memory for than the file's size tells."""
    vocabulary = content["model"]["vocab"]
    if sorted(vocabulary.values()) != list(range(len(vocabulary))) or not vocabulary:
        raise ValueError("its symbols are not numbered 0, 1, 2, …")
    for name in ("truncation", "padding"):
        if content.get(name) is not None:
            raise ValueError(f"it has a {name}")
    for added in content.get("added_tokens") or ():
        if added["content"] != UNKNOWN or added["id"] != vocabulary.get(UNKNOWN):
            raise ValueError(f"it has symbols besides its vocabulary: {added['content'][:60]!r}")


_NEWLINE = re.compile(r" ?\n ?")


def _cut(pieces: Iterable[str]) -> Iterator[str]:
    """A text in parts of about `_PIECE` characters, whose symbols one after another are those of the text.

    A stretch of `_LONGEST` characters without a place to cut is cut all the same, and a symbol there may become two.
    Where the cuts are depends on the text alone, not on the pieces that come in.
    """
    held = ""
    for piece in pieces:
        held += piece
        start = 0
        while len(held) > start + _PIECE:
            match, last = _CUT.search(held, start + _PIECE), start + _LONGEST
            if match is not None and match.start() <= last:
                end = match.start()
            elif len(held) > last:
                end = last
            else:
                break
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def _groups(pieces: Iterable[str]) -> Iterator[list[str]]:
    """Pieces in groups of some `_GROUP` characters together."""
    group, size = [], 0
    for piece in pieces:
        group.append(piece)
        size += len(piece)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _learnt_from(text: Text | str) -> Iterator[str]:
    """All of a text, of a long one parts taken evenly from all over, so that memory is bounded."""
    text = Text.of(text) if isinstance(text, str) else text
    if text.characters <= _SAMPLE:
        yield from _cut(text.pieces())
        return
    for place in range(_PLACES):
        start = place * text.characters // _PLACES
        yield from _cut(text.cut(start, start + _SAMPLE // _PLACES).pieces())


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level tokenizer -> the byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {letters[byte]: byte for byte in range(256)}
