"""Text -> symbols and back, through Hugging Face `tokenizers`."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from elman.data import vocabulary as make
from elman.data.pieces import cut_safely
from elman.data.text import Text, encoded
from elman.data.vocabulary import CHARACTER, UNKNOWN, byte_symbols
from elman.errors import DataError, InputError

if TYPE_CHECKING:
    import tokenizers

KINDS = ("characters", "bytes", "words", "bpe")

_DEFAULT = {"words": 10_000, "bpe": 4096}  # symbols
_SMALLEST = {"characters": 2, "words": 2, "bpe": 257}
_GROUP = 16  # pieces at a time keep all cores busy, and memory bounded
_SAMPLE, _PLACES = 2**25, 64  # characters of a long text that BPE learns from, taken from so many places


class Tokenizer:
    """Text to symbols and back, through Hugging Face `tokenizers`: `tokenizer.json` is read everywhere.

        tokenizer = Tokenizer.characters(text)      # one symbol for each character of the text, and <unk>
        tokens = tokenizer.encode(text)             # int64 [N]
        assert tokenizer.decode(tokens) == text     # exact

    Four kinds, which `kind` names:

        characters   those of the text; another one becomes `<unk>`, number 0
        bytes        the 256 of UTF-8, each by its number: any text, exact
        words        the most frequent words and marks, with the space before them; another one becomes `<unk>`
        bpe          bytes, merged to what occurs often (byte-level, as GPT-2): any text, exact
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend
        self.kind = _kind(json.loads(backend.to_str()))
        alphabet = byte_symbols()
        ordered = sorted(backend.get_vocab().items(), key=lambda item: item[1])
        if self.kind in ("bytes", "bpe"):
            self._bytes = [bytes(alphabet[char] for char in token) for token, _ in ordered]
        else:
            self._bytes = [token.encode() for token, _ in ordered]
        if self.kind == "words":
            self._bytes[0] = f" {UNKNOWN}".encode()
        if self.kind == "characters":
            self._numbers = np.zeros(0x110000, dtype=np.uint32)
            for token, number in ordered[1:]:
                self._numbers[ord(token)] = number

    @classmethod
    def learn(cls, kind: str, text: Text, vocabulary: int | None = None) -> Tokenizer:
        """A tokenizer of a kind for a text.

        vocabulary: how many symbols at most, `<unk>` included; by default all characters, 10,000 words, 4,096 by BPE.
        BPE learns from at most 32 million characters, taken evenly from all over the text. Raises InputError.
        """
        if kind not in KINDS:
            raise InputError(
                what="there is no tokenizer of that kind", where="tokenizer", got=kind, expected=", ".join(KINDS),
                mend="take one of them",
            )  # fmt: skip
        if vocabulary is not None and (
            vocabulary != 256 if kind == "bytes" else vocabulary < _SMALLEST[kind]
        ):
            raise InputError(
                what="the vocabulary cannot be that large" if kind == "bytes" else "the vocabulary is too small",
                where="vocabulary", got=vocabulary,
                expected="256, always" if kind == "bytes" else f"at least {_SMALLEST[kind]} for {kind}",
                mend="leave it out",
            )  # fmt: skip
        size = vocabulary or _DEFAULT.get(kind)
        if kind == "bytes":
            return cls(make.bytes_())
        if kind == "characters":
            return cls(make.characters(text.pieces(), size))
        assert size is not None
        if kind == "words":
            return cls(make.words(text.pieces(), size))
        return cls(make.bpe(_sample(text), size))

    @classmethod
    def characters(cls, text: str) -> Tokenizer:
        """A tokenizer whose symbols are the characters of `text`, in the order of their code points."""
        return cls.learn("characters", Text.of(text))

    @classmethod
    def from_json(cls, text: str, where: object = None) -> Tokenizer:
        """The tokenizer of a `tokenizer.json`. Raises DataError if it is none of ours; `where` names the file."""
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
        return len(self._bytes)

    @property
    def unknown(self) -> int | None:
        """The number of the symbol for what was not in the training text; None where every text can be written."""
        return 0 if self.kind in ("characters", "words") else None

    def encode(self, text: str) -> Tensor:
        """The symbols of a text: int64 [N]. 10 ms for a megabyte of characters, 0.2 to 0.4 s of words or BPE."""
        encoded(text)
        parts = [part.astype(np.int64) for part in self.arrays([text])]
        return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *parts]))

    def arrays(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        """The symbols of a text of any size, unsigned integers [some]. How it is cut into pieces makes no difference."""
        if self.kind == "bytes":
            yield from (np.frombuffer(piece.encode(), dtype=np.uint8) for piece in pieces)
        elif self.kind == "characters":
            for piece in pieces:
                yield self._numbers[np.frombuffer(piece.encode("utf-32-le"), dtype=np.uint32)]
        else:
            cut = cut_safely(pieces)
            while group := list(islice(cut, _GROUP)):
                for found in self.backend.encode_batch_fast(group, add_special_tokens=False):
                    yield np.array(found.ids, dtype=np.uint32)

    def decode(self, tokens: Tensor | Iterable[int]) -> str:
        """The text of symbols: the inverse of `encode`, except that `<unk>` stays what it is.

        Bytes that are no UTF-8 become U+FFFD; `decode_bytes` gives them as they are.
        """
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def decode_bytes(self, tokens: Tensor | Iterable[int]) -> bytes:
        """The UTF-8 of symbols."""
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        return b"".join([self._bytes[number] for number in numbers])

    def decode_stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Text as its symbols come, a piece for each, "" where a character is not whole yet; together, `decode`."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield decoder.decode(self._bytes[token])
        if rest := decoder.decode(b"", final=True):
            yield rest

    def first(self, text: str) -> tuple[int, int]:
        """(characters, bytes) that are in the first symbol of a text; characters that it only begins do not count."""
        if self.unknown is None:
            raw = self._bytes[int(next(self.arrays([text]))[0])]
            return len(raw.decode("utf-8", "ignore")), len(raw)
        length = self.backend.encode(text, add_special_tokens=False).offsets[0][1]
        return length, len(text[:length].encode())

    def strange(self, text: str) -> list[str]:
        """What in a short text has no symbol of its own, each once, in order."""
        if self.unknown is None:
            return []
        found = self.backend.encode(text, add_special_tokens=False)
        pairs = zip(found.ids, found.offsets, strict=True)
        return sorted({text[a:b].strip(" ") or " " for number, (a, b) in pairs if number == self.unknown})


def _kind(config: dict) -> str:
    """Of a tokenizer.json. Raises ValueError if we would not have written it."""
    model, before = config["model"], config["pre_tokenizer"] or {}
    if model["type"] == "BPE" and before.get("type") == "ByteLevel":
        return "bpe" if before["use_regex"] else "bytes"
    if model["type"] == "WordLevel" and before.get("type") == "Split":
        return "characters" if before["pattern"] == {"Regex": CHARACTER} else "words"
    raise ValueError(f"a {model['type']} of another kind than elman writes")


def _sample(text: Text) -> Iterator[str]:
    if text.characters <= _SAMPLE:
        yield from text.pieces()
        return
    for place in range(_PLACES):
        start = place * text.characters // _PLACES
        yield from text.cut(start, start + _SAMPLE // _PLACES).pieces()
