"""Online: one step, one gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elman.circuit.structure import fill, flatten
from elman.errors import InputError, InputTypeError, NotSupported
from elman.execute import Call
from elman.online.rules import Carried, Fixed, Shape, Unbiased
from elman.online.signal import of_the_state, through_the_cell
from elman.online.step import Derivatives
from elman.recurrent import Recurrent
from elman.recurrent.arguments import batch_of, rows_of_reset
from elman.recurrent.bound import Arguments
from elman.segments.segment import Segments, read_memory
from elman.trace.fingerprint import Seen

Tensor = torch.Tensor
RULES = ("rtrl", "snap-1", "rflo", "e-prop", "uoro")


@dataclass(frozen=True)
class Cost:
    """What a rule takes. numbers: of the influence, for each row of a batch; bytes: of all that it holds, for a batch.
    products: multiplications with the influence, for each row and step. backward: passes for the influence of one step.
    """

    rule: str
    numbers: int
    bytes: int
    products: int
    backward: int

    def __str__(self) -> str:
        return (
            f"{self.rule}: {self.bytes / 1e6:.3g} MB, {self.numbers:,} numbers a row, "
            f"{self.products:,} products a row and step, {self.backward} backward passes a step"
        )


class Online:
    """The gradient of a recurrence at every step, of all that lies before, with nothing kept of it but ∂s/∂θ.

        online = elman.Online(rnn, rule="rtrl")
        for x_t, y_t in stream:                          # x_t [B, …]
            loss = online.step(x_t, y_t, loss_fn)        # adds to the .grad of rnn's parameters, and of the loss's own
            optimizer.step()
            optimizer.zero_grad()

    `loss_fn(o, target)` takes the output of the step, `[B, …]`, and returns a number; modules in it learn with the
    rest. While the weights stay, the gradients of T steps add up to those of back-propagation through time over the sum
    of their losses ("rtrl", exactly), or to an approximation:

    "rtrl"    exact, for any cell: Williams and Zipser (1989), "A learning algorithm for continually running fully
              recurrent neural networks". ∂s/∂θ is stored in blocks: what a parameter never reaches has no place, and
              where units are independent of each other, as in a diagonal recurrence, each has its own parameters alone.
    "snap-1"  keeps of ∂s/∂θ what a parameter reaches in one step: Menick et al. (2020), "A practical sparse
              approximation for real time recurrent learning". Influence that takes a way over other units is lost.
    "e-prop"  J is what a unit has of itself without a product of weights, across the parts of its state: Bellec et al.
              (2020), "A solution to the learning dilemma for recurrent networks of spiking neurons". Influence that
              passes through recurrent weights is lost.
    "rflo"    of that the diagonal, as the leak of a rate unit: Murray (2019), "Local online learning in recurrent
              networks with random feedback", whose random feedback is a readout `elman.online.RandomFeedback`.
    "uoro"    ∂s/∂θ as one product of two vectors, which is right on average: Tallec and Ollivier (2017), "Unbiased
              online recurrent optimization". It costs what back-propagation does, and is noisy.

    Where no weight of the cell learns, as in a reservoir, nothing is carried, whatever the rule.

    rnn: a `Recurrent` that reads forward. state: where it starts, as for a call. memory: the most that the rule may
    hold, "64 MB" or a number of bytes: InputError where it does not fit. generator: of "uoro"'s random signs.

    `state` is where it stands; `reset(rows)` begins anew. A state that the cell learns to start from has its influence
    on all that follows. Weights may change between steps: then ∂s/∂θ is, as ever in such learning, that of the
    weights that were there when each of its parts came about.
    """

    def __init__(
        self, rnn: Recurrent, rule: str = "rtrl", *, state: Any = None, memory: str | int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        _check(rnn, rule)
        self.rnn, self.rule, self.state, self.generator = rnn, rule, state, generator
        self.memory = _budget(memory)
        # The cell, and what the arguments were like, that the derivatives are of.
        self._seen: Seen | None = None
        self._like: Any = None
        self._derivatives: Derivatives | None = None
        self._known: Shape | None = None
        self._kept: Carried | Unbiased | Fixed | None = None
        self._pending: Any = None  # rows that begin anew with the next step
        self._batch, self._seed, self._t = 0, 0, 0

    def step(
        self, x_t: Any, target: Any, loss_fn: Callable[[Any, Any], Tensor], *, context: Any = None, reset: Any = None
    ) -> Tensor:  # fmt: skip
        """The loss at this step, `[]`; gradients are added to `.grad`.

        x_t: `[B, …]`, nested as the cell takes it, None for an autonomous cell. target: whatever loss_fn wants. reset:
        `[B]` of bools, the rows that begin anew with this step.
        """
        cell, args = self.rnn.cell, Arguments.of(1, x_t, self.state, context, step=True)
        with torch.no_grad():
            of, kept, args = self._prepared(args, reset)
            call = Call(1, self._batch, self._seed, self.rnn.engine, first=self._t)
            values, structure = of.inputs(args.xs, args.states, args.contexts), args.structures[1]
            after = kept.after(call, values)
            # A cell with hooks, which nobody watches, runs itself, and they with it.
            watched = self._seen is not None and self._seen.unchanged is not None
            learnt = any(t.requires_grad for t in (*args.xs, *args.contexts))
            if of.shown is None or learnt or not watched:
                signal = through_the_cell(
                    cell, x_t, args.states, structure, context, of.numbers(call), loss_fn, target
                )
            else:
                signal = of_the_state(after, of.binding.output, of.shown, loss_fn, target)
            kept.learn(call, signal)
        self.state = fill(structure, signal.after)
        self._t += 1
        return signal.loss

    def reset(self, rows: Any = None) -> None:
        """Begin anew with the next step, from the cell's own initial state, everywhere or in `rows`, `[B]` of bools."""
        if rows is None:
            self.state, self._kept, self._pending = None, None, None
            return
        states, _ = flatten(self.state, "state")
        # Without a state all rows begin anew, and only the step knows how many there are.
        self._pending = self._beginning(rows, len(states[0])) if states else rows

    def cost(self, x_t: Any, *, context: Any = None) -> Cost:
        """What the rule takes, before it has taken it. x_t: of one step, as for `step`."""
        derivatives, args = self._found(Arguments.of(1, x_t, self.state, context, step=True))
        return _cost(self.rule, derivatives, self._shape(derivatives), args.states[0].shape[0])

    def _found(self, args: Arguments) -> tuple[Derivatives, Arguments]:
        """The derivatives of the cell as it is now, and the arguments with a state."""
        single = self.rnn._single
        if not args.states:
            state, structure = flatten(single.start_of_step(self.rnn, args), "state")
            args = args.starting([s.detach() for s in state], structure)
        if self._derivatives is not None and self._is_again(args):
            return self._derivatives, args
        binding = single.binding_of_step(self.rnn, args)
        self._seen, self._like = self.rnn._calls.programs.seen(self.rnn.cell), (args.structures, args.forms)
        before = self._derivatives
        if before is not None and before.binding is binding:
            before.look(self.rnn.cell)
            return before, args
        derivatives = self._derivatives = Derivatives(binding, self.rnn.cell, self.rnn.engine)
        if before is not None and self._kept is not None and derivatives.sizes != before.sizes:
            raise InputError(
                what="the cell has other parameters or another state than at the step before", where="rnn",
                mend="call reset(), or make a new Online",
            )  # fmt: skip
        self._known = None
        shape = self._shape(derivatives)
        if isinstance(self._kept, Carried) and shape is not None:
            self._kept.follow(derivatives, shape)
        elif self._kept is not None:
            self._kept.of = derivatives
        return derivatives, args

    def _is_again(self, args: Arguments) -> bool:
        """Whether the cell is as it was at the step before, and the arguments are like those."""
        seen = self.rnn._calls.programs.seen(self.rnn.cell)
        return seen is self._seen and (args.structures, args.forms) == self._like

    def _shape(self, derivatives: Derivatives) -> Shape | None:
        if self.rule == "uoro" or not derivatives.parameters:
            return None
        if self._known is None:
            self._known = Shape(derivatives, self.rule)
        return self._known

    def _prepared(
        self, args: Arguments, reset: Any
    ) -> tuple[Derivatives, Carried | Unbiased | Fixed, Arguments]:
        """What the step is bound to, and its arguments, with what it starts from; the first one finds out what reaches
        what."""
        if reset is None and self._pending is None and self._kept is not None and self._is_again(args):
            return self._kept.of, self._kept, args
        begins, batch = not args.states, self._batch_of(args)
        derivatives, args = self._found(args)
        rows = self._beginning(reset, batch)
        if self._kept is None:
            self._batch = batch
            self._seed = int(torch.randint(2**62, (), generator=self.rnn.generator).item())
            self._kept = self._fresh(derivatives, args, begins)
        if rows is not None and not begins:
            args = self.rnn._single.restarted(self.rnn, args, rows)
            self._kept.restart(rows)
        self._pending = None
        return derivatives, self._kept, args

    def _beginning(self, reset: Any, batch: int) -> Tensor | None:
        """The rows that begin anew with the next step, `[B]`; None where nobody has said so."""
        said = [rows_of_reset(rows, batch) for rows in (reset, self._pending) if rows is not None]
        return functools.reduce(torch.logical_or, said) if said else None

    def _batch_of(self, args: Arguments) -> int:
        x, state, context, _ = args.structures
        batch = batch_of(args.xs, x, args.contexts, context, None) if args.xs else None
        if self._kept is not None and batch not in (None, self._batch):
            raise InputError(
                what="the batch has another size than at the step before, whose influence goes on", where="x_t",
                got=batch, expected=self._batch, mend="keep rows that have ended, and reset them",
            )  # fmt: skip
        return batch_of(args.states, state, args.contexts, context, batch)

    def _fresh(self, derivatives: Derivatives, args: Arguments, begins: bool) -> Carried | Unbiased | Fixed:
        batch, shape = args.states[0].shape[0], self._shape(derivatives)
        cost = _cost(self.rule, derivatives, shape, batch)
        if self.memory is not None and cost.bytes > self.memory:
            raise InputError(
                what="the influence does not fit into the budget", where="memory=", got=f"{self.memory} bytes",
                expected=f"at least {cost.bytes} for {self.rule}",
                mend="another rule takes less (snap-1, e-prop, uoro), or elman.truncated",
            )  # fmt: skip
        if not derivatives.parameters:
            return Fixed(derivatives)
        start = self._start(derivatives, args)
        if shape is not None:
            kept = Carried(derivatives, shape, batch, start)
            if begins:
                kept.restart(torch.ones(batch, dtype=torch.bool))
            return kept
        if start is not None:
            raise NotSupported(
                what="uoro does not know what a state that is learned has to do with it", where="rule=",
                mend='use "rtrl" or "snap-1", or an initial state that does not learn',
            )  # fmt: skip
        return Unbiased(derivatives, batch, self.generator)

    def _start(self, derivatives: Derivatives, args: Arguments) -> tuple[Sequence[Tensor], Tensor] | None:
        """The weights that the cell's initial state is made of, and their influence on it, `[n, P0]`."""
        own = getattr(self.rnn.cell, "initial_state", None)
        weights = [p for p in self.rnn.cell.parameters() if p.requires_grad]
        if not callable(own) or not weights:
            return None
        with torch.enable_grad():
            state = [s for s in flatten(own(1), "state")[0] if s.is_floating_point()]
            if not any(s.requires_grad for s in state):
                return None
            flat = derivatives.flat(state)[0]
            rows = [torch.autograd.grad(one, weights, retain_graph=True, allow_unused=True) for one in flat]
        places = [i for i in range(len(weights)) if any(row[i] is not None for row in rows)]
        start = torch.stack([
            torch.cat([(torch.zeros_like(weights[i]) if row[i] is None else row[i]).reshape(-1) for i in places])
            for row in rows
        ])  # fmt: skip
        return [weights[i] for i in places], start


