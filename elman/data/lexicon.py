"""What is known of words: which there are, of which characters, and how often each has which tag."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from elman.data.schema import each, from_json, record, text, whole
from elman.data.tagged import LONGEST, Sentence, numbered_lines
from elman.errors import DataError

_MOST = 10**6  # forms
_VECTORS = 100_000  # the first ones of a file, which is sorted by frequency as a rule
UNKNOWN = 0  # of words and characters
_NAMES = each(text(LONGEST), _MOST)
_CHECK = record({
    "tags": _NAMES, "characters": _NAMES, "words": _NAMES, "frequent": whole(0, _MOST),
    "forms": each(whole(0, _MOST), _MOST, named=True), "vectors": _NAMES,
})  # fmt: skip


class Lexicon:
    """Words, characters and tags as whole numbers.

    tags: in order. words: lower-cased, the most frequent first; 0 stands for any other. frequent: how many of them were
    seen more than once. characters: 0 stands for any other. forms: words as they are written, each with the tag that it
    had most often. vectors: words that have a vector of their own from elsewhere; 0 stands for any other.
    """

    def __init__(
        self, tags: Sequence[str], words: Sequence[str], frequent: int, characters: Sequence[str],
        forms: dict[str, int], vectors: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.tags, self.words, self.frequent = list(tags), list(words), frequent
        self.characters, self.forms, self.vectors = list(characters), dict(forms), list(vectors)
        self.tag_of = {tag: k for k, tag in enumerate(self.tags)}
        self._word = {word: k for k, word in enumerate(self.words, 1)}
        self._character = {one: k for k, one in enumerate(self.characters, 1)}
        self._vector = {word: k for k, word in enumerate(self.vectors, 1)}
        counts = Counter(self.forms.values())
        self.usual = counts.most_common(1)[0][0] if counts else 0  # of a form that was not seen

    @classmethod
    def learn(cls, sentences: Iterable[Sentence], vectors: Sequence[str] = ()) -> Lexicon:
        """Of sentences with tags. A character has to occur twice, so that there are others to learn from."""
        words: Counter[str] = Counter()
        characters: Counter[str] = Counter()
        tagged: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for sentence in sentences:
            for word, tag in zip(sentence.words, sentence.tags, strict=True):
                words[word.lower()] += 1
                characters.update(word)
                tagged[word][tag] += 1
        tags = sorted({tag for counts in tagged.values() for tag in counts})
        number = {tag: k for k, tag in enumerate(tags)}
        often = sorted(tagged, key=lambda form: -tagged[form].total())[:_MOST]
        forms = {form: number[tagged[form].most_common(1)[0][0]] for form in often}
        ranked = sorted(words, key=lambda word: (-words[word], word))[:_MOST]
        frequent = sum(words[word] > 1 for word in ranked)
        letters = sorted(one for one, count in characters.items() if count > 1)
        return cls(tags, ranked, frequent, letters, forms, vectors)

    def guess(self, word: str) -> int:
        """The tag that a word had most often; of one that was not seen, the one that most forms have."""
        return self.forms.get(word, self.usual)

    def ids(self, sentence: Sentence) -> Tensor:
        """int64 [T]: the tags. Raises DataError for one that was not there in training, with file and line."""
        tags = []
        for k, tag in enumerate(sentence.tags):
            if tag not in self.tag_of:
                raise DataError(
                    what="a tag that was not there in training", where=sentence.where(k), got=repr(tag[:100]),
                    expected=", ".join(self.tags[:20]) + (" …" if len(self.tags) > 20 else ""),
                    mend="mend it, leave the sentence out, or train again on sentences that have it",
                )  # fmt: skip
            tags.append(self.tag_of[tag])
        return torch.tensor(tags, dtype=torch.int64)

    # --- its file ----------------------------------------------------------------------------------------------------

    def to_json(self) -> bytes:
        fields = {
            name: getattr(self, name)
            for name in ("tags", "words", "frequent", "characters", "forms", "vectors")
        }
        return json.dumps(fields, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, raw: bytes, where: object) -> Lexicon:
        """Raises DataError for what `to_json` does not write."""
        fields = from_json(
            raw, _CHECK, what="this is no lexicon", where=where, mend="restore it, or train again"
        )
        lexicon = cls(
            **{name: fields[name] for name in ("tags", "words", "frequent", "characters", "forms", "vectors")}
        )
        if (
            not lexicon.tags
            or max(lexicon.forms.values(), default=0) >= len(lexicon.tags)
            or lexicon.frequent > len(lexicon.words)
        ):
            raise DataError(what="the lexicon's parts do not fit together", where=where, mend="restore it")
        return lexicon

    def expect(self, settings: dict[str, Any], where: object) -> None:
        """Raise DataError unless a network with these settings is of this lexicon."""
        for name in ("tags", "words", "characters", "vectors"):
            if len(getattr(self, name)) != settings[name]:
                raise DataError(
                    what="the lexicon and the model are not of one run", where=where,
                    got=f"{len(getattr(self, name))} {name}", expected=f"{settings[name]}",
                    mend="restore the files of one run",
                )  # fmt: skip


class Forms:
    """Written forms, each once, as numbers: what a network reads of sentences.

        forms = Forms(lexicon)
        rows = [forms.rows(words) for words in sentences]               # int64 [T] each
        words, vectors, spelled, sizes, of = forms.batch(rows)

    `batch` gives the words `[T, B]`, the words with vectors `[T, B]`, both 0 beyond each sentence's length; the
    characters `[L, D]` of the D forms in it, their lengths `[D]`, and for each word its form `[T, B]`.
    """

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self._row: dict[str, int] = {}
        self._spelled: list[Tensor] = []
        self._words: list[tuple[int, int]] = []

    def rows(self, words: Sequence[str]) -> Tensor:
        return torch.tensor([self._row_of(word) for word in words], dtype=torch.int64)

    def _row_of(self, word: str) -> int:
        row = self._row.get(word)
        if row is None:
            row, lexicon = len(self._row), self.lexicon
            self._row[word] = row
            self._spelled.append(
                torch.tensor([lexicon._character.get(one, UNKNOWN) for one in word[:LONGEST]])
            )
            lower = word.lower()
            vector = lexicon._vector.get(word) or lexicon._vector.get(lower, UNKNOWN)
            self._words.append((lexicon._word.get(lower, UNKNOWN), vector))
        return row

    def batch(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        distinct, of = torch.cat(list(rows)).unique(return_inverse=True)
        spelled = [self._spelled[row] for row in distinct.tolist()]
        pairs = torch.tensor([self._words[row] for row in distinct.tolist()])
        sizes = torch.tensor([len(one) for one in spelled])
        parts = of.split([len(one) for one in rows])
        words, vectors = (pad_sequence([column[part] for part in parts]) for column in pairs.T)
        return words, vectors, pad_sequence(spelled), sizes, pad_sequence(list(parts))


def read_vectors(file: Path) -> tuple[list[str], Tensor]:
    """(words, float32 [V, D]) of a text file: a line a word, then its numbers; a first line of two numbers is none.

    The first 100,000 words are read. Raises DataError, with file and line.
    """
    words: list[str] = []
    rows: list[list[float]] = []
    for number, line in numbered_lines(file):
        parts = line.rstrip().split(" ") if "\t" not in line else line.rstrip().split("\t")
        if number == 1 and len(parts) == 2 and all(part.isdigit() for part in parts):
            continue
        try:
            row: list[Any] = [float(part) for part in parts[1:]]
        except ValueError:
            row = []
        if not row or not all(abs(one) < 1e6 for one in row) or (rows and len(row) != len(rows[0])):
            raise DataError(
                what="this is no word with its vector", where=f"{file}:{number}", got=line[:60],
                expected=f"a word, then {len(rows[0]) if rows else 'its'} numbers", mend="mend or remove the line",
            )  # fmt: skip
        if len(parts[0]) <= LONGEST:
            words.append(parts[0])
            rows.append(row)
        if len(words) == _VECTORS:
            break
    if not words:
        raise DataError(what="there are no word vectors", where=file, mend="give a file that holds some")
    return words, torch.tensor(rows)
