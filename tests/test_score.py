"""`elman score`: tables that other programs read, standard input as it comes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import select
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from elman.app import cli
from elman.models import LanguageModel, evaluate
from tests.strangers import KEPT

RUN = KEPT / "run"
TEXT = 'the cat sat, it said "on\n\nthe mat"\na cat'


def score(*arguments: object, given: str = "") -> Result:
    return CliRunner().invoke(cli.app, ["score", *map(str, arguments)], input=given)


def words(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_run_scores_a_file_as_its_model_does(tmp_path: Path) -> None:
    (path := tmp_path / "text.txt").write_text(TEXT)
    model = LanguageModel.from_pretrained(RUN)
    found, said = model.score(TEXT), words(score(RUN, path))
    assert [one["word"] for one in said] == TEXT.split()
    assert [one["surprisal"] for one in said] == [round(one.surprisal, 6) for one in found.words]
    assert said[-1]["end"] is None  # nothing stands behind it
    assert words(score(RUN, "-", given=TEXT)) == said
    symbols = words(score(RUN, path, "--each", "symbol", "--begin", ""))
    assert "".join(one["symbol"] for one in symbols) == TEXT
    assert symbols[0]["surprisal"] is None
    assert model.tokenizer is not None
    nats = evaluate(model, model.tokenizer.encode(TEXT)).nats
    assert sum(one["surprisal"] for one in symbols[1:]) * math.log(2) == pytest.approx(nats, abs=1e-4)
    anew = words(score(RUN, path, "--anew"))
    assert anew[-2]["surprisal"] == pytest.approx(model.score("a ").words[0].surprisal, abs=1e-5)


def test_a_table_has_a_header_and_quotes(tmp_path: Path) -> None:
    (path := tmp_path / "text.txt").write_text(TEXT)
    assert score(RUN, path, "--out", tmp_path / "words.csv").output == ""
    rows = table((tmp_path / "words.csv").read_text())
    assert [row["word"] for row in rows] == TEXT.split()
    assert table(score(RUN, path, "--format", "csv").stdout) == rows
    assert rows[-1]["end"] == ""
    assert {row["unknown"] for row in rows} == {"True", "False"}
    symbols = score(RUN, path, "--format", "csv", "--each", "symbol").stdout
    assert "".join(row["symbol"] for row in table(symbols)) == TEXT


@pytest.mark.parametrize("how", [(), ("--anew",)], ids=str)
def test_newlines_of_standard_input_are_read_as_those_of_a_file(how: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copytree(RUN, run := tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config.setdefault("data", {})["unix_newlines"] = True
    (run / "config.json").write_text(json.dumps(config))
    given = "the\rcat\r\nsat\n\r\na\r"
    (path := tmp_path / "text.txt").write_bytes(given.encode())
    right = words(score(run, path, "--each", "symbol", *how))
    assert words(score(run, "-", "--each", "symbol", *how, given=given)) == right
    assert "".join(one["symbol"] for one in right) == "the\ncat\nsat\n\na\n"


@pytest.mark.parametrize(
    ("arguments", "given", "said"),
    [
        ((RUN, "nowhere.txt"), b"", "cannot be read"),
        ((RUN, "-"), b"the cat\n\xff", "standard input:2"),
        ((RUN, "-"), b"a" * (2**20 + 1), "a line is too long"),
        ((RUN, "-", "--format", "xml"), b"", "--format is jsonl or csv"),
        ((RUN, "-", "--each", "letter"), b"", "--each is word or symbol"),
        ((RUN, "-", "--out", "/nowhere/words.csv"), b"", "cannot be written"),
        ((KEPT, "-"), b"", "config.json"),
    ],
)
def test_what_cannot_be_scored_is_refused(arguments: tuple, given: bytes, said: str) -> None:
    result = CliRunner().invoke(cli.app, ["score", *map(str, arguments)], input=given)
    assert said in str(result.exception), result.output
    assert said == "cannot be read" or getattr(result.exception, "mend", None)


def test_a_line_is_answered_before_the_next_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through pipes, by somebody who waits for the answer; standard output keeps back what is not flushed."""
    (ask_from, ask_to), (tell_from, tell_to) = os.pipe(), os.pipe()
    answers: list[str] = []

    def user() -> None:
        with os.fdopen(ask_to, "w") as ask, os.fdopen(tell_from, "rb", buffering=0) as tell:
            for line in ("the cat\n", "sat\n"):
                ask.write(line)
                ask.flush()
                for _ in line.split():
                    if not select.select([tell], [], [], 30)[0]:
                        return  # it is not answered, and the text ends here
                    answers.append(json.loads(tell.readline())["word"])
            ask.close()
            answers.append(tell.read().decode())

    waits = threading.Thread(target=user)
    with os.fdopen(ask_from) as given, os.fdopen(tell_to, "w") as told:
        monkeypatch.setattr(sys, "stdin", given)
        monkeypatch.setattr(sys, "stdout", told)
        monkeypatch.setattr(sys, "argv", ["elman", "score", str(RUN), "-"])
        waits.start()
        with pytest.raises(SystemExit) as left:
            cli.main()
    waits.join()
    assert left.value.code == 0
    assert answers == ["the", "cat", "sat", ""]
