"""What every training command does: a task becomes a trained model in a run folder, and is measured."""

from __future__ import annotations

import math
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from elman.app.screen import Watch
from elman.errors import DataError, ElmanError, InputError
from elman.report import write_card, write_report
from elman.tasks import task_in
from elman.tasks.settings import KeepingSettings, TrainingSettings
from elman.tasks.task import Opening, Prepared, Task, absolute
from elman.training import (
    Diverged,
    FolderGone,
    Measure,
    Processes,
    Run,
    TensorBoard,
    Threads,
    Trainer,
    Training,
    locked,
    pick_threads,
)
from elman.training.measure import percent


@dataclass
class TrainingJob:
    """A task about to be trained. config: of the run folder. processes: those that train it. figure: what the trained
    model reaches, exactly, once the run is over."""

    prepared: Prepared
    training: Training
    keeping: KeepingSettings
    config: dict[str, Any]
    processes: Processes
    figure: Measure | None = None

    @property
    def task(self) -> Task:
        return self.prepared.task

    @property
    def model(self) -> Any:
        return self.prepared.model

    @contextmanager
    def threads(self) -> Iterator[Threads | None]:
        """Inside, PyTorch has as many threads as train fastest on this machine, if training goes by the clock: chosen
        now, and by what is given whenever that changes."""
        before, watching = torch.get_num_threads(), None
        try:
            if self.training.minutes is not None and self.processes.count == 1:
                chosen = pick_threads(self.model, self.prepared.batches, self.task.loss)
                torch.set_num_threads(chosen)
                watching = self.training.threads = Threads(before, chosen)
            yield watching
        finally:
            torch.set_num_threads(before)

    def train(self, watch: Watch) -> int | None:
        """Train to the end, or until Ctrl-C or SIGTERM. Returns the number of the signal that stopped it.

        The run folder then holds the best weights, a checkpoint to go on from, and a report.
        """
        keeping, training, task, held_out = self.keeping, self.training, self.task, self.prepared.held_out
        loggers = [TensorBoard(keeping.out / "tensorboard")] if keeping.tensorboard else []
        with ExitStack() as stack:
            training.stop = stop = stack.enter_context(interruption())
            begun = self.processes.first_does(lambda: self._opened(stack))
            run = Run(keeping.out)
            mine = self.config.get("cell_digest")
            if self.processes.first and run.config.get("cell_digest", mine) != mine:
                watch.note(f"the file of the cell {self.config['cell']} was edited since the run began")
            closing = {**task.closing(self.model, held_out), "measured": lambda: self.measure(watch)}
            trainer = Trainer(
                training, run, lambda: task.measure(self.model, held_out, True), sample=lambda: task.sample(self.model),
                checkpoint_every=keeping.checkpoint_every, patience=keeping.patience, notify=watch.note,
                loggers=loggers,
                resume=keeping.resume == "auto" and not keeping.overwrite, closing=closing,
            )  # fmt: skip
            if trainer.resumed:
                more = "; more --steps or --minutes go on with it" if trainer.finished else ""
                watch.note(
                    f"going on from step {training.step:,}, {percent(training.done, 0)} of the run{more}"
                )
            elif keeping.resume == "auto" and not keeping.overwrite:
                watch.note(f"there is no checkpoint in {keeping.out} to go on from: the run begins anew")
            try:
                for event in trainer:
                    watch.show(event)
            except Diverged as error:
                kept = run.checkpoints.paths()
                error.mend = f"{error.mend}; kept are " + (
                    f"the checkpoint {kept[0]} and the best weights" if kept else "the best weights"
                )
                raise
            except FolderGone as error:
                error.mend = self._moved(trainer) or error.mend
                raise
            except ElmanError:
                if begun and self.processes.first and not training.step:  # refused before anything was learnt
                    run.discard(task.kept())
                raise
            if self.processes.first:
                if trainer.finished and self.figure is None:
                    self.measure(watch)
                try:
                    write_report(run.folder, part=task.part_of(run.config))
                    if self.figure is not None:
                        write_card(run.folder, run.config, task.said(self.figure, held_out))
                except DataError as error:  # the model is more than its report
                    watch.note(str(error))
            return None if trainer.finished else stop.number

    def _moved(self, trainer: Trainer) -> str | None:
        """Write a run whose folder has gone to one beside it; what the user can do then, None if that fails too."""
        if self.processes.count > 1:  # a checkpoint is made by all of them
            return None
        out = self.keeping.out.absolute()
        names = (out.with_name(f"{out.name}.rescued{number}") for number in ("", *range(2, 100)))
        place = next((name for name in names if not name.exists()), out)
        with suppress(DataError, InputError):
            trainer.move(Run.create(place, self.config, self.task.kept()))
            there = shlex.quote(str(place))
            return f"put the folder back, or go on with what was saved now: --out {there} --resume auto"
        return None

    def measure(self, watch: Watch) -> dict[str, Any]:
        """The exact figure of the model as it is, as the log keeps it; `figure` is set."""
        watch.note("measuring on what was held out …")
        self.figure = self.task.measure(self.model, self.prepared.held_out, False)
        return logged(self.figure)

    def _opened(self, stack: ExitStack) -> bool:
        """Lock the run folder for as long as the stack stands; begin a run in it, or find the one to go on with.
        Returns whether it is begun."""
        keeping = self.keeping
        with suppress(OSError):  # `Run.create` says it better
            keeping.out.mkdir(parents=True, exist_ok=True)
        if keeping.out.is_dir():
            stack.enter_context(locked(keeping.out))
        resume = keeping.resume == "auto" and not keeping.overwrite
        if resume and Run.unfinished(keeping.out, self.config):
            return False
        stale: tuple[str, ...] = ()
        with suppress(ElmanError, OSError):  # there is no run that could be read
            stale = task_in(Run(keeping.out)).files
        Run.create(keeping.out, self.config, self.task.kept(), overwrite=keeping.overwrite, stale=stale)
        return True


