"""A stream: one step after another without gradients, its weights packed once and its state kept inside.

    stream = rnn.stream()
    for x_t in …:
        o = stream.step(x_t)                         # as o, state = rnn.step(x_t, state)

A step is one call of what an engine keeps ready (`elman.execute.stepping`). It looks first whether everything is as it
was: forms of the arguments, weights, the cell itself. Where something is not, the step takes the long way: the cell is
bound anew, its weights are packed anew, or an error says what does not fit. What runs the steps is `running`, and what
they go on from `rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack

from elman.circuit.structure import fill, paths, specs
from elman.errors import InputError, NotSupported
from elman.execute.stepping import expect_narrow
from elman.plan import Explanation
from elman.recurrent.arguments import is_recorded, not_recorded, rows_of_reset
from elman.recurrent.arrays import as_arrays, as_tensors, into
from elman.recurrent.bound import Arguments
from elman.recurrent.kept import Steps, device_of, other_rows
from elman.recurrent.known import dtype_of
from elman.recurrent.rows import Rows
from elman.recurrent.running import Running, never
from elman.recurrent.surroundings import not_compiled, watched

Tensor = torch.Tensor
WEIGHTS = ("bfloat16", "int8")
_TRIES = 8  # of a step


class Stream:
    """Sequences that are read step by step, each in a row of its own, without gradients. `Recurrent.stream` makes one.

        stream = rnn.stream(batch=2)
        o = stream.step(x_t)                 # x_t [2, …] -> o [2, …], tensors or NumPy arrays
        row = stream.add()                   # a third sequence begins; stream.drop(row) ends it
        stream.state                         # as of rnn.step; may be assigned

    The numbers are those of `rnn.step` to the last bit, and a row's depend on no other row (with `weights=` they are
    those of the rounded weights; what a cell computes of its parameters alone may be rounded once more). Weights that
    were changed are noticed at the next step, except where PyTorch does not count it, which is what fused optimisers,
    writing into `.data`, and tensors made under inference_mode do: call `refresh` after these.

    A stream is used by one thread at a time; several threads have a stream each.
    """

    def __init__(self, steps: Steps, batch: int | None, state: Any, weights: str | None) -> None:
        if weights is not None and weights not in WEIGHTS:
            raise InputError(
                what="weights cannot be kept so", where="weights=", got=weights,
                expected=f"None, {', '.join(map(repr, WEIGHTS))}",
            )  # fmt: skip
        self._steps, self.weights = steps, weights
        expect_narrow(dtype_of(steps.layer().cell), weights)
        self._rows, self._running = Rows(steps), Running(steps, weights)
        self._key: Any = None  # of the arguments of the step that it is bound to
        self._context: Any = None
        self._short: Callable[[Any, Any], Any] = never
        if state is None:
            self.add(1 if batch is None else batch)
        else:
            self.add(state=state)
            if batch is not None and batch != self.batch:
                raise InputError(
                    what="the state has another number of rows", where="state", got=self.batch,
                    expected=f"batch={batch}",
                )  # fmt: skip

    def __repr__(self) -> str:
        layer = self._steps.layer()
        how = "not begun" if self._rows.kept is None else self._running.how(layer)
        narrow = "" if self.weights is None else f", weights in {self.weights}"
        rows = f"{self.batch} row{'s' * (self.batch != 1)}"
        return f"<stream of {type(layer.cell).__name__}, {rows}{narrow}; {how}>"

    def __deepcopy__(self, memo: Any) -> Stream:
        """Another stream of the same layer, whose weights it shares, that goes on from a copy of the state."""
        other = Stream(self._steps, 0, None, self.weights)
        other._rows = self._rows.copy()
        return other

    def __copy__(self) -> Stream:
        return self.__deepcopy__({})

    def __reduce__(self) -> Any:
        raise NotSupported(
            what="a stream is of a layer in this process, and does not go into a file", where="pickle",
            mend="pickle the layer and stream.state, and make a stream of both: layer.stream(state=state)",
        )  # fmt: skip

    def explain(self) -> Explanation:
        """What stands in a step, and which engine runs it. Raises NotYet before the first step."""
        return self._running.explain(self._steps.layer())

    # --- a step ---------------------------------------------------------------------------------------------------

    def step(self, x: Any = None, *, reset: Any = None, context: Any = None, out: Any = None) -> Any:
        """The output of the next step.

        x: `[B, …]` as of `Recurrent.step`, B rows; tensors, or NumPy arrays of the same dtypes, which are not made
            into tensors; None for an autonomous system.
        reset: `[B]` bools: rows that begin a new sequence, from the cell's initial state.
        context: tensors `[B, …]`; what is computed of it is kept as long as it is the same tensor.
        out: memory for the output, of its structure; by default the output is new. Nothing is allocated with it where x
            and the output are one tensor each, or an array.

        Returns the output, arrays where x is one. Raises InputError or InputTypeError for what does not fit.
        """
        if reset is None and context is self._context:
            output = self._short(x, out)
            if output is not False:
                return output
        return self._long(x, reset, context, out)

    def refresh(self) -> None:
        """Read the weights again, after a change that PyTorch does not count (`.data`, fused optimisers)."""
        self._short, self._key = never, None

    def _long(self, x: Any, reset: Any, context: Any, out: Any) -> Any:
        """A step of which anything may be new."""
        if torch.compiler.is_compiling() or watched():
            return not_compiled(self._long, x, reset, context, out)
        if is_recorded():
            raise not_recorded()
        if peek_interpreter_stack() is not None:
            where, mend = "step(), inside of a transform of torch.func", "use step() of the layer"
            raise NotSupported("a stream has no derivatives and no examples", where=where, mend=mend)
        arrays, x = as_tensors(x)
        layer = self._steps.layer()
        device = device_of(layer.cell)
        casts = torch.is_autocast_enabled(device)  # a recurrence runs in the precision of its parameters
        with torch.autocast(device, enabled=False):
            args = Arguments.of(1, x, None, self._steps.told(context), step=True)
            if casts:
                args = args.cast(dtype_of(layer.cell))
            self._check(args)
            with torch.no_grad():
                given = args._replace(
                    xs=[t.detach() for t in args.xs], contexts=[t.detach() for t in args.contexts]
                )
                self._bind(layer, given, context)
                before = None if out is None else self._rows.read()
                if reset is not None:
                    rows = rows_of_reset(reset, self.batch)
                    self.reset(torch.nonzero(rows).flatten().tolist())
                output = self._run(given, context)
                if before is not None:
                    try:
                        return into(out, output)
                    except Exception:
                        assert self._rows.kept is not None
                        self._rows.kept.write(range(self.batch), before)
                        raise
        return as_arrays(output) if arrays else output

    def _run(self, args: Arguments, context: Any) -> Any:
        """The output of a step; where weights change after they were bound (by another thread), anew."""
        for _ in range(_TRIES):
            layer = self._steps.layer()
            self._bind(layer, args, context)
            if (output := self._running.step(layer, args, self._rows)) is not False:
                return output
        raise NotSupported(
            what="the engine does not take this step", where="step()", mend="use step() of the layer"
        )  # fmt: skip

    def _check(self, args: Arguments) -> None:
        """Raise for x and context that do not fit to the rows of the stream."""
        for name, structure, tensors in (("x", 0, args.xs), ("context", 2, args.contexts)):
            for path, tensor in zip(paths(args.structures[structure], name), tensors, strict=True):
                if tensor.requires_grad and torch.is_grad_enabled():
                    raise InputError(
                        what="a stream has no gradients, and this wants one", where=path,
                        mend=f"use step() of the layer, or {path}.detach()",
                    )  # fmt: skip
                if tensor.dim() == 0 or tensor.shape[0] != self.batch:
                    raise other_rows(path, f"shape {list(tensor.shape)}", f"[{self.batch}, …]")
        if not self.batch:
            raise InputError(what="the stream has no rows", where="step()", mend="add() one")

    # --- binding --------------------------------------------------------------------------------------------------

    def _bind(self, layer: Any, args: Arguments, context: Any) -> None:
        """See to it that what runs is what the layer is now, for arguments like these."""
        key = args.structures[0], args.structures[2], specs(args.xs, 1), specs(args.contexts, 1)
        same = self._rows.kept is not None and key == self._key and context is self._context
        if same and self._running.fresh():
            return
        self._short, self._context = never, context
        self._steps.begin(*(fill(args.structures[i], part) for i, part in ((0, args.xs), (2, args.contexts))))
        self._rows.args = args
        self._running.find(layer, args, self._rows)
        self._short = self._running.short
        self._key = key

    # --- states and rows ------------------------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """B, how many rows there are."""
        return self._rows.count

    __len__ = batch.fget  # type: ignore[assignment]

    @property
    def state(self) -> Any:
        """The state `[B, …]` as of `Recurrent.step`, a copy. It may be assigned, for all rows.

        Raises NotYet before the first step where nothing but the cell's answer to it says what a state is.
        """
        return self._rows.state()

    @state.setter
    def state(self, state: Any) -> None:
        self._rows.assign(state)

    def reset(self, rows: int | Sequence[int] | Tensor | None = None) -> None:
        """Begin new sequences, from the cell's initial state: in these rows, by default in all."""
        self._rows.reset(rows)

    def add(self, n: int = 1, *, state: Any = None) -> int:
        """Have new rows behind the others, from the cell's initial state, or from a state `[n, …]`.

        Returns the number of the first one. Nothing changes for the others.
        """
        first = self._rows.add(n, state=state)
        self._forget_context()
        return first

    def drop(self, rows: int | Sequence[int] | Tensor) -> None:
        """Go on without these rows. Those behind them move up, as in a list; nothing else changes for them."""
        self._rows.drop(rows)
        self._forget_context()

    def _forget_context(self) -> None:
        """What was computed of a context had other rows."""
        if self._context is not None:
            self._short, self._key, self._context = never, None, None
