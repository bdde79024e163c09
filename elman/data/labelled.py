"""Sequences with a label each, from files: strings, or numbers `[T, I]`.

FOLDER/label.txt         a file for each class, with a string on each line
FOLDER/label/any.txt     a folder for each class, with a sequence in each file; .csv: rows of numbers
FILE.csv, .tsv           columns "text" and "label"; or "id", "label" and columns of numbers: a row for each step
FILE.jsonl               {"text": string, or list of numbers, or of lists of them, "label": …} on each line
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elman.data.schema import Odd, parsed, record
from elman.data.tables import (
    STDIN,
    TABLES,
    Remarks,
    TableRows,
    is_decimal_comma,
    number_in,
    other_separators,
    standard_input,
    text_lines,
    with_points,
)
from elman.errors import DataError, did_you_mean

_JSON = (".jsonl", ".ndjson")
_LARGEST = torch.finfo(torch.float32).max
Sequences = list[str] | list[Tensor]


@dataclass(frozen=True)
class LabelledColumns:
    """What the parts of an example are called, in tables and in JSON lines. longest: steps of a sequence, at most."""

    text: str = "text"
    label: str = "label"
    id: str = "id"
    longest: int = 20_000


class Channels:
    """What columns of numbers are called, by the first table that says so; others may have them in another order.

    names: in training, where that is known.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.names = None if names is None else list(names)

    def order(self, names: Sequence[str], where: str) -> list[int]:
        """At which place each channel stands among these columns. Raises DataError where they are others."""
        names = [name.strip() for name in names]
        _expect_once(names, names, where)
        if self.names is None:
            self.names = names
        if sorted(names) != sorted(self.names):
            others = [name for name in names if name not in self.names]
            lacking = [name for name in self.names if name not in names]
            raise DataError(
                what="the columns of numbers are others than those that came first, or were learnt from", where=where,
                got=", ".join(names)[:200] or "none", expected=", ".join(self.names)[:200],
                mend=(did_you_mean(lacking[0], others) if lacking else "") + "call them so, and leave out others",
            )  # fmt: skip
        return [names.index(name) for name in self.names]


@dataclass
class Labelled:
    """x: strings, or float64 tensors `[T, I]`, all with the same I. y: labels. places: file and line of each.
    digest: of x and y, hexadecimal."""

    x: Any = field(default_factory=list)
    y: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for one, label in zip(self.x, self.y, strict=True):
            # Of float32, as runs have it that were trained when numbers were kept so.
            raw = one.encode() if isinstance(one, str) else one.float().numpy().tobytes()
            digest.update(b"%d %d " % (len(label.encode()), len(raw)) + label.encode() + raw)
        return digest.hexdigest()

    def rows(self, rows: Sequence[int]) -> Labelled:
        return Labelled(*([values[i] for i in rows] for values in (self.x, self.y, self.places)))


def read_labelled(
    paths: Sequence[Path], columns: LabelledColumns = LabelledColumns(), remarks: Remarks | None = None,
    channels: Channels | None = None,
) -> Labelled:  # fmt: skip
    """The examples of files and folders, one after another. remarks, channels: of tables, are added to. Raises
    DataError, with file and line."""
    labelled, first = Labelled(), None
    channels = channels or Channels()
    for path in paths:
        for one, label, where in _examples(path, columns, remarks, channels):
            _expect_like(first, one, where)
            first = one if first is None else first
            labelled.x.append(one)
            labelled.y.append(label)
            labelled.places.append(where)
    if not labelled.x:
        raise DataError(
            what="there are no examples", where=", ".join(map(str, paths)), mend="give files that hold some"
        )
    return labelled


def read_sequences(
    path: Path, columns: LabelledColumns = LabelledColumns(), *, numbers: bool, remarks: Remarks | None = None,
    channels: Channels | None = None,
) -> Iterator[Any]:  # fmt: skip
    """What is to be labelled, one after another: of a text file a string a line (numbers: a JSON list a line), None for
    an empty one; of tables and JSON lines as in `read_labelled`, where labels are not needed. "-": standard input,
    line by line."""
    suffix = path.suffix.lower()
    if suffix in TABLES:
        rows = _table(path, columns, remarks, channels or Channels(), labelled=False)
        yield from (one for one, _, _ in rows)
        return
    lines = standard_input() if str(path) == STDIN else text_lines(path)
    for number, line in lines:
        if not line.strip():
            yield None
            continue
        where = f"{'standard input' if str(path) == STDIN else path}:{number}"
        if suffix in _JSON or (numbers and line.lstrip().startswith("{")):
            yield _of_json(line, columns, where, labelled=False)[0]
        elif numbers:
            yield _numbers(_json(line, where), where)
        else:
            yield _bounded(line.strip(), columns, where)


