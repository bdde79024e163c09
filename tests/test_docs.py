"""The documentation is run: every Python block, what it prints against the text block behind it, and every name."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

import elman

ROOT = Path(__file__).parent.parent
# results.md is written by a program, bench/reproduce.py.
FILES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
every_page = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)

# A Python block, and the text block directly behind it: what it prints.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\s*^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


def trimmed(text: str) -> str:
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip("\n")


def run(page: str, name: str) -> None:
    """Run the blocks of a page in one namespace; AssertionError where one prints something else than it says."""
    space: dict[str, Any] = {}
    blocks = list(BLOCK.finditer(page))
    assert blocks, "a page without an example"
    assert len(re.findall("^```text$", page, re.MULTILINE)) == sum(
        block[2] is not None for block in blocks
    ), "a text block that stands behind no Python block"
    for block in blocks:
        # Empty lines before it, so that an error names the line of the page.
        line = page.count("\n", 0, block.start(1))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + block[1], name, "exec"), space)
        if block[2] is not None:
            assert trimmed(printed.getvalue()) == trimmed(block[2]), f"{name}:{line + 1}"


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.name != "results.md"], ids=lambda file: file.name
)
def test_the_blocks_of_a_page_run_and_print_what_they_say(file: Path) -> None:
    run(file.read_text("utf-8"), str(file))


@every_page
def test_a_page_names_what_exists(file: Path) -> None:
    said = " ".join(re.findall(r"`([^`\n]+)`", file.read_text("utf-8")))
    missing = []
    for name in sorted(set(re.findall(r"(?<![\w/.])elman((?:\.[A-Za-z_]\w*)+)", said))):
        found: Any = elman
        for part in name.split(".")[1:]:
            found = getattr(found, part, None)
        missing += [f"elman{name}"] if found is None else []
    for path in sorted(set(re.findall(r"(?<![\w/.])(?:elman|tests|docs|bench)/[\w/.]*\w", said))):
        missing += [] if (ROOT / path).exists() else [path]
    assert missing == []


def test_a_page_is_for_everybody() -> None:
    """No path of one machine."""
    for file in FILES:
        assert re.findall(r"(?<![\w.…])/(?:home|tmp|usr|work|root)\b", file.read_text("utf-8")) == [], file


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "here:2"),
        ("```python\na = 1\n```\n\n```python\nprint(a)\n```\n```text\n1 1\n```\n", "here:6"),
        ("```python\na = 1\n```\nand\n```text\n1\n```\n", "behind no Python block"),
        ("no example", "without an example"),
    ],
)
def test_a_page_that_is_wrong_is_found(page: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        run(page, "here")
