"""The tangent of a circuit: a circuit again, the linearised step beside the step, whose time runs the same way.

Running it is forward-mode differentiation. With a step (o, h') = f(θ, x, h) and a direction (θ̇, ẋ, ḣ) in which its
inputs change, the tangent's step says how its results do:

    (ȯ(t), ḣ(t)) = f'(θ, x(t), h(t-1)) (θ̇, ẋ(t), ḣ(t-1))

Its inputs are those of the circuit, states having become the sequences h(t-1), and one direction `t_…` for each of
them; its outputs are the directions `t_…` of the outputs. Kinds stay as they are. It is the transpose of the adjoint,
whose inputs and outputs are its outputs and inputs: ⟨g, f' v⟩ = ⟨f'ᵀ g, v⟩.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from elman.adjoint import check_names, seen_from_behind
from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Joint, Kind, OutPort, StepFunction, Wire
from elman.errors import NotSupported, TraceError, expect
from elman.trace.joint import Recording, trace_joint
from elman.trace.outside import outside
from elman.trace.unchanging import WithZeros

Tensor = torch.Tensor


def tangent(circuit: Circuit, wrt: Collection[str] | None = None, of_backward: bool = False) -> Circuit:
    """The circuit of the directional derivative of a circuit's outputs.

    wrt: names of the input ports that change; by default all that hold real or complex numbers. Directions of states
        are worked out wherever the recurrence needs them. of_backward: take the transpose of what the cell's backward
        says, also where a Function says another derivative forward, or none.

    Derivatives that a `torch.autograd.Function` of the cell says itself (`jvp`) are kept. The tangent has an adjoint,
    and a tangent, of its own, and the adjoint has one: second derivatives, and so on. Raises InputError for a name that
    has no direction, TraceError for a step that cannot be differentiated forward.
    """
    expect(
        circuit, Circuit, "a tangent is that of a circuit", "tangent(circuit)",
        "elman.trace(cell, x, state) gives one",
    )  # fmt: skip
    met = {} if circuit.signature is None else circuit.signature.captured
    able = {port.name: port for port in circuit.inputs if port.smooth and port.name not in met}
    check_names(circuit, able, wrt, "direction")
    wanted = set(able) if wrt is None else {*wrt}
    states = {name for name, port in able.items() if port.kind is Kind.STATE}
    with outside():
        step, joint = _traced(circuit, wanted | states, of_backward)
        if not (reached := _reached(circuit, step, joint, wanted)) >= states:
            step, joint = _traced(circuit, wanted | reached, of_backward)
    return _closed(circuit, step, joint)


@dataclass(frozen=True)
class _Step:
    """The linearised step. given: the ports of the circuit without states and noise; directions: input -> its port."""

    function: StepFunction
    given: tuple[InPort, ...]
    directions: Mapping[str, InPort]

    @property
    def ports(self) -> tuple[InPort, ...]:
        return (*self.given, *self.directions.values())


def _traced(circuit: Circuit, changing: Collection[str], of_backward: bool) -> tuple[_Step, Joint]:
    """The linearised step for the inputs that change; recorded without its own backward, which few ask for."""
    taken = {port.name for port in circuit.inputs}
    directions = {
        port.name: replace(
            port, name=_name(port.name, taken), path=f"direction of {port.path}", frozen=False,
            cotangent_of=None, kept=None, teaches=None, tangent_of=port.name,
        )
        for port in circuit.inputs
        if port.name in changing
    }  # fmt: skip
    given = tuple(seen_from_behind(port) for port in circuit.inputs if port.kind is not Kind.NOISE)
    ways = (
        [_transposed] if of_backward else [_along] if circuit.recorded().dual else [_along, _by_dual_numbers]
    )
    name = f"the tangent of {circuit.name}"
    met = circuit.signature.captured if circuit.signature is not None else {}
    first: TraceError | None = None
    for way in ways:
        function = _pushed(circuit, {name: port.name for name, port in directions.items()}, way)
        step = _Step(function, given, directions)
        try:
            joint = trace_joint(function, step.ports, name, twice=True, met=met, backward=False, forward=True)
        except TraceError as error:
            first = first or error
        else:
            return step, joint
    assert first is not None
    raise first


def _name(port: str, taken: Collection[str]) -> str:
    """The name of a direction: with as many t as no input of the circuit has."""
    name = f"t_{port}"
    while name in taken:
        name = f"t{name}"
    return name


def _direction_of(result: str) -> Wire:
    """The tangent's result that is the direction of a result of the circuit."""
    return Wire.result(f"t_{result}")


