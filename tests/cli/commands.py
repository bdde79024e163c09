"""Commands as a user gives them, and a small language model for them to be about."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from elman.app import cli

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
    "15",
    "--lr",
    "0.01",
]


def elman(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def trained(text: Path, run: Path, *more: object) -> Path:
    result = elman("train", "lm", text, "--out", run, *SMALL, *more)
    assert result.exit_code == 0, result.output
    return run
