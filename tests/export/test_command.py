"""`elman export`, as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from elman.app import cli
from elman.models import LanguageModel
from tests.export.running import names, session
from tests.strangers import CELL, KEPT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(KEPT / "run", tmp_path / "run"))


def elman(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["export", *map(str, arguments)])


def test_a_run_writes_the_same_text_in_onnx_runtime(folder: Path) -> None:
    """Symbol by symbol, the likeliest each time, with the state going round."""
    result = elman(folder, "--to", "onnx")
    assert result.exit_code == 0, result.output
    assert result.output.strip().replace("\n", "") == str(folder / "model.onnx")
    graph = session(folder / "model.onnx")
    model = LanguageModel.from_pretrained(folder)
    prompt, written = [1, 2], []
    given = {"x": np.array(prompt)[:, None]}
    for _ in range(20):
        logits, *states = graph.run(None, given)
        written.append(int(logits[-1, 0].argmax()))
        given = {"x": np.array([written[-1:]]), **dict(zip(names(graph)[1:], states, strict=True))}
    assert written == list(model.generate(torch.tensor(prompt), 20, temperature=0))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "--to onnx or --to pt2 or --to c or --to html"),
        (["--to", "gif"], "--to is onnx or"),
        (["--to", "onnx", "-o", "a.pt2"], "say different things"),
        (["-o", "a.onnx", "--state"], "no such option"),
        (["-o", "nowhere/a.onnx"], "cannot be written"),
    ],
)
def test_what_is_wrong_is_said(
    folder: Path, more: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = elman(folder, *more)
    assert words in str(result.exception)


def test_the_code_of_a_run_is_not_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cell.py").write_text(CELL)
    config = json.loads((folder / "config.json").read_text())
    config["cell"] = f"{tmp_path / 'cell.py'}:Cell"
    (folder / "config.json").write_text(json.dumps(config))
    assert "--trust" in str(elman(folder, "--to", "onnx").exception)
    assert not (tmp_path / "RAN").exists()