def _pushed(
    circuit: Circuit, directions: Mapping[str, str], way: Callable[..., dict[str, Tensor]]
) -> StepFunction:
    """The linearised step as a function with its own autograd.

    directions: input -> the input that is its direction. way: `_along` or `_by_dual_numbers`.
    """
    step_before, dual = circuit.recorded().step, circuit.recorded().dual
    inner = [port.name for port in circuit.inputs if port.kind is not Kind.NOISE]

    def step(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        values = {name: inputs[name] for name in inner}
        pushed = way(step_before, values, {name: inputs[port] for name, port in directions.items()}, dual)
        return {_direction_of(result).name: value for result, value in pushed.items()}

    return step


def _along(
    step: StepFunction, values: dict[str, Tensor], directions: dict[str, Tensor], dual: bool
) -> dict[str, Tensor]:
    """The directions of a step's results, by two backward passes: f'ᵀ g is linear in g, and f' the transpose of that.

    PyTorch's own forward mode asks in many places how large the batch is. So it is taken only where it says what the
    backward does not, in a Function with a `jvp` and in what `no_grad` hides; and where an operation's backward has no
    derivative. dual: where it is taken already, and cannot be once more.
    """
    with _Hidden() as hidden:
        wanting, results = _recorded(step, values, directions)
    if not dual and (hidden.switched_off or _says_itself(results.values())):
        return _by_dual_numbers(step, values, directions)
    return _twice_back(wanting, results, directions)


def _transposed(
    step: StepFunction, values: dict[str, Tensor], directions: dict[str, Tensor], dual: bool
) -> dict[str, Tensor]:
    """The same, whatever is said forward."""
    return _twice_back(*_recorded(step, values, directions), directions)


def _recorded(
    step: StepFunction, values: dict[str, Tensor], directions: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(what changes, results that change with it), under autograd."""
    wanting = {
        name: v if v.requires_grad else v.detach().requires_grad_()
        for name, v in values.items()
        if name in directions
    }
    return wanting, {r: v for r, v in step({**values, **wanting}).items() if v.requires_grad}


def _twice_back(
    wanting: dict[str, Tensor], results: dict[str, Tensor], directions: dict[str, Tensor]
) -> dict[str, Tensor]:
    if not results:
        return {}
    cotangents = [torch.zeros_like(value).requires_grad_() for value in results.values()]
    back = torch.autograd.grad(
        [*results.values()],
        [wanting[name] for name in directions],
        cotangents,
        create_graph=True,
        allow_unused=True,
    )
    pairs = [
        (b, v) for b, v in zip(back, directions.values(), strict=True) if b is not None and b.requires_grad
    ]
    if not pairs:
        return {}
    transposed, along = zip(*pairs, strict=True)
    pushed = torch.autograd.grad(transposed, cotangents, along, create_graph=True, allow_unused=True)
    return {r: value for r, value in zip(results, pushed, strict=True) if value is not None}


def _by_dual_numbers(
    step: StepFunction, values: dict[str, Tensor], directions: dict[str, Tensor], dual: bool = False
) -> dict[str, Tensor]:
    """The same by PyTorch's forward mode."""
    with _dual_level():
        duals = {
            name: forward_ad.make_dual(value, directions[name]) if name in directions else value
            for name, value in values.items()
        }
        tangents = {result: forward_ad.unpack_dual(value).tangent for result, value in step(duals).items()}
    return {result: value for result, value in tangents.items() if value is not None}


class _Hidden(TorchFunctionMode):
    """Notes whether gradients are switched off inside, which forward mode does not care about."""

    switched_off = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and args and not args[0]:
            self.switched_off = True
        return func(*args, **(kwargs or {}))


def _says_itself(results: Collection[Tensor]) -> bool:
    """Whether a `torch.autograd.Function` with a `jvp` is among what results come from; refuses one without."""
    has_jvp = False
    pending = [value.grad_fn for value in results]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending.extend(source for source, _ in node.next_functions)
        function = getattr(type(node), "_forward_cls", None)
        if function is None or function.__module__.startswith("elman."):
            continue
        if function.jvp is torch.autograd.Function.jvp:
            raise NotSupported(
                what=f"{function.__qualname__} does not say its derivative forward",
                where="the tangent of a step that uses it",
                mend="give it a jvp, as torch.autograd.Function describes it; or use reverse mode",
            )  # fmt: skip
        has_jvp = True
    return has_jvp


@contextlib.contextmanager
def _dual_level() -> Iterator[None]:
    """PyTorch has one level of dual numbers; where it is open, as around a user's own call, ours are others in it."""
    with forward_ad._set_fwd_grad_enabled(True), contextlib.ExitStack() as stack:
        if forward_ad._current_level < 0:
            stack.enter_context(forward_ad.dual_level())
        stack.enter_context(WithZeros())
        yield


def _reached(circuit: Circuit, step: _Step, joint: Joint, wanted: set[str]) -> set[str]:
    """Wanted inputs, and states that change with them, sooner or later."""
    names = {port.name: name for name, port in step.directions.items()}
    results = graphs.results_of(joint.graph)
    leads: dict[str, set[str]] = {}
    for port in circuit.inputs_of(Kind.STATE):
        if port.next is None:
            continue
        if port.next.is_input:
            leads[port.name] = {port.next.name}
        elif (node := results.get(_direction_of(port.next.name).name)) is not None:
            leads[port.name] = {
                names[str(n.target)]
                for n in graphs.ancestors([node])
                if n.op == "placeholder" and n.target in names
            }
    reached = set(wanted)
    while more := {state for state, sources in leads.items() if sources & reached} - reached:
        reached |= more
    return reached


def _closed(circuit: Circuit, step: _Step, joint: Joint) -> Circuit:
    """The circuit of a linearised step: what feeds a delay has a direction, which feeds the delay of that."""
    results = graphs.results_of(joint.graph)

    def along(wire: Wire) -> Wire | None:
        """The wire of a wire's direction; None where that is zero."""
        if wire.is_input:
            port = step.directions.get(wire.name)
            return None if port is None else Wire.input(port.name)
        there = _direction_of(wire.name)
        return there if there.name in results else None

    outputs = []
    for out in circuit.outputs:
        wire = along(out.wire)
        if wire is None:
            continue
        state = step.directions.get(out.state or "")
        outputs.append(
            OutPort(
                f"t_{out.name}", out.kind, wire, f"direction of {out.path}",
                None if state is None else state.name, tangent_of=out.name,
            )
        )  # fmt: skip
    graph = graphs.extract(joint.graph, results)
    ports = [
        replace(port, next=None if port.next is None else along(port.next)) if port.tangent_of else port
        for port in step.ports
    ]
    ports += [*joint.noise, *(port for port, _ in joint.captured)]
    graphs.with_placeholders(
        graph, [(port.name, graphs.placeholder(joint.graph, port.name).meta["val"]) for port in ports]
    )
    signature = circuit.signature
    if signature is not None and joint.captured:
        met = {port.name: tensor for port, tensor in joint.captured}
        signature = replace(signature, captured={**signature.captured, **met})
    name = f"tangent of {circuit.name}"
    return Circuit(
        name, graph, tuple(ports), tuple(outputs), circuit.reverse, signature,
        Recording(
            step.function, tuple(ports), f"the {name}", twice=True,
            met={} if signature is None else signature.captured, dual=True,
        ),
    ).check()  # fmt: skip
