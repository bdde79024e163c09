"""The auto-encoder as a task: lines that become vectors and lines again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elman.data.schema import Odd, each, file_name, maybe, number, record, text, whole
from elman.data.sequences import LONGEST, Form, read_sequences
from elman.data.strange import Strange
from elman.errors import DataError, InputError
from elman.models.autoencoder import (
    AVERAGE,
    DECAY,
    FORM,
    LOOKED_AT,
    batches_of,
    compared,
    encoded,
    looked,
    looks,
    network_of,
    opened,
    parted,
)
from elman.models.autoencoding import AutoencoderNetwork
from elman.models.stack import learning_rate
from elman.report import Curve, Part, Point, Record, lines, plain, roll
from elman.tasks.settings import SIZE, StackSettings, TrainingSettings, argument, option
from elman.tasks.task import Notify, Opening, Prepared, Task, absolute, expect_memory, expect_one_reader
from elman.training import Measure, Processes, Run
from elman.training.measure import percent

BATCH = 64
_SHOWN, _ROLLS, _LONGEST = 16, 3, 200  # pairs in a report; of them as pictures; characters or frames of each
_BETWEEN = 7  # steps from one sequence to another
_TOGETHER = 256  # lines of a file that are read before the first is answered

_DATA = record({"files": each(file_name, 100_000), "valid": maybe(file_name), "digest": text(64)})
_share = number(0, 1)
_words = text(10 * LONGEST)
_roll = each(each(whole(0, 10_000), 10_000), _LONGEST)
_DETAILS = {
    "symbols": _share,
    "sequences": whole(0, 10**12),
    "by_length": each(each(whole(0, 10**12), 2), LONGEST, named=True),
    "pairs": each(each(_words, 2), _SHOWN),
    "rolls": each(each(_roll, 2), _ROLLS),
}


@dataclass(frozen=True)
class Settings:
    """An auto-encoder: a line becomes a vector of --hidden numbers, and the vector the line again.

    One recurrence reads the line, from its end to its beginning; its last state
    is the vector, from which another one writes the line. What is measured is
    the share of lines, none of which was there in training, that come back
    exactly. Half of what is learnt from is invented: the front of one line on
    the back of another, and symbols at random.
    """

    files: list[Path] = argument(
        "A sequence a line: UTF-8 text; or, in files that end in .jsonl, texts, lists of symbols, or arrays "
        "[[0, 1], …] of a list for each step. - for standard input.",
        needed=True,
    )
    valid: Path | None = option(
        None, "Lines to measure on. Without it a tenth of the FILEs' different lines, drawn."
    )
    stack: StackSettings = StackSettings(hidden=128)
    embedding: int = option(64, "Width of a symbol's vector.", max=SIZE)
    noise: float = option(
        0.0, "Share of the symbols that are read as others in training (of numbers: standard deviation)."
    )
    teacher: float = option(
        1.0,
        "Share of the steps at which the writer, in training, is told what it should have written before.",
    )
    plain: bool = option(False, "Learn from the FILEs alone, from nothing that is invented.")

    @property
    def model(self) -> dict[str, Any]:
        """Arguments of AutoencoderNetwork."""
        stack = {**asdict(self.stack), "cell": absolute(self.stack.cell)}
        return {**stack, "embedding": self.embedding, "noise": self.noise, "teacher": self.teacher}


@dataclass
class HeldOut:
    """Sequences to measure on. quick: those of looks, which choose the best weights."""

    quick: list[Tensor]
    x: list[Tensor]


class Autoencode(Task):
    """See elman.models.Autoencoder. form: what sequences are made of. samples: some to show what comes back of them."""

    name, Settings, files = "autoencode", Settings, (FORM,)

    def __init__(self, form: Form, samples: Sequence[Tensor] = ()) -> None:
        self.form, self.samples, self.unit = form, list(samples), "symbol" if form.size else "frame"

    @classmethod
    def part_of(cls, config: Mapping[str, Any]) -> Part:
        return (
            cls.part if config.get("symbols") else replace(cls.part, counted="frames", loss="nats per frame")
        )

    # --- how it comes about ------------------------------------------------------------------------------------------

    @classmethod
    def prepare(
        cls, settings: Settings, training: TrainingSettings, processes: Processes, notify: Notify
    ) -> Prepared:
        expect_one_reader([*settings.files, *([settings.valid] if settings.valid else [])], processes)
        notify("reading the sequences …")
        sequences = _distinct(settings.files)
        valid = None if settings.valid is None else _distinct([settings.valid])
        if valid is None:
            learnt, held_out = parted(list(sequences), len(sequences) // 10, 0)
        else:
            learnt, held_out = list(sequences), [line for line in valid if line not in sequences]
        if not learnt or not held_out:
            raise DataError(
                what="there are too few different sequences" if valid is None
                else "all that is to be measured on stands in what is learnt from",
                where=settings.valid or settings.files[0], got=f"{len(sequences)}",
                expected="at least 10 different lines",
                mend="give more lines" if valid is None else "give lines that are not learnt from",
            )  # fmt: skip
        # The weights are chosen by sequences that are neither learnt from nor measured at the end.
        learnt, looked_at = parted(learnt, looks(len(learnt)), training.seed)
        form = _form(sequences, learnt)
        x, quick, test = ([_encode(form, sequences, one) for one in part] for part in (learnt, looked_at, ()))
        test = [_encode(form, {**sequences, **(valid or {})}, one) for one in held_out]
        quick = quick or test[:LOOKED_AT]
        how = settings.model
        expect_memory(
            lambda: network_of(form, x[:1], **how), how["cell"], processes, "--hidden, --layers, --embedding"
        )
        torch.manual_seed(training.seed)
        model = network_of(form, x, **how).to(processes.device)
        training = replace(
            training, batch=training.batch or max(min(BATCH, len(x) // 4), processes.count),
            lr=training.lr or learning_rate(model.encoder, how["hidden"]),
            weight_decay=DECAY if training.weight_decay is None else training.weight_decay,
            average=AVERAGE if training.average is None else training.average,
        )  # fmt: skip
        data = {
            "files": [_absolute(file) for file in settings.files],
            "valid": None if settings.valid is None else _absolute(settings.valid),
            "digest": _digest(held_out),
        }
        batches = batches_of(form, x, training.batch or BATCH, training.seed, plain=settings.plain)
        kinds = f"{len(form.symbols):,} symbols" if form.size else f"{form.channels:,} channels"
        about = f"{len(x):,} sequences to learn from, {len(quick):,} to choose by, {len(test):,} held out, {kinds}"
        notes = []
        if valid is not None and len(held_out) < len(valid):
            left = f"{len(valid) - len(held_out):,} of {settings.valid}"
            notes.append(f"{left} stand in what is learnt from and are left out")
        config = {**model.settings, "data": data, "training": {"plain": settings.plain}}
        return Prepared(
            cls(form, quick[:5]), model, batches, HeldOut(quick, test), training, config, about, notes
        )

    @classmethod
    def opened(cls, run: Run, opening: Opening) -> tuple[Autoencode, AutoencoderNetwork]:
        run = Run.open(run.folder, *cls.files)
        form, model = opened(run.config, run.folder, **vars(opening))
        return cls(form), model

    def called(self, model: Any) -> None:
        x = torch.zeros(2, 1, dtype=torch.int64) if self.form.size else torch.zeros(2, 1, self.form.channels)
        lengths = torch.tensor([2])
        model.outputs(model.encode(x, lengths), x, lengths)

    def kept(self) -> dict[str, bytes]:
        return {FORM: self.form.to_json()}

    # --- what is learnt ----------------------------------------------------------------------------------------------

    def measure(self, model: Any, data: HeldOut, quick: bool) -> Measure:
        if quick:
            return looked(model, data.quick)
        figures = compared(model, data.x)
        wrong = [pair for pair in figures.pairs if not _same(*pair)]
        pairs = [*wrong[: _SHOWN // 2], *(pair for pair in figures.pairs if _same(*pair))][:_SHOWN]
        details = {
            "symbols": figures.symbols, "sequences": len(data.x),
            "by_length": {str(length): list(counts) for length, counts in figures.by_length.items()},
            "pairs": [[self.form.line(self.form.decode(one))[:_LONGEST] for one in pair] for pair in pairs]
            if self.form.size else [],
            "rolls": [[_notes(one) for one in pair] for pair in figures.pairs[:_ROLLS]] if self.form.binary else [],
        }  # fmt: skip
        return replace(figures.measure, details=details)

    def sample(self, model: Any) -> str:
        if not self.form.size or not self.samples:
            return ""
        figures = compared(model, self.samples)
        return "\n".join(
            " → ".join(self.form.line(self.form.decode(one))[:_LONGEST] for one in pair)
            for pair in figures.pairs
        )

    def closing(self, model: Any, data: HeldOut) -> Mapping[str, Callable[[], Any]]:
        named: dict[str, Callable[[], Any]] = {"plan": lambda: str(model.explain())}
        if self.form.size and len(ends := [*data.quick, *data.x][:2]) == 2:
            named["between"] = lambda: self._between(model, *ends)
        return named

    def _between(self, model: Any, *ends: Tensor) -> list[str]:
        first, last = encoded(model, ends)
        share = torch.linspace(0, 1, _BETWEEN, device=first.device)[:, None]
        decoded = model.decode(first + share * (last - first))
        return [self.form.line(self.form.decode(one))[:_LONGEST] for one in decoded]

    # --- what is said ------------------------------------------------------------------------------------------------

    def said(self, measure: Measure, data: HeldOut) -> Sequence[str]:
        yours = f", over {len(data.x):,} sequences"
        if measure.unit != "%":
            return [f"{measure}{yours}"]
        return [f"{measure}, {percent(measure.details['symbols'], 2)} of {self.unit}s{yours}"]

    # --- what is done with a run -------------------------------------------------------------------------------------

    def data(self, run: Run, files: Sequence[Path], cache: Path | None, notify: Notify) -> HeldOut:
        if files:
            sequences = _distinct(files)
            held_out = list(sequences)
        else:
            saved = run.section(
                "data", _DATA, "the run does not say what was held out", "name a file to measure on"
            )
            names = [Path(name) for name in saved["files"]]
            own = None if saved["valid"] is None else Path(saved["valid"])
            if Path("-") in [*names, own]:
                raise DataError(
                    what="what was held out came from standard input, and is not kept", where=run.folder,
                    mend="name a file to measure on",
                )  # fmt: skip
            sequences = _distinct(names)
            held_out = parted(list(sequences), len(sequences) // 10, 0)[1]
            if own is not None:
                valid = _distinct([own])
                held_out = [line for line in valid if line not in sequences]
                sequences = valid
            if _digest(held_out) != saved["digest"]:
                raise DataError(
                    what="what was held out is not what it was in training any more", where=own or names[0],
                    mend="name a file to measure on",
                )  # fmt: skip
        if not held_out:
            raise DataError(
                what="there are no sequences",
                where=files[0] if files else run.folder,
                mend="give a line for each",
            )
        x = [_encode(self.form, sequences, line) for line in held_out]
        return HeldOut(x, x)

    def predict(self, model: Any, files: Sequence[Path], run: Run) -> Iterator[str]:
        if not files:
            raise InputError(
                what="name what is to be reconstructed", where=run.folder,
                mend="give files with a sequence a line, or - for standard input",
            )  # fmt: skip
        waiting: list[Tensor | None] = []
        strange = Strange(set(self.form.symbols), self.note)
        in_json = bool(self.form.channels) or not self.form.joined
        for file in files:
            for place, value in read_sequences([file], in_json, blanks=True):
                waiting.append(None if value is None else _encode(self.form, {"": (place, value)}, ""))
                if value is not None and not self.form.channels:
                    strange.look(value)
                if str(file) == "-" or len(waiting) == _TOGETHER:
                    yield from self._written(model, waiting)
                    waiting = []
        yield from self._written(model, waiting)

    def _written(self, model: Any, x: list[Tensor | None]) -> Iterator[str]:
        """A line for each; an empty one for None."""
        given = [one for one in x if one is not None]
        decoded = iter(model.decode(encoded(model, given)) if given else ())
        for one in x:
            yield "" if one is None else self.form.line(self.form.decode(next(decoded)))


# line -> (where it stands first, the sequence)
_Found = Mapping[str, tuple[str, Any]]


def _distinct(files: Iterable[Path]) -> dict[str, tuple[str, Any]]:
    """Different sequences, in order."""
    distinct: dict[str, tuple[str, Any]] = {}
    for place, value in read_sequences(files):
        distinct.setdefault(value if isinstance(value, str) else repr(value), (place, value))
    return distinct


def _form(sequences: _Found, names: Sequence[str]) -> Form:
    try:
        return Form.of([sequences[name][1] for name in names])
    except Odd as odd:
        where = sequences[names[int(odd.place)]][0] if odd.place.isdigit() else None
        raise _unlike(odd, where) from odd


def _encode(form: Form, sequences: _Found, name: str) -> Tensor:
    place, value = sequences[name]
    try:
        return form.encode(value, place)
    except Odd as odd:
        raise _unlike(odd, place) from odd


def _unlike(odd: Odd, where: object) -> DataError:
    return DataError(
        what="this is no sequence as the others are", where=where, got=odd.got, expected=odd.expected,
        mend="mend the line, or leave it out",
    )  # fmt: skip


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()


def _absolute(file: Path) -> str:
    return "-" if str(file) == "-" else str(file.resolve())


def _same(given: Tensor, output: Tensor) -> bool:
    return given.shape == output.shape and bool((given == output).all())


def _notes(x: Tensor) -> list[list[int]]:
    """The channels that are 1, of each frame."""
    return [frame.nonzero().flatten().tolist() for frame in x[:_LONGEST] > 0.5]


# --- its part of the report -------------------------------------------------------------------------------------------


def _sections(record: Record) -> dict[str, str]:
    measured, sections = record.measured, {}
    counts = {
        int(n): pair for n, pair in measured.get("by_length", {}).items() if n.isdecimal() and len(pair) == 2
    }
    points = [Point(n, 100 * good / count) for n, (good, count) in sorted(counts.items()) if count]
    if points and measured.get("unit") == "%":
        curve = Curve("exact", points, "first", marked=True)
        sections["Exactness against length"] = lines([curve], x="length", y="% exact")
    if pairs := [pair for pair in measured.get("pairs", []) if len(pair) == 2]:
        sections["Reconstructions of what was held out, those that went wrong first"] = _table(pairs)
    if between := record.more.get("between"):
        sections["From one to another"] = f"<pre>{plain(chr(10).join(between))}</pre>"
    for k, pair in enumerate(pair for pair in measured.get("rolls", []) if len(pair) == 2):
        sections[f"Held out, {k + 1}: given (above) and made"] = "".join(map(roll, pair))
    return sections


def _table(pairs: Sequence[Sequence[str]]) -> str:
    rows = "".join(
        f"<tr><td><bdi>{plain(given)}</bdi></td><td><bdi>{plain(output) if output != given else '='}</bdi></td></tr>"
        for given, output in pairs
    )
    return f"<table>{rows}</table>"


Autoencode.part = Part(
    unit="steps", counted="symbols", loss="nats per symbol", figure="exact reconstruction",
    share=True, samples="What came back while it learned",
    details=_DETAILS, logged={"between": each(_words, 100)}, sections=_sections,
)  # fmt: skip
