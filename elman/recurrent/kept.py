"""What a stream runs, and where its rows are kept: by an engine, or in tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch

from elman.circuit.structure import TensorSpec
from elman.engines.base import Stepper
from elman.errors import InputError
from elman.noise import written
from elman.recurrent.arguments import rows_of_reset
from elman.recurrent.known import has_start

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Steps:
    """What a stream runs.

    layer: the `Recurrent` whose steps they are, as it is now. watched: entries of dicts that this depends on besides,
    as (dict, key, value), or (dict, key) where there is none. begin: told x and context of the first step. enter,
    leave: from the state that users have to the layer's, and back. told: from their context to the layer's. says:
    whether the layer's cell says itself what it starts from, before a first step.
    """

    layer: Callable[[], Any]
    watched: Callable[[], list[tuple[Any, ...]]] = list
    begin: Callable[[Any, Any], None] = lambda x, context: None
    enter: Callable[[Any], Any] = lambda state: state
    leave: Callable[[Any], Any] = lambda state: state
    told: Callable[[Any], Any] = lambda context: context
    says: Callable[[Any], bool] = has_start


class Kept(Protocol):
    """The state of a stream; tensors in the order of its structure, `[rows, …]`."""

    def rows(self) -> int: ...

    def read(self) -> list[Tensor]:
        """All rows, copied."""
        ...

    def write(self, rows: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Have these values in these rows."""
        ...

    def append(self, tensors: Sequence[Tensor]) -> None: ...

    def drop(self, rows: Sequence[int]) -> None:
        """Without these rows, ascending; those behind them move up."""
        ...


class Plain:
    """Rows in tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = [tensor.clone() for tensor in tensors]

    def rows(self) -> int:
        return len(self.tensors[0])

    def read(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self.tensors]

    def write(self, rows: Sequence[int], tensors: Sequence[Tensor]) -> None:
        current = self.read()  # what a step has given out may lie in the same memory
        for mine, given in zip(current, tensors, strict=True):
            mine[list(rows)] = given.to(mine.device)
        self.tensors = current

    def append(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = [torch.cat(pair) for pair in zip(self.tensors, tensors, strict=True)]

    def drop(self, rows: Sequence[int]) -> None:
        left = [i for i in range(self.rows()) if i not in set(rows)]
        self.tensors = [tensor[left] for tensor in self.tensors]


class Ready:
    """Rows that a stepper has. places: for each tensor, which of its states that is; forms: what they are like."""

    def __init__(self, stepper: Stepper, places: Sequence[int], forms: Sequence[TensorSpec]) -> None:
        self.stepper, self.places, self.forms = stepper, places, forms
        self.rows = stepper.rows

    def read(self) -> list[Tensor]:
        tensors = [torch.empty((self.rows(), *form.widths), dtype=form.dtype) for form in self.forms]
        for place, tensor in zip(self.places, tensors, strict=True):
            self.stepper.read(place, 0, self.rows(), tensor)
        return tensors

    def write(self, rows: Sequence[int], tensors: Sequence[Tensor]) -> None:
        for place, tensor in zip(self.places, tensors, strict=True):
            own = written(tensor).contiguous()
            # Rows side by side are written at once.
            for _, run in groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):
                pairs = list(run)
                (first, row), count = pairs[0], len(pairs)
                self.stepper.write(place, row, count, own[first : first + count])

    def write_all(self, rows: int, tensors: Sequence[Tensor]) -> None:
        """Have so many rows, with these values."""
        self.stepper.resize(rows)
        self.write(range(rows), tensors)

    def append(self, tensors: Sequence[Tensor]) -> None:
        before = self.rows()
        self.stepper.resize(before + len(tensors[0]))
        self.write(range(before, self.rows()), tensors)

    def drop(self, rows: Sequence[int]) -> None:
        self.stepper.drop(list(rows))


def other_rows(where: str, got: Any, expected: Any) -> InputError:
    return InputError(
        what="it does not have a row for each of the stream", where=where, got=got, expected=expected,
        mend="rows join with add() and leave with drop()",
    )  # fmt: skip


def which_rows(rows: Any, batch: int) -> list[int]:
    """Rows that were named by their numbers, or by bools for all `batch` of them. Raises InputError."""
    if isinstance(rows, (Tensor, np.ndarray)):
        if rows.dtype in (torch.bool, np.bool_):
            return torch.nonzero(rows_of_reset(rows, batch)).flatten().tolist()
        rows = rows.tolist()
    which = list(rows) if isinstance(rows, Iterable) else [rows]
    for row in which:
        if not isinstance(row, (int, np.integer)) or isinstance(row, bool) or not 0 <= row < batch:
            raise InputError(what="there is no such row", where="rows", got=row, expected=f"0 … {batch - 1}")
    return [int(row) for row in which]


def device_of(cell: torch.nn.Module) -> str:
    device = next((p.device.type for p in cell.parameters()), "cpu")
    return "cpu" if device == "meta" else device


def apart(tensors: Sequence[Tensor]) -> list[list[Tensor] | None]:
    """Rows, each by itself."""
    return [[tensor[i : i + 1].clone() for tensor in tensors] for i in range(len(tensors[0]))]
