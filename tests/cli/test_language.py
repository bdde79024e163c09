"""A language model from the command line: train, evaluate, generate."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from elman.app import cli
from elman.errors import ElmanError
from elman.tasks import lm
from tests.cli.commands import SMALL, TEXT, elman, trained
from tests.pairwise import with_more


def test_train_evaluate_generate(learnt: tuple[Path, Path, str]) -> None:
    run, _, told = learnt
    assert "bits per character" in told
    assert re.search(
        r"step 15 +loss \d\.\d+ nats +\d\.\d+ bits per character +held out \d\.\d+ +[\d,]+ characters/s",
        told,
    )
    names = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "log.jsonl",
        "checkpoints",
        "report.html",
        "README.md",
        ".lock",
    }
    assert {path.name for path in run.iterdir()} == names
    measured = told.splitlines()[-2:]
    assert elman("evaluate", run).output.splitlines() == measured
    *same, cold = elman("evaluate", run, "--cold", 20).output.splitlines()
    assert same == measured
    assert re.fullmatch(
        r"  [\d.]+ bits per character \([\d.]+ nats\) in blocks of 20, each from the initial state", cold
    )
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "loss" in line]
    assert [line["step"] for line in steps] == [10, 15]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert [line["step"] for line in log if "valid" in line][-1] == 15

    written = elman("generate", run, "--prompt", "the ", "--length", 30, "--seed", 1)
    assert written.exit_code == 0, written.output
    assert written.output.startswith("the ")
    assert len(written.output) == 4 + 30 + 1
    assert elman("generate", run, "--prompt", "the ", "--length", 30, "--seed", 1).output == written.output


def test_a_file_in_place_of_a_run_is_called_one(text: Path) -> None:
    assert "got: a file" in str(elman("generate", text).exception)
    assert "got: no such folder" in str(elman("generate", text.with_name("no")).exception)


@pytest.mark.parametrize("kind", with_more(["bytes"], ["bpe"]))  # words: in the test after the next
def test_other_symbols_than_characters(kind: str, text: Path, tmp_path: Path) -> None:
    more = [] if kind == "bytes" else ["--vocabulary", 300]
    run = trained(text, tmp_path / "run", "--tokenizer", kind, *more, "--steps", 2)
    expect_figures(kind, run, text)
    written = elman("generate", run, "--prompt", "the cat", "--length", 20, "--seed", 0)
    assert written.exit_code == 0, written.output
    assert written.output.startswith("the cat")


def expect_figures(kind: str, run: Path, text: Path) -> None:
    """Bits per symbol and per byte are of one total."""
    lines = elman("evaluate", run, text).output.splitlines()
    unit = {"bytes": "byte", "words": "word", "bpe": "token"}[kind]
    per_symbol, symbols = re.match(rf"([\d.]+) bits per {unit} .* over ([\d,]+) {unit}s", lines[0]).groups()
    each, word = (
        (r"symbol \(a word or a mark\)", "word between spaces") if kind == "words" else (unit, "word")
    )
    assert re.search(rf"perplexity \S+ per {each}, \S+ per {word}, ", lines[1]), lines[1]
    per_byte = re.search(r"([\d.]+) per byte", lines[1])
    assert per_byte is not None
    first = {"bytes": 1, "words": 3, "bpe": 3}[kind]  # "the" is not predicted
    total = float(per_symbol) * int(symbols.replace(",", ""))
    assert float(per_byte[1]) == pytest.approx(total / (len(TEXT) - first), rel=2e-3)


def test_a_readout_of_two_levels(text: Path, tmp_path: Path) -> None:
    how = (
        "--tokenizer",
        "words",
        "--readout",
        "adaptive",
        "--cutoffs",
        "3,6",
        "--hidden",
        "8",
        "--steps",
        "5",
    )
    run = trained(text, tmp_path / "run", *how)
    assert json.loads((run / "config.json").read_text())["cutoffs"] == [3, 6]
    assert "bits per word" in elman("evaluate", run).output
    expect_figures("words", run, text)
    assert elman("generate", run, "--length", 5, "--seed", 1).exit_code == 0
    assert len(elman("score", run, text).output.splitlines()) == TEXT.count(" ") + TEXT.count("\n")
    assert elman("explain", run).exit_code == 0
    assert elman("draw", run, "-o", tmp_path / "run.svg").exit_code == 0
    again = elman("train", "lm", text, "--out", run, *SMALL, *how, "--resume", "auto")
    assert "going on from step 5" in again.output
    for option, value, said in (
        ("--readout", "softmax", "another readout"), ("--cutoffs", "3,5", "another cutoffs"),
    ):  # fmt: skip
        asked = ("--init-from", run, "--tokenizer", "words", "--readout", "adaptive", option, value)
        assert said in str(elman("train", "lm", text, "--out", tmp_path / "b", *asked).exception)
    for wrong, said in (
        (("--readout", "adaptive"), "would not make"), (("--readout", "fast"), "no such readout"),
        (("--cutoffs", "3"), "of an adaptive readout"), (("--readout", "adaptive", "--cutoffs", "x"), "numbers"),
    ):  # fmt: skip
        assert said in str(elman("train", "lm", text, "--out", tmp_path / "c", *wrong).exception)


def test_a_run_that_diverges_says_what_is_kept(text: Path, tmp_path: Path) -> None:
    more = ["--steps", 200, "--checkpoint-every", 5, "--lr", 1e30, "--clip", 1e30, "--weight-decay", 0.01]
    result = elman("train", "lm", text, "--out", tmp_path / "run", *SMALL[:-4], *more)
    assert isinstance(result.exception, ElmanError)
    assert "the training diverged" in str(result.exception)
    assert "kept are" in str(result.exception)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--temperature", 1e-30, "1e-6 to 1e6"),
        ("--temperature", 1e30, "1e-6 to 1e6"),
        ("--weights", "int3", "int8"),
    ],
)
def test_what_is_refused_is_refused_before_the_prompt_is_shown(
    learnt: tuple[Path, Path, str], option: str, value: Any, said: str
) -> None:
    result = elman("generate", learnt[0], "--prompt", "the ", "--length", 9, option, value)
    assert said in str(result.exception)
    assert "the " not in result.output


def test_writing_stops_before_a_text_and_in_several_samples(learnt: tuple[Path, Path, str]) -> None:
    run = learnt[0]
    whole = elman("generate", run, "--prompt", "the ", "--length", 60, "--seed", 1, "--temperature", 1).output
    stop = whole[30:33]
    more = ["--length", 60, "--seed", 1, "--temperature", 1, "--stop", stop]
    short = elman("generate", run, "--prompt", "the ", *more).output
    assert short == whole[: 4 + whole[4:].index(stop)] + "\n"
    several = elman(
        "generate", run, "--prompt", "the ", "--samples", 3, "--length", 9, "--top-k", 3, "--top-p", 0.9
    )
    texts = several.output.splitlines()
    assert several.exit_code == 0, several.output
    assert texts[0] == "--- 1"
    assert sum(line.startswith("--- ") for line in texts) == 3


def test_the_figure_of_a_text_is_the_mean_of_its_bits(learnt: tuple[Path, Path, str]) -> None:
    run, text, _ = learnt
    result = elman("evaluate", run, text)
    bits, nats, symbols = re.fullmatch(
        r"([\d.]+) bits per character \(([\d.]+) nats\), over ([\d,]+) characters",
        result.output.splitlines()[0],
    ).groups()
    assert float(bits) == pytest.approx(float(nats) / math.log(2), abs=2e-4)
    assert symbols == f"{len(TEXT) - 1:,}"


@pytest.mark.conformance
def test_the_same_seed_trains_the_same_model(text: Path, tmp_path: Path) -> None:
    runs = [trained(text, tmp_path / name, "--seed", 3) for name in ("one", "two")]
    weights = [(run / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    assert weights[0] != (trained(text, tmp_path / "three", "--seed", 4) / "model.safetensors").read_bytes()


def test_a_run_says_what_it_was_made_with_and_a_cell_of_ones_own_is_found_again_from_another_folder(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Mine(torch.nn.RNNCell):\n"
        "    def __init__(self, n_in, n_hidden):\n"
        "        super().__init__(n_in, n_hidden)\n"
    )
    monkeypatch.chdir(tmp_path)
    trained(text, Path("run"), "--cell", "mine.py:Mine", "--layers", 2, "--seed", 5, "--steps", 2)
    config = json.loads(Path("run/config.json").read_text())
    assert config["task"] == "lm"
    assert (config["cell"], config["hidden"], config["layers"]) == (f"{tmp_path / 'mine.py'}:Mine", 16, 2)
    assert config["training"]["seed"] == 5
    assert config["data"]["files"] == [str(text)]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert elman("evaluate", "../run", "--trust").exit_code == 0


def test_a_prompt_with_a_strange_character_is_noted(learnt: tuple[Path, Path, str]) -> None:
    result = elman("generate", learnt[0], "--prompt", "ü", "--length", 5)
    assert result.exit_code == 0, result.output
    assert "does not know 'ü'" in result.output


@pytest.mark.parametrize(
    ("window", "batch", "symbols", "found"),
    [
        (None, None, 10**6, (64, 32)),
        (None, None, 2048, (64, 32)),
        (None, None, 1000, (64, 15)),
        (None, None, 40, (40, 1)),
        (None, None, 1, (1, 1)),
        (16, None, 100, (16, 6)),
        (None, 4, 100, (25, 4)),
        (64, 32, 100, (64, 32)),  # what was asked for is not changed
        (None, 500, 1000, (16, 500)),
    ],
)
def test_a_short_text_has_short_windows(
    window: Any, batch: Any, symbols: int, found: tuple[int, int]
) -> None:
    assert lm.fitting(window, batch, symbols, 1) == found


def test_a_short_text_is_said_to_be_one(text: Path, tmp_path: Path) -> None:
    text.write_text(TEXT[:90])
    result = elman("train", "lm", text, "--out", tmp_path / "run", *SMALL[:4], "--steps", 2)
    assert result.exit_code == 0, result.output
    assert "a short text: windows of 64 symbols, 1 side by side" in result.output


def test_several_texts_and_a_cache(text: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("a hat.\n" * 9)
    cache = tmp_path / "cache"
    run = trained(tmp_path / "*.txt", tmp_path / "run", "--cache", cache, "--tokenizer", "bpe", "--steps", 2)
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["files"] == [str(tmp_path / "more.txt"), str(text)]
    assert config["tokenizer"]["kind"] == "bpe"
    kept = sorted(cache.iterdir())
    assert sorted(path.suffix for path in kept) == sorted([".json", *[".counts", ".tokens"] * 2])
    first = elman("evaluate", run, "--cache", cache)
    assert first.exit_code == 0, first.output
    assert sorted(cache.iterdir()) == kept  # nothing had to be worked out again
    files = elman("evaluate", run, text, tmp_path / "more.txt", "--cache", cache)
    piped = CliRunner().invoke(
        cli.app, ["evaluate", str(run), "-", "--cache", str(cache)], input=TEXT + "a hat.\n" * 9
    )
    assert piped.exit_code == 0, piped.output
    assert piped.output == files.output
