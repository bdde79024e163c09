"""What can be set, said once: frozen dataclasses whose fields are the options of a command.

    @dataclass(frozen=True)
    class Settings:
        files: list[Path] = argument("Texts, one after another.", metavar="FILE")
        hidden: int = option(256, "H, units in each layer.", max=SIZE)
        stack: StackSettings = StackSettings()                     # opened up: its fields are options too

`elman.app.options` makes a command line of them. Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZE, COUNT = 2**24, 10**12  # the largest of what is made, and of what is counted


def option(default: Any, help: str, **how: Any) -> Any:
    """A field that is an option `--name`. how: min, max, metavar, as typer has them; formerly: of a flag, the name that
    it had, under which it is still taken."""
    return field(default=default, metadata={"help": help, **how})


def argument(help: str, *, metavar: str = "FILE", needed: bool = False) -> Any:
    """A field that is the files named on the command line, a list of paths; needed: at least one."""
    how = {"help": help, "metavar": metavar if needed else f"[{metavar}]", "argument": True}
    return field(metadata=how) if needed else field(default_factory=list, metadata=how)


def given() -> Any:
    """A field that holds the names of the options that were given, rather than left to their defaults."""
    return field(default=frozenset(), metadata={"given": True})


@dataclass(frozen=True)
class StackSettings:
    """Recurrences on top of one another, the same for every task: see `elman.models.stack`."""

    cell: str = option(
        "gru", "elman, jordan, gru, lstm, leaky; or your own: path.py:Class, package.module:Class."
    )
    hidden: int = option(256, "H, units in each layer.", max=SIZE)
    layers: int = option(1, "Recurrences on top of one another.", max=1000)
    dropout: float = option(0.0, "Share of a layer's output that is left out in training.")
    residual: bool = option(False, "Add what a layer reads to its output, from the second layer on.")
    norm: bool = option(False, "Layer norm between layers.")


@dataclass(frozen=True)
class TrainingSettings:
    """See elman.training.Training. lr, batch: None for what the task says."""

    steps: int | None = option(
        None, "Train for so many steps, those before --resume auto included …", max=COUNT
    )
    minutes: float | None = option(None, "… or so many minutes by the clock. (default: 3)")
    batch: int | None = option(
        None, "B, what is read side by side in one step. (default: 32, less of little data)", max=SIZE
    )
    lr: float | None = option(
        None, "Highest learning rate of AdamW. (default: by cell and width, at most 0.004)"
    )
    clip: float = option(1.0, "Largest norm of the gradient.")
    weight_decay: float | None = option(None, "Of AdamW. (default: by how much there is to learn from)")
    average: float | None = option(
        None,
        "Decay of a moving average of the weights, which is kept as the model; 0.998, 0: none. (default: by task)",
    )
    seed: int = option(0, "Of the first weights and of the order of reading.", min=-(2**63), max=2**63 - 1)


@dataclass(frozen=True)
class KeepingSettings:
    """What is kept of a run, and where: see elman.training.Trainer. resume: "auto" or "never"."""

    out: Path = option(None, "The run folder to write. (default: runs/TASK)")
    overwrite: bool = option(False, "Replace the run that is there.")
    resume: str = option(
        "never",
        "auto: go on with the run in --out, also a finished one to more --steps or --minutes; begin if there is none. "
        "never.",
    )
    checkpoint_every: int | None = option(
        None, "Steps between two checkpoints. (default: twice a minute)", max=COUNT
    )
    patience: int | None = option(
        None, "Stop after so many looks at held-out data without a better one.", max=COUNT
    )
    tensorboard: bool = option(False, "Write the figures for TensorBoard too, to OUT/tensorboard.")


@dataclass(frozen=True)
class MachineSettings:
    """What trains, and how it is told of."""

    device: str = option("cpu", "cpu, or cuda: a GPU for each process.")
    precision: str = option(
        "float32",
        "float32; or bfloat16 for the factors of products, faster on processors with AMX and on GPUs.",
    )
    memory: str | None = option(
        None,
        'What the recurrences may need in a step of training, "64 MB": what does not fit is computed again, exactly.',
        metavar="BYTES",
    )
    quiet: bool = option(False, "Plain lines, nothing that is redrawn.")
