"""Runs of the command line that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import SMALL, TEXT, elman


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run that nobody changes, the text that it has learnt, and what the command said."""
    here = tmp_path_factory.mktemp("learnt")
    text, run = here / "text.txt", here / "run"
    text.write_text(TEXT)
    result = elman("train", "lm", text, "--out", run, *SMALL)
    assert result.exit_code == 0, result.output
    return run, text, result.output


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