def stratified(y: Sequence[int], shares: Sequence[float], seed: int) -> list[list[int]]:
    """Parts of the indices of y, each with about its share of every class; drawn from the seed, in ascending order."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    parts: list[list[int]] = [[] for _ in shares]
    labels = torch.as_tensor(y)
    for label in range(int(labels.max()) + 1 if len(labels) else 0):
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)].tolist()
        before, total = 0, 0.0
        for part, share in zip(parts, shares, strict=True):
            total += share
            end = round(total / sum(shares) * len(rows))
            part += rows[before:end]
            before = end
    return [sorted(part) for part in parts]


def _examples(
    path: Path, columns: LabelledColumns, remarks: Remarks | None, channels: Channels
) -> Iterator[tuple[Any, str, str]]:
    """(sequence, label, where it stands)."""
    suffix = path.suffix.lower()
    if path.is_dir():
        yield from _folder(path, columns, remarks, channels)
    elif suffix in TABLES:
        yield from _table(path, columns, remarks, channels, labelled=True)
    elif suffix in _JSON:
        for number, line in text_lines(path):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            yield *_of_json(line, columns, where, labelled=True), where
    else:
        raise DataError(
            what="these are no examples with labels" if path.exists() else "there is no such file or folder",
            where=path, expected="a folder with a file or a folder for each class, or .csv, .tsv, .jsonl",
            mend="give one of these",
        )  # fmt: skip


def _folder(
    path: Path, columns: LabelledColumns, remarks: Remarks | None, channels: Channels
) -> Iterator[tuple[Any, str, str]]:
    inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    folders = [p for p in inside if p.is_dir()]
    if folders and len(folders) < len(inside):
        odd = next(p for p in inside if not p.is_dir())
        raise DataError(
            what="a folder of classes holds files or folders, not both", where=path,
            got=f"the file {odd.name} beside the folder {folders[0].name}", mend="move one of them away",
        )  # fmt: skip
    for one in inside:
        empty = True
        if one in folders:
            for file in sorted(p for p in one.iterdir() if not p.name.startswith(".")):
                empty = False
                yield _whole(file, columns, remarks, channels), one.name, str(file)
        else:
            for number, line in text_lines(one):
                if line.strip():
                    empty = False
                    where = f"{one}:{number}"
                    yield _bounded(line.strip(), columns, where), one.stem, where
        if empty:
            raise DataError(
                what="a class has no examples", where=one, got="nothing", expected="a line for each example"
                if one not in folders else "a file for each example", mend="fill it, or take it away",
            )  # fmt: skip


def _whole(path: Path, columns: LabelledColumns, remarks: Remarks | None, channels: Channels) -> Any:
    """A file that is one sequence."""
    if path.suffix.lower() in TABLES:
        table = TableRows(path, remarks)
        rows = [row for row in table if row[1]]
        if rows and _number(rows[0][1][0]) is None and not is_decimal_comma(rows[0][1][0]):
            (number, names), *rows = rows
            order = channels.order(names, f"{path}:{number}")
            rows = [(n, [row[i] for i in order] if len(row) == len(order) else row) for n, row in rows]
        if not rows:
            raise DataError(
                what="a sequence has no steps", where=path, expected="a row for each", mend="take it away"
            )
        places = [f"{path}:{n}" for n, _ in rows]
        return _steps([row for _, row in rows], places, columns, table.decimal_commas)
    text = "\n".join(line for _, line in text_lines(path)).strip()
    if not text:
        raise DataError(
            what="an example is empty", where=path, got="0 characters", mend="fill it, or take it away"
        )
    return _bounded(text, columns, str(path))


def _table(
    path: Path, columns: LabelledColumns, remarks: Remarks | None, channels: Channels, *, labelled: bool
) -> Iterator[tuple[Any, str, str]]:
    rows = TableRows(path, remarks)
    _, names = next(rows, (1, []))
    needed = [columns.text if columns.text in names or columns.id not in names else columns.id]
    needed += [columns.label] if labelled else []
    if missing := [name for name in needed if name not in names]:
        others = [name for name in names if name not in needed]
        raise DataError(
            what=f"there is no column {missing[0]!r}" if names else "the file is empty", where=f"{path}:1",
            got=", ".join(names)[:200] or "nothing", expected=f"{' and '.join(needed)} in the first line",
            mend=other_separators(names)
            or did_you_mean(missing[0], others) + "name the columns by --text, --label, --id",
        )  # fmt: skip
    key, label_at = names.index(needed[0]), names.index(columns.label) if columns.label in names else None
    _expect_once(names, [columns.text, columns.label, columns.id], f"{path}:1")
    own = [i for i in range(len(names)) if i not in (key, label_at)]
    if needed[0] != columns.text:
        own = [own[i] for i in channels.order([names[i] for i in own], f"{path}:1")]
    series: dict[str, tuple[list[list[str]], list[str], str]] = {}
    for number, row in rows:
        where = f"{path}:{number}"
        if not row:
            continue
        if len(row) != len(names):
            raise DataError(
                what="a row has more or fewer fields than the first line has names", where=where, got=len(row),
                expected=len(names), mend="put fields that hold what parts the others in quotes",
            )  # fmt: skip
        label = "" if label_at is None else row[label_at].strip()
        if labelled and not label:
            raise _unlabelled(where)
        if needed[0] == columns.text:
            yield _bounded(row[key].strip(), columns, where), label, where
            continue
        steps, places, before = series.setdefault(row[key], ([], [], label))
        if before != label:
            raise DataError(
                what=f"the steps of {row[key]!r} have different labels", where=where, got=label, expected=before,
                mend="give each sequence an id of its own",
            )  # fmt: skip
        steps.append([row[i] for i in own])
        places.append(where)
    for steps, places, label in series.values():
        yield _steps(steps, places, columns, rows.decimal_commas), label, places[0]


def _steps(
    rows: list[list[str]], places: list[str], columns: LabelledColumns, decimal_commas: bool
) -> Tensor:
    """[T, I] of fields."""
    steps = []
    if decimal_commas and len({len(row) for row in rows}) == 1:
        by_column = [with_points(values, places.__getitem__) for values in zip(*rows, strict=True)]
        rows = [list(row) for row in zip(*by_column, strict=True)]
    for row, where in zip(rows, places, strict=True):
        numbers = [_number(one) for one in row]
        if len(row) != len(rows[0]) or not row or None in numbers:
            odd = next((one for one, number in zip(row, numbers, strict=True) if number is None), None)
            raise DataError(
                what="a step of a sequence is not what the others are", where=where,
                got=f"{len(row)} fields" if odd is None else repr(odd[:60]),
                expected=f"{len(rows[0]) or 'at least one'} finite numbers", mend="fill gaps in, or leave it out",
            )  # fmt: skip
        steps.append(numbers)
    return _bounded(torch.tensor(steps, dtype=torch.float64), columns, places[0])


def _of_json(line: str, columns: LabelledColumns, where: str, *, labelled: bool) -> tuple[Any, str]:
    anything = {columns.text: lambda value, place: None}
    value = _json(line, where, record(anything | ({columns.label: _label} if labelled else {})))
    one, label = value[columns.text], str(value.get(columns.label, ""))
    if labelled and not label:
        raise _unlabelled(where)
    one = one.strip() if isinstance(one, str) else _numbers(one, where)
    return _bounded(one, columns, where), label


def _label(value: Any, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Odd(place, type(value).__name__, "a text or a whole number")


def _json(line: str, where: str, check: Any = lambda value, place: None) -> Any:
    try:
        return parsed(line, check)
    except Odd as odd:
        raise DataError(
            what=f"this is no example: {odd.place}" if odd.place else "this is no example", where=where, got=odd.got,
            expected=odd.expected, mend='a line such as {"text": "…", "label": "…"}; --text, --label name others',
        ) from odd  # fmt: skip


def _numbers(value: Any, where: str) -> Tensor:
    """[T, I] of a list of numbers, or of lists."""
    rows = value if isinstance(value, list) else []
    if not any(isinstance(row, list) for row in rows):
        rows = [[one] for one in rows]
    right = rows and all(isinstance(row, list) and row and len(row) == len(rows[0]) for row in rows)
    right = right and all(
        isinstance(one, (int, float)) and not isinstance(one, bool) and abs(one) <= _LARGEST
        for row in rows for one in row
    )  # fmt: skip
    if not right:
        raise DataError(
            what="this is no sequence", where=where, got=str(value)[:60],
            expected="a text, or a list of finite numbers (float32), or of lists of them, all as long",
            mend="fill gaps in, or scale the numbers",
        )  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64)


def _bounded(one: Any, columns: LabelledColumns, where: str) -> Any:
    if not 0 < len(one) <= columns.longest:
        long = len(one) > 0
        raise DataError(
            what="a sequence is longer than is read" if long else "a sequence is empty", where=where,
            got=f"{len(one):,} steps", expected=f"1 … {columns.longest:,}",
            mend="cut it, or raise --longest: memory goes with the longest" if long else "take it away",
        )  # fmt: skip
    return one


def _expect_like(first: Any, one: Any, where: str) -> None:
    kinds = [
        "a text" if isinstance(x, str) else f"{x.shape[1]} numbers a step"
        for x in (first, one)
        if x is not None
    ]
    if len(set(kinds)) > 1:
        raise DataError(
            what="an example is of another kind than the first", where=where, got=kinds[1], expected=kinds[0],
            mend="give sequences of one kind",
        )  # fmt: skip


def _expect_once(names: Sequence[str], needed: Sequence[str], where: str) -> None:
    """Raise DataError where one of the columns that are read stands twice."""
    for name in needed:
        if names.count(name) > 1:
            raise DataError(what="two columns have one name", where=where, got=name, mend="rename one")


def _unlabelled(where: str) -> DataError:
    return DataError(
        what="an example has no label", where=where, got="nothing", mend="give it one, or leave it out"
    )


def _number(field: str) -> float | None:
    try:
        value = number_in(field)
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST else None
