"""How surprising a text is to a language model: -log2 p of each symbol and of each word, in bits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elman.data import Tokenizer
from elman.models.evaluating import evaluating

_WINDOW = 256  # steps per call
_SPACE = re.compile(
    r"[^\S\x1c-\x1f]+"
)  # Python takes some control characters for white space that tokenizers do not
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


class Symbol(NamedTuple):
    """line: from 1. offset: of its first character in the text, from 0. symbol: what of the text it stands for; bytes
    that are no character by themselves are written as \\xe2. surprisal: bits. unknown: the model reads it as <unk>."""

    line: int
    offset: int
    symbol: str
    surprisal: float
    unknown: bool


class Word(NamedTuple):
    """A stretch without white space. line, offset: of its first character, as of a symbol. surprisal: bits, `end`
    included. end: those of the fact that it ends there; nan where nothing follows, and of a model of words, which sees
    no blanks. unknown: some of it is read as <unk>, which is more probable than what stands there."""

    line: int
    offset: int
    word: str
    surprisal: float
    end: float
    unknown: bool


@dataclass(frozen=True)
class Surprisal:
    """Of a text: `pandas.DataFrame(found.words)` and `.symbols` are tables. bits: of all symbols together."""

    symbols: list[Symbol] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)

    @property
    def bits(self) -> float:
        return math.fsum(one.surprisal for one in self.symbols if not math.isnan(one.surprisal))


def surprisal(
    model: Any, tokenizer: Tokenizer, parts: Iterable[str], *, begin: str = "\n", anew: bool = False,
    context: Tensor | None = None, window: int = _WINDOW,
) -> Iterator[Symbol | Word]:  # fmt: skip
    """Symbols of a text one after another, and each word as soon as it is over; exact, with the state carried.

    parts: of the text, each turned into symbols by itself: `Tokenizer.parts` cuts where that makes no difference.
    begin: what is read before the text. "": nothing, as in `evaluate`, so that the first symbol is only read; its
    surprisal and that of its word are nan. anew: each part begins so, and nothing is remembered of the one before.
    context: [1, condition]. window: steps per call; it bounds memory and does not change the figures.

    Of a word: -log2 p(its characters, and then white space, whichever | all before). So the blank behind a word counts
    and the one before it does not, also where a symbol (of byte pairs) begins with that blank: that any such symbol
    follows is the end of the word before, which one is of the word that it begins. What else there is of white space
    (that it was a new line, a second blank) belongs to no word.

    Source: Pimentel and Meister, How to compute the probability of a word, 2024; Oh and Schuler, Leading whitespaces of
    language models' subword vocabulary pose a confound for calculating word probabilities, 2024.
    """
    reader = _Reader(model, tokenizer, begin, context, window)
    for part in parts:
        if anew:
            yield from reader.over()
            reader.forget()
        yield from reader.read(part)
    yield from reader.over()


def each_line(pieces: Iterable[str]) -> Iterator[str]:
    """The lines of a text, each with its end."""
    held = ""
    for piece in pieces:
        *whole, held = [*_LINE.findall(held + piece), ""]
        if whole and not whole[-1].endswith("\n"):
            held = whole.pop()
        yield from whole
    if held:
        yield held


class _Reader:
    """A text on its way through a model. line, offset: of what comes next."""

    def __init__(
        self, model: Any, tokenizer: Tokenizer, begin: str, context: Tensor | None, window: int
    ) -> None:
        self.model, self.tokenizer, self.context, self.window = model, tokenizer, context, window
        self.begin = tokenizer.encode(begin)
        self.blanks = tokenizer.kind != "words"  # whether it sees them
        begins = [bool(self.blanks and _SPACE.match(name)) for name in tokenizer.symbols]
        self.space = torch.tensor(begins).nonzero()[:, 0]  # symbols that begin with white space
        self.line, self.offset = 1, 0
        self.word: _Open | None = None
        self.forget()

    def forget(self) -> None:
        self.state: Any = None
        self.last = self.begin[:0]
        self._bits(self.begin)

    def read(self, part: str) -> Iterator[Symbol | Word]:
        numbers, spans = self.tokenizer.spans(part)
        names = self.tokenizer.symbols if self.tokenizer.unknown is None else None
        at = seen = 0
        for number, (start, stop), bits, end in zip(
            numbers.tolist(), spans, *self._bits(numbers), strict=True
        ):
            self.line += part.count("\n", at, start)
            text, new, unknown = (
                part[start:stop],
                part[max(start, seen) : stop],
                number == self.tokenizer.unknown,
            )
            place = self.line, self.offset + start
            yield Symbol(*place, names[number] if names else text, bits, unknown)
            if start > seen or (self.word and self.word.ending and new):
                yield from self.over()
            yield from self._met(*place, text, new, bits, end, unknown)
            at, seen = start, max(seen, stop)
        if seen < len(part) or (self.word and self.word.ending):
            yield from self.over()
        self.line, self.offset = self.line + part.count("\n", at), self.offset + len(part)

    def over(self) -> Iterator[Word]:
        """The word that is being read, if there is one: it ends here."""
        if self.word is not None:
            yield self.word.closed()
        self.word = None

    def _met(
        self, line: int, offset: int, text: str, new: str, bits: float, end: float, unknown: bool
    ) -> Iterator[Word]:
        """The words that a symbol ends. text: what it stands for, some of it; new: what no symbol before stood for.
        end: bits of the fact that such a symbol follows, of one that begins with white space."""
        space = _SPACE.match(text)
        if space is None:
            self.word = self.word or _Open(line, offset)
            self.word.add(new, bits, unknown)
            return
        part = bits if math.isnan(end) else end  # nan: a byte of a blank that has several
        if self.word is not None and self.blanks:
            self.word.end, self.word.ending = self.word.end + part, True
        if self.word is not None and not (self.word.ending and math.isnan(end)):
            yield from self.over()
        if rest := text[space.end() :]:
            self.word = _Open(line + space[0].count("\n"), offset + space.end())
            self.word.add(rest, max(bits - part, 0.0), unknown)

    def _bits(self, numbers: Tensor) -> tuple[list[float], list[float]]:
        """-log2 p of symbols; and, of those that begin with white space, that of all such together, else nan."""
        symbols = torch.cat([self.last, numbers])
        x, y, self.last = symbols[:-1], symbols[1:], symbols[-1:]
        parts = [torch.full((2, len(numbers) - len(y)), math.nan, dtype=torch.float64)]
        device = next(self.model.parameters()).device
        with evaluating(self.model), torch.no_grad():
            for t in range(0, len(y), self.window):
                given = x[t : t + self.window, None].to(device)
                logits, self.state = self.model(given, self.state, context=self.context)
                log_p, right = torch.log_softmax(logits[:, 0], -1).cpu(), y[t : t + self.window]
                end = torch.where(torch.isin(right, self.space), log_p[:, self.space].logsumexp(-1), math.nan)
                parts.append(
                    torch.stack([log_p.gather(1, right[:, None])[:, 0], end]).double() / -math.log(2)
                )
        bits, end = torch.cat(parts, 1).tolist()
        return bits, end


@dataclass
class _Open:
    """A word that is being read. ending: what comes now is at most the rest of the blank behind it."""

    line: int
    offset: int
    text: str = ""
    bits: float = 0.0
    end: float = 0.0
    unknown: bool = False
    ending: bool = False

    def add(self, text: str, bits: float, unknown: bool) -> None:
        self.text, self.bits, self.unknown = self.text + text, self.bits + bits, self.unknown or unknown

    def closed(self) -> Word:
        end = self.end if self.ending else math.nan
        return Word(self.line, self.offset, self.text, self.bits + self.end, end, self.unknown)
