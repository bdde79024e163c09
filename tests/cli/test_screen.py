"""What the command line shows in a terminal."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import pytest
from rich.console import Console

from elman.app import screen, writing
from elman.data import Tokenizer
from elman.tasks import lm
from elman.training import Step


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


def test_what_a_terminal_would_obey_is_not_written_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a\tb\n\x1b[2Jשלום\u202e\x07"
    assert writing.shown(text) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert writing.shown(text) == "a\tb\n�[2Jשלום��"


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
