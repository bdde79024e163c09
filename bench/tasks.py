"""`make reproduce ARGS=tasks`: what tasks reach on real data, each by its command, one seed after the other.

A further one is a line in `CASES`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elman.errors import DataError
from elman.report import read_record
from elman.tasks import task_of

ROOT = Path(__file__).resolve().parent.parent
TABLE = """
Tasks, each by its command, measured on data that nothing was learnt from or chosen by: the mean over seeds, which also
draw the splits, and the spread between them.

| task and data | minutes | seeds | wanted | reached | beside it |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Case:
    """words: of the command behind `elman train TASK`, from (folder with the data, a folder for what is made)."""

    title: str
    task: str
    words: Callable[[Path, Path], list[str]]
    minutes: float
    wanted: str
    seeds: int = 3


def _digits(data: Path, made: Path) -> list[str]:
    """scikit-learn's digits, row by row: eight steps of eight numbers."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    rows = [
        json.dumps({"text": x.tolist(), "label": int(y)})
        for x, y in zip(found.images, found.target, strict=True)
    ]
    (made / "digits.jsonl").write_text("\n".join(rows) + "\n")
    return [str(made / "digits.jsonl")]


CASES = {
    "names": Case(
        "names by 18 languages, 80/10/10", "classify", lambda data, _: [str(data / "names")], 5, "≥ 84.5 %", 5
    ),
    "digits": Case("handwritten digits, row by row, 80/10/10", "classify", _digits, 2, "≥ 98 %"),
}  # fmt: skip


def run(name: str, data: Path, kept: Path, scale: float) -> None:
    """Train a case with all its seeds, and keep what was measured."""
    case, found = CASES[name], []
    for seed in range(case.seeds):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            words = [
                *case.words(data, Path(folder)),
                "--minutes",
                str(case.minutes * scale),
                "--seed",
                str(seed),
            ]
            command = [sys.executable, "-m", "elman", "train", case.task, *words, "--out", str(out)]
            if subprocess.run(command, cwd=ROOT).returncode:
                raise DataError(
                    what=f"{name} failed", where=f"seed {seed}", mend="see above; --data names the data"
                )
            record = read_record(out, task_of(case.task).part)
            found.append({**record.measured, **record.more, "minutes": record.seconds / 60})
    kept.mkdir(parents=True, exist_ok=True)
    (kept / f"task-{name}.json").write_text(json.dumps(found))


def table(kept: Path) -> str:
    """Of what is known, for docs/results.md; "" for nothing."""
    rows = ""
    for name, case in CASES.items():
        path = kept / f"task-{name}.json"
        if path.is_file():
            found = json.loads(path.read_bytes())
            values = [one["value"] for one in found]
            beside = _beside([one.get("baselines", {}) for one in found])
            rows += (
                f"| {case.title} | {case.minutes:g} | {len(found)} | {case.wanted} | {found[0]['name']} "
                f"{_said(values, found[0]['unit'])} | {beside} |\n"
            )
    return rows and TABLE + rows


def _said(values: list[float], unit: str) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    if unit == "%":
        return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f} %"
    return f"{statistics.mean(values):.4f} ± {spread:.4f} {unit}".rstrip()


def _beside(baselines: list[dict[str, Any]]) -> str:
    names = baselines[0] if baselines else {}
    return ", ".join(f"{name} {_said([one[name] for one in baselines], '%')}" for name in names)
