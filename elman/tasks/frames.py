"""Forecasting vectors of 0 and 1, as the task `forecast` does where its files are of such."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elman.data import ragged
from elman.data.rolls import Rolls, read_frames, read_rolls, roll_of
from elman.data.schema import Check, Odd, each, file_name, number, parsed, record, text, whole
from elman.data.tables import STDIN, standard_input
from elman.errors import DataError, InputError
from elman.models.distributions import FRAMES
from elman.models.frame_network import (
    AVERAGE,
    BATCH,
    CHUNK,
    DECAY,
    FILE,
    FrameNetwork,
    frames_begun,
    frames_opened,
    guesses,
    kept_frames,
    nats_per_frame,
    stack_for,
)
from elman.report import Record, roll
from elman.tasks.settings import StackSettings, TrainingSettings
from elman.tasks.task import Notify, Opening, Prepared, Task, absolute, expect_memory
from elman.training import Measure, Processes, Run

_DRAWN, _SHOWN, _FRAMES = (
    200,
    3,
    200,
)  # futures of which a forecast is the mean; rolls in a report, frames of each
_LOOKED_AT = 40_000  # frames of a quick look
_SAVED: dict[str, Check] = {
    "files": each(file_name, 100_000),
    "seed": whole(-(2**63), 2**63 - 1),
    "horizon": whole(1, 2**14),
    "digest": text(64),
}
_rows = each(each(number(0, 10_000), 10_000), _FRAMES)
DETAILS: dict[str, Check] = {
    "frames": whole(0, 10**12),
    "guessed": each(number(0, 1e9, finite=False), 10, named=True),
    "rolls": each(record({"notes": _rows, "likely": _rows, "shares": _rows}), _SHOWN),
}


def frame_sections(record: Record) -> dict[str, str]:
    """Of the report: what happened, and how likely it was held before."""
    sections = {}
    for k, one in enumerate(record.measured.get("rolls", [])):
        likely, shares = one["likely"], one["shares"]
        if [len(row) for row in likely] == [len(row) for row in shares]:
            sections[f"Held out, {k + 1}: what happened (above), and how likely it was held"] = roll(
                one["notes"]
            ) + roll(likely, shares)
    return sections


@dataclass
class HeldOut:
    """x: to measure on. looked: by which weights are chosen. guessed: nats per frame without a network, by what."""

    x: list[Tensor]
    looked: list[Tensor] = field(default_factory=list)
    guessed: dict[str, float] = field(default_factory=dict)


class ForecastFrames(Task):
    """tail: [T, I], what a forecast goes on from. horizon: frames of one."""

    name, files, Settings, unit = "forecast", (FILE,), StackSettings, "sequence"

    def __init__(self, tail: Tensor, horizon: int) -> None:
        self.tail, self.horizon = tail, horizon

    # --- how it comes about -------------------------------------------------------------------------------------------

    @classmethod
    def prepare(
        cls, settings: Any, training: TrainingSettings, processes: Processes, notify: Notify
    ) -> Prepared:
        return cls.begun(settings, training, processes, notify)

    @classmethod
    def begun(
        cls, settings: Any, training: TrainingSettings, processes: Processes, notify: Notify
    ) -> Prepared:
        """settings: of `elman train forecast`."""
        asked = settings.given & {
            "distribution",
            "season",
            "context",
            "folds",
            "known",
            "past",
            "static",
            "id",
            "time",
        }
        if asked - {"distribution"} or ("distribution" in asked and settings.distribution != FRAMES):
            raise InputError(
                what="vectors of 0 and 1 have no such setting",
                where=f"--{sorted(asked)[0]}",
                mend="leave it out",
            )
        notify("reading the sequences …")

        def read() -> Rolls:
            return read_rolls(settings.files, training.seed)

        rolls = processes.first_does(read) or read()
        own = {name: value for name, value in asdict(settings.stack).items() if name in settings.given}
        how = {**asdict(settings.stack), **stack_for(sum(map(len, rolls.learnt))), **own}
        how["cell"] = absolute(how["cell"])
        expect_memory(
            lambda: FrameNetwork(rolls.channels, **how), how["cell"], processes, "--hidden, --layers"
        )
        torch.manual_seed(training.seed)
        model, parts = frames_begun(rolls.learnt, **how)
        model = model.to(processes.device)
        batch = training.batch or max(min(BATCH, len(parts) // 4), processes.count)
        training = replace(
            training, batch=batch, lr=training.lr or model.learning_rate,
            weight_decay=DECAY if training.weight_decay is None else training.weight_decay,
            average=AVERAGE if training.average is None else training.average,
        )  # fmt: skip
        held_out = HeldOut(rolls.test, _some(rolls.chosen), guesses(rolls.learnt, rolls.test))
        data = {
            "files": [str(file.resolve()) for file in settings.files], "seed": training.seed,
            "horizon": settings.horizon, "digest": rolls.digest,
        }  # fmt: skip
        counts = [sum(map(len, part)) for part in (rolls.learnt, rolls.chosen, rolls.test)]
        about = (
            f"{len(rolls.learnt):,} sequences of {rolls.channels} channels, {counts[0]:,} frames to learn from, "
            f"{counts[1]:,} to choose by, {counts[2]:,} to measure on"
        )
        config = {**model.settings, "data": data}
        task = cls(rolls.learnt[-1], settings.horizon)
        return Prepared(
            task, model, ragged(parts, None, batch, training.seed), held_out, training, config, about
        )

    @classmethod
    def opened(cls, run: Run, opening: Opening) -> tuple[Task, Any]:
        return cls.of(run, opening)

    @classmethod
    def of(cls, run: Run, opening: Opening) -> tuple[ForecastFrames, FrameNetwork]:
        """The task and the model of a run that is of vectors."""
        tail, model = frames_opened(run.config, run.folder, **vars(opening))
        return cls(tail, cls._said(run)["horizon"]), model

    @staticmethod
    def _said(run: Run) -> dict[str, Any]:
        return run.section("data", record(_SAVED), "the run does not say what it learnt from", "restore it")

    def kept(self) -> dict[str, bytes]:
        return {FILE: kept_frames([self.tail])}

    def called(self, model: Any) -> None:
        model(torch.zeros(2, 1, model.settings["channels"]))

    # --- what is learnt -----------------------------------------------------------------------------------------------

    def measure(self, model: Any, data: HeldOut, quick: bool) -> Measure:
        if quick:
            return Measure(nats_per_frame(model, data.looked), "cross entropy", "nats per frame")
        details = {
            "frames": sum(len(one) - 1 for one in data.x), "guessed": data.guessed,
            "rolls": [self._shown(model, one) for one in data.x[:_SHOWN]],
        }  # fmt: skip
        return Measure(
            nats_per_frame(model, data.x), "negative log-likelihood", "nats per frame", details=details
        )

    def _shown(self, model: FrameNetwork, x: Tensor) -> dict[str, Any]:
        x = x[:_FRAMES]
        p = model.probabilities(x)
        rows = [(row > 0.05).nonzero()[:, 0].tolist() for row in p[:-1]]
        return {
            "notes": [row.nonzero()[:, 0].tolist() for row in x[1:]], "likely": rows,
            "shares": [[round(float(row[i]), 3) for i in own] for row, own in zip(p, rows, strict=False)],
        }  # fmt: skip

    # --- what is said -------------------------------------------------------------------------------------------------

    def closing(self, model: Any, data: HeldOut) -> Mapping[str, Callable[[], Any]]:
        return {"plan": lambda: str(model.explain())}

    def said(self, measure: Measure, data: HeldOut) -> Sequence[str]:
        beside = ", ".join(f"{name} {value:.4f}" for name, value in measure.details["guessed"].items())
        first = f"{measure}, of {measure.details['frames']:,} frames"
        return [first, f"  beside it: {beside}"] if beside else [first]

    # --- what is done with a run --------------------------------------------------------------------------------------

    def data(self, run: Run, files: Sequence[Path], cache: Path | None, notify: Notify) -> HeldOut:
        if files:
            return HeldOut([self._like(one, str(files[0])) for one in read_frames(files)])
        saved, mend = self._said(run), "name a file to measure on"
        rolls = read_rolls(list(map(Path, saved["files"])), saved["seed"])
        if rolls.digest != saved["digest"]:
            raise DataError(
                what="the sequences are not those learnt from", where=saved["files"][0], mend=mend
            )
        return HeldOut(rolls.test, guessed=guesses(rolls.learnt, rolls.test))

    def predict(self, model: Any, files: Sequence[Path], run: Run) -> Iterator[str]:
        """How likely each channel is to be 1: a row for each frame of the horizon; of "-" a list after each."""
        width = model.settings["channels"]
        if [str(file) for file in files] == [STDIN]:
            state = None
            for number, line in standard_input():
                frame = self._frame(line, f"standard input:{number}", width)
                logits, state = model.step(frame[None], state)
                yield json.dumps([float(f"{p:.4g}") for p in torch.sigmoid(logits[0]).tolist()])
            return
        yield ",".join(["unique_id", "ds", *map(str, range(width))])
        given = [self._like(one, str(files[0])) for one in read_frames(files)] if files else [self.tail]
        for i, x in enumerate(given):
            likely = model.mean_path(x, _DRAWN, self.horizon, 0)
            for k, row in enumerate(likely):
                yield self._row(str(i), len(x) + k, row)

    def _row(self, name: str, place: int, row: Tensor) -> str:
        return ",".join([name, str(place), *(f"{value:.4g}" for value in row.tolist())])

    def _frame(self, line: str, where: str, width: int) -> Tensor:
        try:
            value = parsed(line, each(whole(0, 1), width))
        except Odd as odd:
            raise DataError(
                what="this is no frame", where=where, got=odd.got, expected=f"a list of {width} numbers, 0 and 1",
                mend="write it as JSON",
            ) from odd  # fmt: skip
        return self._like(roll_of([value, value], where), where)[0]

    def _like(self, x: Tensor, where: str) -> Tensor:
        if x.shape[1] != self.tail.shape[1]:
            raise DataError(
                what="a frame has other channels than those learnt from", where=where, got=x.shape[1],
                expected=self.tail.shape[1], mend="give the same",
            )  # fmt: skip
        return x


def _some(x: list[Tensor]) -> list[Tensor]:
    """Of sequences as many as a quick look reads, from all over, and no more than the beginning of a long one."""
    cut = [one[: 10 * CHUNK] for one in x]
    every = max(-(-sum(map(len, cut)) // _LOOKED_AT), 1)
    return cut[::every]
