"""What runs the steps of a stream: a program found for the layer and the arguments of now, which an engine keeps ready
with its weights packed once; or, with the reason, the layer's own step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from elman.circuit.structure import NOTHING, TENSOR, Structure, fill, flatten, specs, take
from elman.engines import report
from elman.errors import InputError, InputTypeError, NotSupported, NotYet, TraceError
from elman.execute.stepping import Stepping, draw, stepping
from elman.noise import written
from elman.plan import Explanation
from elman.recurrent.bound import Arguments
from elman.recurrent.kept import Plain, Ready, Steps
from elman.recurrent.known import shapes_of
from elman.recurrent.programs import Binding, Owned
from elman.recurrent.rows import Rows
from elman.trace.call import store_of
from elman.trace.modes import changes_operations, has_no_memory, looks_at_operations

Tensor = torch.Tensor


# Modes of PyTorch's, how many there are: of others, another program may have to run.
_AROUND = torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack


class Running:
    """What runs the steps. short: the short way of a step that is like the latest one, `short(x, out) -> output`, or
    False, and then nothing has happened."""

    def __init__(self, steps: Steps, weights: str | None) -> None:
        self._steps, self._weights = steps, weights
        self.binding: Binding | None = None
        self.ready: Stepping | None = None
        self.why = ""  # why the steps are the layer's ordinary ones
        self.short: Callable[[Any, Any], Any] = never
        self._named: Any = None  # the engine that was asked for
        self._around: list[Any] = []  # what _AROUND said when it was found

    def fresh(self) -> bool:
        """Whether weights, cell and surroundings are as they were packed."""
        if self.ready is None:
            return self._around == [function() for function in _AROUND]
        return self.ready.stepper.fresh()

    def how(self, layer: Any) -> str:
        """What runs the steps."""
        if self.ready is None:
            return f"ordinary steps: {self.why}"
        assert self.binding is not None
        program = self.binding.program
        loop = program.single.plan.loop
        assert loop is not None, "nothing else is kept ready"
        engine = report(layer.engine, {"step": loop}, program.inputs[0].device)
        return f"weights packed once, {engine}"

    def explain(self, layer: Any) -> Explanation:
        """See `Stream.explain`."""
        if self.binding is None:
            raise NotYet(
                what="what a step is made of is not known yet", where="Stream",
                mend=f"take a step first{self.why and ': ' + self.why}",
            )  # fmt: skip
        return Explanation((self.binding.program.single.plan,), self.how(layer))

    # --- a step ---------------------------------------------------------------------------------------------------

    def step(self, layer: Any, args: Arguments, rows: Rows) -> Any:
        """The output of a step, by what was found for it; False where something has changed since."""
        if isinstance(rows.kept, Plain):
            assert rows.structure is not None
            x, told = fill(args.structures[0], args.xs), fill(args.structures[2], args.contexts)
            o, state = layer.step(x, fill(rows.structure, rows.kept.tensors), context=told)
            rows.kept.tensors = flatten(state, "state")[0]
            return o
        assert self.ready is not None
        plain = [t if type(t) is Tensor else t.as_subclass(Tensor) for t in args.xs]
        output = self.ready.stepper.step(self._sequences([written(t).contiguous() for t in plain]), None)
        return output if output is False else self._filled(output)

    # --- finding it -----------------------------------------------------------------------------------------------

    def find(self, layer: Any, args: Arguments, rows: Rows) -> None:
        """Find what runs steps of such arguments, and have it keep the rows. Raises NotSupported where weights are to
        be kept in fewer bits, and no engine does it."""
        self.short, self._around = never, [function() for function in _AROUND]
        states, before = rows.read(), self.ready
        assert rows.structure is not None
        ready = self._found(layer, args, rows.structure, states)
        self.ready = ready if isinstance(ready, Stepping) else None
        self.why = ready if isinstance(ready, str) else ""
        if self.ready is None:
            if self._weights is not None:
                raise NotSupported(
                    what=f"weights are kept in fewer bits by the native engine alone: {self.why}", where="weights=",
                    mend="leave weights= away",
                )  # fmt: skip
            rows.kept = Plain(states)
        else:
            self._load(layer, self.ready, args, rows, None if self.ready is before else states)

    def _found(
        self, layer: Any, args: Arguments, structure: Structure, states: Sequence[Tensor]
    ) -> Stepping | str:
        """The steps of the layer's cell as an engine keeps them ready, or why the layer's own are taken."""
        programs = layer._calls.programs
        before, self.binding = self.binding, None
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
        self.binding = binding
        if binding is before and self.ready is not None and layer.engine == self._named:
            return self.ready
        self._named = layer.engine
        if binding.output != NOTHING and binding.output[0] == "static":
            return "the output is no tensor"
        return stepping(binding.program, layer.engine, self._weights)

    def _load(
        self, layer: Any, ready: Stepping, args: Arguments, rows: Rows, states: Sequence[Tensor] | None
    ) -> None:
        """Pack the weights of now. states: of all rows, where the engine does not have them."""
        binding, cell, count = self.binding, layer.cell, rows.count
        assert binding is not None
        tensors = binding.fixed(cell)
        for slot, context in zip(binding.slots("context"), args.contexts, strict=True):
            tensors[slot] = context
        sources: list[tuple[Any, ...]] = [
            (layer._modules, "cell", cell),
            (layer.__dict__, "engine", layer.engine),
            (layer.__dict__, "generator", layer.generator),
            *((None, function, function()) for function in _AROUND),
        ]
        for source, tensor in zip(binding.sources, tensors, strict=True):
            owned = isinstance(source, Owned)
            if tensor is not None:
                store, key = (store_of(cell, source.place), source.place.key) if owned else (None, None)
                sources.append((store, key, tensor))
        if states is not None:
            places = [ready.states.index(slot) for slot in binding.slots("state")]
            rows.kept = Ready(ready.stepper, places, specs(states, 1))
            rows.kept.write_all(count, states)
        unchanged = layer._calls.programs.seen(cell).same
        ready.load(tensors, count, [*sources, *self._steps.watched()], unchanged)
        self._shorten(ready, binding, args, rows, layer.generator)

    def _shorten(
        self, ready: Stepping, binding: Binding, args: Arguments, rows: Rows, generator: Any
    ) -> None:
        """The short way of the steps that are like this one."""
        places = {place: i for i, place in enumerate(binding.slots("x"))}
        sequences = [places[one] if isinstance(one, int) else one for one in ready.sequences]
        emits = [ready.emits[place] for place in binding.outputs]
        of_x, of_output, step = args.structures[0], binding.output, ready.stepper.step
        draws = not all(isinstance(one, int) for one in sequences)

        def picked(xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(
                [xs[one] if isinstance(one, int) else draw(one, rows.count, generator) for one in sequences]
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
            if draws and not ready.stepper.fresh():
                return False  # before numbers are drawn that nothing reads
            output = step(picked(xs), None)
            return output if output is False else filled(output)

        self._sequences, self._filled = picked, filled
        self.short = step if of_x == of_output == TENSOR and sequences == [0] else short


def never(x: Any, out: Any) -> bool:
    """The short way where there is none."""
    return False