def cost(rnn: Recurrent, x_t: Any, rule: str = "rtrl", *, state: Any = None, context: Any = None) -> Cost:
    """What learning a recurrence while it runs would take (see `Online`), beforehand. x_t: of one step, `[B, …]`."""
    return Online(rnn, rule, state=state).cost(x_t, context=context)


def _cost(rule: str, derivatives: Derivatives, shape: Shape | None, batch: int) -> Cost:
    if not derivatives.parameters:
        return Cost(rule, 0, 0, 0, 0)
    n, P, size = derivatives.n, derivatives.P, derivatives.weights[0].element_size()
    if shape is None:
        return Cost(rule, P + n, (P + batch * n) * 2 * size, n, 1)
    pattern = shape.pattern
    return Cost(
        rule,
        pattern.numbers,
        batch * pattern.held(derivatives.in_place) * size,
        pattern.products,
        pattern.backward[0],
    )


def _check(rnn: object, rule: str) -> None:
    if not isinstance(rnn, Recurrent):
        raise InputTypeError(
            what="what learns while it runs is a Recurrent", where="Online(rnn)", got=type(rnn).__name__,
            mend="wrap a cell in elman.Recurrent; several layers become one cell whose state is theirs",
        )  # fmt: skip
    if rnn.reverse:
        raise InputError(
            what="what reads its sequence backward has to have seen its end", where="Online(rnn)",
            mend="use a Recurrent without reverse=True",
        )  # fmt: skip
    if rule not in RULES:
        raise InputError(what=f"there is no rule '{rule}'", where="rule=", expected=", ".join(RULES))


def _budget(memory: str | int | None) -> int | None:
    budget = read_memory(memory)
    if isinstance(budget, Segments):
        raise InputTypeError(
            what="a rule has no segments", where="memory=", expected='"64 MB", or a number of bytes'
        )
    return budget
