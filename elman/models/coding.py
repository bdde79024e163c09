"""What a classifier knows besides its weights: its labels, and which symbol a character is."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elman.data.files import read_file
from elman.data.schema import Odd, each, from_json, maybe, record, text, whole
from elman.errors import DataError, InputError

UNKNOWN, BEGIN, END = range(3)  # symbols that stand for no character
FILE = "labels.json"
_SIZE, _LABELS, _CHARACTERS = 2**24, 2**20, 2**21


def _finite(value: Any) -> float:
    """A number as a float; NaN for what is none, or none of a float's size."""
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.nan


def _label(value: Any, place: str) -> None:
    if not isinstance(value, (str, int, float, bool)) or len(str(value)) > 10_000:
        raise Odd(place, type(value).__name__, "a text or a number")


_KEPT = record(
    {
        "labels": each(_label, _LABELS),
        "counts": each(whole(0, 10**12), _LABELS),
        "characters": maybe(text(_CHARACTERS)),
    }
)


class Coding:
    """labels: in the order of the logits. counts: of each in training. characters: of which strings were made there, in
    the order of their symbols, None for numbers."""

    def __init__(self, labels: Sequence[Any], counts: Sequence[int], characters: str | None) -> None:
        self.labels, self.counts, self.characters = list(labels), list(counts), characters
        self._symbols = {c: k + END + 1 for k, c in enumerate(characters or "")}
        self._places = {label: k for k, label in enumerate(self.labels)}

    @classmethod
    def of(cls, x: Sequence[Any], y: Sequence[Any]) -> Coding:
        """Of the examples learnt from. Raises InputError where there is one label only."""
        counts = Counter(y)
        labels = sorted(counts)
        if len(labels) < 2:
            raise InputError(
                what="there is nothing to tell apart: the number of classes has to be greater than one",
                where="the labels", got=f"{len(labels)} class: {', '.join(map(str, labels))[:100]}",
                expected="at least two classes", mend="give examples of each",
            )  # fmt: skip
        strings = isinstance(x[0], str)
        return cls(labels, [counts[k] for k in labels], "".join(sorted(set().union(*x))) if strings else None)

    @classmethod
    def load(cls, folder: Path) -> Coding:
        """Of a folder that anybody may have written. Raises DataError."""
        where, mend = folder / FILE, "restore the files of one run"
        raw = read_file(where, _SIZE, "the labels", mend)
        fields = from_json(raw, _KEPT, what="these are no labels", where=where, mend=mend)
        if len(set(map(str, fields["labels"]))) != len(fields["labels"]) or len(fields["labels"]) != len(
            fields["counts"]
        ):
            raise DataError(
                what="these are no labels", where=where, got="one twice, or one without a count", mend=mend
            )
        return cls(fields["labels"], fields["counts"], fields["characters"])

    @property
    def inputs(self) -> int:
        """Symbols."""
        return len(self.characters or "") + END + 1

    def kept(self) -> bytes:
        """The content of `FILE`."""
        fields = {"labels": self.labels, "counts": self.counts, "characters": self.characters}
        return json.dumps(fields, ensure_ascii=False).encode()

    def sequence(self, one: Any) -> Tensor:
        """Symbols int64 `[T + 2]` of a string, with the marks of its two ends; numbers as they are."""
        if not isinstance(one, str):
            return one
        return torch.tensor([BEGIN, *(self._symbols.get(c, UNKNOWN) for c in one), END])

    def sequences(self, x: Sequence[Any], inputs: int, where: object) -> list[Tensor]:
        """Several. inputs: I of numbers. where: they stand, all, or (a list) each. Raises DataError for what is not of
        the kind that was learnt from."""
        for row, one in enumerate(x):
            got = "a text" if isinstance(one, str) else f"{one.shape[1]} numbers a step"
            expected = "a text" if self.characters is not None else f"{inputs} numbers a step"
            if got != expected:
                raise DataError(
                    what="a sequence is not of the kind that the model learnt from",
                    where=where[row] if isinstance(where, list) else f"{where}[{row}]", got=got, expected=expected,
                    mend="give sequences as in training",
                )  # fmt: skip
        return [self.sequence(one) for one in x]

    def numbers(self, y: Sequence[Any], where: object) -> Tensor:
        """int64 `[N]` of labels. where: as above. Raises DataError for one that was not there in training."""
        for row, label in enumerate(y):
            if label not in self._places:
                raise DataError(
                    what="a label was not there in training",
                    where=where[row] if isinstance(where, list) else f"{where}[{row}]", got=f"{label!r:.60}",
                    expected=", ".join(map(str, self.labels))[:200], mend="leave it out, or train with it",
                )  # fmt: skip
        return torch.tensor([self._places[label] for label in y], dtype=torch.int64)

    def weights(self, kind: Any) -> Tensor:
        """[K] of labels in a loss, 1 in the mean over the examples learnt from.

        kind: None for 1 each; "balanced" for the inverse of how often each is there; or {label: weight}.
        """
        counts = torch.tensor(self.counts, dtype=torch.float64)
        if kind is None:
            return torch.ones(len(counts))
        if kind == "balanced":
            weights = 1 / counts.clamp(min=1)
        elif isinstance(kind, dict):
            if strange := [label for label in kind if label not in self._places]:
                raise InputError(
                    what="class weights are of labels that are not there", where="class_weight",
                    got=", ".join(map(str, strange))[:200], expected=", ".join(map(str, self.labels))[:200],
                    mend="leave them out, or spell them as the labels are",
                )  # fmt: skip
            given = [kind.get(label, 1) for label in self.labels]
            found = [_finite(w) for w in given]
            for label, w, value in zip(self.labels, given, found, strict=True):
                if not 0 <= value < 1e100:  # NaN is neither
                    raise InputError(
                        what="a class weight is no weight", where=f"class_weight[{label!r}]", got=f"{w!r:.60}",
                        expected="0 or more, and below 1e100",
                        mend="give a number, of which only the ratio to those of other labels counts",
                    )  # fmt: skip
            if not any(w * count for w, count in zip(found, self.counts, strict=True)):
                raise InputError(
                    what="all class weights are 0", where="class_weight", got=str(kind)[:60],
                    expected="a weight above 0 for a label that is there", mend="there would be nothing to learn",
                )  # fmt: skip
            weights = torch.tensor(found, dtype=torch.float64)
        else:
            raise InputError(
                what="there are no such class weights", where="class_weight", got=str(kind)[:60],
                expected="None, 'balanced', or {label: weight}", mend="take one of these",
            )  # fmt: skip
        return (weights * counts.sum() / (weights * counts).sum().clamp(min=1e-300)).float()
