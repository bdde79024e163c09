"""The documentation is run: every Python block, what it prints against the text block behind it, and every name."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import types
from pathlib import Path
from typing import Any

import pytest

import elman
from docs.build import GUIDES, INSIDE, RUN, guides, notebook, run_notebook
from docs.execute import BLOCK, run

ROOT = Path(__file__).parent.parent
FILES = sorted([*RUN, ROOT / "docs" / "results.md"])
LECTURE = sorted((ROOT / "docs" / "lecture").glob("[0-9]*.md"))
every_page = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


# `make docs ARGS=--small`, which every change has to pass, runs every page: here are those that everybody reads first.
FIRST = ("README.md", "index.md")
_PAGES = [
    pytest.param(file, marks=() if file.name in FIRST else pytest.mark.conformance, id=file.name)
    for file in RUN
]


@pytest.mark.parametrize("file", _PAGES)
def test_the_blocks_of_a_page_run_and_print_what_they_say(file: Path) -> None:
    guides([file], [])


def test_every_page_is_run_when_the_site_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where one prints something else than it says, or warns, there is no site; what it saves is nobody's."""
    assert {file.stem for file in RUN} == {*GUIDES, *INSIDE, "index", "README"} - {"results"}
    block = "```python\nfrom pathlib import Path\nPath('a.svg').write_text('')\n{}\n```\n\n```text\n2\n```\n"
    lines = {
        "right": "print(2)",
        "other": "print(3)",
        "warned": "import warnings\nwarnings.warn('no')\nprint(2)",
    }
    for name, line in lines.items():
        (tmp_path / name).write_text(block.format(line))
    before = list(Path().iterdir())
    guides([tmp_path / "right"], [])
    assert capsys.readouterr().out.startswith("right ")
    for name, error in {"other": AssertionError, "warned": UserWarning}.items():
        with pytest.raises(error):
            guides([tmp_path / name], [])
    assert list(Path().iterdir()) == before


@pytest.mark.conformance  # as above
@pytest.mark.parametrize("file", LECTURE, ids=lambda file: file.name)
def test_a_page_of_the_lecture_runs_and_what_it_claims_holds(file: Path) -> None:
    page = file.read_text("utf-8")
    pieces = run(page, str(file), figures=True, small=True)
    assert sum(len(piece.svgs) for piece in pieces) >= 3


@pytest.mark.parametrize("file", LECTURE, ids=lambda file: file.name)
def test_a_page_of_the_lecture_has_exercises_with_solutions(file: Path) -> None:
    assert file.read_text("utf-8").count("<summary>Solution</summary>") == 3


@every_page
def test_a_page_names_what_exists(file: Path) -> None:
    said = " ".join(re.findall(r"`([^`\n]+)`", file.read_text("utf-8")))
    missing = []
    for name in sorted(set(re.findall(r"(?<![\w/.])elman((?:\.[A-Za-z_]\w*)+)", said))):
        found: Any = elman
        for part in name.split(".")[1:]:
            if isinstance(
                found, types.ModuleType
            ):  # a file of a room is its attribute once it has been imported
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(f"{found.__name__}.{part}")
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


@pytest.mark.parametrize("file", LECTURE, ids=lambda file: file.name)
def test_a_notebook_is_its_page(file: Path) -> None:
    page = file.read_text("utf-8")
    cells = notebook(page)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code[0].startswith("small = ")
    assert code[1:] == [block[1].strip("\n") for block in BLOCK.finditer(page)]
    words = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert "```python" not in words
    assert "<details>" not in words
    assert words.count("**Solution**") == 3


def test_a_notebook_runs_and_one_that_is_wrong_is_found(tmp_path: Path) -> None:
    page = "# A page\n\n```python\nfrom pathlib import Path\n```\n\n<details><summary>Solution</summary>\n\n"
    page += "```python\nassert small and not list(Path().iterdir())\n```\n\n</details>\n"
    for name, text in {"right": page, "wrong": page.replace("small and", "not small and")}.items():
        (tmp_path / name).write_text(json.dumps(notebook(text)), "utf-8")
    run_notebook(tmp_path / "right")
    with pytest.raises(SystemExit, match=r"(?s)wrong does not run.*AssertionError"):
        run_notebook(tmp_path / "wrong")
