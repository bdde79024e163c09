"""A task of the tests alone: sequences of 0 and 1, of different lengths, each with a label; the higher its figure the
better.

    python -m tests.toy train toy LINES --out RUN            # a line: 0110 b
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elman.app import cli
from elman.data import ragged
from elman.data.files import read_file
from elman.data.schema import each, from_json, record, text, whole
from elman.errors import DataError, InputError
from elman.models import pretrained
from elman.models.stack import learning_rate, stack_of
from elman.plan import Explanation
from elman.recurrent import last
from elman.report import Part, Record, bars
from elman.tasks import TASKS
from elman.tasks.settings import StackSettings, TrainingSettings, argument, option
from elman.tasks.task import Notify, Opening, Prepared, Task, absolute
from elman.training import Measure, Processes, Run

Examples = tuple[list[Tensor], Tensor]
_KEPT = record({"labels": each(text(100), 1000)})


class Labeller(nn.Module):
    """The last state of a stack, read out. `unused` takes part in nothing."""

    def __init__(
        self, labels: int, cell: Any = "gru", hidden: int = 16, layers: int | None = None, dropout: float = 0.0,
        residual: bool = False, norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(2, 4)
        self.stack, made = stack_of(cell, 4, hidden, layers, dropout=dropout, residual=residual, norm=norm)
        self.readout, self.unused = nn.Linear(hidden, labels), nn.Linear(3, 3)
        self.settings = {
            "labels": labels,
            "hidden": hidden,
            "layers": len(self.stack),
            "dropout": dropout,
            **made,
        }

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        _, states = self.stack(self.embedding(x), lengths=lengths)
        return self.readout(last(states[-1]))

    def loss(self, x: Tensor, y: Tensor, lengths: Tensor, state: None) -> tuple[Tensor, None]:
        return nn.functional.cross_entropy(self(x, lengths), y), None

    def explain(self) -> Explanation:
        return self.stack.explain()


@dataclass(frozen=True)
class Settings:
    """Say which label a sequence has."""

    files: list[Path] = argument("Lines such as `0110 b`.", needed=True)
    valid: Path | None = option(None, "Lines to measure on. Without it every tenth one.")
    stack: StackSettings = StackSettings(hidden=16)


class Toy(Task):
    """labels: in order."""

    name, Settings, files = "toy", Settings, ("labels.json",)
    unit = "sequence"

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)

    @classmethod
    def prepare(
        cls, settings: Settings, training: TrainingSettings, processes: Processes, notify: Notify
    ) -> Prepared:
        lines = [line for file in settings.files for line in _lines(file)]
        held_out = _lines(settings.valid) if settings.valid else lines[::10]
        lines = lines if settings.valid else [line for i, line in enumerate(lines) if i % 10]
        task = cls(sorted({label for _, label in lines}))
        how = {**asdict(settings.stack), "cell": absolute(settings.stack.cell)}
        torch.manual_seed(training.seed)
        model = Labeller(len(task.labels), **how).to(processes.device)
        x, y = task.encoded(lines, settings.files[0])
        training = replace(
            training, batch=training.batch or 8, lr=training.lr or learning_rate(model.stack, how["hidden"])
        )
        batches = ragged(x, y, training.batch or 8, training.seed)
        config = {**model.settings, "data": {"files": list(map(str, settings.files))}}
        about = f"{len(lines)} sequences to learn from, {len(held_out)} held out"
        return Prepared(task, model, batches, task.encoded(held_out, settings.valid), training, config, about)

    @classmethod
    def opened(cls, run: Run, opening: Opening) -> tuple[Toy, Labeller]:
        path = run.folder / cls.files[0]
        raw = read_file(path, 2**20, "the labels")
        said = from_json(raw, _KEPT, what="these are no labels", where=path, mend="restore them")
        labels = {"labels": whole(1, 1000)}
        model = pretrained.load(
            Labeller, "a labeller", labels, _shapes, run.config, run.folder, **vars(opening)
        )
        return cls(said["labels"]), model

    def called(self, model: Any) -> None:
        model(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([2]))

    def kept(self) -> dict[str, bytes]:
        return {"labels.json": json.dumps({"labels": self.labels}).encode()}

    @torch.no_grad()
    def measure(self, model: Any, data: Examples, quick: bool) -> Measure:
        x, y = (part[:50] if quick else part for part in data)
        before = model.training
        model.eval()
        found = torch.cat([model(one[:, None], torch.tensor([len(one)])).argmax(1) for one in x])
        model.train(before)
        each = {name: float((found[y == k] == k).float().mean()) for k, name in enumerate(self.labels)}
        right = float((found == y).float().mean())
        return Measure(right, "accuracy", "%", lower_is_better=False, details={"each": each})

    def data(self, run: Run, files: Sequence[Path], cache: Path | None, notify: Notify) -> Examples:
        if not files:
            raise InputError(what="name what to measure on", where=run.folder, mend="give a file")
        return self.encoded([line for file in files for line in _lines(file)], files[0])

    def predict(self, model: Any, files: Sequence[Path], run: Run) -> Iterator[str]:
        for file in files:
            for word, _ in _lines(file):
                x = torch.tensor([[int(c)] for c in word])
                with torch.no_grad():
                    yield self.labels[int(model(x, torch.tensor([len(word)])).argmax())]

    def encoded(self, lines: list[tuple[str, str]], where: object) -> Examples:
        if unknown := sorted({label for _, label in lines} - set(self.labels)):
            raise DataError(
                what="a label that was not there in training",
                where=where,
                got=unknown[0],
                mend="leave it out",
            )
        x = [torch.tensor([int(c) for c in word]) for word, _ in lines]
        return x, torch.tensor([self.labels.index(label) for _, label in lines])


def _lines(path: Path) -> list[tuple[str, str]]:
    found = [line.split() for line in read_file(path, 2**20, "the lines").decode().splitlines()]
    return [(word, label) for word, label in found]


def _shapes(settings: dict[str, Any], there: dict[str, list[int]]) -> dict[str, list[int] | None]:
    return {"readout.weight": [settings["labels"], settings["hidden"]]}


def _sections(record: Record) -> dict[str, str]:
    return {"Accuracy of each label": bars(record.measured.get("each", {}), "")}


Toy.part = Part(
    unit="examples", loss="nats per sequence", figure="accuracy",
    details={"each": each(lambda value, place: None, 1000, named=True)}, sections=_sections,
)  # fmt: skip

if "toy" not in TASKS:
    TASKS["toy"] = ("tests.toy:Toy", "The tests' own.")
    cli.add("toy")

if __name__ == "__main__":
    cli.main()
