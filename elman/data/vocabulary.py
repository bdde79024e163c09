"""Text -> a tokenizer of Hugging Face's: which symbols there are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from elman.data.pieces import PIECE, cut_safely

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

UNKNOWN = "<unk>"
CHARACTER = r"[\s\S]"  # `.` would leave newlines out
# A word with the space before it, a mark with the space before it, any other white space. Every character of any text is
# in one of them, so putting words together again gives back the text.
WORD = r" ?\w+(?:['’-]\w+)*| ?[^\w\s]|\s"

_LONGEST = 64  # characters: what is longer is data, not a word
_DISTINCT = 1_000_000  # words that are counted at a time, some 200 MB


def characters(pieces: Iterable[str], size: int | None) -> Backend:
    """The characters of a text in the order of their code points; with `size`, as many of the most frequent."""
    counts = np.zeros(0x110000, dtype=np.int64)
    for piece in pieces:
        found = np.bincount(np.frombuffer(piece.encode("utf-32-le"), dtype=np.uint32))
        counts[: len(found)] += found
    seen = np.flatnonzero(counts)
    if size is not None and len(seen) >= size:
        seen = np.sort(seen[np.argsort(-counts[seen], kind="stable")[: size - 1]])
    return _word_level([chr(code) for code in seen], CHARACTER, [])


def words(pieces: Iterable[str], size: int) -> Backend:
    """The most frequent words and marks of a text, `size` symbols with `<unk>`.

    When more than a million different words have come up, the rarest so far are forgotten, so the counts of words at
    the edge of the vocabulary are approximate for texts of gigabytes.
    """
    counts: Counter[str] = Counter()
    rare, word = 1, re.compile(WORD)
    for piece in cut_safely(pieces, 2**20):
        counts.update(word.findall(piece))
        while len(counts) > _DISTINCT:
            counts = Counter({w: n for w, n in counts.items() if n > rare and len(w) <= _LONGEST})
            rare += 1
    known = sorted((w for w in counts if len(w) <= _LONGEST), key=lambda w: (-counts[w], w))
    # Where a word was not known, no space stands before it.
    return _word_level(known[: size - 1], WORD, [(UNKNOWN, f" {UNKNOWN}")])


def _word_level(symbols: list[str], pattern: str, replaced: list[tuple[str, str]]) -> Backend:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    numbers = {symbol: number for number, symbol in enumerate([UNKNOWN, *symbols])}
    backend = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    fuse = decoders.Fuse()  # without a decoder, symbols are joined by spaces
    backend.decoder = (
        decoders.Sequence([*(decoders.Replace(*pair) for pair in replaced), fuse]) if replaced else fuse
    )
    return backend


def byte_symbols() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary -> the byte.

    Visible Latin-1 characters stand for themselves, the others for what follows from 256 on, as in GPT-2.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in set(visible)]
    pairs = {chr(byte): byte for byte in visible} | {chr(256 + k): byte for k, byte in enumerate(other)}
    return dict(sorted(pairs.items(), key=lambda pair: pair[1]))


def bytes_() -> Backend:
    """The 256 bytes, each by its own number: BPE without merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.BPE(byte_symbols(), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def bpe(pieces: Iterable[str], size: int) -> Backend:
    """Byte-level BPE: the 256 bytes, and the pairs that are merged most often until there are `size` symbols."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=list(byte_symbols()), show_progress=False, max_token_length=_LONGEST
    )
    backend.train_from_iterator(cut_safely(pieces, PIECE), trainer)
    return backend
