"""Tagging as a task: sentences in files, what is said of each tag, and files that come back with tags."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from elman.data.lexicon import Forms, Lexicon
from elman.data.schema import Odd, each, file_name, maybe, number, record, text, whole
from elman.data.strange import Strange
from elman.data.tagged import (
    COLUMNS,
    CONLLU,
    JSON,
    STDIN,
    Sentence,
    conllu_row,
    digest,
    numbered_lines,
    read_json,
    read_tagged,
    read_words,
)  # fmt: skip
from elman.errors import DataError, InputError
from elman.models.stack import learning_rate
from elman.models.tagger import (
    AVERAGE,
    BATCH,
    LEXICON,
    Encoded,
    Others,
    load,
    measure,
    new,
    others_of,
    split,
    tag,
)
from elman.models.tagging import TagNetwork
from elman.report import Part, Record, bars, plain
from elman.tasks.settings import SIZE, StackSettings, TrainingSettings, argument, option
from elman.tasks.task import Notify, Opening, Prepared, Task, absolute, expect_memory, expect_one_reader
from elman.training import Measure, Processes, Run, Step, Validation
from elman.training.measure import percent

_LOOKED = 10_000  # words of a look on the way
_BLOCK = 256  # lines of a file that are tagged together
_NAMES = 100_000


def _column(value: Any, place: str) -> None:
    if value not in COLUMNS:
        raise Odd(place, str(value)[:50], " or ".join(COLUMNS))


_DATA = record({
    "files": each(file_name, _NAMES), "valid": maybe(file_name), "column": _column, "digest": text(64),
    "valid_digest": text(64),
})  # fmt: skip
_share = number(0, 1)
_DETAILS = {
    "words": whole(0, 10**12), "unseen_words": whole(0, 10**12), "seen": _share, "unseen": _share, "baseline": _share,
    "tags": each(each(number(0, 10**12), 4), 10**6, named=True), "mistakes": each(whole(0, 10**12), 1000, named=True),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """A tagger: say the tag of each word of a sentence.

    FILEs are CoNLL-U (.conllu), JSON lines (.jsonl: {"words": […], "tags": […]}),
    or two columns, word and tag, with an empty line behind each sentence. A
    word is read by its characters, by a recurrence, and by a vector of its own;
    sentences are read in both directions. The weights that did best on held-out
    sentences are kept. Figures are of all words, of words seen in training, and
    of others.
    """

    files: list[Path] = argument("Sentences to learn from.", needed=True)
    valid: Path | None = option(
        None, "Sentences to choose the weights by and to measure on. Without it every tenth one of FILEs."
    )
    column: str = option("upos", "Of CoNLL-U, what is learnt: upos or xpos.")
    stack: StackSettings = StackSettings(cell="lstm", hidden=200, layers=2, dropout=0.33)
    embedding: int = option(128, "Width of a word's vector.", min=1, max=SIZE)
    spelling: int = option(
        64, "Units that read the characters of a word, in each direction.", min=1, max=SIZE
    )
    word_dropout: float = option(
        0.1, "Share of words that are known by their characters alone, now these, now those, in training."
    )
    alone: bool = option(
        False,
        "Learn that column of CoNLL-U alone; by default the others that say what a word is are learnt beside it.",
    )
    one_direction: bool = option(
        False, "Read forward only, not backward as well: such a tagger can follow a live stream, word by word.",
        formerly="one_way",
    )  # fmt: skip
    crf: bool = option(False, "Score which tag follows which too: a conditional random field.")
    vectors: Path | None = option(
        None, "Word vectors from elsewhere, a line a word; they are kept with the run and not trained."
    )

    @property
    def model(self) -> dict[str, Any]:
        """Arguments of TagNetwork."""
        return {
            **asdict(self.stack), "cell": absolute(self.stack.cell), "embedding": self.embedding,
            "spelling": self.spelling, "word_dropout": self.word_dropout, "both": not self.one_direction,
            "crf": self.crf,
        }  # fmt: skip


def _facts(record: Record) -> dict[str, str]:
    measured = record.measured
    if not {"value", *_DETAILS} <= measured.keys():
        return {"held out, best look": percent(record.best.value) if record.best else "–"}
    return {
        f"of {measured['words']:,} words held out": percent(measured["value"]),
        **{f"of {name}": share for name, share in _by_acquaintance(measured)},
        "by each word's most frequent tag": percent(measured["baseline"]),
    }


def _by_acquaintance(measured: Mapping[str, Any], the: str = "") -> Iterator[tuple[str, str]]:
    """(which words, the share of them that is right), without those of which there are none."""
    unseen = measured["unseen_words"]
    if seen := unseen < measured["words"]:
        yield "words seen in training", percent(measured["seen"])
    if unseen:
        yield f"{the}{unseen:,} others" if seen else "words not seen in training", percent(measured["unseen"])


def _sections(record: Record) -> dict[str, str]:
    rows = sorted(record.measured.get("tags", {}).items(), key=lambda row: -row[1][3])
    cells = "".join(
        f"<tr><th>{plain(name)}</th><td>{of[3]:,.0f}</td>{''.join(f'<td>{percent(one)}</td>' for one in of[:3])}</tr>"
        for name, of in rows if len(of) == 4
    )  # fmt: skip
    head = "<tr><th>tag</th><th>words</th><th>precision</th><th>recall</th><th>F1</th></tr>"
    drawn = bars({name: of[2] * 100 for name, of in rows[:40] if len(of) == 4}, "%") if rows else ""
    return {
        "Each tag": f"<table>{head}{cells}</table>",
        "F1 of each tag": drawn,
        "The most frequent mistakes, right → given": bars(record.measured.get("mistakes", {}), "words"),
    }


PART = Part(
    unit="steps", counted="words", loss="nats per word, half of those of other labels", figure="accuracy", share=True,
    samples="What it said of a held-out sentence",
    details=_DETAILS, facts=_facts, sections=_sections,
)  # fmt: skip


class Tag(Task):
    """See elman.models.Tagger. shown: words of a sentence that is tagged for the log."""

    name, Settings, files, part, unit = "tag", Settings, (LEXICON,), PART, "word"

    def __init__(self, lexicon: Lexicon, shown: Sequence[str] = ()) -> None:
        self.lexicon, self.shown = lexicon, list(shown)

    # --- how it comes about ------------------------------------------------------------------------------------------

    @classmethod
    def prepare(
        cls, settings: Settings, training: TrainingSettings, processes: Processes, notify: Notify
    ) -> Prepared:
        _expect_column(settings.column)
        expect_one_reader([*settings.files, settings.valid], processes)
        notify("reading the sentences …")
        sentences = read_tagged(settings.files, settings.column)
        if settings.valid:
            learnt, held_out = sentences, read_tagged([settings.valid], settings.column)
        else:
            learnt, held_out = _split(sentences)
        others = [] if settings.alone else others_of(learnt)
        lexicon, network = cls._made(settings, learnt, others, training.seed, processes)
        data, looked = Encoded.of(learnt, lexicon, others), Encoded.of(held_out, lexicon)
        batch = training.batch or min(BATCH, max(len(learnt) // 8, 1))
        training = replace(
            training, batch=batch, average=AVERAGE if training.average is None else training.average,
            lr=training.lr or learning_rate(network.stack, network.settings["hidden"]),
        )  # fmt: skip
        saved = {
            "files": list(map(str, settings.files)), "valid": settings.valid and str(settings.valid),
            "column": settings.column, "digest": digest(learnt, bool(others)), "valid_digest": digest(held_out),
        }  # fmt: skip
        about = (
            f"{len(learnt):,} sentences of {sum(map(len, data.rows)):,} words to learn from, {len(held_out):,} held "
            f"out to choose by and to measure on; {len(lexicon.tags)} tags"
        )
        notes = [] if settings.valid else ["without --valid, every tenth sentence is held out"]
        return Prepared(
            cls(lexicon, held_out[0].words[:30]), network, data.batches(batch, training.seed), looked, training,
            {**network.settings, "data": saved}, about, notes,
        )  # fmt: skip

    @classmethod
    def _made(
        cls,
        settings: Settings,
        sentences: Sequence[Sentence],
        others: Sequence[Others],
        seed: int,
        processes: Processes,
    ) -> tuple[Lexicon, TagNetwork]:
        how, learnt = settings.model, Lexicon.learn(sentences)
        sizes = (len(learnt.tags), len(learnt.words), len(learnt.characters))
        options = "--hidden, --layers, --embedding, --spelling"
        expect_memory(lambda: TagNetwork(*sizes, **how), how["cell"], processes, options)
        lexicon, network = new(sentences, seed, settings.vectors, how, others)
        return lexicon, network.to(processes.device)

    @classmethod
    def opened(cls, run: Run, opening: Opening) -> tuple[Tag, TagNetwork]:
        run = Run.open(run.folder, *cls.files)
        network, lexicon = load(run.config, run.folder, **vars(opening))
        return cls(lexicon), network

    def called(self, model: Any) -> None:
        tag(model, forms := Forms(self.lexicon), [forms.rows(["a", "word"])])

    def kept(self) -> dict[str, bytes]:
        return {LEXICON: self.lexicon.to_json()}

    # --- what is learnt ----------------------------------------------------------------------------------------------

    def measure(self, model: Any, data: Encoded, quick: bool) -> Measure:
        """The share of words with the right tag. quick: of sentences from all over."""
        return measure(model, data.part(_LOOKED) if quick else data)

    def sample(self, model: Any) -> str:
        tags = self.tags(model, [self.shown])[0]
        return " ".join(f"{word}/{name}" for word, name in zip(self.shown, tags, strict=True))

    # --- what is said ------------------------------------------------------------------------------------------------

    def line(self, step: Step, validation: Validation | None) -> Iterator[tuple[str, str]]:
        yield f"loss {step.loss:.4f} {self.part.loss}", "new"
        if validation is not None:
            yield f"held out: {percent(validation.measure.value)} right", "old"

    def said(self, measure: Measure, data: Encoded) -> Sequence[str]:
        of = measure.details
        rows = sorted(of["tags"].items(), key=lambda row: -row[1][3])
        return [
            f"{measure}, {round(measure.value * of['words']):,} of {of['words']:,} words",
            f"  {', '.join(f'{name} {share}' for name, share in _by_acquaintance(of, 'the '))}; by each word's "
            f"commonest tag {percent(of['baseline'])}",
            "  F1: " + ", ".join(f"{name} {percent(one[2])}" for name, one in rows[:20] if one[3]),
        ]  # fmt: skip

    # --- what is done with a run -------------------------------------------------------------------------------------

    def data(self, run: Run, files: Sequence[Path], cache: Path | None, notify: Notify) -> Encoded:
        saved = run.section("data", _DATA, "the run does not say what it was trained on", "name files")
        if files:
            return Encoded.of(read_tagged(files, saved["column"]), self.lexicon)
        valid = saved["valid"]
        sentences = read_tagged([Path(valid)] if valid else map(Path, saved["files"]), saved["column"])
        sentences = sentences if valid else _split(sentences)[1]
        if digest(sentences) != saved["valid_digest"]:
            raise DataError(
                what="the sentences that were held out are others now", where=valid or ", ".join(saved["files"]),
                mend="restore the file, or name one to measure on",
            )  # fmt: skip
        return Encoded.of(sentences, self.lexicon)

    def predict(self, model: Any, files: Sequence[Path], run: Run) -> Iterator[str]:
        """A line of tags for each line of words; CoNLL-U with its column filled in."""
        if not files:
            raise InputError(
                what="name what to tag", where=run.folder, mend="give files, or - for standard input"
            )
        strange = Strange(set(self.lexicon.characters), self.note)
        for file in files:
            suffix = file.suffix.lower()
            if suffix in CONLLU:
                saved = run.section("data", _DATA, "the run does not say what it was trained on")
                yield from self._filled(model, file, COLUMNS[saved["column"]], strange)
            elif suffix in JSON:
                for some in _blocks(read_json(file, tagged=False)):
                    tags = self.tags(model, [one.words for one in some], strange)
                    for one, own in zip(some, tags, strict=True):
                        yield json.dumps({"words": one.words, "tags": own}, ensure_ascii=False)
            else:
                for some in _blocks(read_words(file), 1 if str(file) == STDIN else _BLOCK):
                    yield from map(" ".join, self.tags(model, some, strange))

    def _filled(self, model: Any, file: Path, column: int, strange: Strange) -> Iterator[str]:
        """The lines of CoNLL-U, with tags of ours in a column."""
        for some in _blocks(_paragraphs(file)):
            rows = [[conllu_row(line, f"{file}:{number}") for number, line in one] for one in some]
            tagged = iter(self.tags(model, [[row[1] for row in one if row] for one in rows], strange))
            for one, lines in zip(rows, some, strict=True):
                tags = iter(next(tagged))
                for row, (_, line) in zip(one, lines, strict=True):
                    yield line if row is None else "\t".join([*row[:column], next(tags), *row[column + 1 :]])

    def tags(
        self, model: Any, sentences: Sequence[Sequence[str]], strange: Strange | None = None
    ) -> list[list[str]]:  # fmt: skip
        """Of each sentence the tags of its words. strange: told of the characters."""
        if strange is not None:
            strange.look(character for words in sentences for word in words for character in word)
        forms = Forms(self.lexicon)
        numbers = tag(model, forms, [forms.rows(words) for words in sentences])
        return [[self.lexicon.tags[k] for k in one.tolist()] for one in numbers]


def _blocks(things: Iterable[Any], size: int = _BLOCK) -> Iterator[list[Any]]:
    things = iter(things)
    while some := list(islice(things, size)):
        yield some


def _paragraphs(file: Path) -> Iterator[list[tuple[int, str]]]:
    """Numbered lines up to each empty one, that included."""
    some = []
    for one in numbered_lines(file):
        some.append(one)
        if not one[1].strip():
            yield some
            some = []
    if some:
        yield some


def _split(sentences: Sequence[Sentence]) -> tuple[list[Sentence], list[Sentence]]:
    learnt, held_out = split(sentences)
    if not learnt or not held_out:
        raise DataError(
            what="there is too little to hold anything out", where=sentences[0].file,
            got=f"{len(sentences)} sentences", mend="give more, or name a file by --valid",
        )  # fmt: skip
    return learnt, held_out


def _expect_column(column: str) -> None:
    if column not in COLUMNS:
        raise InputError(
            what="there is no such column of tags", where="--column", got=column[:50], expected=" or ".join(COLUMNS),
            mend="take one of them",
        )  # fmt: skip
