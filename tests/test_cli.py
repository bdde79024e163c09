"""The command line, as a user meets it."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from elman import __version__
from elman.app import cli, screen, writing
from elman.data import Tokenizer
from elman.errors import ElmanError
from elman.tasks import lm
from elman.training import Step
from tests.pairwise import with_more

TEXT = "the cat sat on the mat; the rat sat on the cat.\n" * 40
SMALL = [
    "--hidden",
    "16",
    "--embedding",
    "8",
    "--window",
    "16",
    "--batch",
    "4",
    "--steps",
    "30",
    "--lr",
    "0.01",
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def elman(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def trained(text: Path, run: Path, *more: object) -> Path:
    result = elman("train", "lm", text, "--out", run, *SMALL, *more)
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run that nobody changes, the text that it has learnt, and what the command said."""
    here = tmp_path_factory.mktemp("learnt")
    text, run = here / "text.txt", here / "run"
    text.write_text(TEXT)
    result = elman("train", "lm", text, "--out", run, *SMALL)
    assert result.exit_code == 0, result.output
    return run, text, result.output


def test_train_evaluate_generate(learnt: tuple[Path, Path, str]) -> None:
    run, _, told = learnt
    assert "bits per character" in told
    assert re.search(
        r"step 30 +loss \d\.\d+ nats +\d\.\d+ bits per character +held out \d\.\d+ +[\d,]+ characters/s",
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
    assert [line["step"] for line in steps] == [10, 20, 30]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert [line["step"] for line in log if "valid" in line][-1] == 30

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
    assert "never saw 'ü'" in result.output


@pytest.mark.parametrize("cell", ["elman", "gru", "torch.nn:GRUCell"])
def test_a_cell_is_explained(cell: str) -> None:
    result = elman("explain", cell, "--input", 5, "--hidden", 7)
    assert result.exit_code == 0, result.output
    assert "loop" in result.output


def test_a_cell_is_verified(tmp_path: Path) -> None:
    result = elman("verify", "elman", "--input", 3, "--hidden", 4, "--html", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Elman is right: ")
    assert "Elman is right: " in (tmp_path / "report.html").read_text("utf-8")


def test_a_cell_that_cannot_be_verified_says_why(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Mixing(torch.nn.Module):\n"
        "    def __init__(self, n_in, n_hidden):\n"
        "        super().__init__()\n"
        "        self.hidden_size, self.U = n_hidden, torch.nn.Linear(n_in, n_hidden)\n"
        "    def forward(self, x, h):\n"
        "        return torch.tanh(self.U(x) + h - h.mean(0))\n"
    )
    result = elman("verify", f"{tmp_path / 'mine.py'}:Mixing")
    assert result.exit_code == 1
    assert "the step mixes the rows of the batch" in result.output


def test_a_wrong_cell_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from elman.verify import Check

    def wrong(*given: object) -> tuple[list[Check], dict[str, str | None]]:
        return [Check("native", "whole", "outputs", False, 1.0, 1e-10, "outputs")], {"native": None}

    monkeypatch.setattr(sys.modules["elman.verify"], "checked", wrong)
    result = elman("verify", "elman", "--input", 3, "--hidden", 4)
    assert result.exit_code == 1
    assert "Elman is WRONG" in result.output


@pytest.mark.parametrize("how", [[], ["--unfold", 4], ["--level", "ops", "--adjoint"]])
def test_a_cell_is_drawn(tmp_path: Path, how: list[object]) -> None:
    result = elman("draw", "gru", "--input", 5, "--hidden", 7, *how, "-o", tmp_path / "a.svg")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.svg").read_text("utf-8").startswith("<svg")


def test_a_run_is_drawn_and_explained(learnt: tuple[Path, Path, str], tmp_path: Path) -> None:
    run = learnt[0]
    result = elman("draw", run, "-o", tmp_path / "a.html")
    assert result.exit_code == 0, result.output
    assert "Embedding" in (tmp_path / "a.html").read_text("utf-8")
    result = elman("explain", run)
    assert result.exit_code == 0, result.output
    assert "in the loop, T times" in result.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "lm", "{missing}"], "cannot be read: No such file"),
        (["train", "lm", "{empty}"], "the text is empty"),
        (["train", "lm", "{latin}"], "byte offset 2"),
        (["train", "lm", "{text}", "--valid", "{empty}"], "the text is empty"),
        (["train", "lm", "{text}", "--batch", "500"], "too short for one window"),
        (["train", "lm", "{text}", "--cell", "grue"], "no cell of that name"),
        (["train", "lm", "{text}", "--hidden", "0"], "hidden must be at least 1"),
        (["train", "lm", "{text}", "--steps", "1", "--minutes", "1"], "given twice"),
        (["train", "lm", "{text}", "--steps", "0"], "steps must be above 0"),
        (["train", "lm", "{text}", "--batch", "4", "--out", "{folder}"], "the run folder is not empty"),
        (["evaluate", "{missing}"], "no run folder"),
        (["evaluate", "{folder}"], "no run folder"),
        (["generate", "{text}"], "no run folder"),
        (["explain", "grue"], "no cell of that name"),
        (["draw", "gru", "-o", "a.gif"], "no picture can be written into such a file"),
        (["draw", "grue", "-o", "a.svg"], "no cell of that name"),
        (["draw", "gru", "-o", "{missing}/a.svg"], "the picture cannot be written"),
        (["draw", "{missing}", "-o", "a.svg"], "no run folder of that name, nor a cell"),
        (["explain", "gruu"], "did you mean 'gru'"),
        (["report", "{missing}"], "no run folder"),
    ],
)
def test_bad_input_is_told_without_a_traceback(
    tmp_path: Path, text: Path, arguments: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("grüße".encode("latin1"))
    names = {
        "missing": tmp_path / "missing",
        "empty": tmp_path / "empty.txt",
        "latin": tmp_path / "latin.txt",
        "text": text,
        "folder": tmp_path,
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["elman", *(argument.format(**names) for argument in arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert complaint in told
    assert told.startswith("error: ")
    assert "mend: " in told
    assert "Traceback" not in told
    assert not (tmp_path / "runs").exists()  # nothing was begun


def test_a_run_is_overwritten_only_when_told(learnt: tuple[Path, Path, str], tmp_path: Path) -> None:
    run = shutil.copytree(learnt[0], tmp_path / "run")
    result = elman("train", "lm", learnt[1], "--out", run, *SMALL)
    assert isinstance(result.exception, ElmanError)
    assert "--overwrite" in str(result.exception)
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == 30
    trained(learnt[1], run, "--overwrite", "--steps", 2)
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == 2


def test_a_text_that_changed_is_not_evaluated_in_silence(learnt: tuple[Path, Path, str]) -> None:
    run, text, _ = learnt
    text.write_text(TEXT + "more")
    said = elman("evaluate", run)
    text.write_text(TEXT)
    assert "not the one of the training run" in str(said.exception)


@pytest.mark.conformance
@pytest.mark.slow
def test_ctrl_c_saves_what_was_learned(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "elman.app.cli"]
    process = subprocess.Popen(
        [*command, "train", "lm", str(text), "--out", str(run), *SMALL[:-4], "--steps", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 240  # that it ends at all, on a busy machine too
        while not (run / "log.jsonl").exists() or not (run / "log.jsonl").read_text():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, told
    assert "Interrupted. Saved in" in told
    assert "--resume auto" in told
    assert elman("evaluate", run).exit_code == 0
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] < 1_000_000


def test_the_command_is_there_and_says_errors_in_one_piece() -> None:
    """As a process; what elman's own errors say: test_bad_input_is_told_without_a_traceback."""
    command = [sys.executable, "-m", "elman.app.cli", "score", "nowhere"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 2
    assert "Missing argument" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["train", "lm"],
        ["evaluate"],
        ["predict"],
        ["generate"],
        ["demo"],
        ["explain"],
        ["draw"],
        ["verify"],
        ["report"],
    ],
)
def test_every_command_has_help(command: list[str]) -> None:
    result = elman(*command, "--help")
    assert result.exit_code == 0
    assert "--help" in result.output


def test_the_demo_shows_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from elman import data
    from elman.app.demo import demo

    beginning = data.built_in_text()[:8000]
    monkeypatch.setattr(data.corpus, "built_in_text", lambda: beginning)
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    demo(console, minutes=0.005, out=tmp_path / "demo", seed=0)
    shown = console.file.getvalue()
    for part in (
        "Before training it writes",
        "After training it writes",
        "bits per character",
        "unigram",
        "5-gram",
        "GRU",
        "╰──",
        "characters/s",
        "elman generate",
        str(tmp_path / "demo" / "report.html"),
    ):
        assert part in shown
    assert (tmp_path / "demo" / "model.safetensors").exists()


def _steps(losses: list[float]) -> list[Step]:
    n = len(losses)
    return [Step(k + 1, (k + 1) / n, loss, 0.1, 1.0, 10 * k, float(k)) for k, loss in enumerate(losses)]


def test_a_curve_falls_where_the_loss_falls() -> None:
    lines = screen.curve(_steps([4 * math.log(2)] * 10 + [1 * math.log(2)] * 10), [], width=60)
    rows = [[0x2800 < ord(char) <= 0x28FF for char in line.plain] for line in lines]
    left = [row for row, there in enumerate(rows) if any(there[6:20])]
    right = [row for row, there in enumerate(rows) if any(there[-20:])]
    assert max(left) < min(right)


@pytest.mark.parametrize("width", [20, 60, 110, 300])
@pytest.mark.parametrize("count", [1, 2, 500])
def test_a_curve_fits_its_width_and_names_its_levels(width: int, count: int) -> None:
    levels = [screen.Level("unigram", 4.67), screen.Level("5-gram", 1.74)]
    lines = screen.curve(_steps([5 / (k + 1) ** 0.3 for k in range(count)]), levels, width)
    assert all(len(line.plain) <= max(width, 45) for line in lines)
    assert any("unigram 4.67" in line.plain for line in lines)
    assert any("5-gram 1.74" in line.plain for line in lines)


def test_a_terminal_gets_a_live_picture_and_a_file_gets_lines() -> None:
    for terminal in (True, False):
        console = Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)
        with screen.Watch(console, task=lm.Language(Tokenizer.characters("ab"))) as watch:
            for step in _steps([3.0, 2.0, 1.0]):
                watch.show(step)
        shown = console.file.getvalue()
        assert ("━" in shown) == terminal
        assert shown.rstrip().endswith("0:02")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (75.2, "1:15"), (59.6, "1:00"), (3661, "1:01:01")]
)
def test_clock(seconds: float, shown: str) -> None:
    assert screen.clock(seconds) == shown


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; import elman; import elman.app.cli;"
        "assert not {'torch', 'numpy', 'tokenizers', 'safetensors', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_said_and_help_is_short() -> None:
    assert elman("--version").output == f"elman {__version__}\n"
    for command in ([], ["train", "lm"], ["generate"]):
        assert elman(*command, "-h").output == elman(*command, "--help").output


# --- how commands end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_a_signal_ends_says_so_by_its_status(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    before = signal.getsignal(number)
    monkeypatch.setattr(cli, "app", lambda: (os.kill(os.getpid(), number), time.sleep(60)))
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == status
    assert capsys.readouterr().err == "\n"
    assert signal.getsignal(number) is before


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="Windows has no SIGPIPE")
def test_a_command_ends_where_its_reader_has_gone() -> None:
    command = [sys.executable, "-m", "elman", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


def test_training_goes_on_where_its_reader_has_gone() -> None:
    ends = os.pipe()
    os.close(ends[0])
    with os.fdopen(ends[1], "w") as file:
        console = screen.Lasting(file=file)
        console.print("a line")
        assert console.quiet
        console.print("another")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run, and what the command said: of a text as Windows writes it, measured on one with strange characters."""
    here = tmp_path_factory.mktemp("base")
    (here / "text.txt").write_bytes(TEXT.replace("\n", "\r\n").encode())
    (here / "valid.txt").write_bytes(b"the cat sat\r\non a bat!")
    more = ["--valid", here / "valid.txt", "--unix-newlines", "--resume", "auto"]
    result = elman("train", "lm", here / "text.txt", "--out", here / "run", *SMALL, *more)
    assert result.exit_code == 0, result.output
    return here / "run", result.output


def again(run: Path, *more: object) -> Result:
    """The command that trained `base`, once more; later options count."""
    here = run.parent
    files = [here / "text.txt", "--valid", here / "valid.txt", "--out", run]
    return elman("train", "lm", *files, *SMALL, "--unix-newlines", "--resume", "auto", *more)


def test_what_a_model_does_not_know_is_said_with_its_figures(base: tuple[Path, str]) -> None:
    run, said = base
    assert f"{len(TEXT):,} characters to learn from, 21 held out (10.00 % of it unknown)" in said
    assert "characters that the model does not know: 2, 10.00 %" in said
    assert said.splitlines()[-3:] == elman("evaluate", run).output.splitlines()
    again = elman("evaluate", run, run.parent / "valid.txt").output
    assert "characters that the model does not know: 2" in again


def test_a_run_without_a_checkpoint_says_that_it_begins_anew(base: tuple[Path, str], tmp_path: Path) -> None:
    assert f"no checkpoint in {base[0]} to go on from: the run begins anew" in base[1]
    shutil.copytree(base[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert "begins anew" in again(base[0], "--out", tmp_path / "run").output
    assert "begins anew" not in again(base[0]).output


def test_newlines_of_windows_are_said(base: tuple[Path, str], tmp_path: Path) -> None:
    assert "41 lines end in CR LF, which was read as LF" in base[1]
    (tmp_path / "dos.txt").write_bytes(b"the cat sat\r\non a bat!")  # evaluated as the run was trained
    (tmp_path / "unix.txt").write_text("the cat sat\non a bat!")
    dos, unix = (elman("evaluate", base[0], tmp_path / name).output for name in ("dos.txt", "unix.txt"))
    assert dos == unix


def test_the_headline_of_the_report_is_the_exact_figure(base: tuple[Path, str]) -> None:
    page = (base[0] / "report.html").read_text()
    exact = re.search(r"([\d.]+) bits per character \(([\d.]+) nats\), over", base[1])
    assert exact is not None
    assert f"<dt>held out, nats per symbol</dt><dd>{exact[2]}</dd>" in page
    assert f"<dt>bits per character</dt><dd>{exact[1]}</dd>" in page
    assert "<dt>of its symbols are unknown</dt><dd>10.00 %</dd>" in page


def test_a_finished_run_goes_on_to_more_steps(base: tuple[Path, str], tmp_path: Path) -> None:
    run = shutil.copytree(base[0].parent, tmp_path / "copy") / "run"
    config = json.loads((run / "config.json").read_text())
    for name, path in (("files", ["text.txt"]), ("valid", "valid.txt")):  # as if it had been trained there
        moved = [str(run.parent / one) for one in path] if name == "files" else str(run.parent / str(path))
        config["data"][name] = moved
    (run / "config.json").write_text(json.dumps(config))
    result = again(run, "--steps", 50)
    assert result.exit_code == 0, result.output
    assert "going on from step 30, 60 % of the run" in result.output
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == 50
    fewer = again(run, "--steps", 40)
    assert isinstance(fewer.exception, ElmanError)
    assert "training.steps" in str(fewer.exception)


def test_a_run_begins_with_the_weights_of_another(base: tuple[Path, str], text: Path, tmp_path: Path) -> None:
    run, out = base[0], tmp_path / "new"
    text.write_text(TEXT + "µ" * 200)
    result = elman(
        "train", "lm", text, "--out", out, "--init-from", run, "--steps", 3, "--hidden", 16, "--batch", 4
    )
    assert result.exit_code == 0, result.output
    assert (out / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert (config["embedding"], config["training"]["init_from"]) == (8, str(run.resolve()))
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    assert next(line["loss"] for line in lines if "loss" in line) < 0.9 * math.log(15)  # it knows something
    other = elman("train", "lm", text, "--out", tmp_path / "x", "--init-from", run, "--layers", 2)
    assert "another layers" in str(other.exception)
    same = elman("train", "lm", text, "--out", run, "--overwrite", "--init-from", run)
    assert "its own weights" in str(same.exception)


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


@pytest.mark.parametrize("bad", ["file", "file/below", "taken", "x" * 300])
def test_a_bad_place_for_a_run_is_noticed_before_anything_is_read(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").write_text("")
    monkeypatch.setattr(lm, "read_corpus", lambda *_, **__: pytest.fail("the text was read"))
    result = elman("train", "lm", "missing.txt", "--out", tmp_path / bad)
    assert isinstance(result.exception, ElmanError)
    assert "the run folder" in str(result.exception)


def test_a_run_whose_folder_goes_is_saved_beside_it(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, out = screen.Watch.show, tmp_path / "run"

    def rename(watch: screen.Watch, event: Any) -> None:
        if out.exists():
            out.rename(tmp_path / "elsewhere")
        show(watch, event)

    monkeypatch.setattr(screen.Watch, "show", rename)
    result = elman("train", "lm", text, "--out", out, *SMALL)
    assert isinstance(result.exception, ElmanError)
    assert "removed or renamed" in str(result.exception)
    assert f"--out {tmp_path / 'run.rescued'} --resume auto" in str(result.exception)
    assert not out.exists()
    result = elman("train", "lm", text, "--out", tmp_path / "run.rescued", *SMALL, "--resume", "auto")
    assert result.exit_code == 0, result.output
    assert "going on from step" in result.output


def test_what_a_terminal_would_obey_is_not_written_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a\tb\n\x1b[2Jשלום\u202e\x07"
    assert writing.shown(text) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert writing.shown(text) == "a\tb\n�[2Jשלום��"


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
