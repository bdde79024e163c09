"""`make reproduce ARGS=tasks`: what tasks beside the language model reach, each from its command, with three seeds.

python -m bench.reproduce tasks --only names

What ETS and AutoARIMA make of the series: python -m bench.forecast
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import forecast as series
from bench.kept import Row, spread
from elman.app.jobs import opened
from elman.errors import DataError
from elman.tasks.task import Opening
from elman.training import Run
from elman.training.measure import shown

SEEDS = (0, 1, 2)
HEAD = """
## Tasks

Each is a command, with three seeds: mean and, in brackets, the lowest and the highest. Weights and settings were chosen
by sequences that are not measured on.

| task | minutes | wanted | reached | command |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Job:
    """A command behind `elman train`. words: of it; those that begin with @ are patterns of files in the data,
    those with = series of statsmodels. minutes: that it trains, or, where it ends after `steps`, that these took.
    test: a pattern of what to measure on, where what is held out is chosen by."""

    title: str
    minutes: float
    wanted: str
    words: tuple[str, ...]
    test: str = ""
    steps: int | None = None

    def length(self, scale: float = 1.0) -> list[str]:
        """Options that say when it ends."""
        if self.steps is None:
            return ["--minutes", f"{self.minutes * scale:g}"]
        return ["--steps", str(max(round(self.steps * scale), 1))]


_WORDS = (
    "lm", "@warandpeace/wap.train.txt", "--valid", "@warandpeace/wap.valid.txt", "--tokenizer", "words",
    "--dropout", "0.3",
)  # fmt: skip
JOBS = {
    "tags": Job(
        "parts of speech: English EWT, its test part", 18, "≥ 95.8 %",
        ("tag", "@ud_ewt/*train.conllu", "--valid", "@ud_ewt/*dev.conllu"), "@ud_ewt/*test.conllu", 5880,
    ),
    "languages": Job(
        "names by 18 languages, 80/10/10 by seed", 4.5, "≥ 84.5 %", ("classify", "@names"), steps=5020,
    ),
    "names": Job(
        "auto-encoding of names, 128 numbers each, unseen ones exactly back", 7, "≥ 99.5 %",
        ("autoencode", "@names/*.txt"), steps=12_000,
    ),
    "names-64": Job("the same, 64 numbers", 5, "", ("autoencode", "@names/*.txt", "--hidden", "64")),
    "names-32": Job(
        "the same, 32 numbers", 1.6, "", ("autoencode", "@names/*.txt", "--hidden", "32"), steps=5000,
    ),
    "lines": Job(
        "auto-encoding of lines of tinyshakespeare, 256 numbers each", 10, "",
        ("autoencode", "@tinyshakespeare/input.txt", "--hidden", "256"),
    ),
    "jsb": Job(
        "piano rolls: JSB chorales, negative log-likelihood of a frame", 4, "≤ 8.3",
        ("forecast", "@music/JSB_Chorales.mat"),
    ),
    "nottingham": Job(
        "the same: Nottingham", 7, "≤ 3.1", ("forecast", "@music/Nottingham.mat"),
    ),
    "piano-midi": Job("the same: Piano-midi", 10, "", ("forecast", "@music/Piano_midi.mat")),
    "musedata": Job("the same: MuseData", 10, "", ("forecast", "@music/MuseData.mat")),
    "co2": Job(
        "CO2, weekly with gaps, 10 forecasts of 12 weeks", 2, "< 0.6086 (ETS), 0.9514 (seasonal naive)",
        ("forecast", "=co2"),
    ),
    "sunspots": Job(
        "sunspots, yearly, 5 forecasts of 12 years", 0.2, "< 1.7609 (ETS), 1.2668 (seasonal naive)",
        ("forecast", "=sunspots", "--season", "11", "--hidden", "32"), steps=300,
    ),
    "words": Job(
        "words of War and Peace, 10,000 of them, its test part: adaptive readout", 2, "≤ 0.02 above one softmax",
        (*_WORDS, "--readout", "adaptive"), "@warandpeace/wap.test.txt", 2400,
    ),
    "words-softmax": Job(
        "the same: one softmax", 17, "", _WORDS, "@warandpeace/wap.test.txt", 2400,
    ),
}  # fmt: skip


def run(job: Job, seed: int, data: Path, folder: Path, scale: float) -> dict[str, Any]:
    """Train, and what the run's log says was measured. Raises DataError where the data are not there."""
    words: list[str] = []
    for word in job.words:
        if word[0] == "=":
            folder.parent.mkdir(parents=True, exist_ok=True)
            table = folder.with_name(f"{word[1:]}.csv")
            series.write(word[1:], table)
            words.append(str(table))
        else:
            words += map(str, _files(data, word)) if word[0] == "@" else [word]
    how = ["--seed", str(seed), *job.length(scale), "--out", str(folder), "--overwrite"]
    subprocess.run([sys.executable, "-m", "elman", "train", *words, *how], check=True)
    if job.test:
        done, task, model = opened(folder, Opening())
        found = task.measure(model, task.data(done, _files(data, job.test), None, print), False)
        return {"value": found.value, "unit": found.unit, **found.details}
    return [line for line in Run(folder).read_log() if "measured" in line][-1]["measured"]


def _files(data: Path, pattern: str) -> list[Path]:
    found = sorted(data.glob(pattern[1:]))
    if not found:
        raise DataError(
            what="the data are not there", where=data / pattern[1:], mend="name the folder with --data"
        )
    return found


def rows(kept: Path) -> list[Row]:
    """Of the table in docs/results.md."""
    made = []
    for name, job in JOBS.items():
        found = [json.loads(path.read_bytes()) for path in sorted(kept.glob(f"task-{name}-[0-9].json"))]
        values, unit = [one["value"] for one in found], found[0]["unit"] if found else ""
        said = unit if unit == "%" else ""
        reached = spread(values, lambda value, said=said: shown(value, said))
        reached = f"{reached} {unit}" if found and not said else reached
        named = (f"{word[1:]}.csv" if word[0] == "=" else word.lstrip("@") for word in job.words)
        command = " ".join([*named, *job.length()])
        cells = (job.title, f"{job.minutes:g}", job.wanted, reached, f"`elman train {command}`")
        made.append(Row(cells, bool(found)))
    return made
