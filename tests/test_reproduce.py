"""`make reproduce` on a text of no size: what is known is kept, and the page has a line for everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import tasks
from bench.kept import Page, Row, spread
from bench.reproduce import HEAD, ROOT, TASKS, written
from elman.data import built_in_text


def reproduce(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    where = ["--data", str(folder / "data"), "--kept", str(folder / "kept"), "--scale", "0.004"]
    command = [sys.executable, "-m", "bench.reproduce", *where, *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=480)


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
    kept = {path.name: path.read_bytes() for path in sorted((tmp_path / "kept").glob("*.json"))}
    assert sorted(kept) == [
        f"shakespeare,{side},{seed}.json" for side in ("elman", "torch.nn") for seed in range(3)
    ]
    figures = [json.loads(content)["nats"] for content in kept.values()]
    page = (tmp_path / "kept" / "results.md").read_text()
    assert all(1 < figure < 5 for figure in figures)
    for some in (figures[:3], figures[3:]):
        assert f"{sum(some) / 3:.4f} ({min(some):.4f} … {max(some):.4f}) nats" in page
    for task in TASKS.values():
        assert f"| {task.title} |" in page
    assert page.count("not run") == 2 * (2 * (len(TASKS) - 1) + 1)  # a line for cold, one for counts
    assert "elman" not in reproduce(tmp_path, "--only", "shakespeare").stdout.replace(str(tmp_path), "")
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").glob("*.json")} == kept


def test_tasks_are_told_with_their_spread(tmp_path: Path) -> None:
    for seed, value in enumerate((0.99, 1.0)):
        (tmp_path / f"task-names-{seed}.json").write_text(json.dumps({"value": value, "unit": "%"}))
    (tmp_path / "task-names-32-0.json").write_text(
        json.dumps({"value": 0.5, "unit": "%", "about": {"machine": "a new one", "load": "0"}})
    )
    page = written(tmp_path, "")
    assert "machine: a new one." in page
    assert "| 50.0 % | `elman train autoencode names/*.txt --hidden 32 --steps 5000` |" in page
    assert "| 99.5 % (99.0 % … 100.0 %) | `elman train autoencode names/*.txt --steps 12000` |" in page
    assert sum(row.known for row in tasks.rows(tmp_path)) == 2


def test_rows_that_are_not_run_stay_as_they_were(tmp_path: Path) -> None:
    before = (ROOT / "docs" / "results.md").read_text()
    (tmp_path / "task-names-0.json").write_text(json.dumps({"value": 0.99, "unit": "%"}))
    page = written(tmp_path, before)
    run_anew = f"| {tasks.JOBS['names'].title} |"
    lines = [
        line for line in before.splitlines()
        if line.startswith(("| ", "machine")) and "---" not in line and not line.startswith(run_anew)
    ]  # fmt: skip
    assert set(lines) - set(page.splitlines()) == set()
    assert "| 99.0 % | `elman train autoencode" in page
    assert written(tmp_path, page) == page
    for title in (task.title for task in TASKS.values()):
        assert page.count(f"| {title} |") == 1
    run = {
        "nats": 1.5,
        "cold": 1.6,
        "mixed": 1.4,
        "speed": 1e4,
        "passes": 2.0,
        "parameters": 9,
        "threads": 2,
        "model": {},
    }
    for seed, nats in enumerate((1.5, 1.7)):
        result = run | {"nats": nats, "training": {"seed": seed, "lr": 1}, "about": {"machine": "new"}}
        (tmp_path / f"warandpeace,elman,{seed}.json").write_text(json.dumps(result))
    page = written(tmp_path, page)
    assert (
        f"| {TASKS['warandpeace'].title} | 10 |  | 1.6000 (1.5000 … 1.7000) nats, 2.3083 bits, 2 seeds | not run |"
        in page
    )
    assert "| warandpeace, elman | 9 | 10,000 | 2.0 | 2 | lr 1 |" in page
    assert "machine: new." in page


def test_a_table_keeps_what_nobody_knows() -> None:
    page = Page("| a | b |\n|---|---|\n| x | 1 |\n| y | 2 |\n\n| y | 3 |\n")
    rows = [Row(("y", "9")), Row(("x", "not run"), known=False), Row(("z", "not run"), known=False)]
    table = page.table("| a | b |\n|---|---|\n", rows)
    assert table.splitlines()[2:] == ["| y | 9 |", "| x | 1 |", "| z | not run |"]
    assert page.table(HEAD, []) == ""
    assert spread([], str) == "not run"
