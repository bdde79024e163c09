"""The rows of a stream: what each of them starts from, then what state it is in; they join, leave, and begin anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from elman.circuit.structure import NOTHING, Structure, fill, flatten
from elman.errors import InputError, InputTypeError, NotYet, expect
from elman.recurrent.arguments import batch_of, expect_like
from elman.recurrent.arrays import as_tensors
from elman.recurrent.bound import Arguments
from elman.recurrent.kept import Kept, Steps, apart, other_rows, which_rows
from elman.recurrent.known import alike
from elman.trace.initial import own_state

Tensor = torch.Tensor


class Rows:
    """Rows of a stream, each with a state.

    structure: of the state, as soon as it is known. kept: where the states are, as soon as a step has come. args: of
    the latest step that the stream was bound to, which a cell may need to say what it starts from.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.structure: Structure | None = None
        self.kept: Kept | None = None
        self.args: Arguments | None = None
        self._waiting: list[
            list[Tensor] | None
        ] = []  # before a step: what each row starts from; None: the cell says it

    @property
    def count(self) -> int:
        """B, how many there are."""
        return len(self._waiting) if self.kept is None else self.kept.rows()

    def copy(self) -> Rows:
        """The same rows, before a first step of their own."""
        other = Rows(self._steps)
        other.structure, other.args = self.structure, self.args
        other._waiting = list(self._waiting) if self.kept is None else apart(self.kept.read())
        return other

    # --- states ---------------------------------------------------------------------------------------------------

    def read(self) -> list[Tensor]:
        """The states of all rows, copied."""
        return self._starts() if self.kept is None else self.kept.read()

    def state(self) -> Any:
        """See `Stream.state`."""
        told = self.kept is not None or None not in self._waiting
        if not told and not (self.count and self._steps.says(self._steps.layer().cell)):
            raise NotYet(
                what="what the cell starts from is found out at the first step", where="Stream.state",
                mend="take a step first, or give the stream a state",
            )  # fmt: skip
        states = self.read()
        assert self.structure is not None
        return self._steps.leave(fill(self.structure, states))

    def assign(self, state: Any) -> None:
        """Have this state, for all rows."""
        rows = self._given(state)
        if len(rows[0]) != self.count:
            raise other_rows("state", len(rows[0]), self.count)
        if self.kept is None:
            self._waiting = apart(rows)
        else:
            self.kept.write(range(self.count), rows)

    def _given(self, state: Any) -> list[Tensor]:
        """The tensors of a state that a user gave, as the cell has it."""
        tensors, structure = flatten(self._steps.enter(as_tensors(state)[1]), "state")
        batch_of(tensors, structure, (), NOTHING, None)
        if self.structure is None:
            cell = self._steps.layer().cell
            if self._steps.says(cell):
                expect_like(tensors, structure, own_state(cell, 1))
            self.structure = structure
        like = (
            self.kept.read()
            if self.kept is not None
            else next((r for r in self._waiting if r is not None), None)
        )
        if like is not None:
            tensors = alike(fill(structure, tensors), like, self.structure)
        elif structure != self.structure:
            raise InputTypeError(what="the states are not built alike", where="state")
        return [tensor.detach() for tensor in tensors]

    def _initial(self, rows: int) -> list[Tensor]:
        """What the cell starts from, for so many rows."""
        layer = self._steps.layer()
        x, contexts, args = NOTHING, (NOTHING, []), self.args
        xs: list[Tensor] = []
        if args is not None:
            x, xs, contexts = args.structures[0], args.xs, (args.structures[2], args.contexts)
        with torch.no_grad():
            tensors, structure = flatten(
                layer._calls.programs.initial(layer.cell, rows, (x, xs), contexts), "state"
            )
        if self.structure is None:
            self.structure = structure
        if self.kept is not None and structure != self.structure:
            return alike(fill(structure, tensors), self.kept.read(), self.structure)
        return [tensor.detach() for tensor in tensors]

    def _starts(self) -> list[Tensor]:
        """What all rows start from, before the first step."""
        given = [row for row in self._waiting if row is not None]
        if len(given) == self.count:
            return [torch.cat(parts) for parts in zip(*given, strict=True)]
        initial = self._initial(self.count)
        if not given:
            return initial
        assert self.structure is not None
        initial = alike(fill(self.structure, initial), given[0], self.structure)
        rows = [
            [t[i : i + 1] for t in initial] if row is None else row for i, row in enumerate(self._waiting)
        ]
        return [torch.cat(parts) for parts in zip(*rows, strict=True)]

    # --- who is there ---------------------------------------------------------------------------------------------

    def reset(self, rows: int | Sequence[int] | Tensor | None = None) -> None:
        """See `Stream.reset`."""
        which = range(self.count) if rows is None else which_rows(rows, self.count)
        if self.kept is None:
            for row in which:
                self._waiting[row] = None
        elif len(which):
            initial = self._initial(self.count)
            self.kept.write(which, [tensor[list(which)] for tensor in initial])

    def add(self, n: int = 1, *, state: Any = None) -> int:
        """See `Stream.add`."""
        first = self.count
        if state is not None:
            given = self._given(state)
        else:
            expect(n, int, "rows are a whole number", "add(n)")
            if n < 0:
                raise InputError(
                    what="there cannot be fewer rows than none", where="add(n)", got=n, mend="drop(rows)"
                )
            if self.kept is None:
                self._waiting += [None] * n
                return first
            given = self._initial(n)
        if self.kept is None:
            self._waiting += apart(given)
        else:
            self.kept.append(given)
        return first

    def drop(self, rows: int | Sequence[int] | Tensor) -> None:
        """See `Stream.drop`."""
        gone = sorted(set(which_rows(rows, self.count)))
        if self.kept is None:
            for row in reversed(gone):
                del self._waiting[row]
        else:
            self.kept.drop(gone)
