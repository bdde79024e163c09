"""`make reproduce`: the figures of docs/results.md, each run in a process of its own, one after the other.

    python -m bench.reproduce                       # all, about three hours; what is known already is not run again
    python -m bench.reproduce --only shakespeare --again
    python -m bench.reproduce tasks                 # what other tasks reach: bench/tasks.py
    python -m bench.reproduce --scale 0.02          # a rehearsal; docs/results.md stays as it is

Each is run with three seeds. Weights are chosen by a part of the text for that alone, and figures are of another one.
Rows of the page that are not run stay as they were.

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
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from bench import language, machine, tasks
from bench.form import OURS, TORCH
from bench.kept import Page, Row, spread
from elman.app import jobs
from elman.app.screen import Watch
from elman.data import open_text, tokenise
from elman.errors import DataError
from elman.models import NGram, estimate, evaluate, evaluate_cold, evaluate_mixture
from elman.tasks import lm
from elman.tasks.settings import KeepingSettings, StackSettings, TrainingSettings
from elman.training import Measure, Processes, Run, Trainer, Training, write_atomically

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "runs" / "reproduce"
PAGE = ROOT / "docs" / "results.md"
SIDES = (OURS, TORCH)


@dataclass(frozen=True)
class Task:
    """A text, a time and a model. wanted: nats per character; cold: in blocks that each begin from the initial state.
    valid, test: texts to choose weights by and to measure on; without them the text is cut, by `SHARES`.

    counts: also measured together with the n-grams of the text that was learnt from, of this order. precision: of the
    factors of products in training, on both sides.
    """

    title: str
    minutes: float
    files: tuple[str, ...]
    valid: str | None = None
    test: str | None = None
    wanted: float | None = None
    cold: float | None = None
    counts: int | None = None
    model: StackSettings = StackSettings()
    training: dict[str, Any] = field(default_factory=dict)
    precision: str = "float32"


# What a text that is cut is for: all but the last tenth is learnt, the last tenth is measured on and does not choose
# weights. What training looks at is the end of what is learnt, so that the weights at the end are kept, as a rule.
# Dropout of the small models, the width of the wider one, and width and batch of the one in smaller batches were chosen
# with 85 % learnt, by these 5 %.
SHARES = (0.85, 0.05)
SHAKESPEARE = ("tinyshakespeare/input.txt",)
TASKS = {
    "shakespeare": Task(
        "tinyshakespeare, its last 10 %, one GRU layer of 256", 3, SHAKESPEARE, wanted=1.48,
        model=StackSettings(dropout=0.15),
    ),
    "wider": Task(
        "tinyshakespeare, its last 10 %, one GRU layer of 512", 3, SHAKESPEARE,
        model=StackSettings(hidden=512, dropout=0.2),
    ),
    "smaller batches": Task(
        "tinyshakespeare, its last 10 %, one GRU layer of 384, batches of 16", 3, SHAKESPEARE,
        model=StackSettings(hidden=384, dropout=0.2), training={"batch": 16},
    ),
    "bfloat16": Task(
        "tinyshakespeare, its last 10 %, one GRU layer of 512, products in bfloat16 (AMX)", 3, SHAKESPEARE,
        model=StackSettings(hidden=512, dropout=0.2), precision="bfloat16",
    ),
    "any": Task(
        "tinyshakespeare, its last 10 %, two GRU layers of 384", 10, SHAKESPEARE, wanted=1.40, cold=1.44, counts=7,
        model=StackSettings(hidden=384, layers=2, dropout=0.3),
    ),
    "warandpeace": Task(
        "War and Peace, its test part, two GRU layers of 384", 10, ("warandpeace/wap.train.txt",),
        "warandpeace/wap.valid.txt", "warandpeace/wap.test.txt",
        model=StackSettings(hidden=384, layers=2, dropout=0.15),
    ),
}  # fmt: skip
SPEED = "speed"
COLD = 256  # symbols in a block that begins from the initial state, as of models of a fixed context
COUNTED = 0.35  # weight of counts in a mixture, elman's default
HEAD = f"""\
# Results