def prepare(
    kind: type[Task], settings: Any, training: TrainingSettings, keeping: KeepingSettings,
    processes: Processes | None = None, notify: Callable[[str], None] = lambda words: None,
) -> TrainingJob:  # fmt: skip
    """Let a task read its data and make its model, and check the settings; no run folder is made yet.

    settings: of the task. notify: is given words on what takes its time.
    """
    processes = processes or Processes()
    if keeping.out is None:
        keeping = replace(keeping, out=Path("runs") / kind.name)
    processes.first_does(lambda: _check(keeping))
    if keeping.resume == "auto" and not keeping.overwrite:
        with suppress(ElmanError, OSError):  # there is no run that could be read
            settings = kind.going_on(settings, Run(keeping.out).config)
    prepared = kind.prepare(settings, training, processes, notify)
    own, how = dict(prepared.config), asdict(prepared.training)
    if own.get("training", {}).get("init_from") == str(keeping.out.resolve()):
        raise InputError(
            what="a run cannot begin with its own weights", where="--init-from", got=keeping.out,
            mend="choose another --out, or go on with it by --resume auto",
        )  # fmt: skip
    made = Training(
        prepared.model, prepared.batches, loss=prepared.task.loss, processes=processes,
        **{name: value for name, value in how.items() if name != "batch"},
    )  # fmt: skip
    section = {
        **how,
        **own.pop("training", {}),
        "weight_decay": made.weight_decay,
        "precision": processes.precision,
    }
    return TrainingJob(prepared, made, keeping, {"task": kind.name, **own, "training": section}, processes)


def logged(figure: Measure) -> dict[str, Any]:
    """A figure as a log keeps it."""
    fields = {
        "value": figure.value,
        "name": figure.name,
        "unit": figure.unit,
        "lower_is_better": figure.lower_is_better,
    }
    return {**fields, **figure.details}


def measured(
    folder: Path, files: list[Path], cache: Path | None, cold: int | None, opening: Opening,
    notify: Callable[[str], None],
) -> list[str]:  # fmt: skip
    """What `elman evaluate` says of a run, in lines."""
    run, task, model = opened(folder, opening)
    data = task.data(run, files, cache, notify)
    if cold is not None:
        data = task.cold(data, cold)
    figure = task.measure(model, data, False)
    if not math.isfinite(figure.value):
        raise DataError(
            what="the model's figure is no number", where=folder, got=figure.value, mend="train again, at a lower --lr"
        )  # fmt: skip
    return list(task.said(figure, data))


def opened(folder: Path, opening: Opening) -> tuple[Run, Task, Any]:
    """A run that was saved, by whomever: the one way in which commands open one. Raises DataError and InputError."""
    run = Run.open(folder)
    if opening.cell is not None:
        opening = replace(opening, cell=absolute(opening.cell))
    task, model = task_in(run).opened(run, opening)
    if opening.notify is not None:
        task.note = opening.notify
    return run, task, model


def _check(keeping: KeepingSettings) -> None:
    """What can be said of the settings before anything is read."""
    for name, value in (("--checkpoint-every", keeping.checkpoint_every), ("--patience", keeping.patience)):
        if value is not None and value < 1:
            raise InputError(what=f"{name} must be at least 1", where=name, got=value, mend="leave it out")
    if keeping.resume not in ("auto", "never"):
        raise InputError(
            what="--resume is auto or never", where="--resume", got=keeping.resume, mend="take one of them"
        )
    there = keeping.resume == "auto" and (keeping.out / "config.json").is_file()
    Run.refuse_taken(keeping.out, overwrite=keeping.overwrite or there)


class Stop(threading.Event):
    """Set by a signal. number: of the signal; where another process was stopped, that of Ctrl-C."""

    number: int = signal.SIGINT


@contextmanager
def interruption() -> Iterator[Stop]:
    """The first Ctrl-C or SIGTERM inside sets the event instead of raising; a second one acts as ever."""
    event = Stop()
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        event.number = number
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
