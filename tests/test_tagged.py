"""Sentences with tags from every kind of file, what is none told with its line, and the lexicon made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elman.data.lexicon import Forms, Lexicon
from elman.data.tagged import Sentence, conllu_row, digest, read_tagged
from elman.errors import DataError
from tests.sentences import CONLLU


def test_the_same_sentences_from_three_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_text(CONLLU)
    (tmp_path / "b.txt").write_text("\ufeffDo AUX\r\nn't\tPART\r\ngo VERB\r\n\r\n\r\nGo VERB\r\n", newline="")
    lines = [
        {"words": ["Do", "n't", "go"], "tags": ["AUX", "PART", "VERB"]},
        {"words": ["Go"], "tags": ["VERB"]},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, places in (("a.conllu", (3, 4, 6)), ("b.txt", (1, 2, 3)), ("c.jsonl", (1, 1, 1))):
        first, second = read_tagged([tmp_path / name])
        assert (first.words, first.tags) == (("Do", "n't", "go"), ("AUX", "PART", "VERB"))
        assert (second.words, second.tags) == (("Go",), ("VERB",))
        assert first.lines == places
        assert first.where(2) == f"{tmp_path / name}:{places[2]}"
    assert read_tagged([tmp_path / "a.conllu"], "xpos")[0].tags == ("VBP", "RB", "VB")
    assert read_tagged([tmp_path / "a.conllu"])[0].also[0] == ("VBP", "RB", "VB")
    assert read_tagged([tmp_path / "a.conllu"], "xpos")[0].also[0] == ("AUX", "PART", "VERB")
    assert read_tagged([tmp_path / "b.txt"])[0].also == ()
    (tmp_path / "d.conllu").write_text(CONLLU.replace("\tVBP\t", "\tVBZ\t"))
    one, other = (read_tagged([tmp_path / name]) for name in ("a.conllu", "d.conllu"))
    assert digest(one) == digest(other)
    assert digest(one, others=True) != digest(other, others=True)


@pytest.mark.parametrize(
    ("name", "content", "line", "complaint"),
    [
        ("a.conllu", CONLLU.replace("\tVERB\tVB", "\t_\tVB", 1).encode(), 6, "got: _"),
        ("a.conllu", CONLLU.encode() + b"2\tnow\n", 9, "2 columns"),
        ("a.conllu", b"one" + CONLLU.encode()[len("# text = Don't go\n1-2"):], 1, "the number of a word"),
        ("a.txt", b"the DET\ncat\n", 2, "1 columns"),
        ("a.txt", b"the DET\nc\xe4t NOUN\n", 2, "byte 0xe4 at byte 1"),
        ("a.txt", b"the DET\n" + b"x" * 1_100_000, 2, "a line is too long"),
        ("a.txt", b"the DET\n" + b"x" * 2000 + b" NOUN", 2, "2,000 characters"),
        ("a.txt", b"the DET\nx\t\n", 2, "an empty word or tag"),
        ("a.jsonl", b'{"words": ["a"], "tags": ["X"]}\n{"words": ["a"]}', 2, "no tags"),
        ("a.jsonl", b'{"words": ["a", "b"], "tags": ["X"]}', 1, "1 tags"),
        ("a.jsonl", b'{"words": "a"}', 1, "words: a list"),
        ("a.jsonl", b"[1]", 1, "an object"),
        ("a.txt", b"\n\n", None, "there are no sentences"),
    ],
)  # fmt: skip
def test_what_is_no_sentence_is_told_with_its_line(
    tmp_path: Path, name: str, content: bytes, line: int | None, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_tagged([tmp_path / name])
    assert complaint in str(caught.value)
    assert str(caught.value.where) == (f"{tmp_path / name}" if line is None else f"{tmp_path / name}:{line}")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_tagged([tmp_path / "none.conllu"])


def test_a_lexicon_knows_words_tags_and_guesses_and_comes_back_from_its_file() -> None:
    sentences = [
        Sentence(("The", "dog", "barks", "a"), ("DET", "NOUN", "VERB", "DET")),
        Sentence(("the", "barks", "barks"), ("DET", "NOUN", "NOUN"), "f", (7, 8, 9)),
    ]
    made = Lexicon.learn(sentences)
    assert made.tags == ["DET", "NOUN", "VERB"]
    assert made.words == ["barks", "the", "a", "dog"]
    assert made.frequent == 2
    assert [made.tags[made.guess(word)] for word in ("barks", "The", "cat")] == ["NOUN", "DET", "DET"]
    again = Lexicon.from_json(made.to_json(), "lexicon.json")
    assert vars(again) == vars(made)
    with pytest.raises(DataError, match="not there in training") as caught:
        Lexicon.learn(sentences[:1]).ids(Sentence(("a", "b"), ("NOUN", "ADJ"), "test.txt", (3, 4)))
    assert caught.value.where == "test.txt:4"
    for broken in (made.to_json()[:-9], made.to_json().replace(b'"frequent": 2', b'"frequent": 20'), b"{}"):
        with pytest.raises(DataError):
            Lexicon.from_json(broken, "lexicon.json")


def test_a_form_is_spelled_once_in_a_batch() -> None:
    lexicon = Lexicon.learn([Sentence(("aa", "b", "aa"), ("X", "Y", "X")), Sentence(("b",), ("Y",))])
    forms = Forms(lexicon)
    words, vectors, spelled, sizes, of = forms.batch([forms.rows(["aa", "b", "aa"]), forms.rows(["Zb"])])
    assert spelled.shape == (2, 3)
    assert sizes.tolist() == [2, 1, 2]
    assert of[:, 0].tolist() == [0, 1, 0]
    assert words.tolist() == [[1, 0], [2, 0], [1, 0]]
    assert vectors.eq(0).all()
    assert spelled[:, of[0, 1]].tolist() == [0, 2]  # Z is unknown


def test_lines_that_end_by_a_carriage_return_alone_are_no_comment() -> None:
    with pytest.raises(DataError, match="no sentence") as told:
        conllu_row("# newdoc\r1\tIt\t_\tPRON\t_\t_\t_\t_\t_\t_\r", "a.conllu:1")
    assert told.value.got == "a carriage return inside"
    assert conllu_row("# newdoc\r\n", "a.conllu:1") is None
