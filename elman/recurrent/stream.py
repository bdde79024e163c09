"""A stream: one step after another without gradients, its weights packed once and its state kept inside.

    stream = rnn.stream()
    for x_t in …:
        o = stream.step(x_t)                         # as o, state = rnn.step(x_t, state)

A step is one call of what an engine keeps ready (`elman.execute.stepping`). It looks first whether everything is as it
was: forms of the arguments, weights, the cell itself. Where something is not, the step takes the long way: the cell is
bound anew, its weights are packed anew, or an error says what does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack

from elman.circuit.structure import NOTHING, TENSOR, Structure, fill, flatten, paths, specs, take
from elman.engines import report
from elman.errors import InputError, InputTypeError, NotSupported, NotYet, TraceError, expect
from elman.execute.stepping import Stepping, draw, expect_narrow, stepping
from elman.noise import written
from elman.plan import Explanation
from elman.recurrent.arguments import batch_of, is_recorded, not_recorded, rows_of_reset
from elman.recurrent.arrays import as_arrays, as_tensors, into
from elman.recurrent.bound import Arguments
from elman.recurrent.calls import alike, dtype_of, shapes_of
from elman.recurrent.kept import Kept, Plain, Ready, Steps, apart, device_of, other_rows, which_rows
from elman.recurrent.programs import Binding, Owned
from elman.recurrent.surroundings import not_compiled, watched
from elman.trace.call import store_of
from elman.trace.modes import changes_operations, has_no_memory, looks_at_operations

Tensor = torch.Tensor
WEIGHTS = ("bfloat16", "int8")


class Stream:
    """Sequences that are read step by step, each in a row of its own, without gradients. `Recurrent.stream` makes one.

        stream = rnn.stream(batch=2)
        o = stream.step(x_t)                 # x_t [2, …] -> o [2, …], tensors or NumPy arrays
        row = stream.add()                   # a third sequence begins; stream.drop(row) ends it
        stream.state                         # as of rnn.step; may be assigned

    The numbers are those of `rnn.step` to the last bit, and a row's depend on no other row (with `weights=` they are
    those of the rounded weights). Weights that were changed are noticed at the next step, except where PyTorch does not
    count it, which is what fused optimisers and `.data` do: call `refresh` after these.

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
        self._structure: Structure | None = None  # of the state, as soon as it is known
        self._kept: Kept | None = None  # as soon as a step has come
        self._waiting: list[
            list[Tensor] | None
        ] = []  # before that: what each row starts from; None: the cell says it
        self._args: Arguments | None = None  # of the step that it is bound to
        self._key: Any = None
        self._binding: Binding | None = None
        self._ready: Stepping | None = None
        self._why = ""  # why its steps are the layer's ordinary ones
        self._context: Any = None
        self._named: Any = None  # the engine that was asked for
        self._short: Callable[[Any, Any], Any] = _never
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
        how = "not begun"
        if self._kept is not None:
            how = self._how()
        narrow = "" if self.weights is None else f", weights in {self.weights}"
        rows = f"{self.batch} row{'s' * (self.batch != 1)}"
        return f"<stream of {type(layer.cell).__name__}, {rows}{narrow}; {how}>"

    def __deepcopy__(self, memo: Any) -> Stream:
        """Another stream of the same layer, whose weights it shares, that goes on from a copy of the state."""
        other = Stream(self._steps, 0, None, self.weights)
        other._structure, other._args = self._structure, self._args
        other._waiting = list(self._waiting) if self._kept is None else apart(self._kept.read())
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
        if self._binding is None:
            raise NotYet(
                what="what a step is made of is not known yet", where="Stream",
                mend=f"take a step first{self._why and ': ' + self._why}",
            )  # fmt: skip
        return Explanation((self._binding.program.single.plan,), self._how())

    def _how(self) -> str:
        """What runs the steps."""
        if self._ready is None:
            return f"ordinary steps: {self._why}"
        assert self._binding is not None
        program = self._binding.program
        loop = program.single.plan.loop
        assert loop is not None, "nothing else is kept ready"
        engine = report(self._steps.layer().engine, {"step": loop}, program.inputs[0].device)
        return f"weights packed once, {engine}"

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
        self._short, self._key = _never, None

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
                assert self._kept is not None
                before = None if out is None else self._kept.read()
                if reset is not None:
                    rows = rows_of_reset(reset, self.batch)
                    self.reset(torch.nonzero(rows).flatten().tolist())
                output = self._made(layer, given)
                if before is not None:
                    try:
                        return into(out, output)
                    except InputError:
                        self._kept.write(range(self.batch), before)
                        raise
        return as_arrays(output) if arrays else output

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

    def _made(self, layer: Any, args: Arguments) -> Any:
        """The output of a step, by what it is bound to now."""
        if isinstance(self._kept, Plain):
            assert self._structure is not None
            x, told = fill(args.structures[0], args.xs), fill(args.structures[2], args.contexts)
            o, state = layer.step(x, fill(self._structure, self._kept.tensors), context=told)
            self._kept.tensors = flatten(state, "state")[0]
            return o
        assert self._ready is not None
        xs = [written(t).contiguous() for t in args.xs]
        output = self._ready.stepper.step(self._sequences(xs), None)
        if output is False:
            raise NotSupported(
                what="the engine does not take this step", where="step()", mend="use step() of the layer"
            )
        return self._filled(output)

    # --- binding --------------------------------------------------------------------------------------------------

    def _bind(self, layer: Any, args: Arguments, context: Any) -> None:
        """See to it that what runs is what the layer is now, for arguments like these."""
        key = args.structures[0], args.structures[2], specs(args.xs, 1), specs(args.contexts, 1)
        same = self._kept is not None and key == self._key and context is self._context
        if same and (self._ready is None or self._ready.stepper.fresh()):
            return
        self._short, self._context = _never, context
        self._steps.begin(*(fill(args.structures[i], part) for i, part in ((0, args.xs), (2, args.contexts))))
        self._args = args
        states = self._starts(layer) if self._kept is None else self._kept.read()
        assert self._structure is not None
        before = self._ready
        ready = self._found(layer, args, states)
        self._ready = ready if isinstance(ready, Stepping) else None
        self._why = ready if isinstance(ready, str) else ""
        if self._ready is None:
            if self.weights is not None:
                raise NotSupported(
                    what=f"weights are kept in fewer bits by the native engine alone: {self._why}", where="weights=",
                    mend="leave weights= away",
                )  # fmt: skip
            self._kept = Plain(states)
        else:
            self._load(layer, self._ready, args, None if self._ready is before else states)
        self._key = key

    def _found(self, layer: Any, args: Arguments, states: Sequence[Tensor]) -> Stepping | str:
        """The steps of the layer's cell as an engine keeps them ready, or why the layer's own are taken."""
        programs, structure = layer._calls.programs, self._structure
        assert structure is not None
        before, self._binding = self._binding, None
        if programs.seen(layer.cell).unchanged is None:
            return "nobody can say whether the cell is as it was (it has hooks)"
        if changes_operations() or looks_at_operations():
            return "a mode of PyTorch's is active"
        try:
            shapes = shapes_of(False, args, structure, states)
            binding = programs.find(layer.cell, shapes, args.xs, states, args.contexts)
            if any(map(has_no_memory, (*args.xs, *states, *binding.fixed(layer.cell)))):
                return "there are tensors without memory of their own"
        except (TraceError, InputError, InputTypeError, NotSupported) as error:
            return error.what  # the layer's step runs the cell itself, or says what is wrong
        self._binding = binding
        if binding is before and self._ready is not None and layer.engine == self._named:
            return self._ready
        self._named = layer.engine
        if binding.output != NOTHING and binding.output[0] == "static":
            return "the output is no tensor"
        return stepping(binding.program, layer.engine, self.weights)

    def _load(self, layer: Any, ready: Stepping, args: Arguments, states: Sequence[Tensor] | None) -> None:
        """Pack the weights of now. states: of all rows, where the engine does not have them."""
        binding, cell, rows = self._binding, layer.cell, self.batch
        assert binding is not None
        tensors = binding.fixed(cell)
        for slot, context in zip(binding.slots("context"), args.contexts, strict=True):
            tensors[slot] = context
        sources: list[tuple[Any, Any, Any]] = [
            (layer._modules, "cell", cell),
            (layer.__dict__, "engine", layer.engine),
        ]
        for source, tensor in zip(binding.sources, tensors, strict=True):
            owned = isinstance(source, Owned)
            if tensor is not None:
                store, key = (store_of(cell, source.place), source.place.key) if owned else (None, None)
                sources.append((store, key, tensor))
        if states is not None:
            places = [ready.states.index(slot) for slot in binding.slots("state")]
            self._kept = Ready(ready.stepper, places, specs(states, 1))
            self._kept.write_all(rows, states)
        unchanged = layer._calls.programs.seen(cell).same
        ready.load(tensors, rows, [*sources, *self._steps.watched()], unchanged)
        self._shorten(ready, binding, args, layer.generator)

    def _shorten(self, ready: Stepping, binding: Binding, args: Arguments, generator: Any) -> None:
        """The short way of the steps that are like this one."""
        places = {place: i for i, place in enumerate(binding.slots("x"))}
        sequences = [places[one] if isinstance(one, int) else one for one in ready.sequences]
        emits = [ready.emits[place] for place in binding.outputs]
        of_x, of_output, step = args.structures[0], binding.output, ready.stepper.step

        def picked(xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(
                [xs[one] if isinstance(one, int) else draw(one, self.batch, generator) for one in sequences]
            )

        def filled(output: Any) -> Any:
            if of_output == TENSOR:
                return output
            return fill(of_output, [output] if len(emits) == 1 else [output[i] for i in emits])

        def short(x: Any, out: Any) -> Any:
            xs: list[Tensor] = []
            try:
                if out is not None or take(x, xs) != of_x:
                    return False
            except InputTypeError:
                return False
            output = step(picked(xs), None)
            return output if output is False else filled(output)

        self._sequences, self._filled = picked, filled
        self._short = step if of_x == of_output == TENSOR and sequences == [0] else short

    # --- states and rows ------------------------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """B, how many rows there are."""
        return len(self._waiting) if self._kept is None else self._kept.rows()

    __len__ = batch.fget  # type: ignore[assignment]

    @property
    def state(self) -> Any:
        """The state `[B, …]` as of `Recurrent.step`, a copy. It may be assigned, for all rows.

        Raises NotYet before the first step where nothing but the cell's answer to it says what a state is.
        """
        if self._kept is None and None in self._waiting:
            cell = self._steps.layer().cell
            if not callable(getattr(cell, "initial_state", None)) or not self.batch:
                raise NotYet(
                    what="what the cell starts from is found out at the first step", where="Stream.state",
                    mend="take a step first, or give the stream a state",
                )  # fmt: skip
        states = self._starts(self._steps.layer()) if self._kept is None else self._kept.read()
        assert self._structure is not None
        return self._steps.leave(fill(self._structure, states))

    @state.setter
    def state(self, state: Any) -> None:
        rows = self._given(state)
        if len(rows[0]) != self.batch:
            raise other_rows("state", len(rows[0]), self.batch)
        if self._kept is None:
            self._waiting = apart(rows)
        else:
            self._kept.write(range(self.batch), rows)

    def reset(self, rows: int | Sequence[int] | Tensor | None = None) -> None:
        """Begin new sequences, from the cell's initial state: in these rows, by default in all."""
        which = range(self.batch) if rows is None else which_rows(rows, self.batch)
        if self._kept is None:
            for row in which:
                self._waiting[row] = None
        elif len(which):
            initial = self._initial(self._steps.layer(), self.batch)
            self._kept.write(which, [tensor[list(which)] for tensor in initial])

    def add(self, n: int = 1, *, state: Any = None) -> int:
        """Have new rows behind the others, from the cell's initial state, or from a state `[n, …]`.

        Returns the number of the first one. Nothing changes for the others.
        """
        first = self.batch
        if state is not None:
            given = self._given(state)
        else:
            expect(n, int, "rows are a whole number", "add(n)")
            if n < 0:
                raise InputError(
                    what="there cannot be fewer rows than none", where="add(n)", got=n, mend="drop(rows)"
                )
            if self._kept is None:
                self._waiting += [None] * n
                return first
            given = self._initial(self._steps.layer(), n)
        if self._kept is None:
            self._waiting += apart(given)
        else:
            self._kept.append(given)
            self._forget_context()
        return first

    def drop(self, rows: int | Sequence[int] | Tensor) -> None:
        """Go on without these rows. Those behind them move up, as in a list; nothing else changes for them."""
        gone = sorted(set(which_rows(rows, self.batch)))
        if self._kept is None:
            for row in reversed(gone):
                del self._waiting[row]
        else:
            self._kept.drop(gone)
            self._forget_context()

    def _forget_context(self) -> None:
        """What was computed of a context had other rows."""
        if self._context is not None:
            self._short, self._key, self._context = _never, None, None

    def _given(self, state: Any) -> list[Tensor]:
        """The tensors of a state that a user gave, as the cell has it."""
        tensors, structure = flatten(self._steps.enter(as_tensors(state)[1]), "state")
        batch_of(tensors, structure, (), NOTHING, None)
        if self._structure is None:
            self._structure = structure
        like = (
            self._kept.read()
            if self._kept is not None
            else next((r for r in self._waiting if r is not None), None)
        )
        if like is not None:
            tensors = alike(fill(structure, tensors), like, self._structure)
        elif structure != self._structure:
            raise InputTypeError(what="the states are not built alike", where="state")
        return [tensor.detach() for tensor in tensors]

    def _initial(self, layer: Any, rows: int) -> list[Tensor]:
        """What the cell starts from, for so many rows."""
        x, contexts, args = NOTHING, (NOTHING, []), self._args
        xs: list[Tensor] = []
        if args is not None:
            x, xs, contexts = args.structures[0], args.xs, (args.structures[2], args.contexts)
        with torch.no_grad():
            tensors, structure = flatten(
                layer._calls.programs.initial(layer.cell, rows, (x, xs), contexts), "state"
            )
        if self._structure is None:
            self._structure = structure
        if self._kept is not None and structure != self._structure:
            return alike(fill(structure, tensors), self._kept.read(), self._structure)
        return [tensor.detach() for tensor in tensors]

    def _starts(self, layer: Any) -> list[Tensor]:
        """What all rows start from, before the first step."""
        given = [row for row in self._waiting if row is not None]
        if len(given) == self.batch:
            return [torch.cat(parts) for parts in zip(*given, strict=True)]
        initial = self._initial(layer, self.batch)
        if not given:
            return initial
        assert self._structure is not None
        initial = alike(fill(self._structure, initial), given[0], self._structure)
        rows = [
            [t[i : i + 1] for t in initial] if row is None else row for i, row in enumerate(self._waiting)
        ]
        return [torch.cat(parts) for parts in zip(*rows, strict=True)]


def _never(x: Any, out: Any) -> bool:
    return False
