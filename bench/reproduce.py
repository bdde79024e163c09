"""`make reproduce`: the figures of docs/results.md, each run in a process of its own, one after the other.

    python -m bench.reproduce                       # all, about an hour; what is known already is not run again
    python -m bench.reproduce --only shakespeare --again
    python -m bench.reproduce tasks                 # what other tasks reach: bench/tasks.py
    python -m bench.reproduce --scale 0.02          # a rehearsal; docs/results.md stays as it is

The texts are not part of the project: `--data FOLDER` names the folder that holds tinyshakespeare/input.txt and
warandpeace/wap.{train,valid,test}.txt.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from bench import language, machine, tasks
from bench.form import OURS, TORCH
from elman.app import jobs
from elman.app.screen import Watch
from elman.data import open_text, tokenise
from elman.errors import DataError
from elman.models import NGram, estimate, evaluate, evaluate_mixture
from elman.tasks import lm
from elman.tasks.settings import KeepingSettings, StackSettings, TrainingSettings
from elman.training import Measure, Run, Trainer, Training, write_atomically

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "runs" / "reproduce"
PAGE = ROOT / "docs" / "results.md"
SIDES = (OURS, TORCH)


@dataclass(frozen=True)
class Task:
    """A text, a time and a model. wanted: nats per character. test: measured on instead of the held-out text.

    counts: also measured together with the n-grams of the text that was learnt from, of this order.
    """

    title: str
    minutes: float
    files: tuple[str, ...]
    valid: str | None = None
    test: str | None = None
    wanted: float | None = None
    counts: int | None = None
    model: StackSettings = StackSettings()
    training: dict[str, Any] = field(default_factory=dict)


SHAKESPEARE = ("tinyshakespeare/input.txt",)
TASKS = {
    "shakespeare": Task(
        "tinyshakespeare, last 10 % held out, one GRU layer of 256", 3, SHAKESPEARE, wanted=1.48
    ),
    "any": Task(
        "tinyshakespeare, last 10 % held out, two GRU layers of 384", 10, SHAKESPEARE, wanted=1.40, counts=7,
        model=StackSettings(hidden=384, layers=2, dropout=0.1),
    ),
    "warandpeace": Task(
        "War and Peace, its test part, two GRU layers of 384", 15, ("warandpeace/wap.train.txt",),
        "warandpeace/wap.valid.txt", "warandpeace/wap.test.txt",
        model=StackSettings(hidden=384, layers=2),
    ),
}  # fmt: skip
SPEED = "speed"
WEIGHT = 0.35  # of counts in a mixture
HEAD = """\
# Results

Written by `make reproduce`. Both sides are trained by the same code (AdamW, clipping, warm-up and cosine by the clock,
truncated back-propagation with carried state, the weights of the best look at held-out text), with the same settings,
for the same time on the same machine, one after the other; only the model is elman's on one side and made of torch.nn
on the other. Figures are of the whole text, read as one stream.

| text and model | minutes | wanted | elman | torch.nn |
|---|---|---|---|---|
"""
FAST = """
| GRU of 256, characters per second | wanted | elman | torch.nn | ratio |
|---|---|---|---|---|
"""
RUNS = """
What each run was:

| run | parameters | characters/s | passes | threads | settings |
|---|---|---|---|---|---|
"""

app = typer.Typer(add_completion=False)


@app.command()
def main(
    what: Annotated[str, typer.Argument(help="all, or tasks")] = "all",
    data: Annotated[Path, typer.Option(help="the folder with the texts")] = ROOT.parent / "shared" / "data",
    only: Annotated[str, typer.Option(help=f"some of {', '.join([*TASKS, SPEED])}")] = "",
    again: Annotated[bool, typer.Option("--again", help="run what is known already, too")] = False,
    scale: Annotated[float, typer.Option(help="of the minutes; other than 1: a rehearsal")] = 1.0,
    kept: Annotated[Path, typer.Option(help="the folder for results")] = KEPT,
    page: Annotated[Path, typer.Option(help="the page that is written")] = PAGE,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Train, measure, and write docs/results.md."""
    console = Console(highlight=False)
    if one:
        name, side = one.split(",")
        result = speed() if name == SPEED else trained(TASKS[name], side, data, scale, console)
        _keep(kept / f"{name},{side}.json", result)
        return
    if scale != 1 and page == PAGE:
        page = kept / "results.md"
    if what == "tasks":
        for name in only.split(",") if only else tasks.JOBS:
            for seed in tasks.SEEDS:
                path = kept / f"task-{name}-{seed}.json"
                if again or not path.is_file():
                    console.rule(f"{name}, seed {seed}")
                    _keep(path, tasks.run(tasks.JOBS[name], seed, data, kept / f"{name}-{seed}", scale))
    names = [] if what == "tasks" else only.split(",") if only else [*TASKS, SPEED]
    for name in names:
        for side in SIDES if name in TASKS else ("both",):
            if again or not (kept / f"{name},{side}.json").is_file():
                console.rule(f"{name}: {side}")
                more = ["--data", str(data), "--scale", str(scale), "--kept", str(kept)]
                command = [sys.executable, "-m", "bench.reproduce", "--one", f"{name},{side}", *more]
                if subprocess.run(command, cwd=ROOT).returncode:
                    raise typer.Exit(1)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, written(kept).encode())
    console.print(f"written: {page}")


