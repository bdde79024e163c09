"""How commands begin and end: help, errors, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from elman import __version__
from elman.app import cli, screen
from tests.cli.commands import elman


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
