"""`make reproduce` on a text of no size: what is known is kept, and the page has a line for everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import tasks
from bench.reproduce import ROOT, TASKS
from elman.data import built_in_text


def reproduce(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    where = ["--data", str(folder / "data"), "--kept", str(folder / "kept"), "--scale", "0.004"]
    command = [sys.executable, "-m", "bench.reproduce", *where, *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.mark.conformance  # a minute of training, in processes of its own
def test_what_is_known_is_not_run_again(tmp_path: Path) -> None:
    missing = reproduce(tmp_path, "--only", "shakespeare")
    assert missing.returncode != 0
    assert "name its folder with --data" in missing.stderr
    text = tmp_path / "data" / TASKS["shakespeare"].files[0]
    text.parent.mkdir(parents=True)
    text.write_text(built_in_text()[:40_000])
    done = reproduce(tmp_path, "--only", "shakespeare")
    assert done.returncode == 0, done.stderr
    kept = {path.name: path.read_bytes() for path in (tmp_path / "kept").glob("*.json")}
    assert sorted(kept) == ["shakespeare,elman.json", "shakespeare,torch.nn.json"]
    figures = [json.loads(content)["nats"] for content in kept.values()]
    page = (tmp_path / "kept" / "results.md").read_text()
    for figure in figures:
        assert 1 < figure < 5
        assert f"{figure:.4f} nats" in page
    for task in TASKS.values():
        assert f"| {task.title} |" in page
    assert page.count("not run") == 2 * (len(TASKS) + 1 - 1)  # one of them has two lines
    assert "elman" not in reproduce(tmp_path, "--only", "shakespeare").stdout.replace(str(tmp_path), "")
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").glob("*.json")} == kept


def test_tasks_are_told_with_their_spread(tmp_path: Path) -> None:
    for seed, value in enumerate((0.99, 1.0)):
        (tmp_path / f"task-names-{seed}.json").write_text(json.dumps({"value": value, "unit": "%"}))
    page = tasks.section(tmp_path)
    assert (
        "| 99.5 % (99.0 % … 100.0 %) | `elman train autoencode names/*.txt --hidden 128 --minutes 10` |"
        in page
    )
    assert page.count("not run") == len(tasks.JOBS) - 1