Written by `make reproduce`. Both sides are trained by the same code (AdamW, clipping, warm-up and cosine by the
clock, truncated back-propagation with carried state), with the same settings, for the same time on the same machine,
one after the other; only the model is elman's on one side and made of torch.nn on the other. All but the last tenth
of tinyshakespeare is learnt, the last tenth is measured on, and chooses neither weights nor settings: the dropout of
models that train for three minutes was chosen with 85 % learnt, by the next 5 %, and so was the width of 512, with
which elman gets furthest in that time (384, 512 and 640 reach 1.435, 1.429 and 1.439 nats there, one seed each). On
another machine, half as fast at such widths, it is 384 in batches of 16 (widths of 256, 384 and 512 reach 1.467, 1.460
and 1.492 nats there, and in batches of 32 the first two 1.476 and 1.465, one seed each), and with products in
bfloat16 512 in batches of 32 (1.423 there; in batches of 16 1.443, and 384 1.435). The dropout of the large
ones was chosen beforehand. Weights for War and Peace are chosen by its validation part. Nats per
character of the whole measured text, read as one stream, and cold: in blocks of {COLD}, each from the initial state,
as models of a fixed context are measured. Means of three seeds; in brackets the lowest and the highest; without them,
one seed.

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
        name, *which = one.split(",")
        result = trained(TASKS[name], which[0], int(which[1]), data, scale, console) if which else speed()
        _keep(kept / f"{one}.json", result)
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
        for run in (
            [f"{name},{side},{seed}" for seed in tasks.SEEDS for side in SIDES] if name in TASKS else [name]
        ):
            if again or not (kept / f"{run}.json").is_file():
                console.rule(run)
                more = ["--data", str(data), "--scale", str(scale), "--kept", str(kept)]
                command = [sys.executable, "-m", "bench.reproduce", "--one", run, *more]
                if subprocess.run(command, cwd=ROOT).returncode:
                    raise typer.Exit(1)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, written(kept, page.read_text() if page.is_file() else "").encode())
    console.print(f"written: {page}")


def trained(task: Task, side: str, seed: int, data: Path, scale: float, console: Console) -> dict[str, Any]:
    """Train one side for the task's minutes, and measure it on the whole text that is measured on."""
    for name in (*task.files, task.valid, task.test):
        if name is not None and not (data / name).is_file():
            raise DataError(
                what="the text is not there", where=data / name, mend="name its folder with --data"
            )
    with tempfile.TemporaryDirectory() as folder, Processes(task.precision) as processes:
        learnt, valid, measured = _parts(task, data, Path(folder))
        how = lm.Settings(learnt, valid, cache=Path(folder) / "cache", stack=task.model)
        settings = TrainingSettings(minutes=task.minutes * scale, seed=seed, **task.training)
        job = jobs.prepare(lm.Language, how, settings, KeepingSettings(Path(folder) / "run"), processes)
        tokenizer, batches, held_out = job.task.tokenizer, job.prepared.batches, job.prepared.held_out.tokens
        settings, test = job.config["training"], tokenise(open_text([measured]), tokenizer, None)
        with job.threads() as threads, Watch(console, plot=False, task=job.task) as watch:
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
                training = Training(model, batches, processes=processes, **given)
                training.threads = threads
                for event in Trainer(training, run, look):
                    watch.show(event)
        last = watch.steps[-1]
        with console.status("measuring …"):
            figure, cold, mixed = evaluate(model, test), evaluate_cold(model, test, COLD), None
            if task.counts is not None:
                counts = NGram(batches.tokens[:], tokenizer.size, task.counts)
                mixed = evaluate_mixture(model, counts, test[:], COUNTED).nats_per_symbol
        return {
            "mixed": mixed,
            "cold": cold.nats_per_symbol,
            "nats": figure.nats_per_symbol, "bits": figure.bits_per_symbol, "characters": figure.symbols,
            "speed": last.count / last.seconds, "passes": last.count / batches.size,
            "minutes": last.seconds / 60, "threads": torch.get_num_threads() if threads is None else threads.chosen,
            "parameters": sum(p.numel() for p in model.parameters()), "model": how.model, "training": settings,
        }  # fmt: skip