def trained(task: Task, side: str, data: Path, scale: float, console: Console) -> dict[str, Any]:
    """Train one side for the task's minutes, and measure it on the whole text that is measured on."""
    for name in (*task.files, task.valid, task.test):
        if name is not None and not (data / name).is_file():
            raise DataError(
                what="the text is not there", where=data / name, mend="name its folder with --data"
            )
    with tempfile.TemporaryDirectory() as folder:
        how = lm.Settings(
            [data / name for name in task.files], data / task.valid if task.valid else None,
            cache=Path(folder) / "cache", stack=task.model,
        )  # fmt: skip
        settings = TrainingSettings(minutes=task.minutes * scale, **task.training)
        job = jobs.prepare(lm.Language, how, settings, KeepingSettings(Path(folder) / "run"))
        tokenizer, batches, test = job.task.tokenizer, job.prepared.batches, job.prepared.held_out.tokens
        settings, held_out = job.config["training"], test
        if task.test:
            test = tokenise(open_text([data / task.test]), tokenizer, None)
        with job.threads(), Watch(console, plot=False, task=job.task) as watch:
            if side == OURS:
                model: Any = job.model
                job.train(watch)
            else:
                torch.manual_seed(settings["seed"])
                size = (how.model["embedding"], task.model.hidden, task.model.layers)
                model = language.Torchs(tokenizer.size, *size, task.model.dropout)
                run = Run.create(Path(folder) / "theirs", {}, job.task.kept())
                given = {name: settings[name] for name in ("minutes", "lr", "clip", "weight_decay", "seed")}
                look = lambda: Measure(estimate(model, held_out), "cross entropy")  # noqa: E731
                for event in Trainer(Training(model, batches, **given), run, look):
                    watch.show(event)
        last = watch.steps[-1]
        with console.status("measuring …"):
            figure, mixed = evaluate(model, test), None
            if task.counts is not None:
                counts = NGram(batches.tokens[:], tokenizer.size, task.counts)
                mixed = evaluate_mixture(model, counts, test[:], WEIGHT).nats_per_symbol
        return {
            "mixed": mixed,
            "nats": figure.nats_per_symbol, "bits": figure.bits_per_symbol, "characters": figure.symbols,
            "speed": last.count / last.seconds, "passes": last.count / batches.size,
            "minutes": last.seconds / 60, "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in model.parameters()), "model": how.model, "training": settings,
        }  # fmt: skip


def speed() -> dict[str, Any]:
    """Symbols per second of both sides, in turns."""
    return {"training": language.training()[1], "writing": language.writing()[1]}


def _keep(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = machine.about("auto", torch.float32) | {"date": time.strftime("%Y-%m-%d")}
    about["machine"], _, about["load"] = about["machine"].partition("; load ")
    write_atomically(path, json.dumps(result | {"about": about}, indent=2).encode())


# --- the page ---------------------------------------------------------------------------------------------------------


def written(kept: Path) -> str:
    """docs/results.md, of what is known."""
    found = {path.stem: json.loads(path.read_bytes()) for path in sorted(kept.glob("*,*.json"))}
    page = HEAD
    for name, task in TASKS.items():
        cells = [_figure(found.get(f"{name},{side}")) for side in SIDES]
        wanted = "" if task.wanted is None else f"≤ {task.wanted:.2f} nats"
        page += f"| {task.title} | {task.minutes:g} | {wanted} | {cells[0]} | {cells[1]} |\n"
        if task.counts is not None:
            cells = [_nats(found.get(f"{name},{side}", {}).get("mixed")) for side in SIDES]
            words = f"the same with its {task.counts}-gram counts mixed in ({WEIGHT:g})"
            page += f"| {words} | {task.minutes:g} | {wanted} | {cells[0]} | {cells[1]} |\n"
    if fast := found.get(f"{SPEED},both"):
        page += FAST
        for what, wanted in (("training", "1.6×"), ("writing", "4×")):
            ours, theirs = fast[what][OURS], fast[what][TORCH]
            page += f"| {what} | {wanted} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f}× |\n"
    page += RUNS
    for stem, result in found.items():
        if "nats" in result:
            said = {**result["model"], **result["training"]}
            settings = ", ".join(
                f"{key} {value}" for key, value in said.items() if value not in (None, False)
            )
            page += (
                f"| {stem.replace(',', ', ')} | {result['parameters']:,} | {result['speed']:,.0f} | "
                f"{result['passes']:.1f} | {result['threads']} | {settings} |\n"
            )
    if list(kept.glob("task-*.json")):
        page += tasks.section(kept)
    said = {
        "; ".join(f"{key}: {value}" for key, value in _lasting(result["about"])) for result in found.values()
    }
    return page + "".join(f"\n{about}.\n" for about in sorted(said))


def _lasting(about: dict[str, str]) -> list[tuple[str, str]]:
    """What is the same for runs after one another."""
    return [(key, value) for key, value in about.items() if key != "load"]


def _figure(result: dict[str, Any] | None) -> str:
    return "not run" if result is None else _nats(result["nats"])


def _nats(nats: float | None) -> str:
    return "not run" if nats is None else f"{nats:.4f} nats, {nats / math.log(2):.4f} bits"


if __name__ == "__main__":
    try:
        app()
    except DataError as error:
        Console(stderr=True).print(str(error), style="red")
        sys.exit(2)
