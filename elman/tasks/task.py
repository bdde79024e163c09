"""What a model is trained for: everything that is one task's own, and nothing that holds for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elman.data import Batch, Batches
from elman.errors import InputError, NotSupported
from elman.models import SHIPPED
from elman.report import Part
from elman.tasks.settings import TrainingSettings
from elman.training import Measure, Processes, Run, Step, Validation, expect_room

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Opening:
    """How a run that anybody may have written is opened. trust, cell, notify: see `LanguageModel.from_pretrained`."""

    trust: bool = False
    cell: str | None = None
    notify: Notify | None = None


@dataclass
class Prepared:
    """A task about to be trained; no run folder is made yet.

    batches: to learn from. held_out: to choose the best weights by, and to measure at the end. training: with what was
    left open filled in. config: of the run folder, but for the task's name and the training; "training" in it is added
    to that. about: what the user is told first, in a line. notes: what he should know besides.
    """

    task: Task
    model: nn.Module
    batches: Batches
    held_out: Any
    training: TrainingSettings
    config: dict[str, Any]
    about: str
    notes: list[str] = field(default_factory=list)


class Task(ABC):
    """One task. An instance holds what is kept beside the weights (a tokenizer, labels, a scaler).

    name: of the command `elman train NAME`, and in config.json. Settings: a frozen dataclass, whose fields are its
    options (`elman.tasks.settings`). files: names of what stands beside the weights. unit: of what it reads, on the
    screen. part: of the report. note: says a line to whoever gave the command, as `Prepared.notes` are said.
    """

    name: ClassVar[str]
    Settings: ClassVar[type]
    files: ClassVar[tuple[str, ...]] = ()
    part: ClassVar[Part] = Part()
    unit: str = "example"
    note: Notify = staticmethod(lambda words: None)

    @classmethod
    def part_of(cls, config: Mapping[str, Any]) -> Part:
        """Of the report of a run of this configuration."""
        return cls.part

    # --- how it comes about ------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def prepare(
        cls, settings: Any, training: TrainingSettings, processes: Processes, notify: Notify
    ) -> Prepared:
        """Read the data, make the model. notify: is given words on what takes its time.

        Of several processes, what only one is to do (read, learn a vocabulary) goes through `processes.first_does`.
        Weights are drawn after `torch.manual_seed(training.seed)`.
        """

    @classmethod
    def going_on(cls, settings: Any, config: Mapping[str, Any]) -> Any:
        """Settings for a run that is there already, of this configuration: an option that was not given means what it
        meant when the run began."""
        return settings

    @classmethod
    @abstractmethod
    def opened(cls, run: Run, opening: Opening) -> tuple[Task, Any]:
        """The task and the model of a run that was saved, whoever wrote it. Raises DataError and InputError."""

    @abstractmethod
    def called(self, model: Any) -> None:
        """Call a model on anything small: `elman draw` and `elman explain` show what that traced."""

    @abstractmethod
    def kept(self) -> dict[str, bytes]:
        """What stands beside the weights, by name: `files`. JSON, read again by checks of `elman.data.schema`."""

    # --- what is learnt ----------------------------------------------------------------------------------------------

    def loss(self, model: Any, batch: Batch, state: Any) -> tuple[Tensor, Any]:
        """(what is minimised, a mean over what the batch counts; the state to carry into the next batch, or None)."""
        return model.loss(*batch.values, state)

    @abstractmethod
    def measure(self, model: Any, data: Any, quick: bool) -> Measure:
        """The figure of a model on data. quick: an estimate that takes a moment, always of the same part of the data.

        The model is left in the mode in which it was; no gradients are kept.
        """

    def sample(self, model: Any) -> str:
        """What the model makes as it is, in words for the log, the same draws every time; "" for nothing."""
        return ""

    def closing(self, model: Any, data: Any) -> Mapping[str, Callable[[], Any]]:
        """What is logged of the best weights once the run is over, by name: "plan", and what `part.logged` names."""
        return {"plan": lambda: str(model.explain())}

    # --- what is said ------------------------------------------------------------------------------------------------

    def line(self, step: Step, validation: Validation | None) -> Iterable[tuple[str, str]]:
        """A step for the screen: (words, "" or "new" or "old": what is of this step, what is of the last look)."""
        yield f"loss {step.loss:.4f}", "new"
        if validation is not None:
            yield f"held out: {validation.measure}", "old"

    def said(self, measure: Measure, data: Any) -> Sequence[str]:
        """The exact figure in lines, the first of which begins with it."""
        return [str(measure)]

    # --- what is done with a run -------------------------------------------------------------------------------------

    @abstractmethod
    def data(self, run: Run, files: Sequence[Path], cache: Path | None, notify: Notify) -> Any:
        """What to measure on, as `measure` takes it: these files; without any, what was held out in training."""

    def cold(self, data: Any, length: int) -> Any:
        """The same data, of which blocks of so many symbols are measured from the initial state as well."""
        raise InputError(
            what="nothing is carried from one example to the next here: each begins at the initial state anyway",
            where="--cold", got=f"{length}, for a run of {self.name}", mend="leave --cold out",
        )  # fmt: skip

    def predict(self, model: Any, files: Sequence[Path], run: Run) -> Iterator[str]:
        """Lines of output for files, "-" for standard input, each as soon as it is known."""
        raise NotSupported(
            what=f"a run of {self.name} predicts nothing by itself", where=run.folder, mend="elman evaluate measures it"
        )  # fmt: skip


def expect_one_reader(files: Iterable[Any], processes: Processes) -> None:
    """Raise InputError where several processes would read standard input."""
    if processes.count > 1 and "-" in map(str, files):
        raise InputError(
            what="standard input can be read by one process only", where="-", got=f"{processes.count} processes",
            mend="write it to a file first",
        )  # fmt: skip


def expect_memory(make: Callable[[], nn.Module], cell: str, processes: Processes, options: str) -> None:
    """Raise InputError where a model in training would need more memory than there is. options: that say its size."""
    if cell in SHIPPED:  # what others construct may be more than its weights
        with torch.device("meta"):
            size = sum(value.nbytes for value in make().parameters())
        # Weights, gradients, and two that AdamW keeps.
        expect_room((4 if processes.device.type == "cpu" else 1) * size, options)


def absolute(cell: str) -> str:
    """A cell's file by its whole path, so that the run can be used from another folder."""
    path, colon, name = cell.rpartition(":")
    return f"{Path(path).resolve()}:{name}" if colon and path.endswith(".py") else cell