def _parts(task: Task, data: Path, folder: Path) -> tuple[list[Path], Path, Path]:
    """Files to learn from, to choose weights by, and to measure on; those of a text that is cut are in `folder`."""
    files = [data / name for name in task.files]
    if task.valid and task.test:
        return files, data / task.valid, data / task.test
    text = open_text(files)
    cuts = [0, *(int(text.characters * share) for share in accumulate(SHARES)), text.characters]
    found = []
    for k, (start, stop) in enumerate([(0, cuts[2]), *pairwise(cuts[1:])]):
        found.append(folder / f"part{k}.txt")
        found[-1].write_bytes(str(text.cut(start, stop)).encode())
    return found[:1], found[1], found[2]


def speed() -> dict[str, Any]:
    """Symbols per second of both sides, in turns."""
    return {"training": language.training()[1], "writing": language.writing()[1]}


def _keep(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = machine.about("auto", torch.float32) | {"date": time.strftime("%Y-%m-%d")}
    about["machine"], _, about["load"] = about["machine"].partition("; load ")
    write_atomically(path, json.dumps(result | {"about": about}, indent=2).encode())


# --- the page ---------------------------------------------------------------------------------------------------------


def written(kept: Path, before: str) -> str:
    """docs/results.md, of what is known; rows of the page before for what is not."""
    page, found = Page(before), defaultdict(list)
    for path in sorted(kept.glob("*,*,*.json")):
        name, side, _ = path.stem.split(",")
        found[name, side].append(json.loads(path.read_bytes()))
    results = [one for some in found.values() for one in some]
    fast = kept / f"{SPEED}.json"
    if fast.is_file():
        results.append(json.loads(fast.read_bytes()))
    made = page.table(HEAD, _reached(found))
    made += page.table(FAST, _fast(results[-1]) if fast.is_file() else [])
    made += page.table(RUNS, [_ran(name, some) for name, some in found.items()])
    of_tasks = [json.loads(path.read_bytes()) for path in sorted(kept.glob("task-*.json"))]
    results += [one for one in of_tasks if "about" in one]
    made += page.table(tasks.HEAD, tasks.rows(kept) if of_tasks else [])
    said = {"; ".join(f"{key}: {value}" for key, value in _lasting(one["about"])) for one in results}
    lines = {f"{about}.\n" for about in said} | set(page.lines("machine: ") if page.again else [])
    return made + "".join(f"\n{line}" for line in sorted(lines))


def _reached(found: Mapping[tuple[str, str], list[dict[str, Any]]]) -> Iterator[Row]:
    for name, task in TASKS.items():
        sides, known = [found.get((name, side), []) for side in SIDES], any(one[0] == name for one in found)
        lines = [(task.title, "nats", task.wanted), (f"{task.title}, cold", "cold", task.cold)]
        if task.counts is not None:
            lines.append((f"{task.title}, with {task.counts}-gram counts mixed in", "mixed", task.wanted))
        for title, what, most in lines:
            cells = [_nats([one[what] for one in some]) for some in sides]
            wanted = "" if most is None else f"≤ {most:.2f} nats"
            yield Row((title, f"{task.minutes:g}", wanted, *cells), known)


def _fast(result: dict[str, Any]) -> Iterator[Row]:
    for what, wanted in (("training", "1.6×"), ("writing", "4×")):
        ours, theirs = result[what][OURS], result[what][TORCH]
        yield Row((what, wanted, f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f}×"))


def _ran(name: tuple[str, str], some: list[dict[str, Any]]) -> Row:
    said = {**some[0]["model"], **some[0]["training"]}
    said.pop("seed", None)
    settings = ", ".join(f"{key} {value}" for key, value in said.items() if value not in (None, False))
    speed, passes = (mean(one[what] for one in some) for what in ("speed", "passes"))
    size, threads = f"{some[0]['parameters']:,}", str(some[0]["threads"])
    return Row((", ".join(name), size, f"{speed:,.0f}", f"{passes:.1f}", threads, settings))


def _lasting(about: dict[str, str]) -> list[tuple[str, str]]:
    """What is the same for runs after one another."""
    return [(key, value) for key, value in about.items() if key != "load"]


def _nats(nats: list[float]) -> str:
    figure = spread(nats, lambda value: f"{value:.4f}")
    some = "" if len(nats) in (1, len(tasks.SEEDS)) else f", {len(nats)} seeds"
    return f"{figure} nats, {mean(nats) / math.log(2):.4f} bits{some}" if nats else figure


if __name__ == "__main__":
    try:
        app()
    except DataError as error:
        Console(stderr=True).print(str(error), style="red")
        sys.exit(2)
