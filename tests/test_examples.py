"""The examples at their small size: each asserts by itself that it has learnt what it says."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
every_script = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@every_script
def test_it_learns_what_it_says(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(file))["main"](small=True)
    assert 1 <= len(capsys.readouterr().out.splitlines()) <= 12


@every_script
def test_it_fits_on_a_page(file: Path) -> None:
    text = file.read_text("utf-8")
    assert len(text.splitlines()) <= 60
    assert "Prints" in (ast.get_docstring(ast.parse(text)) or ""), "the docstring says what is printed"


def test_the_table_names_every_script() -> None:
    table = (FILES[0].parent / "README.md").read_text("utf-8")
    assert [file.name for file in FILES if f"`{file.name}`" not in table] == []
