"""Classification as a task: one label for a sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elman.data import ragged
from elman.data.labelled import Channels, Labelled, LabelledColumns, read_labelled, read_sequences, stratified
from elman.data.schema import Check, each, file_name, maybe, number, record, text, whole
from elman.data.strange import Strange
from elman.data.tables import Remarks
from elman.errors import DataError, InputError
from elman.models.classifier import AVERAGE, DECAY, batch_for, input_dropout_for, look, opened
from elman.models.coding import BEGIN, FILE, Coding
from elman.models.scores import figures
from elman.models.sequence_classifier import SequenceClassifier, logits_of
from elman.report import Part, Record, matrix, plain, read_record
from elman.tasks.settings import SIZE, StackSettings, TrainingSettings, argument, option
from elman.tasks.task import Notify, Opening, Prepared, Task, absolute, expect_memory, expect_one_reader
from elman.training import Measure, Processes, Run, Step, Validation
from elman.training.measure import percent

_LOOKED_AT = 2000  # examples of a quick look
_HELD_OUT, _TEST = 0.1, 0.1
_LABELS = 100_000
_GUESSES = {
    "most frequent": "always the most frequent label",
    "n-grams": "logistic regression on n-grams",
    "statistics": "logistic regression on mean, deviation, first and last",
}
_share = number(0, 1, finite=False)
_SAVED: dict[str, Check] = {
    "files": each(file_name, 100_000),
    "valid": maybe(file_name),
    "text": text(1000),
    "label": text(1000),
    "id": text(1000),
    "longest": whole(1, SIZE),
    "seed": whole(-(2**63), 2**63 - 1),
    "digest": text(64),
}
_KNOWN: dict[str, Check] = {"channels": maybe(each(text(10_000), SIZE))}  # older runs do not say


@dataclass(frozen=True)
class Settings:
    """A classifier: one label for a sequence, of characters or of numbers.

    A FOLDER holds a text file for each class with an example on each line, or
    a folder for each class with an example in each file. A CSV has columns
    "text" and "label", or, for numbers, "id", "label" and a row for each step;
    JSON lines have {"text": …, "label": …} with a string or a list of numbers.

    Without --valid a tenth of every class is held out to choose the weights by,
    and a tenth to measure the result on.
    """

    files: list[Path] = argument("Folders, .csv, .tsv or .jsonl.", metavar="FOLDER|FILE", needed=True)
    valid: Path | None = option(
        None, "Examples to choose weights by and to measure on. Without it 80/10/10 by --seed."
    )
    text: str = option("text", "The column or the name of the sequence.", metavar="NAME")
    label: str = option("label", "Of its label.", metavar="NAME")
    id: str = option("id", "Of what tells sequences of numbers apart in a table.", metavar="NAME")
    longest: int = option(20_000, "Steps of a sequence, at most; a longer one is an error.", max=SIZE)
    stack: StackSettings = StackSettings(cell="lstm", hidden=128, layers=2, dropout=0.4)
    one_direction: bool = option(
        False, "Read forward only, not backward as well: such a model can follow a live stream."
    )
    pooling: str = option("max+mean", "last, mean, max, attention; several joined by +.")
    class_weight: str = option("none", "Of labels in the loss: none, or balanced, rare ones weigh more.")
    embedding: int = option(64, "Width of a character's vector.", max=SIZE)
    input_dropout: float | None = option(
        None,
        "Share of what the lowest layer reads that is left out in training. (default: 0.2; 0 of numbers)",
    )
    symbol_dropout: float = option(0.05, "Share of characters that are read as unknown in training.")

    @property
    def columns(self) -> LabelledColumns:
        return LabelledColumns(self.text, self.label, self.id, self.longest)

    def model(self, symbols: bool) -> dict[str, Any]:
        """Arguments of SequenceClassifier."""
        return {
            **asdict(self.stack), "cell": absolute(self.stack.cell), "both": not self.one_direction,
            "pooling": self.pooling, "embedding": self.embedding, "symbol_dropout": self.symbol_dropout,
            "input_dropout": input_dropout_for(self.input_dropout, symbols),
        }  # fmt: skip


@dataclass
class HeldOut:
    """Examples to measure on, x encoded. learnt: what was learnt from, None where that is not known. looked: (x, y) of
    quick looks, by which weights are chosen and probabilities calibrated; None once that is over. baselines: shares
    that are right, by what guessed them."""

    examples: Labelled
    x: list[Tensor]
    y: Tensor
    learnt: Labelled | None
    looked: tuple[list[Tensor], Tensor] | None = None
    baselines: dict[str, float] = field(default_factory=dict)


# --- its part of the report -------------------------------------------------------------------------------------------


def _facts(record: Record) -> dict[str, str]:
    measured = record.measured
    names = {
        "value": "accuracy",
        "balanced": "balanced accuracy",
        "calibration": "expected calibration error",
    }
    return {
        f"held out, {label}": percent(measured[name]) for name, label in names.items() if name in measured
    } or {"held out, best look": f"{record.best.value:.4f} nats" if record.best else "–"}


def _sections(record: Record) -> dict[str, str]:
    measured, labels = record.measured, record.measured.get("labels", [])
    columns = [measured.get(name, []) for name in ("precision", "recall", "f1", "examples")]
    table = measured.get("confusion", [])
    if not labels or any(len(column) != len(labels) for column in [*columns, *table, table or labels]):
        return {}
    head = "".join(f"<th>{name}</th>" for name in ("", "precision", "recall", "F1", "examples"))
    rows = "".join(
        f"<tr><th>{plain(name)}</th>"
        + "".join(f"<td>{percent(share)}</td>" for share in shares)
        + f"<td>{count:,}</td></tr>"
        for name, *shares, count in zip(labels, *columns, strict=True)
    )
    sections = {
        "Each label": f"<table><tr>{head}</tr>{rows}</table>",
        "Which labels are taken for which": matrix(table, labels if table else []),
    }
    guessed = {"this model": measured.get("value", 0.0), **record.more.get("baselines", {})}
    rows = (
        f"<tr><th>{plain(_GUESSES.get(name) or name)}</th><td>{percent(v)}</td></tr>"
        for name, v in guessed.items()
    )
    return {**sections, "Accuracy, and that of simpler guesses": f"<table>{''.join(rows)}</table>"}


_counts = each(whole(0, 10**12), _LABELS)
_shares = each(_share, _LABELS)
PART = Part(
    unit="examples", loss="nats per sequence", figure="nats, calibrated",
    details={
        "labels": each(text(10_000), _LABELS), "confusion": each(_counts, _LABELS), "examples": _counts,
        "precision": _shares, "recall": _shares, "f1": _shares, "balanced": _share, "calibration": _share,
        "nats": number(0, 1e9, finite=False), "majority": _share,
        "seen": each(each(number(0, 1e12), 2), 10, named=True),
    },
    logged={"baselines": each(_share, 100, named=True)}, facts=_facts, sections=_sections,
)  # fmt: skip


class Classify(Task):
    """coding: labels, and which symbol a character is."""

    name, Settings, files, part, unit = "classify", Settings, (FILE,), PART, "sequence"

    def __init__(self, coding: Coding) -> None:
        self.coding = coding

    # --- how it comes about -------------------------------------------------------------------------------------------

    @classmethod
    def prepare(
        cls, settings: Settings, training: TrainingSettings, processes: Processes, notify: Notify
    ) -> Prepared:
        if settings.class_weight not in ("none", "balanced"):
            raise InputError(
                what="there are no such class weights", where="--class-weight", got=settings.class_weight,
                expected="none or balanced", mend="take one of them",
            )  # fmt: skip
        expect_one_reader([*settings.files, settings.valid], processes)
        notify("reading the examples …")
        remarks, channels = Remarks(), Channels()

        def read() -> tuple[Labelled, Labelled, Labelled, str]:
            return _read(settings.files, settings.valid, settings.columns, training.seed, remarks, channels)

        learnt, valid, test, digest = processes.first_does(read) or read()
        coding = Coding.of(learnt.x, learnt.y)
        symbols = coding.characters is not None
        inputs = coding.inputs if symbols else learnt.x[0].shape[1]
        task, how = cls(coding), settings.model(symbols)

        def make() -> SequenceClassifier:
            return SequenceClassifier(inputs, len(coding.labels), symbols, **how)

        expect_memory(make, how["cell"], processes, "--hidden, --layers, --embedding")
        torch.manual_seed(training.seed)
        model = make().to(processes.device)
        x, y = task.encoded(learnt, inputs)
        model.weight.copy_(coding.weights(None if settings.class_weight == "none" else settings.class_weight))
        if not symbols:
            model.standardise(x)
        batch = training.batch or batch_for(len(x))
        if training.batch is None and processes.count > 1:
            batch = max(batch - batch % processes.count, processes.count)
        training = replace(
            training, batch=batch, lr=training.lr or model.learning_rate,
            weight_decay=DECAY if training.weight_decay is None else training.weight_decay,
            average=AVERAGE if training.average is None else training.average,
        )  # fmt: skip
        looked = task.encoded(valid.rows(_some(len(valid.y))), inputs)
        held_out = HeldOut(test, *task.encoded(test, inputs), learnt, looked)
        data = {
            "files": [str(f.resolve()) for f in settings.files],
            "valid": None if settings.valid is None else str(settings.valid.resolve()),
            **vars(settings.columns), "channels": channels.names, "seed": training.seed, "digest": digest,
        }  # fmt: skip
        config = {**model.settings, "class_weight": settings.class_weight, "data": data}
        apart = "" if settings.valid else f", {len(test.y):,} to measure on (seed {training.seed})"
        about = (
            f"{len(x):,} sequences to learn from, {len(valid.y):,} to choose by{apart or ' and to measure on'}; "
            f"{len(coding.labels):,} labels"
        )
        batches = ragged(x, y, batch, training.seed)
        return Prepared(task, model, batches, held_out, training, config, about, remarks.taken())

    @classmethod
    def opened(cls, run: Run, opening: Opening) -> tuple[Classify, SequenceClassifier]:
        run = Run.open(run.folder, *cls.files)
        coding, model = Coding.load(run.folder), opened(run.folder, run.config, **vars(opening))
        symbols = coding.characters is not None
        got = (len(coding.labels), symbols, coding.inputs if symbols else model.settings["inputs"])
        expected = tuple(model.settings[name] for name in ("labels", "symbols", "inputs"))
        if got != expected:
            raise DataError(
                what="the labels and the model are not of one run", where=run.folder / FILE,
                got=f"{got[0]} labels, {got[2]} inputs", expected=f"{expected[0]} labels, {expected[2]} inputs",
                mend="restore the files of one run",
            )  # fmt: skip
        model.coding = coding
        return cls(coding), model

    def kept(self) -> dict[str, bytes]:
        return {FILE: self.coding.kept()}

    def called(self, model: Any) -> None:
        one = torch.tensor([BEGIN, BEGIN]) if model.symbols else torch.zeros(2, model.settings["inputs"])
        model(one[:, None], torch.tensor([2]))

    # --- what is learnt -----------------------------------------------------------------------------------------------

    def measure(self, model: Any, data: HeldOut, quick: bool) -> Measure:
        """quick: nats at the temperature that is best on the part that is looked at, which the model keeps."""
        if quick:
            assert data.looked is not None
            return look(model, *data.looked)
        logits = logits_of(model, data.x)
        probabilities = (logits / model.temperature.cpu()).softmax(1)
        details = figures(probabilities, data.y)
        most = max(range(len(self.coding.labels)), key=lambda k: self.coding.counts[k])
        details["majority"] = float((data.y == most).double().mean())
        if data.learnt is not None and self.coding.characters is not None:
            details["seen"] = _seen(data.learnt, data.examples, probabilities.argmax(1) == data.y)
        details["labels"] = list(map(str, self.coding.labels))
        return Measure(details.pop("accuracy"), "accuracy", "%", lower_is_better=False, details=details)

    def closing(self, model: Any, data: HeldOut) -> Mapping[str, Callable[[], Any]]:
        return {"plan": lambda: str(model.explain()), "baselines": lambda: self._baselines(data)}

    def _baselines(self, data: HeldOut) -> dict[str, float]:
        """Shares that simpler guesses get right."""
        assert data.learnt is not None
        most = Counter(data.learnt.y).most_common(1)[0][0]
        shares = {"most frequent": sum(label == most for label in data.examples.y) / len(data.examples.y)}
        if (score := _regression(data.learnt, data.examples)) is not None:
            shares["statistics" if self.coding.characters is None else "n-grams"] = score
        data.baselines = shares
        return shares

    # --- what is said -------------------------------------------------------------------------------------------------

    def line(self, step: Step, validation: Validation | None) -> Iterable[tuple[str, str]]:
        yield f"loss {step.loss:.4f} {self.part.loss}", "new"
        if validation is not None:
            figure = validation.measure
            right = figure.details.get("accuracy")  # known to the first process alone
            share = "" if right is None else f"accuracy {percent(right)}, "
            yield f"held out: {share}{figure.value:.4f} nats", "old"

    def said(self, measure: Measure, data: HeldOut) -> Sequence[str]:
        details = measure.details
        count, right = len(data.y), measure.value
        error = 100 * (right * (1 - right) / max(count, 1)) ** 0.5
        lines = [
            f"{measure} ± {error:.1f}, of {count:,} sequences",
            f"  balanced accuracy {percent(details['balanced'])}, {details['nats']:.4f} nats, "
            f"expected calibration error {percent(details['calibration'])}",
        ]
        for name, (examples, share) in details.get("seen", {}).items():
            if examples:
                lines.append(f"  {name}: {percent(share)} of {examples:,}")
        guessed = data.baselines or {"most frequent": details["majority"]}
        words = [f"{_GUESSES[name]} {percent(share)}" for name, share in guessed.items()]
        return [*lines, f"  beside it: {', '.join(words)}"]

    # --- what is done with a run --------------------------------------------------------------------------------------

    def data(self, run: Run, files: Sequence[Path], cache: Path | None, notify: Notify) -> HeldOut:
        mend = "name what to measure on"
        saved = run.section("data", record(_SAVED, _KNOWN), "the run does not say what it learnt from", mend)
        columns = LabelledColumns(saved["text"], saved["label"], saved["id"], saved["longest"])
        learnt, test, remarks, channels = None, None, Remarks(), Channels(saved.get("channels"))
        try:
            valid = saved["valid"] and Path(saved["valid"])
            files_learnt = list(map(Path, saved["files"]))
            learnt, _, test, digest = _read(files_learnt, valid, columns, saved["seed"], remarks, channels)
            if digest != saved["digest"]:
                raise DataError(
                    what="the examples are not those that were learnt from",
                    where=saved["files"][0],
                    mend=mend,
                )
        except DataError:
            if not files:
                raise
            learnt = None
        if files:
            test = read_labelled(files, columns, remarks, channels)
        for remark in remarks.taken():
            self.note(remark)
        assert test is not None
        held_out = HeldOut(test, *self.encoded(test, run.config["inputs"]), learnt)
        if not files:  # of the same examples, and learnt once
            with suppress(DataError):
                known = read_record(run.folder, self.part).more.get("baselines", {})
                held_out.baselines = {name: known[name] for name in _GUESSES if name in known}
        return held_out

    def encoded(self, examples: Labelled, inputs: int) -> tuple[list[Tensor], Tensor]:
        """(x, y) as the model takes them. inputs: I of numbers."""
        x = self.coding.sequences(examples.x, inputs, examples.places)
        return x, self.coding.numbers(examples.y, examples.places)

    def predict(self, model: Any, files: Sequence[Path], run: Run) -> Iterator[str]:
        if not files:
            raise InputError(
                what="there is nothing to predict",
                where=run.folder,
                mend="name a file, or - for standard input",
            )
        saved = run.section(
            "data", record(_SAVED, _KNOWN), "the run does not say how its data were read", "restore it"
        )
        columns = LabelledColumns(saved["text"], saved["label"], saved["id"], saved["longest"])
        numbers, remarks = self.coding.characters is None, Remarks()
        channels = Channels(saved.get("channels"))
        strange = Strange(set(self.coding.characters or ""), self.note)
        for file in files:
            for one in read_sequences(file, columns, numbers=numbers, remarks=remarks, channels=channels):
                for remark in remarks.taken():
                    self.note(remark)
                if one is None:
                    yield ""
                    continue
                x = self.coding.sequences([one], model.settings["inputs"], file)
                if not numbers:
                    strange.look(one)
                yield str(self.coding.labels[int(logits_of(model, x)[0].argmax())])


def _read(
    files: Sequence[Path],
    valid: Path | None,
    columns: LabelledColumns,
    seed: int,
    remarks: Remarks,
    channels: Channels,
) -> tuple[Labelled, Labelled, Labelled, str]:
    """(to learn from, to choose weights by, to measure on, digest of all)."""
    examples = read_labelled(files, columns, remarks, channels)
    if valid is not None:
        held_out = read_labelled([valid], columns, remarks, channels)
        return examples, held_out, held_out, Labelled(examples.x + held_out.x, examples.y + held_out.y).digest
    places = {label: k for k, label in enumerate(sorted(set(examples.y)))}
    shares = (1 - _HELD_OUT - _TEST, _HELD_OUT, _TEST)
    learnt, chosen, test = stratified([places[label] for label in examples.y], shares, seed)
    if not chosen or not test:
        raise DataError(
            what="there are too few examples of each label to hold some out", where=", ".join(map(str, files)),
            got=f"{len(examples.y)} examples of {len(places)} labels", expected="ten of a label, at least",
            mend="name examples to measure on: --valid",
        )  # fmt: skip
    return examples.rows(learnt), examples.rows(chosen), examples.rows(test), examples.digest


def _some(count: int) -> list[int]:
    """Of so many rows those of a quick look, from all over."""
    return [k * count // min(count, _LOOKED_AT) for k in range(min(count, _LOOKED_AT))]


def _seen(learnt: Labelled, examples: Labelled, right: Tensor) -> dict[str, tuple[int, float]]:
    """(how many, the share that is right) of strings that stand in training too, by what their label is there."""
    labels: dict[str, set[str]] = {}
    for one, label in zip(learnt.x, learnt.y, strict=True):
        labels.setdefault(one, set()).add(label)
    kinds = ("not in training", "in training with this label", "in training with other labels only")
    places = [
        0 if one not in labels else 1 if label in labels[one] else 2
        for one, label in zip(examples.x, examples.y, strict=True)
    ]
    where = torch.tensor(places)
    return {
        name: (
            int((where == k).sum()),
            float(right[where == k].double().mean()) if (where == k).any() else 0.0,
        )
        for k, name in enumerate(kinds)
    }


def _regression(learnt: Labelled, examples: Labelled) -> float | None:
    """What logistic regression on the n-grams of 1 … 4 characters gets right, where scikit-learn is there; of numbers
    on mean, deviation, first and last of each channel."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        return None
    if isinstance(learnt.x[0], str):
        reads = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, max_features=100_000
        )
        parts = learnt.x, examples.x
    else:
        reads = StandardScaler()
        parts = tuple(
            [torch.cat([one.mean(0), one.std(0, correction=0), one[0], one[-1]]).tolist() for one in part.x]
            for part in (learnt, examples)
        )
    pipeline = make_pipeline(reads, LogisticRegression(C=10.0, max_iter=300))
    return float(pipeline.fit(parts[0], learnt.y).score(parts[1], examples.y))
