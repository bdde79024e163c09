"""Tagging on the command line and on real sentences."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from elman import explain
from elman.app.options import command
from elman.data.tagged import read_tagged
from elman.models import Tagger
from elman.tasks import task_of
from tests.sentences import CONLLU, REAL, real, toy
from tests.strangers import elman
from tests.typed import expect_answers


def two_columns(folder: Path, words: list[list[str]], tags: list[list[str]], name: str = "train.txt") -> Path:
    path = folder / name
    pairs = (
        "".join(f"{w}\t{t}\n" for w, t in zip(*one, strict=True)) for one in zip(words, tags, strict=True)
    )
    path.write_text("\n".join(pairs))
    return path


@pytest.mark.parametrize("name", ["--one-direction", "--one-way"])
def test_one_direction_is_called_as_it_is_elsewhere_and_its_old_name_is_taken(name: str) -> None:
    made: dict[str, Any] = {}
    own = command("tag", {"own": task_of("tag").Settings}, made.update, "")
    own.main(["train.conllu", name], standalone_mode=False)
    assert made["own"].model["both"] is False
    shown = [parameter.opts for parameter in own.params if not getattr(parameter, "hidden", False)]
    assert ["--one-direction"] in shown
    assert ["--one-way"] not in shown


OPTIONS = (
    "--cell=elman", "--hidden=12", "--layers=1", "--embedding=8", "--spelling=6", "--dropout=0", "--lr=0.02",
    "--average=0.9",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagged")
    valid = two_columns(folder, *toy(10), "valid.txt")
    said = elman(
        "train", "tag", two_columns(folder, *toy()), "--valid", valid, *OPTIONS, "--steps", "80", "--quiet", "--out",
        folder / "run",
    )  # fmt: skip
    assert said.status == 0, said.err
    assert "accuracy 100.0 %, 34 of 34 words" in said.out
    return folder / "run"


def test_a_run_is_evaluated_on_what_was_held_out_or_on_files(run: Path, tmp_path: Path) -> None:
    said = elman("evaluate", run)
    assert said.status == 0, said.err
    first, second, third = said.out.splitlines()
    assert first == "accuracy 100.0 %, 34 of 34 words"
    assert second.startswith("  words seen in training 100.0 %; by each word's commonest tag ")
    assert third.startswith("  F1: ")
    words, tags = toy(2)
    tags[1][2] = "ODD"
    said = elman("evaluate", run, two_columns(tmp_path, words, tags))
    assert said.status == 2
    assert "a tag that was not there in training" in said.err
    assert f"{tmp_path / 'train.txt'}:8" in said.err
    assert "%" not in said.out + said.err


def test_held_out_sentences_that_were_changed_are_not_taken_for_the_same(run: Path) -> None:
    valid = run.parent / "valid.txt"
    kept = valid.read_text()
    valid.write_text(kept.replace("looks", "lurks"))
    assert "are others now" in elman("evaluate", run).err
    valid.write_text(kept)


def test_a_line_is_tagged_before_the_next_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"it walks\n", b"\n", b"the runs"]
    assert expect_answers(run, lines, monkeypatch) == ["PRON VERB", "", "DET NOUN"]


def test_plain_lines_conllu_and_json_are_tagged(run: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the walks\n\nit jumps\n")
    assert elman("predict", run, text).out == "DET NOUN\n\nPRON VERB\n"
    rows = CONLLU.replace("Do\t", "it\t").replace("n't\tnot", "walks\tnot")
    (tmp_path / "a.conllu").write_text(rows)
    wanted = rows.replace("do\tAUX", "do\tPRON").replace("not\tPART", "not\tVERB")
    found = elman("predict", run, tmp_path / "a.conllu").out
    assert found.splitlines()[:5] == wanted.splitlines()[:5]
    assert len(found.splitlines()) == len(rows.splitlines())
    (tmp_path / "a.jsonl").write_text('{"words": ["the", "walks"]}\n')
    assert json.loads(elman("predict", run, tmp_path / "a.jsonl").out)["tags"] == ["DET", "NOUN"]
    assert elman("predict", run, "-", text=b"it walks\nthe runs\n").out == "PRON VERB\nDET NOUN\n"
    said = elman("predict", run, "-", text="it walks\nthe rüns\nthe rüns\n".encode())
    assert said.err.count("does not know 'ü' (U+00FC)") == len(said.err.splitlines()) == 1


def test_the_report_tells_of_each_tag(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert re.search(r"held out [\d.]+ % accuracy", page), "shares are told in per cent, as on the screen"
    assert "% accuracy</text>" in page
    for words in (
        "Each tag",
        "F1 of each tag",
        "of words seen in training",
        "by each word&#x27;s most frequent tag",
    ):
        assert words in page
    assert "it/PRON" in page


def test_columns_are_named(run: Path) -> None:
    said = elman("train", "tag", run.parent / "train.txt", "--column", "feats", "--out", run.parent / "none")
    assert "there is no such column" in said.err


@real
@pytest.mark.conformance
def test_it_learns_real_sentences() -> None:
    """A minute of one core: better than the most frequent tag of each word, on words that were not seen above all."""
    train = read_tagged([REAL / "en_ewt-ud-train.conllu"])[::6]
    dev = read_tagged([REAL / "en_ewt-ud-dev.conllu"])[::4]
    parts = [([list(one.words) for one in some], [list(one.tags) for one in some]) for some in (train, dev)]
    tagger = Tagger(hidden=48, layers=1, embedding=48, spelling=32, steps=260, dropout=0.2, average=0.98)
    found = tagger.fit(*parts[0], valid=parts[1]).evaluate(*parts[1])
    assert found.value > found.details["baseline"] + 0.03
    assert found.details["unseen"] > 0.5


def test_it_explains_itself(run: Path) -> None:
    tagger = Tagger.from_pretrained(run)
    tagger.predict([["some", "words"]])
    said = str(explain(tagger))
    assert "characters" in said
    assert "words" in said
