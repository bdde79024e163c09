"""A training run that survives: it validates, keeps the best weights, and can be gone on with after any end."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elman.errors import DataError, ElmanError, InputError, StateError
from elman.training.facts import check_facts, fitting
from elman.training.fit import Step, Training, mean_of
from elman.training.loggers import Logger
from elman.training.measure import Measure, Validation
from elman.training.run import Run

_AVERAGED = 10  # steps to a line of the log
_VALIDATIONS = 16  # in a run
_LOOKING = 0.25  # of the time of a run by the clock, at most; the last validation takes what it takes
_SECONDS = 30.0  # between two checkpoints, where no number of steps is given


class FolderGone(StateError):
    """The folder of a run that is training was removed or renamed."""


class Trainer:
    """Trains, and keeps what must not be lost in a run folder; yields steps (means of ten) and validations.

        with locked(run.folder):
            for event in Trainer(training, run, measure):
                …

    measure: of the model as it is, on held-out data: a quick figure, by which the best weights are chosen. It is asked
    in the first process alone, 16 times in a run; in one by the clock fewer, where it would take over a quarter of it.
    The weights of the best validation are the run's `model.safetensors`, which the model also ends with; where training
    keeps an average of the weights, it is the average that is looked at and saved. Checkpoints are written every
    `checkpoint_every` steps (None: twice a minute), when training stops, and at the end. What cannot be written while
    training goes on, best weights too, is told of and tried again at the next; the last time it raises. So does a run
    folder that is not there any more (`FolderGone`), when something is to be written in it.

    resume: go on from the newest checkpoint that is whole, if there is one; steps after it are taken out of the log.
    patience: stop after so many validations without a better one. notify: is given notes in words.
    loggers: told of what is logged, besides the run's log.jsonl.
    sample: what the model makes as it is, in words, logged with each validation; what it draws does not change the
    training.
    closing: what is logged once the whole run is over, by name, about the best weights.
    """

    def __init__(
        self, training: Training, run: Run, measure: Callable[[], Measure], *, checkpoint_every: int | None = None,
        patience: int | None = None, resume: bool = False,
        notify: Callable[[str], None] = lambda words: None, loggers: Sequence[Logger] = (),
        sample: Callable[[], str] | None = None, closing: Mapping[str, Callable[[], Any]] | None = None,
    ) -> None:  # fmt: skip
        self.training, self.run, self.measure = training, run, measure
        self.every, self.patience = checkpoint_every, patience
        self.first = training.processes.first  # the only process that writes, measures, and tells
        self.notify, self.loggers, self.sample, self.closing = notify, loggers, sample, dict(closing or {})
        self.best: float | None = None
        self.lower_is_better = True  # once there is a best one
        self.worse = 0  # validations since the best one
        self.unsaved: Any = (
            None  # a copy of the model with the best weights, where those could not be written
        )
        self.opening: dict[str, Any] | None = None  # line of the log; it waits for whatever is kept first
        self.looking = 0.0  # seconds of validations, each with the step after it
        self.looked: float | None = None  # when the latest one began, until the step after it
        self.losses: list[float] = []  # of the steps since the last line of the log
        self.resumed = resume and self._restore()
        self._expect_the_same()
        if not self.resumed and self.first:
            run.begin_log(-1)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be trained."""
        return self.training.done >= 1 or (self.patience is not None and self.worse >= self.patience)

    def __iter__(self) -> Iterator[Step | Validation]:
        try:
            yield from self._events()
        finally:
            for logger in self.loggers if self.first else ():
                try:
                    logger.finish()
                except OSError as error:
                    self.notify(f"{type(logger).__name__} did not end well: {error.strerror or error}")

    def _events(self) -> Iterator[Step | Validation]:
        saved_at, saved = self.training.seconds, self.training.step
        if not self.finished:
            done = self.training.done
            untrained = self._sampled()  # writing is traced now, before the clock runs
            if untrained and not self.resumed:
                self.opening = {"step": 0, **untrained}
            for step in self.training:
                if self.looked is not None:  # by the clock that all processes share, so that all look or none
                    self.looking += step.seconds - self.looked
                    self.looked = None
                self.losses.append(step.loss)
                over = self.training.done >= 1
                if len(self.losses) == _AVERAGED or over:
                    mean = mean_of(step, self.losses)
                    self.losses = []
                    self._log(
                        {self.training.batches.unit if n == "count" else n: v for n, v in vars(mean).items()}
                    )
                    yield mean
                if over or (
                    int(step.done * _VALIDATIONS) > int(done * _VALIDATIONS) and self._may_look(step)
                ):
                    with self.training.averaged():
                        validation = self._validate(step)
                    self.looked = step.seconds
                    yield validation
                done = step.done
                due = (
                    step.seconds - saved_at > _SECONDS if self.every is None else step.step % self.every == 0
                )
                if due and not over:
                    self._checkpoint()
                    saved_at, saved = step.seconds, step.step
                if self.finished:
                    break
            if saved != self.training.step or self.finished:
                self._save()
        if self.first:
            self._close()

    def _may_look(self, step: Step) -> bool:
        """Whether a validation on the way leaves enough of the time for training."""
        return self.training.minutes is None or self.looking <= _LOOKING * step.seconds

    def _log(self, line: dict[str, Any]) -> None:
        """line: with "step"."""
        if not self.first:
            return
        self._begin()
        self.run.log(line)
        values = {name: value for name, value in line.items() if name != "step"}
        for logger in self.loggers:
            try:
                logger.log(values, line["step"])
            except OSError as error:  # a full disk: the run is more than its figures elsewhere
                self.loggers = [other for other in self.loggers if other is not logger]
                self.notify(
                    f"{type(logger).__name__} writes no more: {error.strerror or error}; training goes on"
                )

    def move(self, run: Run) -> None:
        """Go on in the folder of a new run, where a checkpoint and weights are written now: the best ones if they were
        not written yet, otherwise those that training has come to."""
        if self.unsaved is None:
            with self.training.averaged():
                self.unsaved, self.best, self.worse = copy.deepcopy(self.training.model), None, 0
        self.run = run
        self._save()

    def _begin(self) -> None:
        """Log the first line, if that is still to be done."""
        opening, self.opening = self.opening, None
        if opening is not None:
            self._log(opening)

    def _close(self) -> None:
        """Take the best weights, and log what belongs to the end, but what an earlier process logged already."""
        self._save_best()
        if self.run.validation is None:  # there was none, or somebody removed the weights
            with self.training.averaged():
                self.run.save(self.training.model, validation=self.best)
        elif self.finished:
            model, where = self.training.model, self.run.folder / "model.safetensors"
            model.load_state_dict(fitting(self.run.weights, model.state_dict(), where))
        step = self.training.step
        told = {(name, step) for line in self.run.read_log() if line["step"] == step for name in line}
        if ("stages", step) not in told:
            self._log({"step": step, "stages": self.training.stages.seconds})
        for name, make in self.closing.items() if self.finished else ():
            if (name, step) not in told:
                try:
                    self._log({"step": step, name: make()})
                except ElmanError as error:  # the model is there all the same
                    self.notify(f"{name} is not known: {error.what}")

    def _validate(self, step: Step) -> Validation:
        self.training.stages.begin()
        mine = self.measure() if self.first else Measure(0.0, "", lower_is_better=False)
        value, lower = self.training.processes.total(mine.value, float(mine.lower_is_better))
        validation = Validation(
            step.step, step.seconds, replace(mine, value=value, lower_is_better=lower > 0), False
        )
        best = validation.measure.beats(self.best)
        validation = replace(validation, best=best)
        if best:
            self.best, self.lower_is_better, self.worse = value, lower > 0, 0
            if self.first:
                self.unsaved = self.training.model
        else:
            self.worse += 1
        if self.first:
            self._trying(self._save_best)
            if self.unsaved is self.training.model:  # which goes on to be trained
                self.unsaved = copy.deepcopy(self.unsaved)
        line = {"step": validation.step, "seconds": validation.seconds, "valid": value, "best": best}
        self.training.stages.end("validation")
        self._log(line | self._sampled())
        self.training.stages.end("samples")
        return validation

    def _sampled(self) -> dict[str, str]:
        if self.sample is None or not self.first:
            return {}
        device = next(self.training.model.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            words = self.sample()
        return {"sample": words} if words else {}

    def _checkpoint(self) -> None:
        """A checkpoint on the way, which may fail."""
        self._trying(self._save)

    def _trying(self, save: Callable[[], None]) -> None:
        try:
            save()
        except DataError as error:
            self.notify(f"{error.what} ({error.where}); training goes on, and it is tried again")

    def _save_best(self) -> None:
        """Write the best weights, if that is still to be done."""
        self._there()
        if self.unsaved is not None:
            self.run.save(self.unsaved, validation=self.best)
            self.unsaved = None

    def _there(self) -> None:
        # By a file of its own: on some file systems a folder is another one every time that it is looked at.
        if not (self.run.folder / "config.json").is_file():
            raise FolderGone(
                what="the run folder was removed or renamed while the run was training", where=self.run.folder,
                got="no config.json" if self.run.folder.is_dir() else "no such folder",
                mend="leave it where it is until the run has ended",
            )  # fmt: skip

    def _save(self) -> None:
        self._begin()  # a run that is gone on with from here does not say it again
        stages = self.training.stages
        stages.begin()
        tensors, facts = self.training.state()
        kept = {"worse": self.worse, "losses": self.losses, "best": self.best, "stages": dict(stages.seconds)}
        if not self.lower_is_better:
            kept["lower_is_better"] = False
        if self.first:
            self._save_best()
            self.run.checkpoints.save(tensors, facts | kept)
        stages.end("checkpoints")

    def _restore(self) -> bool:
        newest = self.run.checkpoints.newest(
            lambda error: self.notify(f"passed over: {error.what} ({error.where})"), self._take
        )
        if newest is None:
            return False
        _, facts = newest
        self.worse, self.losses, self.best = facts["worse"], list(facts["losses"]), facts["best"]
        self.lower_is_better = facts.get("lower_is_better", True)
        there = self.run.validation  # of the best weights, if they are there, and were written at all
        if self.best is not None and (
            there is None or Measure(self.best, "", lower_is_better=self.lower_is_better).beats(there)
        ):
            self.best = there
        self.training.stages.seconds = dict(facts.get("stages", {}))
        if self.first:
            self.run.begin_log(facts["step"])
        return True

    def _expect_the_same(self) -> None:
        """Raise InputError in every process where they did not come to one step: others would train other weights."""
        step, processes = self.training.step, self.training.processes
        (steps,) = processes.total(float(step))
        (apart,) = processes.total(float(steps != step * processes.count))
        if apart:
            raise InputError(
                what="the processes that train together do not go on from one checkpoint",
                where=self.run.checkpoints.folder, got=f"step {step} in process {processes.rank}",
                expected="the same in all", mend="put the run folder where all machines see it, or copy checkpoints",
            )  # fmt: skip

    def _take(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        check_facts(facts, self.training.batches.unit, kept=True)
        self.training.restore(tensors, facts)


def fitted(
    training: Training, measure: Callable[[], Measure], *, patience: int | None = None,
    watch: Callable[[Step | Validation], None] = lambda event: None, progress: bool | None = None,
) -> float | None:  # fmt: skip
    """Train to the end, or to the end of patience, without a folder that stays; the model ends with its best weights.

    watch: is shown each event. progress: see `elman.training.progress.Bar`. Returns the best figure.
    """
    from elman.training.progress import Bar  # rich is imported where something is drawn

    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", {}, {})
        trainer = Trainer(training, run, measure, patience=patience, checkpoint_every=10**12)
        with Bar(progress) as bar:
            for event in trainer:
                bar.show(event)
                watch(event)
        return trainer.best
