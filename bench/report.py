"""Prints tables as they are made, and keeps what they were made of."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench import (
    busy,
    examples,
    language,
    machine,
    measure,
    memory,
    online,
    others,
    overhead,
    pace,
    peers,
    ragged,
    serving,
    streams,
    tables,
    tangents,
    targets,
)
from bench.agree import Disagreement
from bench.contestants import ENTRIES
from bench.form import COMPILED, LOOP, OURS, TORCH, Shape

COMPILED_STEPS = 50  # torch.compile unrolls the loop: its time grows with T


class Report:
    """What one run of the command prints and writes. Cells that are wrong are told at the end."""

    def __init__(self, engine: str, dtype: torch.dtype) -> None:
        self.console = Console() if sys.stdout.isatty() else Console(width=130)
        self.options: dict[str, Any] = {"engine": engine, "dtype": dtype}
        self.made: dict[str, Any] = {"about": machine.about(engine, dtype), "rows": []}
        self.wrong: list[str] = []
        self.missed: list[str] = []
        self.say("\n".join(f"{name}: {value}" for name, value in self.made["about"].items()))
        self.say(
            "us per time step, medians of rounds in turns; ×: theirs / ours; of torch.mm: its time / ours\n"
        )
        if machine.busy():
            self.say(
                "Other processes keep this machine busy: ratios below may be off by much.\n", style="bold"
            )

    def say(self, words: str, **how: Any) -> None:
        self.console.print(words, highlight=False, **how)

    def tried(self, name: str, shape: str, call: Any) -> list[Any]:
        """The rows of a cell at a shape; none if a contestant is wrong."""
        with self.console.status(f"{name} {shape}"):
            try:
                return list(call())
            except Disagreement as error:
                self.wrong.append(f"{name} {shape}: {error}")
                return []

    def rows(self, cells: list[str], shapes: list[str], steps: int, repeats: int, seconds: float) -> None:
        for shape in map(Shape.parse, shapes):
            found: list[measure.Row] = []
            for name in cells:
                call = functools.partial(measure.run, ENTRIES[name], shape, steps, repeats, seconds)
                found += self.tried(name, str(shape), functools.partial(call, **self.options))
            for what in (measure.TRAINING, measure.INFERENCE) if found else ():
                title = f"{shape}, T = {steps}, {what}"
                self.console.print(tables.of_rows(title, [row for row in found if row.what == what]))
            self.made["rows"] += [row.as_json() for row in found]

    def compiled(self, cells: list[str], shapes: list[str], repeats: int, seconds: float) -> None:
        """A training step beside torch.compile of the plain loop, and how long the first one takes."""

        def measured(name: str, shape: Shape) -> list[measure.Row]:
            found = measure.contest(ENTRIES[name], shape, COMPILED_STEPS, compiled=True, **self.options)
            ways = found.ways(measure.TRAINING, (LOOP, COMPILED))
            return [found.row(measure.TRAINING, measure.in_turns(ways, repeats, seconds))]

        for shape in map(Shape.parse, shapes):
            found: list[measure.Row] = []
            for name in cells:
                found += self.tried(name, f"{shape}, compiling", functools.partial(measured, name, shape))
            if found:
                title = f"{shape}, T = {COMPILED_STEPS}, training step, torch.compile"
                self.console.print(tables.of_rows(title, found))
            self.made["rows"] += [row.as_json() for row in found]

    def alone(self, cells: list[str], shapes: list[str], steps: int, seconds: float) -> None:
        found: list[measure.Row] = []
        for shape in map(Shape.parse, shapes):
            for name in cells:
                call = functools.partial(measure.alone, ENTRIES[name], shape, steps, seconds, **self.options)
                found += self.tried(name, str(shape), call)
        if found:
            self.console.print(tables.of_shapes(f"ours alone, T = {steps}", found))
        self.made["alone"] = [row.as_json() for row in found]

    def targets(self, cells: list[str], shapes: list[str]) -> None:
        every: list[targets.Line] = []
        for name in cells:
            found: list[targets.Line] = []
            for shape in targets.STEPS:
                if not shapes or shape in shapes:
                    call = functools.partial(targets.lines, name, shape, self.options["engine"])
                    found += self.tried(name, shape, call)
            if found:
                self.console.print(tables.of_targets(f"{name}, training step", found))
            every += found
        judged = [line.met for line in every if line.met is not None]
        self.say(f"{sum(judged)} of {len(judged)} reached\n")
        self.made["targets"] = [
            {"peer": line.peer, "prototype": line.prototype, "reach": line.reach, "met": line.met}
            | line.row.as_json()
            for line in every
        ]

    def peers(self, seconds: float, threads: tuple[int, ...], only: str) -> None:
        """Every goal beside its peer; one that is missed makes the exit status 1."""
        for peer, package in peers.missing().items():
            self.say(f"{peer}: {package} is not installed, so it is left out")
        found: list[peers.Line] = []
        measured: list[dict[str, float]] = []
        with self.console.status("peers") as status:
            for told in peers.run(seconds, threads, only):
                if "line" in told:
                    found.append(peers.Line(**told["line"]))
                    status.update(f"threads: {found[-1].threads}; {found[-1].row} is done")
                elif "limits" in told:
                    measured.append(told["limits"])
                elif "done" in told:
                    each = measured[-1]
                    rows = [line for line in found if line.threads == each["threads"]]
                    limit = ", ".join(
                        f"{value:.0f} {name}" for name, value in each.items() if name != "threads"
                    )
                    self.console.print(tables.of_peers(f"threads: {each['threads']:.0f}; {limit}", rows))
                else:
                    self.wrong.append(told["wrong"])
        judged = [line for line in found if line.met is not None]
        self.say(f"{sum(map(bool, (line.met for line in judged)))} of {len(judged)} goals met\n")
        self.missed += [
            f"{line.row}, {line.ours}, threads: {line.threads}, beside {line.peer}: "
            f"{line.ratio:.2f}, the goal is {line.figure:g}"
            for line in judged
            if not line.met
        ]
        self.made["peers"] = [dataclasses.asdict(line) | {"met": line.met} for line in found]
        self.made["limits"] = measured

    def busy(self, cells: list[str], shapes: list[str], steps: int) -> None:
        found: list[busy.Slowed] = []
        for shape in shapes:
            for name in cells:
                call = functools.partial(busy.run, name, shape, steps, **self.options)
                found += self.tried(name, shape, lambda call=call: [call()])
        if found:
            self.console.print(tables.of_busy("training step beside one busy process", found))
        self.made["busy"] = [slowed.as_json() for slowed in found]

    def ragged(self, seconds: float) -> None:
        """Lengths, episodes and single steps of a GRU."""
        batches = []
        for T, B, H in ragged.SIZES:
            with self.console.status(f"lengths 1 … {T}, H{H}"):
                batches.append(ragged.lengths(T, B, H, seconds * (4 if T > 100 else 1)))
        pairs = [
            (ragged.RAGGED, ragged.PADDED),
            (ragged.RAGGED, ragged.DENSE),
            (ragged.PACKED, ragged.RAGGED),
        ]
        self.console.print(tables.of_lines("GRU, lengths, training step, ms", batches, pairs))
        with self.console.status("episodes"):
            cut = [ragged.episodes(*ragged.EPISODES, seconds * 4)]
        pairs = [(ragged.RESET, ragged.WHOLE), (ragged.WHERE, ragged.RESET), (ragged.SPLIT, ragged.RESET)]
        self.console.print(tables.of_lines("GRU, episodes, training step, ms", cut, pairs))
        self.made["ragged"] = [{"what": line.words, "seconds": line.seconds} for line in batches + cut]
        self.made["step"] = overhead.step_seconds()
        self.console.print(
            tables.of_times("one step, B = 1, H = 128, no gradient, us", self.made["step"], 1e6, 0)
        )

    def examples(self, seconds: float) -> None:
        """Several examples at once, by vmap."""
        with self.console.status("several examples at once"):
            found = list(examples.lines(seconds))
        pairs = [(examples.LOOP, examples.OURS), (examples.ONE_BY_ONE, examples.OURS)]
        words = f"GRU, T = {examples.T}, B{examples.B} H{examples.H}, {examples.V} examples, ms"
        self.console.print(tables.of_lines(words, found, pairs))
        self.made["examples"] = [{"what": line.words, "seconds": line.seconds} for line in found]

    def tangents(self, seconds: float) -> None:
        """Lyapunov exponents."""
        with self.console.status("Lyapunov exponents"):
            found = list(tangents.lines(seconds))
        words = f"Lyapunov exponents, T = {tangents.T}, B1 H{tangents.N}, ms"
        self.console.print(tables.of_lines(words, found, [(tangents.LOOP, tangents.OURS)]))
        self.made["tangents"] = [{"what": line.words, "seconds": line.seconds} for line in found]

    def online(self, steps: int, picture: Path | None, json_to: Path | None) -> None:
        """Rules that carry the gradient forward, and back-propagation, over one stream. picture: a file for one.

        json_to: a file that holds what there is after every way; ways that it holds already, of the same commit and as
        many steps, are not run again.
        """
        before = json.loads(json_to.read_text("utf-8")) if json_to is not None and json_to.exists() else {}
        same = before.get("about", {}).get("commit") == self.made["about"]["commit"]
        runs = [online.Run(**kept) for kept in before.get("online", []) if same and kept["steps"] == steps]
        known = {run.way: run for run in runs}
        found: list[online.Run] = []
        for way in online.ways():
            with self.console.status(way) as status:
                found.append(
                    known.get(way)
                    or online.run(
                        way, steps, lambda done, way=way: status.update(f"{way}: {done / steps:.0%}")
                    )
                )
            run = found[-1]
            self.say(
                f"{way}: error {run.error:.4f}, {run.microseconds:.0f} us a step"
                + ", as before" * (way in known)
            )
            self.made["online"] = [run.__dict__ for run in found]
            self.write(json_to)
        if picture is not None:
            online.picture(found).savefig(picture)
        words = f"GRU, B {online.B}, H {online.H}: what came in {online.LAG} steps ago, {steps:,} steps"
        self.console.print(tables.of_online(words, found))
        with self.console.status("gradients beside the exact one"):
            biases = list(online.biases())
        self.made["online, biases"] = [one.__dict__ for one in biases]
        words = f"the same GRU, gradients g of 300 steps beside rtrl's, r; {online.LAG} steps back"
        self.console.print(tables.of_biases(words, biases))

    def serving(self) -> None:
        """A server of a language model under load."""
        try:
            with serving.server() as (port, _):
                rounds = [serving.one_at_a_time() for _ in range(3)]
                found = {"torch.nn, one at a time": max(rounds, key=serving.fast)}
                for clients in serving.CLIENTS:
                    with self.console.status(f"{clients} clients"):
                        rounds = [serving.loaded(port, clients) for _ in range(3)]
                        found[f"{clients} clients"] = max(rounds, key=serving.fast)
                with self.console.status("clients that behave badly"):
                    found["32, beside 180 that behave badly"] = serving.badly(port)
                    found["900 idle connections"] = {"/health, ms": 1e3 * serving.connections(port)}
            self.made["serving"] = found
            title = "GRU of 256 over 66 characters, the best of three rounds"
            self.console.print(tables.of_streams(title, "", found))
            with serving.server("--kept", "4 MB") as (port, process), self.console.status("memory"):
                self.made["memory of a server"] = grown = {"MB": serving.memory(port, process)}
            self.console.print(tables.of_streams("memory of the server along 10,000 requests", "", grown))
        except serving.Wrong as reason:
            self.wrong.append(str(reason))

    def streams(self, seconds: float) -> None:
        """One step after another beside other runtimes, and tokens a second of many rows."""
        for kind in streams.KINDS:
            found = {}
            for width in streams.WIDTHS:
                with self.console.status(f"{kind}, H {width}"):
                    try:
                        found[str(width)] = streams.steps(kind, width, seconds)
                    except streams.Wrong as reason:
                        self.wrong.append(str(reason))
            self.made[f"streams of {kind}"] = found
            self.console.print(
                tables.of_streams(f"{kind}, B 1, I = H, us a step, the least of rounds", "H", found)
            )
        found = {}
        for weights in (None, "bfloat16", "int8"):
            for width in (256, 512):
                with self.console.status(f"tokens, H {width}"):
                    found[f"H {width}, {weights or 'float32'}"] = streams.tokens(width, seconds, weights)
        self.made["tokens"] = found
        self.console.print(
            tables.of_streams("GRU language model, thousand tokens a second, by rows", "", found)
        )

    def cost(self, seconds: float) -> None:
        """What cost() says of times, beside the times."""
        lines = pace.lines(seconds / 5)
        self.made["cost"] = [dataclasses.asdict(line) for line in lines]
        title = f"what elman.cost says of a call's time, and what it takes: at most {pace.WITHIN:.0%} apart"
        self.console.print(tables.of_pace(title, lines))
        far = [line for line in lines if not line.met]
        self.say(f"{len(lines) - len(far)} of {len(lines)} lie within {pace.WITHIN:.0%}")
        self.missed += [
            f"cost: {x.cell}, {x.shape} T {x.steps}, {'training' if x.training else 'inference'}: {x.ratio:.2f} ×"
            for x in far
        ]

    def memory(self, steps: int) -> None:
        """One sequence under a budget, each way in a process of its own."""
        with self.console.status(f"{steps:,} steps, nine processes"):
            found = memory.runs(steps)
        self.made["memory"] = [run.__dict__ for run in found]
        words = f"tanh RNN, B 1, H {memory.H}, training with the loss in the step, one thread"
        self.console.print(tables.of_memory(words, found))
        for run in found:
            if abs(run.norm / next(r.norm for r in found if r.steps == run.steps) - 1) > 1e-3:
                self.wrong.append(f"{run.way}: another gradient")

    def language(self) -> None:
        """A language model with everything included."""
        found = []
        for measured in (language.training, language.writing):
            with self.console.status(measured.__name__):
                found.append(measured())
        lines = [line for line, _ in found]
        words = f"GRU {language.H}, {language.V} symbols, B {language.B}, T {language.T}"
        self.console.print(tables.of_lines(words, lines, [(TORCH, OURS)]))
        for line, speeds in found:
            self.say(
                f"{line.words.split(',')[0]}: symbols per second "
                + str({n: round(v) for n, v in speeds.items()})
            )
        self.made["language"] = [{"what": line.words, "seconds": line.seconds} for line in lines]

    def others(self, seconds: float) -> None:
        with self.console.status("cells of other packages"):
            found = others.lines(seconds=seconds)
        if not found:
            self.say("none is installed: pip install torchrecurrent ncps snntorch")
            return
        title = "cells of other packages, B16H64, T = 100, training step, ms"
        self.console.print(tables.of_lines(title, found, [(LOOP, OURS)]))
        self.made["others"] = [{"what": line.words, "seconds": line.seconds} for line in found]

    def overheads(self) -> None:
        with self.console.status("import, traces, calls"):
            self.made |= {"import": overhead.import_seconds(), "trace": overhead.trace_seconds()}
            self.made |= {"call": overhead.call_seconds(), "step": overhead.step_seconds()}
            self.made |= {"training": overhead.training_seconds(), "lengths": overhead.length_seconds()}
        self.say(f"import elman, after torch: {self.made['import']:.2f} s\n")
        for title, name, scale, digits in (
            ("from a cell to its first result, s", "trace", 1, 3),
            ("one call, T = 1, B = 1, H = 64, no gradient, us", "call", 1e6, 0),
            ("one step, B = 1, H = 128, no gradient, us", "step", 1e6, 0),
            ("one training step, T = 1, B = 1, H = 64, us", "training", 1e6, 1),
            ("B = 1, H = 64, us per time step", "lengths", 1e6, 1),
        ):
            self.console.print(tables.of_times(title, self.made[name], scale, digits))

    def write(self, json_to: Path | None) -> None:
        """What there is, into a file."""
        if json_to is not None:
            beside = json_to.with_name(f"{json_to.name}.part")
            beside.write_text(json.dumps(self.made, indent=1), "utf-8")
            beside.replace(json_to)

    def close(self, json_to: Path | None) -> int:
        """Write the file, name what was wrong, and give the exit code."""
        self.write(json_to)
        for line in self.wrong:
            self.say(f"NOT TIMED  {line}", style="bold red")
        for line in self.missed:
            self.say(f"MISSED  {line}", style="bold red")
        return int(bool(self.wrong or self.missed))
