"""`elman demo`: a recurrent network learns real text in a minute, and writes some."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from elman.app import jobs
from elman.app.screen import FAINT, Level, Watch, bars, curve, heading, write
from elman.data import BUILT_IN
from elman.models.writing import continuation
from elman.tasks import lm
from elman.tasks.settings import KeepingSettings, TrainingSettings

_PROMPT = "The "
# Half of what is usual: in a minute, twice as many steps are worth more than the speed that they cost.
_BATCH = 16
_TEMPERATURE = 0.7  # a little below 1: fewer slips of the pen, still no two samples alike


def demo(console: Console, minutes: float, out: Path, seed: int) -> int | None:
    """Returns the number of the signal that ended training early, if one did."""
    training = TrainingSettings(minutes=minutes, batch=_BATCH, seed=seed)
    job = jobs.prepare(lm.Language, lm.Settings(), training, KeepingSettings(out, overwrite=True))
    assert isinstance(job.task, lm.Language)
    model, tokenizer, held_out = job.model, job.task.tokenizer, job.prepared.held_out
    levels = [Level(name, bits) for name, bits in lm.baselines(job.prepared).items()]
    heading(console, "A recurrent network reads the Python manual")
    facts = Table.grid(padding=(0, 2))
    size = model.settings
    for name, fact in (
        ("text", f"{BUILT_IN}: {job.prepared.batches.size:,} characters to learn from,"),
        ("", f"the last {len(held_out.tokens):,} held out; {tokenizer.size - 1} different ones"),
        ("model", f"embedding {size['embedding']} → GRU {size['hidden']} → softmax over {tokenizer.size}"),
        ("", f"{model.parameter_count:,} parameters"),
        ("task", "predict the next character from all before it, in bits per character: fewer is better"),
    ):
        facts.add_row(Text(name, FAINT), Text(fact))
    console.print(facts)

    def sample(length: int) -> None:
        write(
            console,
            _PROMPT,
            continuation(model, tokenizer, _PROMPT, length, temperature=_TEMPERATURE, seed=seed),
        )

    heading(console, "Before training it writes")
    sample(150)
    heading(console, f"Training for {minutes:g} minutes" if minutes != 1 else "Training for a minute")
    with job.threads(), Watch(console, levels, task=job.task) as watch:
        interrupted = job.train(watch)
    console.print()
    for line in curve(watch.steps, levels, console.width):
        console.print(line)
    heading(console, "After training it writes")
    sample(600)
    heading(console, "Bits per character on the held-out text")
    with job.threads(), console.status("reading it as one stream …"):
        figure = job.task.measure(model, held_out, False)
    console.print(bars([*levels, Level("GRU", figure.value / math.log(2))], "GRU"))
    note = f"{figure.details['symbols']:,} characters, {figure.value:.4f} nats each"
    console.print(Text(note + ("; training was interrupted" if interrupted is not None else ""), FAINT))
    console.print()
    console.print(Text("The run is in ").append(str(out), "bold").append(". Go on with"), soft_wrap=True)
    console.print(
        Text(f'  elman generate {out} --prompt "The "\n  elman train lm YOUR.txt --out runs/yours', "bold")
    )
    console.print(
        Text("Its curves, samples and plan: ").append(str(out / "report.html"), "bold"), soft_wrap=True
    )
    console.print()
    return interrupted
