"""The examples: each asserts by itself that it has learnt what it says, and fits on a page."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from docs.build import EXAMPLES, guides

# `make docs ARGS=--small`, which every change has to pass, runs each at its small size: here is the shortest.
_SCRIPTS = [
    pytest.param(file, marks=() if file.stem == "spiking" else pytest.mark.conformance, id=file.stem)
    for file in EXAMPLES
]


@pytest.mark.parametrize("file", _SCRIPTS)
def test_it_learns_what_it_says(file: Path) -> None:
    guides([], [file])


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_it_fits_on_a_page(file: Path) -> None:
    text = file.read_text("utf-8")
    assert len(text.splitlines()) <= 60
    assert "Prints" in (ast.get_docstring(ast.parse(text)) or ""), "the docstring says what is printed"


def test_the_table_names_every_script() -> None:
    table = (EXAMPLES[0].parent / "README.md").read_text("utf-8")
    assert [file.name for file in EXAMPLES if f"`{file.name}`" not in table] == []
