"""Reading, splitting, tokenizers and the windows of training, on texts that memory holds; larger ones: test_text."""

from __future__ import annotations

import ast
import functools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elman import data
from elman.data import tokenizer as tokenizing
from elman.data.strange import Strange
from elman.errors import DataError, InputError

TEXT = "To be, or not to be:\r\n\tthat is the question…\n\n  é ß 漢字 🎈 <unk> e\u0301 \x00\x1b[0m end"
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def test_the_tokenizer_gives_back_every_character() -> None:
    tokenizer = data.Tokenizer.characters(TEXT)
    tokens = tokenizer.encode(TEXT)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (len(TEXT),)
    assert tokenizer.decode(tokens) == TEXT
    assert tokenizer.size == len(set(TEXT)) + 1


@given(anything)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = data.Tokenizer.characters(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_long_text_is_encoded_as_its_characters_in_order() -> None:
    text = "".join(random.choices("abcdé\n", k=2 * tokenizing._GROUP + 5))
    tokenizer = data.Tokenizer.characters(text)
    number = {char: k + 1 for k, char in enumerate(sorted(set(text)))}
    assert tokenizer.encode(text).tolist() == [number[char] for char in text]


class Listening:
    """A tokenizer's backend that keeps the texts it is given."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.given = backend, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def encode(self, text: str, **options: Any) -> Any:
        self.given.append(text)
        return self.backend.encode(text, **options)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.given += texts
        return self.backend.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("kind", tokenizing.KINDS)
def test_the_work_of_encoding_grows_with_the_text_alone(kind: str) -> None:
    """The backend's work grows faster than its text: it gets short parts, each once, and nothing where a table does."""
    text = data.built_in_text()[:150_000]
    tokenizer = data.Tokenizer.of(kind, text[:10_000])
    tokenizer.backend = listening = Listening(tokenizer.backend)
    tokenizer.encode(text)
    if kind in ("characters", "bytes"):
        assert listening.given == []
    else:
        assert "".join(listening.given) == text
        assert max(map(len, listening.given)) < 2 * tokenizing._PIECE


def test_a_character_that_was_not_seen_is_unknown() -> None:
    tokenizer = data.Tokenizer.characters("abc")
    assert tokenizer.encode("axb").tolist() == [1, tokenizer.unknown, 2]
    assert tokenizer.decode([1, tokenizer.unknown, 2]) == "a<unk>b"


def test_the_tokenizer_is_saved_as_json_and_read_by_the_library_itself(tmp_path: Path) -> None:
    import tokenizers

    first = data.Tokenizer.characters(TEXT)
    (tmp_path / "tokenizer.json").write_text(first.to_json(), "utf-8")
    again = data.Tokenizer.from_json((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert torch.equal(again.encode(TEXT), first.encode(TEXT))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.decode(theirs.encode(TEXT).ids) == TEXT


def test_half_a_character_is_refused() -> None:
    with pytest.raises(DataError, match="surrogate"):
        data.Tokenizer.characters("abc").encode("a\ud800")


def test_text_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert data.read_text(path) == TEXT


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "the text is empty"),
        (b"line one\nline \xff two", r"byte offset 14 \(line 2\)"),
        (b"cut short \xe2\x82", "byte offset 10 "),
        ("grüße".encode("latin1"), "iconv"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        data.read_text(path)
    assert str(path) in str(caught.value)
    assert caught.value.mend


def test_the_last_tenth_is_held_out(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("a" * 60)
    two.write_text("b" * 40)
    corpus = data.read_corpus([one, two])
    assert str(corpus.train) == "a" * 60 + "b" * 30
    assert str(corpus.held_out) == "b" * 10


def test_a_text_of_its_own_is_held_out(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("a" * 60)
    two.write_text("b" * 40)
    corpus = data.read_corpus([one], two)
    assert (str(corpus.train), str(corpus.held_out)) == ("a" * 60, "b" * 40)


@pytest.mark.parametrize("length", [1, 5])
def test_a_text_too_short_to_split_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "text.txt"
    path.write_text("x" * length)
    with pytest.raises(DataError, match="too short") as caught:
        data.read_corpus([path])
    assert str(path) in str(caught.value)


def test_a_corpus_is_found_again_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("0123456789" * 4)
    corpus = data.read_corpus([path])
    assert str(data.reread_held_out(corpus.source)) == str(corpus.held_out)
    path.write_text("0123456789" * 4 + "!")
    with pytest.raises(DataError, match="not the one of the training run"):
        data.reread_held_out(corpus.source)


def test_the_built_in_text_is_the_manual() -> None:
    text = data.built_in_text()
    assert len(text) > 300_000
    assert "lambda" in text
    assert data.read_corpus().source["files"] == []


def test_windows_follow_the_lanes_and_targets_are_one_ahead() -> None:
    tokens = torch.arange(103)
    stream = data.windows(tokens, window=7, batch=4)
    lanes = tokens[:100].view(4, 25)
    for k in range(3):
        item = next(stream)
        x, y = item.values
        assert torch.equal(x, lanes[:, 7 * k : 7 * (k + 1)].T)
        assert torch.equal(y, x + 1)
        assert item.fresh == (k == 0)
    assert next(stream).fresh  # the lanes hold 25 steps: three windows, then they are cut anew


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 60), st.integers(0, 3))
def test_windows_are_contiguous_until_they_begin_afresh(
    window: int, batch: int, more: int, seed: int
) -> None:
    tokens = torch.arange(window * batch + 1 + more)
    stream = data.windows(tokens, window, batch, seed)
    before = None
    for _ in range(30):
        item = next(stream)
        x, y = item.values
        assert x.shape == y.shape == (window, batch)
        assert torch.equal(y, x + 1)
        assert torch.equal(x[1:], x[:-1] + 1)
        assert item.fresh or torch.equal(x[0], before)
        before = y[-1]


def test_lanes_that_hold_whole_windows_are_read_to_their_end() -> None:
    stream = data.windows(torch.arange(4 * 21 + 1), window=7, batch=4)
    assert [next(stream).fresh for _ in range(4)] == [True, False, False, True]


def test_no_symbol_is_always_left_over() -> None:
    tokens = torch.arange(2 * 10 + 9)
    stream = data.windows(tokens, window=10, batch=2)
    seen = {int(symbol) for _ in range(400) for symbol in next(stream).values[0].flatten()}
    assert seen == set(range(len(tokens) - 1))


def test_windows_are_the_same_for_the_same_seed() -> None:
    tokens = torch.randint(9, (500,))
    one, two = (data.windows(tokens, 7, 4, seed=3) for _ in range(2))
    assert all(torch.equal(next(one).values[0], next(two).values[0]) for _ in range(100))


def test_what_is_not_known_is_noted_once_and_no_more_than_a_few() -> None:
    said: list[str] = []
    strange = Strange({"a", "b"}, said.append)
    for symbols in ("ab", "azb", "za", "", "yzx", "0123456789", "ABC", ["word", "a"]):
        strange.look(symbols)
    assert said[0] == "the model does not know 'z' (U+007A): read as <unk>."
    assert [line.count("U+") for line in said] == [1, 2, 5]
    assert said[-1].endswith("'4' (U+0034), …: read as <unk>.")


@pytest.mark.parametrize(
    ("length", "window", "batch", "complaint"),
    [(28, 7, 4, "too short"), (29, 0, 4, "window"), (29, 7, 0, "batch")],
)
def test_windows_that_cannot_be_are_refused(length: int, window: int, batch: int, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        data.windows(torch.arange(length), window, batch)


def test_tokenizers_is_imported_only_when_it_is_needed() -> None:
    """Inside functions alone: an import elsewhere would be carried out with the first one of elman.data."""

    def outside(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if not typing and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield child
                yield from outside(child)

    texts = {path: path.read_text("utf-8") for path in Path(tokenizing.__file__).parent.parent.rglob("*.py")}
    texts = {path: text for path, text in texts.items() if re.search(r"(import|from) tokenizers", text)}
    assert Path(tokenizing.__file__) in texts
    for path, text in texts.items():
        imports = [
            node for node in outside(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        assert [one for one in map(ast.unparse, imports) if one.split()[1].startswith("tokenizers")] == [], (
            path
        )


# --- bytes, words, byte pairs -----------------------------------------------------------------------------------------

PROSE = "The cat sat. The dog, 12 years old, didn't!\n\n  Ça va? \u20ac5 \U0001f600 done\n" * 400


@given(anything)
def test_bytes_and_byte_pairs_give_back_any_text(text: str) -> None:
    for tokenizer in (data.Tokenizer.bytes(), _byte_pairs()):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert "".join(tokenizer.stream(tokens.tolist())) == text
    assert data.Tokenizer.bytes().encode(text).tolist() == list(text.encode())


@functools.cache
def _byte_pairs() -> data.Tokenizer:
    return data.Tokenizer.bpe(PROSE, 400)


@pytest.mark.parametrize("kind", data.KINDS)
def test_cutting_a_text_into_pieces_changes_no_symbol(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = data.Tokenizer.of(kind, PROSE)
    whole = tokenizer.backend.encode(PROSE, add_special_tokens=False).ids
    for size in (1, 7, 64):
        monkeypatch.setattr(tokenizing, "_PIECE", size)
        assert tokenizer.encode(PROSE).tolist() == whole
    assert data.Tokenizer.from_json(tokenizer.to_json()).kind == kind


def test_words_are_the_most_frequent_ones_and_read_well() -> None:
    tokenizer = data.Tokenizer.words("the cat sat, the cat ran.\nthe end. the, the.", 6)
    assert tokenizer.size == 6
    assert tokenizer.decode(tokenizer.encode("the cat,\nthe dog.")) == "the cat,\nthe <unk>."
    assert tokenizer.unknown == 0
    tokens = tokenizer.encode("the cat, the cat.\nthe").tolist()
    assert "".join(tokenizer.stream(tokens)) == tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("kind", "vocabulary", "complaint"),
    [
        ("letters", None, "no such tokenizer"),
        ("bytes", 300, "is what it is"),
        ("bpe", 256, "at least 257"),
        ("words", 1, "at least 2"),
    ],
)
def test_tokenizers_that_cannot_be_are_refused(kind: str, vocabulary: int | None, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        data.Tokenizer.of(kind, "some text", vocabulary)


# --- symbols of long texts, and symbols as they come ------------------------------------------------------------------


def test_a_stretch_without_a_place_to_cut_is_cut_where_the_text_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_PIECE", 5)
    monkeypatch.setattr(tokenizing, "_LONGEST", 20)
    text = "x" * 50 + " y" + "z" * 33
    whole = [*tokenizing._cut([text])]
    assert "".join(whole) == text
    assert max(map(len, whole)) == 20
    for size in (1, 3, 19, 40):
        assert [*tokenizing._cut([text[k : k + size] for k in range(0, len(text), size)])] == whole


@given(st.lists(st.integers(0, 299), max_size=12))
def test_a_stream_of_any_symbols_is_their_text(numbers: list[int]) -> None:
    for one in (data.Tokenizer.bytes(), _byte_pairs()):
        tokens = [number % one.size for number in numbers]
        assert "".join(one.stream(tokens)) == one.decode(tokens)


@pytest.mark.parametrize("raw", [b"\xe2", b"\xe2" * 9 + b"\x82\xac", b"\x80" * 9, "\ufffd".encode()])
def test_a_stream_holds_back_half_a_character_and_no_more(raw: bytes) -> None:
    assert "".join(data.Tokenizer.bytes().stream(raw)) == raw.decode("utf-8", "replace")


@given(anything)
def test_a_stream_gives_each_character_with_its_last_byte(text: str) -> None:
    tokenizer, sent = data.Tokenizer.bytes(), 0

    def bytes_of() -> Iterator[int]:
        nonlocal sent
        for byte in text.encode():
            sent += 1
            yield byte

    told = ""
    for piece in tokenizer.stream(bytes_of()):
        told += piece
        assert len(piece) == 1
        assert len(told.encode()) == sent
    assert told == text


def test_what_is_worked_on_at_once_is_bounded_however_long_its_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizing, "_GROUP", 100)
    pieces = ["a" * size for size in (3, 99, 250, 1, 40, 40, 40, 7)]
    groups = [*tokenizing._groups(pieces)]
    assert [len(group) for group in groups] == [2, 1, 4, 1]
    assert [piece for group in groups for piece in group] == pieces


def test_a_long_text_is_learnt_from_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_SAMPLE", 640)
    text = "".join(f"word{k} " for k in range(10_000))
    sample = "".join(tokenizing._learnt_from(text))
    assert len(sample) == 640
    assert sample[:9] == text[:9]
    assert sample[-8:] in text[len(text) * 62 // 64 :]
