"""Runs that go on, are written over, or lose their place."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from elman.app import screen
from elman.errors import ElmanError
from elman.tasks import lm
from tests.cli.commands import SMALL, TEXT, elman, trained


def again(run: Path, *more: object) -> Result:
    """The command that trained `base`, once more; later options count."""
    here = run.parent
    files = [here / "text.txt", "--valid", here / "valid.txt", "--out", run]
    return elman("train", "lm", *files, *SMALL, "--unix-newlines", "--resume", "auto", *more)


def test_what_a_model_does_not_know_is_said_with_its_figures(base: tuple[Path, str]) -> None:
    run, said = base
    assert f"{len(TEXT):,} characters to learn from, 21 held out (10.00 % of it unknown)" in said
    assert "characters that the model does not know: 2, 10.00 %" in said
    assert said.splitlines()[-3:] == elman("evaluate", run).output.splitlines()
    again = elman("evaluate", run, run.parent / "valid.txt").output
    assert "characters that the model does not know: 2" in again


def test_a_run_without_a_checkpoint_says_that_it_begins_anew(base: tuple[Path, str], tmp_path: Path) -> None:
    assert f"no checkpoint in {base[0]} to go on from: the run begins anew" in base[1]
    shutil.copytree(base[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert "begins anew" in again(base[0], "--out", tmp_path / "run").output
    assert "begins anew" not in again(base[0]).output


def test_newlines_of_windows_are_said(base: tuple[Path, str], tmp_path: Path) -> None:
    assert "41 lines end in CR LF, which was read as LF" in base[1]
    (tmp_path / "dos.txt").write_bytes(b"the cat sat\r\non a bat!")  # evaluated as the run was trained
    (tmp_path / "unix.txt").write_text("the cat sat\non a bat!")
    dos, unix = (elman("evaluate", base[0], tmp_path / name).output for name in ("dos.txt", "unix.txt"))
    assert dos == unix


def test_the_headline_of_the_report_is_the_exact_figure(base: tuple[Path, str]) -> None:
    page = (base[0] / "report.html").read_text()
    exact = re.search(r"([\d.]+) bits per character \(([\d.]+) nats\), over", base[1])
    assert exact is not None
    assert f"<dt>held out, nats per symbol</dt><dd>{exact[2]}</dd>" in page
    assert f"<dt>bits per character</dt><dd>{exact[1]}</dd>" in page
    assert "<dt>of its symbols are unknown</dt><dd>10.00 %</dd>" in page


def test_a_finished_run_goes_on_to_more_steps(base: tuple[Path, str], tmp_path: Path) -> None:
    run = shutil.copytree(base[0].parent, tmp_path / "copy") / "run"
    config = json.loads((run / "config.json").read_text())
    for name, path in (("files", ["text.txt"]), ("valid", "valid.txt")):  # as if it had been trained there
        moved = [str(run.parent / one) for one in path] if name == "files" else str(run.parent / str(path))
        config["data"][name] = moved
    (run / "config.json").write_text(json.dumps(config))
    result = again(run, "--steps", 50)
    assert result.exit_code == 0, result.output
    assert "going on from step 15, 30 % of the run" in result.output
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == 50
    fewer = again(run, "--steps", 40)
    assert isinstance(fewer.exception, ElmanError)
    assert "training.steps" in str(fewer.exception)


def test_a_run_begins_with_the_weights_of_another(base: tuple[Path, str], text: Path, tmp_path: Path) -> None:
    run, out = base[0], tmp_path / "new"
    text.write_text(TEXT + "µ" * 200)
    result = elman(
        "train", "lm", text, "--out", out, "--init-from", run, "--steps", 3, "--hidden", 16, "--batch", 4
    )
    assert result.exit_code == 0, result.output
    assert (out / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert (config["embedding"], config["training"]["init_from"]) == (8, str(run.resolve()))
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    assert next(line["loss"] for line in lines if "loss" in line) < 0.9 * math.log(15)  # it knows something
    other = elman("train", "lm", text, "--out", tmp_path / "x", "--init-from", run, "--layers", 2)
    assert "another layers" in str(other.exception)
    same = elman("train", "lm", text, "--out", run, "--overwrite", "--init-from", run)
    assert "its own weights" in str(same.exception)


def test_a_run_is_overwritten_only_when_told(learnt: tuple[Path, Path, str], tmp_path: Path) -> None:
    run = shutil.copytree(learnt[0], tmp_path / "run")
    result = elman("train", "lm", learnt[1], "--out", run, *SMALL)
    assert isinstance(result.exception, ElmanError)
    assert "--overwrite" in str(result.exception)
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == 15
    trained(learnt[1], run, "--overwrite", "--steps", 2)
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == 2


@pytest.mark.conformance
@pytest.mark.slow
def test_ctrl_c_saves_what_was_learned(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "elman.app.cli"]
    process = subprocess.Popen(
        [*command, "train", "lm", str(text), "--out", str(run), *SMALL[:-4], "--steps", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 240  # that it ends at all, on a busy machine too
        while not (run / "log.jsonl").exists() or not (run / "log.jsonl").read_text():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, told
    assert "Interrupted. Saved in" in told
    assert "--resume auto" in told
    assert elman("evaluate", run).exit_code == 0
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] < 1_000_000


def test_a_run_whose_folder_goes_is_saved_beside_it(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, out = screen.Watch.show, tmp_path / "run"

    def rename(watch: screen.Watch, event: Any) -> None:
        if out.exists():
            out.rename(tmp_path / "elsewhere")
        show(watch, event)

    monkeypatch.setattr(screen.Watch, "show", rename)
    result = elman("train", "lm", text, "--out", out, *SMALL)
    assert isinstance(result.exception, ElmanError)
    assert "removed or renamed" in str(result.exception)
    assert f"--out {tmp_path / 'run.rescued'} --resume auto" in str(result.exception)
    assert not out.exists()
    result = elman("train", "lm", text, "--out", tmp_path / "run.rescued", *SMALL, "--resume", "auto")
    assert result.exit_code == 0, result.output
    assert "going on from step" in result.output


@pytest.mark.parametrize("bad", ["file", "file/below", "taken", "x" * 300])
def test_a_bad_place_for_a_run_is_noticed_before_anything_is_read(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").write_text("")
    monkeypatch.setattr(lm, "read_corpus", lambda *_, **__: pytest.fail("the text was read"))
    result = elman("train", "lm", "missing.txt", "--out", tmp_path / bad)
    assert isinstance(result.exception, ElmanError)
    assert "the run folder" in str(result.exception)


def test_a_text_that_changed_is_not_evaluated_in_silence(learnt: tuple[Path, Path, str]) -> None:
    run, text, _ = learnt
    text.write_text(TEXT + "more")
    said = elman("evaluate", run)
    text.write_text(TEXT)
    assert "not the one of the training run" in str(said.exception)


def test_a_run_that_is_refused_before_its_first_step_leaves_its_place_free(
    text: Path, tmp_path: Path
) -> None:
    refused = elman("train", "lm", text, "--out", tmp_path / "run", *SMALL, "--memory", "1 kB")
    assert refused.exit_code != 0
    assert "budget is too small" in str(refused.exception)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    trained(text, tmp_path / "run")


def test_a_model_worse_than_none_is_said_to_be_one(text: Path, tmp_path: Path) -> None:
    wild = ("--lr", "1e4", "--clip", "1e9")
    assert (
        "worse than a model that knows nothing"
        in elman("train", "lm", text, "--out", tmp_path / "run", *SMALL, *wild).output
    )
