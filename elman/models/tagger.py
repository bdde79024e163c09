"""A tagger: sentences in, a tag for each of their words out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from elman.data import Ragged
from elman.data.files import read_file
from elman.data.lexicon import Forms, Lexicon, read_vectors
from elman.data.tagged import Sentence
from elman.errors import InputError, InputTypeError, StateError, expect
from elman.models import pretrained
from elman.models.asked import expect_seed, is_gap
from elman.models.evaluating import evaluating
from elman.models.scores import by_label, confusion
from elman.models.stack import learning_rate
from elman.models.tagging import KNOWN, NEEDED, TagNetwork, shapes
from elman.plan.explain import Explanation
from elman.training import Measure, Step, Training, Validation, fitted

LEXICON, LEXICON_SIZE = "lexicon.json", 2**27
BATCH, AVERAGE = 32, 0.998
_TENTH = 10  # every so manieth sentence is held out where no others are given
_TOGETHER = 64  # sentences that are read side by side outside of training
_LEAST, _PASSES = 400, 15  # steps; passes over the data
_MISTAKES = 12  # the most frequent ones are told

Others = tuple[int, dict[str, int]]  # which of `Sentence.also`, its labels as numbers


@dataclass(frozen=True)
class Encoded:
    """Sentences as a network reads them. rows: of `forms`, [T] each; y: tags, [T] each; also: other labels that are
    learnt, [T, A] each."""

    sentences: Sequence[Sentence]
    forms: Forms
    rows: Sequence[Tensor]
    y: Sequence[Tensor]
    also: Sequence[Tensor] = ()

    @classmethod
    def of(cls, sentences: Sequence[Sentence], lexicon: Lexicon, others: Sequence[Others] = ()) -> Encoded:
        """others: of the labels that are learnt beside the tags, see `others_of`. Raises DataError for a tag that was
        not there in training, with file and line."""
        forms = Forms(lexicon)
        rows, y = [forms.rows(one.words) for one in sentences], [*map(lexicon.ids, sentences)]
        also = [
            torch.tensor([[ids[label] for label in one.also[k]] for k, ids in others], dtype=torch.int64)
            .view(len(others), len(one.words)).T
            for one in sentences
        ]  # fmt: skip
        return cls(sentences, forms, rows, y, also)

    def batches(self, batch: int, seed: int) -> Ragged:
        """Of `TagNetwork.loss`'s arguments; counted in words."""
        lengths = [len(row) for row in self.rows]

        def take(rows: list[int]) -> tuple[Any, ...]:
            read = self.forms.batch([self.rows[i] for i in rows])
            y, also = (pad_sequence([part[i] for i in rows]) for part in (self.y, self.also))
            return *read, y, torch.tensor([lengths[i] for i in rows]), also

        return Ragged(lengths, take, batch, seed, unit="steps")

    def part(self, words: int) -> Encoded:
        """Sentences of about so many words, from all over."""
        every = max(sum(map(len, self.rows)) // words, 1)
        return Encoded(self.sentences[::every], self.forms, self.rows[::every], self.y[::every])


def others_of(sentences: Sequence[Sentence]) -> list[Others]:
    """The other labels of words from which something can be learnt."""
    kinds = range(min(len(one.also) for one in sentences))
    labels = [sorted({label for one in sentences for label in one.also[k]}) for k in kinds]
    return [(k, {label: i for i, label in enumerate(labels[k])}) for k in kinds if len(labels[k]) > 1]


@torch.no_grad()
def tag(network: TagNetwork, forms: Forms, rows: Sequence[Tensor]) -> list[Tensor]:
    """Tags of sentences, int64 [T] each; the network is left in the mode in which it was."""
    device = network.readout.weight.device
    tags: list[Tensor] = [torch.empty(0, dtype=torch.int64)] * len(rows)
    order = sorted((k for k, row in enumerate(rows) if len(row)), key=lambda k: len(rows[k]))
    with evaluating(network):
        for start in range(0, len(order), _TOGETHER):
            some = order[start : start + _TOGETHER]
            lengths = torch.tensor([len(rows[k]) for k in some], device=device)
            read = [part.to(device) for part in forms.batch([rows[k] for k in some])]
            best = network.decode(network(*read, lengths), lengths).cpu()
            for column, k in enumerate(some):
                tags[k] = best[: len(rows[k]), column]
    return tags


def measure(network: TagNetwork, data: Encoded) -> Measure:
    """The share of words with the right tag. details: of words seen in training and of others, of each tag (precision,
    recall, F1, how many), of the tag that a word had most often, and the most frequent mistakes."""
    lexicon, predicted = data.forms.lexicon, torch.cat(tag(network, data.forms, data.rows))
    y, words = torch.cat(list(data.y)), [word for one in data.sentences for word in one.words]
    right = predicted == y
    seen = torch.tensor([word in lexicon.forms for word in words])
    guess = torch.tensor([lexicon.guess(word) for word in words])
    tags = lexicon.tags
    table = confusion(predicted, y, len(tags))
    there = table.sum(1)
    columns = (*map(Tensor.tolist, by_label(table.diag(), there, table.sum(0))), there.tolist())
    of = {name: list(row) for name, *row in zip(tags, *columns, strict=True)}
    wrong = table - table.diag().diag()
    most = wrong.flatten().topk(min(_MISTAKES, wrong.numel()))
    mistakes = {
        f"{tags[k // len(tags)]} → {tags[k % len(tags)]}": count
        for count, k in zip(most.values.tolist(), most.indices.tolist(), strict=True)
        if count
    }
    details = {
        "words": len(words), "unseen_words": int((~seen).sum()), "seen": _share(right[seen].sum(), seen.sum()),
        "unseen": _share(right[~seen].sum(), (~seen).sum()), "baseline": _share((guess == y).sum(), len(y)),
        "tags": of, "mistakes": mistakes,
    }  # fmt: skip
    return Measure(_share(right.sum(), len(y)), "accuracy", "%", lower_is_better=False, details=details)


def _share(part: Any, whole: Any) -> float:
    return float(part) / max(int(whole), 1)


class Tagger:
    """A tag for each word of a sentence, learnt from examples.

        tagger = Tagger(seed=0).fit([["the", "cat", "sat"], …], [["DET", "NOUN", "VERB"], …])
        tagger.predict([["a", "rat"]])                # [["DET", "NOUN"]]
        tagger.score(sentences, tags)                 # share of words with the right tag
        tagger.save_pretrained("tagger")              # Tagger.from_pretrained("tagger")

    cell … crf: see `elman.models.tagging.TagNetwork`. vectors: a text file with a vector for each word, from elsewhere
    (`elman.data.lexicon.read_vectors`). steps, minutes: of training, at most; without either, about 15 passes over the
    data. batch: sentences in a step. lr, average: see `elman.training.Training`; lr None is by cell and width.
    patience: looks at held-out sentences without a better one, of 16 in a run, before training ends. seed: of the first
    weights and of the order of reading.

    With `both=False` it reads from left to right, and `step` tags a live stream word by word.
    network, lexicon: what was learnt; StateError before `fit`.
    """

    def __init__(
        self, *, cell: Any = "lstm", hidden: int = 200, layers: int = 2, embedding: int = 128, spelling: int = 64,
        dropout: float = 0.33, word_dropout: float = 0.1, residual: bool = False, norm: bool = False, both: bool = True,
        crf: bool = False,
        vectors: str | Path | None = None, steps: int | None = None, minutes: float | None = None, batch: int = BATCH,
        lr: float | None = None, average: float = AVERAGE, patience: int | None = 5, seed: int = 0,
    ) -> None:  # fmt: skip
        self.model: dict[str, Any] = {
            "cell": cell, "hidden": hidden, "layers": layers, "embedding": embedding, "spelling": spelling,
            "dropout": dropout, "word_dropout": word_dropout, "residual": residual, "norm": norm, "both": both,
            "crf": crf,
        }  # fmt: skip
        self.vectors, self.batch, self.patience, self.seed = vectors, batch, patience, seed
        self.training: dict[str, Any] = {"steps": steps, "minutes": minutes, "lr": lr, "average": average}
        self._learnt: tuple[TagNetwork, Lexicon] | None = None

    @property
    def network(self) -> TagNetwork:
        return self._known()[0]

    def explain(self) -> Explanation:
        """What of its recurrences runs once, before, in and after the loop; after a call. See `elman.explain`."""
        return self.network.explain()

    @property
    def lexicon(self) -> Lexicon:
        return self._known()[1]

    def fit(
        self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], *,
        also: Sequence[Sequence[Sequence[str]]] = (),
        valid: tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]] | None = None,
        watch: Callable[[Step | Validation], None] = lambda event: None, progress: bool | None = None,
    ) -> Tagger:  # fmt: skip
        """Learn. sentences: of words; tags: as many. also: other labels of the words (finer parts of speech, features),
        each kind as tags are, which are learnt beside them. valid: sentences and tags to choose the best weights by;
        without it every tenth sentence is held out for that. watch: is shown each event. progress: a bar on
        standard error with the time left; None: where that is a terminal.

        Raises InputError and InputTypeError where they do not belong together.
        """
        expect_seed(self.seed)
        given = _with_others(_sentences(sentences, tags), [_sentences(sentences, other) for other in also])
        learnt, held_out = (given, _sentences(*valid)) if valid is not None else split(given)
        others = others_of(learnt)
        lexicon, network = new(
            learnt, self.seed, Path(self.vectors) if self.vectors else None, self.model, others
        )
        data, looked = Encoded.of(learnt, lexicon, others), Encoded.of(held_out or learnt, lexicon)
        batches, how = data.batches(self.batch, self.seed), dict(self.training)
        if how["steps"] is None and how["minutes"] is None:
            how["steps"] = max(round(_PASSES * batches.size / batches.count), _LEAST)
        how["lr"] = how["lr"] or learning_rate(network.stack, network.settings["hidden"])
        training = Training(network, batches, seed=self.seed, **how)
        fitted(
            training, lambda: measure(network, looked), patience=self.patience, watch=watch, progress=progress
        )
        self._learnt = network.eval(), lexicon
        return self

    def predict(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """Of each sentence the tags of its words."""
        network, lexicon = self._known()
        forms = Forms(lexicon)
        rows = [forms.rows(_words(one, f"sentences[{k}]")) for k, one in enumerate(sentences)]
        return [[lexicon.tags[k] for k in numbers.tolist()] for numbers in tag(network, forms, rows)]

    def evaluate(self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> Measure:
        """See `measure`. Raises DataError for a tag that was not there in training."""
        network, lexicon = self._known()
        return measure(network, Encoded.of(_sentences(sentences, tags), lexicon))

    def score(self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> float:
        """The share of words with the right tag, 0 … 1."""
        return self.evaluate(sentences, tags).value

    @torch.no_grad()
    def step(self, word: str, state: Any = None) -> tuple[str, Any]:
        """The tag of the next word of a live stream, and the state to go on from; None: a sentence begins.

        With a CRF it is the last tag of the best way so far. Raises InputError where the tagger reads both directions.
        """
        network, lexicon = self._known()
        if network.settings["both"]:
            raise InputError(
                what="a tagger that reads both directions has to see a sentence to its end", where="Tagger.step()",
                mend="train one with --one-direction (Python: both=False), or call predict",
            )  # fmt: skip
        forms, (below, way) = Forms(lexicon), state or (None, None)
        read = [
            part.to(network.readout.weight.device)
            for part in forms.batch([forms.rows(_words([word], "word"))])
        ]
        h, below = network.stack.step(network.read(*read)[0], below)
        o = network.readout(h)
        if network.crf is not None:
            o = way = network.crf.step(o, way)
        return lexicon.tags[int(o.argmax())], (below, way)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and lexicon.json: see `elman.models.pretrained.save`."""
        network, lexicon = self._known()
        settings = {"task": "tag", **network.settings}
        pretrained.save(folder, settings, network, {LEXICON: lexicon.to_json()})

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, trust: bool = False, cell: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Tagger:  # fmt: skip
        """The tagger of a folder by `save_pretrained`, of a run folder, or of the Hugging Face Hub.

        Arguments: see `LanguageModel.from_pretrained`. Raises DataError and InputError.
        """
        folder = pretrained.find(name)
        network, lexicon = load(
            pretrained.settings_in(folder, "tag"), folder, trust=trust, cell=cell, notify=notify
        )
        tagger = cls(**{key: network.settings[key] for key in cls().model if key in network.settings})
        tagger._learnt = network, lexicon
        return tagger

    def _known(self) -> tuple[TagNetwork, Lexicon]:
        if self._learnt is None:
            raise StateError(what="the tagger has learnt nothing yet", where="Tagger", mend="call fit first")
        return self._learnt


def split(sentences: Sequence[Sentence]) -> tuple[list[Sentence], list[Sentence]]:
    """(to learn from, held out): every tenth is held out, but where it has a tag that no other of them has."""
    covered = {tag for k, one in enumerate(sentences) if k % _TENTH for tag in one.tags}
    held_out = [covered.issuperset(one.tags) and not k % _TENTH for k, one in enumerate(sentences)]
    parts = (
        [one for one, out in zip(sentences, held_out, strict=True) if out is which] for which in (False, True)
    )
    return next(parts), next(parts)


def new(
    sentences: Sequence[Sentence], seed: int, vectors: Path | None, model: dict[str, Any],
    others: Sequence[Others] = (),
) -> tuple[Lexicon, TagNetwork]:  # fmt: skip
    """A lexicon of sentences, and a network that is yet to be trained. model: arguments of `TagNetwork`."""
    words, table = read_vectors(vectors) if vectors is not None else ([], torch.zeros(0, 0))
    lexicon = Lexicon.learn(sentences, words)
    sizes = {
        "tags": len(lexicon.tags), "words": len(lexicon.words), "characters": len(lexicon.characters),
        "frequent": lexicon.frequent, "vectors": len(words), "width": table.shape[1],
        "also": [len(labels) for _, labels in others],
    }  # fmt: skip
    torch.manual_seed(seed)
    network = TagNetwork(**sizes, **model)
    network.vectors[1:] = table
    network.lexicon = lexicon
    return lexicon, network


def load(config: dict[str, Any], folder: Path, **opening: Any) -> tuple[TagNetwork, Lexicon]:
    """What `save_pretrained` or a run wrote. Raises DataError and InputError."""
    path = folder / LEXICON
    lexicon = Lexicon.from_json(read_file(path, LEXICON_SIZE, "the lexicon"), path)
    network = pretrained.load(TagNetwork, "a tagger", NEEDED, shapes, config, folder, known=KNOWN, **opening)
    lexicon.expect(network.settings, path)
    network.lexicon = lexicon
    return network, lexicon


def _with_others(sentences: list[Sentence], others: Sequence[list[Sentence]]) -> list[Sentence]:
    return [replace(one, also=tuple(other[k].tags for other in others)) for k, one in enumerate(sentences)]


def _words(words: Sequence[str], where: str) -> Sequence[str]:
    if isinstance(words, str) or not all(isinstance(word, str) and word for word in words):
        raise InputTypeError(
            what="a sentence is a sequence of words", where=where, got=repr(words)[:60],
            expected='such as ["the", "cat"]', mend="split it",
        )  # fmt: skip
    return words


def _sentences(sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> list[Sentence]:
    if len(sentences) != len(tags) or not len(sentences):
        raise InputError(
            what="there are tags for each sentence", where="tags", got=len(tags), expected=len(sentences) or "some",
            mend="give as many",
        )  # fmt: skip
    tagged = []
    for k, (words, own) in enumerate(zip(sentences, tags, strict=True)):
        expect(own, (list, tuple), "tags are a list for each sentence", f"tags[{k}]")
        if len(words) != len(own) or not len(words):
            raise InputError(
                what="there is a tag for each word", where=f"tags[{k}]", got=len(own), expected=len(words) or "some",
                mend="give as many",
            )  # fmt: skip
        if gaps := [t for t, one in enumerate(own) if is_gap(one)]:
            raise InputError(
                what="a tag is missing",
                where=f"tags[{k}][{gaps[0]}]",
                got=f"{own[gaps[0]]}",
                mend="leave the sentence out",
            )
        where = f"sentences[{k}]"
        tagged.append(
            Sentence(tuple(_words(words, where)), tuple(own), f"{where}, word", tuple(range(len(words))))
        )
    return tagged
