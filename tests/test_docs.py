"""The documentation is run: every Python block, and what it prints against the text block behind it."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\s*```text\n(.*?)```)?", re.DOTALL)


def trimmed(text: str) -> str:
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_blocks_of_a_page_run_and_print_what_they_say(file: Path) -> None:
    space: dict[str, Any] = {}
    blocks = BLOCK.findall(file.read_text(encoding="utf-8"))
    assert blocks, "a page without an example"
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(file), "exec"), space)
        if expected:
            assert trimmed(printed.getvalue()) == trimmed(expected), code
