"""Commands about cells: explain, verify, draw."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cli.commands import elman


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
