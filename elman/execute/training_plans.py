"""The two plans of training, and how what the one keeps comes to the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch.fx import Node

from elman import engines
from elman.adjoint import cotangent_ports
from elman.circuit import graphs
from elman.circuit.form import Circuit, Kind
from elman.engines.base import Bundle, Laid
from elman.execute.executable import Call, Executable
from elman.plan import Plan, plan
from elman.plan.cut import Pair, pair
from elman.trace.outside import locked

# Bytes that a call keeps from which on it does not matter in how many tensors, but whether the allocator can use their
# memory again.
SMALL = 1 << 20


@dataclass(frozen=True, eq=False)
class TrainingPlans:
    """The two plans of training, for one choice of inputs that want gradients.

    `forwards` gives out the outputs of the circuit, then what is kept (the field's residuals); `backwards` takes what
    stands at the places `feeds` in (inputs, kept, cotangents), and gradients stand at the places `gives` in what it
    returns, input by input. Place -1: there is none. No gradient flows through the outputs at the places `silent`.
    """

    wants: frozenset[str]
    pair: Pair
    forward: Plan
    backward: Plan
    forwards: Executable
    backwards: Executable
    silent: tuple[int, ...]
    feeds: tuple[int, ...]
    gives: tuple[int, ...]
    _bundled: dict[str | engines.Engine, TrainingPlans] = field(default_factory=dict)

    def serving(self, call: Call) -> TrainingPlans:
        """The same for a call: where that is small, what is kept goes in as few tensors as the engine can do with."""
        small = 0 < call.steps * call.batch * self.pair.bytes_per_row <= SMALL
        if small and call.packing is None and call.layout is None:
            return self._bundled.get(call.engine) or self._bundle(call.engine)
        return self

    @locked
    def _bundle(self, engine: str | engines.Engine) -> TrainingPlans:
        if engine not in self._bundled:
            self._bundled[engine] = self._in_bundles(engine) or self
        return self._bundled[engine]

    def _in_bundles(self, engine: str | engines.Engine) -> TrainingPlans | None:
        """The same as passes of an engine's own that hand on a bundle; None where it has none."""
        bundle, old, kept = Bundle(self.pair.kept), self.forwards, len(self.pair.kept)
        forwards = Executable(self.forward, old.ends, laid=old.laid, keeps=bundle)
        if forwards.as_pass(engine) is None:
            return None
        backwards = Executable(self.backward, self.backwards.ends, laid=self.backwards.laid, reads=bundle)
        if backwards.as_pass(engine) is None:
            return None
        ports = [port.name for port in self.backward.circuit.inputs if port.kind is not Kind.NOISE]
        first = len(self.gives)
        feeds = [
            place if place < first else place - kept + len(bundle.tensors)
            for name, place in zip(ports, self.feeds, strict=True)
            if name not in bundle.lies
        ]
        feeds += range(first, first + len(bundle.tensors))
        return replace(self, forwards=forwards, backwards=backwards, feeds=tuple(feeds))


def training_plans(
    circuit: Circuit,
    wants: frozenset[str],
    ends: Sequence[str],
    laid: Laid,
    bare: bool,
    silent: Iterable[int],
) -> TrainingPlans:
    """The plans of a circuit in which the inputs `wants` require gradients, and no gradient flows through `silent`.

    ends, laid: of the circuit's inputs and outputs, see `Executable`. bare: whether gradients may share memory.
    """
    both = pair(circuit, wants)
    forward, backward = plan(both.forward), plan(both.backward)
    outputs = [out.name for out in circuit.outputs]
    results = [out.name for out in both.forward.outputs]
    assert results[: len(outputs)] == outputs, "what is kept comes after the outputs"
    kept = [both.kept[name] for name in results[len(outputs) :]]
    ports = cotangent_ports(both.backward)
    inputs = [port.name for port in circuit.inputs if port.kind is not Kind.NOISE]
    wanted = [port.name for port in both.backward.inputs if port.kind is not Kind.NOISE]
    # What is kept takes the place of an input of the same name.
    places = {name: i for i, name in enumerate([*inputs, *kept, *map(ports.get, outputs)])}
    gradients = {out.gradient_of: i for i, out in enumerate(both.backward.outputs)}
    # Users have what goes in and comes out, and the gradients of both; what is kept lies as the forward pass made it.
    own = dict(zip(inputs, laid.inputs, strict=True))
    lies = own | dict.fromkeys(kept)
    arrive = dict(zip(map(ports.get, outputs), laid.outputs, strict=True))
    forth = Laid(laid.inputs, (*laid.outputs, *(None for _ in kept)))
    back = Laid(
        tuple(arrive[name] if name in arrive else lies.get(name) for name in wanted),
        tuple(own.get(str(out.gradient_of)) for out in both.backward.outputs),
    )
    return TrainingPlans(
        wants, both, forward, backward,
        Executable(forward, (*ends, *("" for _ in kept)), laid=forth),
        Executable(backward, ["copy" if shared and not bare else "" for shared in sharing(both.backward)], laid=back),
        tuple(silent),
        tuple(places.get(name, -1) for name in wanted), tuple(gradients.get(name, -1) for name in inputs),
    )  # fmt: skip


def sharing(circuit: Circuit) -> tuple[bool, ...]:
    """For each output of a circuit, whether it may lie in the memory of an input, or of an output before it."""
    seen: set[tuple[Kind, Node]] = set()
    shared = []
    for out in circuit.outputs:
        base = _memory(circuit.wire(out.wire))
        shared.append(base.op == "placeholder" or (out.kind, base) in seen)
        seen.add((out.kind, base))
    return tuple(shared)


def _memory(node: Node) -> Node:
    """The node whose memory a value may lie in: itself, or what it is a view of."""
    while (source := graphs.viewed(node)) is not None:
        node = source
    return node
