"""Surprisal against a loop over the model by hand: sums, windows, words and their ends, what is nan."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from elman.data import Tokenizer
from elman.errors import DataError, ElmanError, InputError
from elman.models import LanguageModel, evaluate
from elman.models.surprisal import Symbol, Word, each_line, surprisal

LEARNT = "The cat — sat on the mat.\n\nA rat, a hat; the €5 cat  sat.\n" * 8
TEXT = "The rat — sat\u00a0on\n\n  the €7 mat, QED.\tA cat"
WORDS = ["The", "rat", "—", "sat", "on", "the", "€7", "mat,", "QED.", "A", "cat"]
KINDS = {"characters": None, "bytes": None, "words": 12, "bpe": 290}


def made(kind: str) -> tuple[LanguageModel, Tokenizer]:
    torch.manual_seed(3)
    tokenizer = Tokenizer.of(kind, LEARNT, KINDS[kind])
    model = LanguageModel(tokenizer.size, "gru", hidden=7, embedding=5, layers=2).double()
    torch.nn.init.normal_(model.readout.weight)
    return model, tokenizer


def by_hand(model: LanguageModel, given: torch.Tensor) -> Iterator[torch.Tensor]:
    """log2 p of every symbol after each of those given, one step at a time."""
    state = None
    for x in given:
        o, state = model.step(x[None], state)
        yield torch.log_softmax(o[0], -1).detach() / math.log(2)


@pytest.mark.parametrize("kind", KINDS)
def test_each_symbol_is_that_of_the_model(kind: str) -> None:
    model, tokenizer = made(kind)
    found = model.score(TEXT, tokenizer=tokenizer)
    context, symbols = tokenizer.encode("\n"), tokenizer.encode(TEXT)
    known = torch.cat([context, symbols])
    bits = [-float(p[y]) for p, y in zip(by_hand(model, known[:-1]), known[1:], strict=True)]
    assert [one.surprisal for one in found.symbols] == pytest.approx(bits[len(context) - 1 :], rel=1e-9)
    assert found.bits * math.log(2) == pytest.approx(evaluate(model, known).nats, rel=1e-9)
    assert [one.unknown for one in found.symbols] == [k == tokenizer.unknown for k in symbols.tolist()]
    for one in found.symbols:
        if "\\x" not in one.symbol:
            assert TEXT.startswith(one.symbol, one.offset)
        assert one.line == TEXT.count("\n", 0, one.offset) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_is_its_characters_and_that_white_space_follows(kind: str) -> None:
    """By sums of probabilities over every symbol that could have followed."""
    model, tokenizer = made(kind)
    found = model.score(TEXT, tokenizer=tokenizer)
    assert [(one.word, one.offset) for one in found.words] == [
        (word, TEXT.index(word)) for word in WORDS[:-2]
    ] + [("A", TEXT.index("A cat")), ("cat", len(TEXT) - 3)]
    assert [one.line for one in found.words] == [1] * 5 + [3] * 6
    known = torch.cat([tokenizer.encode("\n"), tokenizer.encode(TEXT)])
    log2 = list(by_hand(model, known[:-1]))
    symbols, spans = tokenizer.spans(TEXT)
    blank = [k for k, name in enumerate(tokenizer.symbols) if name[0] in " \t\n\v\f\r\u00a0"]
    for word, one in zip(WORDS, found.words, strict=True):
        start, stop = one.offset, one.offset + len(word)
        bits = end = 0.0
        followed = False
        for p, y, (a, b) in zip(log2, symbols.tolist(), spans, strict=True):
            if kind == "words":
                bits -= float(p[y]) if start <= a < stop else 0.0
                continue
            follows = -float(p[blank].exp2().sum().log2()) if y in blank else -float(p[y])
            if a <= stop < b:  # what stands behind it, or a byte of that
                end, followed = end + follows, True
            if start <= a < stop:
                bits -= float(p[y])
            elif a < start < b:  # its first symbol begins with a blank
                bits -= float(p[y]) + follows
        assert one.surprisal == pytest.approx(bits + end, rel=1e-9)
        assert one.end == pytest.approx(end) if followed else math.isnan(one.end)
    unknown = {"characters": ["rat", "€7", "QED."][1:], "words": None}.get(kind, [])
    if unknown is not None:
        assert [one.word for one in found.words if one.unknown] == unknown
    else:
        assert {"QED.", "sat"} & {one.word for one in found.words if one.unknown} == {"QED."}


@pytest.mark.parametrize("kind", KINDS)
def test_figures_do_not_depend_on_windows_or_parts(kind: str) -> None:
    model, tokenizer = made(kind)
    text = (TEXT + "\n") * 8
    whole = list(surprisal(model, tokenizer, [text], window=10_000))
    for parts, window in ((tokenizer.parts([text]), 7), (each_line([text[:99], text[99:]]), 100)):
        if kind == "bpe" and window == 100:
            continue  # two new lines are one symbol there, and lines have one each
        found = list(surprisal(model, tokenizer, parts, window=window))
        assert [one[:3] for one in found] == [one[:3] for one in whole]
        for one, other in zip(found, whole, strict=True):
            assert one[3:] == pytest.approx(other[3:], rel=1e-9, nan_ok=True)


def test_without_anything_before_the_first_symbol_is_only_read() -> None:
    model, tokenizer = made("characters")
    found = model.score("cat sat", tokenizer=tokenizer, begin="")
    assert math.isnan(found.symbols[0].surprisal)
    assert math.isnan(found.words[0].surprisal)
    assert found.bits == pytest.approx(evaluate(model, tokenizer.encode("cat sat")).bits_per_symbol * 6)
    assert model.score("", tokenizer=tokenizer).words == []


def test_lines_are_texts_of_their_own() -> None:
    model, tokenizer = made("characters")
    found = model.score("the cat\nthe cat\nsat", tokenizer=tokenizer, anew=True)
    assert found.words[0][2:] == found.words[2][2:]
    assert [(one.line, one.offset) for one in found.words] == [(1, 0), (1, 4), (2, 8), (2, 12), (3, 16)]
    assert found.words[4][2:] == model.score("sat", tokenizer=tokenizer).words[0][2:]
    assert model.score("the cat\nthe cat", tokenizer=tokenizer).words[2][2:] != found.words[2][2:]


def test_a_word_comes_as_soon_as_its_line_is_read() -> None:
    model, tokenizer = made("bpe")
    given: list[str] = []

    def typed() -> Iterator[str]:
        for line in ("the cat\n", "sat\n"):
            given.append(line)
            yield line

    words = (one.word for one in surprisal(model, tokenizer, typed()) if isinstance(one, Word))
    assert [next(words), next(words), len(given), next(words), len(given)] == ["the", "cat", 1, "sat", 2]


def test_what_cannot_be_scored_is_refused() -> None:
    model, tokenizer = made("characters")
    with pytest.raises(InputError, match="tokenizer"):
        model.score("cat")
    with pytest.raises(DataError, match="half a character"):
        model.score("cat \ud800", tokenizer=tokenizer)
    with pytest.raises(ElmanError, match="a text is scored"):
        model.score(["cat"], tokenizer=tokenizer)  # type: ignore[arg-type]


def test_a_table_is_a_line_of_python() -> None:
    pandas = pytest.importorskip("pandas")
    model, tokenizer = made("words")
    table = pandas.DataFrame(model.score("the cat\nsat", tokenizer=tokenizer).words)
    assert list(table.columns) == list(Word._fields)
    assert list(table.word) == ["the", "cat", "sat"]
    assert table.surprisal.dtype == float
    assert Symbol._fields[:2] == Word._fields[:2]
