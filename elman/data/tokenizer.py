"""Text -> symbols and back, through Hugging Face `tokenizers`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elman.errors import DataError, InputError

if TYPE_CHECKING:
    import tokenizers

UNKNOWN = "<unk>"

# The tokenizer keeps some 200 bytes for every character that it is working on: pieces keep both cores busy, a
# group of pieces bounds the memory.
_PIECE, _GROUP = 4096, 64


KINDS = ("characters", "bytes", "words", "bpe")
_WORDS = r"\w+|[^\w\s]+|\n"
# A place where words and byte pairs may be cut apart: before a space or newline alone between two characters that are
# none. Every pattern that makes tokens of words begins anew there, whatever stands further left.
_CUT = re.compile(r"(?<=\S)\s(?=\S)")


class Tokenizer:
    """Text to symbols and back, through Hugging Face `tokenizers`: `tokenizer.json` is read everywhere.

        tokenizer = Tokenizer.characters(text)      # one symbol for each character of the text, and <unk>
        tokens = tokenizer.encode(text)             # int64 [N]
        assert tokenizer.decode(tokens) == text     # exact

    characters: a character that the text did not hold becomes the symbol `<unk>`, number 0.
    bytes: 256 symbols, exact for any text.
    words: the most frequent words, runs of punctuation, and newlines; others are `<unk>`, and white space is lost.
    bpe: byte pairs, merged as often as the vocabulary allows; exact for any text.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend

    @classmethod
    def of(cls, kind: str, text: str, vocabulary: int | None = None) -> Tokenizer:
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
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers

        backend = Backend(models.BPE(_byte_letters(), []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        return cls(backend)

    @classmethod
    def bpe(cls, text: str, vocabulary: int) -> Tokenizer:
        """Byte pairs, merged within words (GPT-2's pattern).

        Source: Sennrich et al., Neural machine translation of rare words with subword units, 2016.
        """
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers

        backend = Backend(models.BPE(_byte_letters(), []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, initial_alphabet=list(_byte_letters()), show_progress=False
        )
        backend.train_from_iterator(_pieces(text, whole=False), trainer)
        return cls(backend)

    @classmethod
    def words(cls, text: str, vocabulary: int) -> Tokenizer:
        """The most frequent words, runs of punctuation, and newlines."""
        from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Backend

        backend = Backend(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
        backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocabulary, special_tokens=[UNKNOWN], show_progress=False
        )
        backend.train_from_iterator(_pieces(text, whole=False), trainer)
        return cls(backend)

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
    def unknown(self) -> int | None:
        """The number of the symbol that stands for all that the training text did not hold; None if nothing does."""
        return self.backend.token_to_id(UNKNOWN)

    @property
    def kind(self) -> str:
        """Which of KINDS it is."""
        said = json.loads(self.backend.to_str())
        if said["model"]["type"] == "BPE":
            return "bpe" if said["model"]["merges"] else "bytes"
        return "words" if said["pre_tokenizer"]["pattern"].get("Regex") == _WORDS else "characters"

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
        pieces = list(_pieces(text, whole=self.kind in ("characters", "bytes")))
        parts = [torch.empty(0, dtype=torch.int64)]
        for start in range(0, len(pieces), _GROUP):
            for piece in self.backend.encode_batch_fast(
                pieces[start : start + _GROUP], add_special_tokens=False
            ):
                parts.append(torch.tensor(piece.ids, dtype=torch.int64))
        return torch.cat(parts)

    def decode(self, tokens: Tensor | Iterable[int]) -> str:
        """The text of symbols: the inverse of `encode`, but `<unk>` stays what it is, and words are one space apart."""
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        text = self.backend.decode(numbers, skip_special_tokens=False)
        return _NEWLINE.sub("\n", text) if self.kind == "words" else text

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of symbols as they come, in pieces that join to what `decode` gives; the bytes of a character are
        held back until it is whole."""
        kept: list[int] = []  # the last symbols: what comes next is decoded behind them
        told = ""
        for token in tokens:
            kept.append(int(token))
            text = self.decode(kept)
            if text.endswith(_HALF) and len(kept) < 8:
                continue
            yield text[len(told) :]
            kept = kept[-1:]
            told = self.decode(kept)
        if len(kept) > 1:
            yield self.decode(kept)[len(told) :]


_HALF = "\ufffd"  # what stands for bytes that are no character
_NEWLINE = re.compile(r" ?\n ?")


def _pieces(text: str, whole: bool) -> Iterator[str]:
    """A text in parts of about `_PIECE` characters, whose symbols one after another are those of the text.

    whole: each character stands for itself, so that any cut is right.
    """
    start = 0
    while start < len(text):
        end = start + _PIECE
        if not whole and end < len(text):
            found = _CUT.search(text, end)
            end = found.start() if found is not None else len(text)
        yield text[start:end]
        start = end


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level tokenizer -> the byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {letters[byte]: byte for byte in range(256)}
