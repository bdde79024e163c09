"""One trace of a step together with its own backward.

The backward is the one that the step's own autograd runs, recorded while it runs: detach, no_grad, straight-through
estimators and custom backwards keep their meaning, at every order (the adjoint's step is again a function that
differentiates the cell, so its joint is traced through the cell's own double backward).
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch.utils import _pytree as pytree

from elman import noise
from elman.caches import cached
from elman.circuit import graphs, rows
from elman.circuit.form import ROWS, InPort, Joint, Kind, StepFunction
from elman.circuit.operations import OPERATIONS
from elman.circuit.signature import identifier
from elman.errors import ElmanError, TraceError
from elman.trace import refuse, refuse_writes
from elman.trace.merged import batch_slow
from elman.trace.normal import normalise
from elman.trace.outside import derived, outside
from elman.trace.parts import InParts
from elman.trace.record import Recorded, further_input, record, record_anything, without_writes
from elman.trace.unchanging import MARK, without_unchanging
from elman.trace.writes import is_write, without_plain_writes

if TYPE_CHECKING:
    from elman.trace.fakes import Fakes

aten = torch.ops.aten

# What is taken apart while tracing: what remains has a rule for what it does to rows.
APART = [getattr(aten, operation.name) for operation in OPERATIONS.values() if operation.apart]


@cached("what is taken apart while a step is traced", 1)
def _apart() -> Any:
    from torch._decomp import get_decompositions

    return get_decompositions(APART)


@dataclass(frozen=True, eq=False)
class Recording:
    """A circuit's record: a step that runs, and its joint, traced when it is first asked for (see `trace_joint`).

    traced: the joint, where it is there already. dual: the step computes with dual numbers.
    """

    step: StepFunction
    ports: tuple[InPort, ...]
    name: str
    twice: bool = False
    met: Mapping[str, torch.Tensor] | None = None
    traced: Joint | None = None
    dual: bool = False

    @property
    def joint(self) -> Joint:
        return self._joint

    @derived
    def _joint(self) -> Joint:
        if self.traced is not None:
            return self.traced
        with outside():
            return trace_joint(
                self.step, self.ports, self.name, twice=self.twice, met=self.met, forward=self.dual
            )  # fmt: skip


def trace_joint(
    step: StepFunction,
    ports: Sequence[InPort],
    name: str,
    inspect: Callable[[dict[str, torch.Tensor]], None] | None = None,
    twice: bool = False,
    met: Mapping[str, torch.Tensor] | None = None,
    asking: bool = False,
    backward: bool = True,
    forward: bool = False,
) -> Joint:
    """Trace a step and its backward into one graph in normal form.

    step: the function, of {port name: tensor} -> {result name: tensor}, with its own autograd.
    ports: its inputs; noise ports among them are what the step will draw for itself, in this order.
    twice: the step differentiates: what is traced is a second derivative, or a higher one.
    met: ports among them that hold a tensor which the step finds for itself, and will find again.
    inspect: looks at the step's results on fake tensors, and may refuse them.
    asking: refuse what asks for what no key can say; who compares circuit and cell does that for less.
    backward: whether the backward is wanted. forward: the step is a tangent's.
    Raises TraceError for a step that cannot be a circuit.
    """
    # To note every operation's line, and to run the step once unrecorded, takes half a trace; errors alone need it.
    given = step, ports, name, inspect, twice, met or {}, asking, backward, forward
    try:
        return _trace_joint(*given, lines=False)
    except TraceError as error:  # not kept itself: with its frames lives what PyTorch has set for them
        told = TraceError(
            error.what, where=error.where, got=error.got, expected=error.expected, mend=error.mend
        )
    except ElmanError:
        raise
    except RuntimeError as error:  # none of the step's: what failed within PyTorch before has left it so
        raise TraceError(
            what=f"nothing can be traced here, where a trace has failed within PyTorch: {refuse.message(error)}",
            where=name, mend="call it again outside of the transform of torch.func that is in progress",
        ) from error  # fmt: skip
    try:
        return _trace_joint(*given, lines=True)
    except TraceError:
        raise
    except RuntimeError:  # what has failed within PyTorch has left it so that nothing can be traced
        raise told from None


def _trace_joint(
    step: StepFunction,
    ports: Sequence[InPort],
    name: str,
    inspect: Callable[[dict[str, torch.Tensor]], None] | None,
    twice: bool,
    met: Mapping[str, torch.Tensor],
    asking: bool,
    backward: bool,
    forward: bool,
    lines: bool,
) -> Joint:
    given = [port for port in ports if port.kind is not Kind.NOISE]
    from elman.trace.fakes import PRETENDED_BATCH, Fakes

    fakes = Fakes(places=lines)
    parts = InParts(fakes.env, twice)
    example = {port.name: fakes.like(port) for port in given}
    if lines:
        with (
            refuse.while_tracing(name),
            enable_python_dispatcher(),
            fakes.mode,
            torch.enable_grad(),
            _unchosen(),
        ):
            # A first run without recording: it says what is wrong before the recorder stumbles over it.
            with refuse_writes.writes_while_running(step, example, given, name), parts:
                leaves = _leaves(example, given)
                with refuse.asking(name):
                    dry = step(leaves)
            refuse.hooks(leaves, given, name)
            refuse.guards(fakes.env, name, PRETENDED_BATCH, parts.asked)
            if inspect is not None:
                inspect(dry)
    results: list[str] = []
    cotangents: dict[str, torch.Tensor] = {}
    wants = [port.name for port in given if port.differentiable and backward]
    gradients_found: list[bool] = []
    leads: dict[str, frozenset[str]] = {}

    def both(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        leaves = _leaves(dict(zip(example, inputs, strict=True)), given)
        versions = {port: leaf._version for port, leaf in leaves.items()}
        with parts, refuse.asking(name) if asking and not lines else contextlib.nullcontext():
            outputs = step(leaves)
        refuse_writes.writes(leaves, versions, given, name)
        refuse.hooks(leaves, given, name)
        if inspect is not None:
            inspect(outputs)
        results.extend(outputs)
        flowing = {r: value for r, value in outputs.items() if value.requires_grad and backward}
        cotangents.update((result, further_input(f"ct_{result}", value)) for result, value in flowing.items())
        leads.update((result, _leads_to(value, leaves)) for result, value in flowing.items())
        sources = [leaves[port] for port in wants]
        gradients: Sequence[torch.Tensor | None] = [None] * len(sources)
        if flowing and sources:
            gradients = torch.autograd.grad(
                list(flowing.values()), sources, list(cotangents.values()), allow_unused=True
            )
        gradients_found[:] = [gradient is not None for gradient in gradients]
        return [*(outputs[result] for result in results), *(g for g in gradients if g is not None)]

    with refuse.while_tracing(name), enable_python_dispatcher(), fakes.mode, torch.enable_grad(), _unchosen():
        recorded = (record_anything if lines else record)(both, [*example.values()], _apart())
        refuse.guards(fakes.env, name, PRETENDED_BATCH, parts.asked)
        if any(map(is_write, recorded.graph.nodes)):
            refuse_writes.writes_in_graph(recorded.graph, [*example], given, refuse.place_of(name))
            if not without_plain_writes(recorded.graph):
                recorded = without_writes(recorded, [*example.values(), *cotangents.values()])
    where = refuse.place_of(name)
    refuse.strides(recorded.graph, where)
    placed = {result: f"ct_{result}" for result in cotangents}
    names = [*example, *placed.values()]
    graph, captured = _named(recorded, names, fakes, where, met)
    named = graphs.results_of(graph)
    keys = list(named)
    flowing_to = [port for port, flows in zip(wants, gradients_found, strict=True) if flows]
    joint_results = dict(zip([*results, *map(_gradient, flowing_to)], keys, strict=True))
    _rename_results(graph, {key: new for new, key in joint_results.items()})
    # Before anything goes that nobody reads: a draw has its number from all of them.
    drawn = noise.lift(graph, where)
    gone = without_unchanging(graph, whole=forward)
    normalise(graph)
    if batch_slow(graph):
        normalise(graph)
    graph = graphs.renamed(graph)
    mark_primal(graph, set(placed.values()))
    final = graphs.results_of(graph)
    if not twice:
        refuse.mixing(graphs.extract(graph, {result: final[result] for result in results}), where)
    results = [result for result in results if result not in gone]
    return Joint(
        graph,
        {result: final[result].name for result in results},
        {result: port for result, port in placed.items() if result not in gone},
        {port: _gradient(port) if _gradient(port) in final else None for port in wants},
        {result: sources for result, sources in leads.items() if result not in gone},
        tuple(drawn),
        tuple(captured),
    )


def _leads_to(value: torch.Tensor, leaves: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """The inputs of a step that a result's gradient flows to, by the graph that autograd has made of it."""
    names = {id(leaf): port for port, leaf in leaves.items()}
    if value.grad_fn is None:
        return frozenset(names[i] for i in (id(value),) if i in names)
    inputs: set[str] = set()
    seen, pending = {value.grad_fn}, [value.grad_fn]
    while pending:
        function = pending.pop()
        leaf = names.get(id(getattr(function, "variable", None)))
        if leaf is not None:
            inputs.add(leaf)
        for source, _ in function.next_functions:
            if source is not None and source not in seen:
                seen.add(source)
                pending.append(source)
    return frozenset(inputs)


def _leaves(tensors: Mapping[str, torch.Tensor], ports: Sequence[InPort]) -> dict[str, torch.Tensor]:
    """Detached copies that want gradients wherever their dtype allows one."""
    kinds = {port.name: port.differentiable for port in ports}
    return {name: value.detach().requires_grad_(kinds[name]) for name, value in tensors.items()}


@contextlib.contextmanager
def _unchosen() -> Iterator[None]:
    """For a convolution torch asks how large the batch is, on fake tensors too, if oneDNN or NNPACK is to be chosen."""
    # This one flag alone, which mkldnn's own `flags` would not do, and also where assigning to it is forbidden.
    set_flags: Any = torch.backends.mkldnn.set_flags
    oneDNN, *_ = set_flags(_enabled=False, _fp32_precision=None)
    try:
        with torch.backends.nnpack.flags(enabled=False), _as_written():
            yield
    finally:
        set_flags(_enabled=oneDNN, _fp32_precision=None)


@contextlib.contextmanager
def _as_written() -> Iterator[None]:
    """Inside, einsum takes its operands in order: opt_einsum would ask how large the batch is."""
    backend: Any = torch.backends.opt_einsum
    before, backend.enabled = backend.enabled, False
    try:
        yield
    finally:
        backend.enabled = before


def _named(
    recorded: Recorded,
    names: Sequence[str],
    fakes: Fakes,
    where: Callable[[fx.Node], str],
    met: Mapping[str, torch.Tensor],
) -> tuple[fx.Graph, list[tuple[InPort, torch.Tensor]]]:
    """Copy a traced graph: placeholders get the ports' names, sizes become multiples of `rows`, and tensors that the
    cell found somewhere else become constant ports."""
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    captured: list[tuple[InPort, torch.Tensor]] = []
    inputs, taken = iter(names), set(names)
    values = {n: recorded.found[str(n.target)] for n in recorded.graph.nodes if n.op == "get_attr"}
    known_as = _met_again(values, {name: old for name, old in met.items() if name in taken})
    for node in recorded.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graphs.add_placeholder(new, next(inputs), node.meta["val"])
        elif node.op == "get_attr":
            value = values[node]
            if value.requires_grad:
                raise refuse.captured_gradient(where(node), value)
            name = known_as.get(node)
            if name is not None:
                copies[node] = graphs.placeholder(new, name)
                continue
            word = identifier(f"captured_{len(captured)}", taken)
            port = InPort(
                word, Kind.CONSTANT, tuple(value.shape), value.dtype, value.device, False,
                f"captured tensor {len(captured)}",
            )  # fmt: skip
            copies[node] = graphs.add_placeholder(new, port.name, fakes.like(port))
            captured.append((port, value))
    size = graphs.add_placeholder(new, ROWS, fakes.batch)
    multiples: dict[int, fx.Node] = {1: size}
    for node in recorded.graph.nodes:
        if node.op == "output":
            flat = pytree.tree_leaves(node.args[0])
            new.output({f"r{i}": copies[leaf] for i, leaf in enumerate(flat)})
        elif node.op == "call_function":
            value = node.meta.get("val")
            if isinstance(value, torch.SymInt) and (k := _multiple(value)):
                if k not in multiples:
                    multiples[k] = graphs.insert(new, operator.mul, size, k)
                copies[node] = multiples[k]
                continue
            copies[node] = new.node_copy(node, lambda n: copies[n])
            copies[node].meta = {
                key: node.meta[key] for key in ("val", "stack_trace", MARK) if key in node.meta
            }
            refuse.operation(copies[node], where)
    return new, captured


def _gradient(port: str) -> str:
    """The name of the graph's result that is dL/d(input)."""
    return f"grad {port}"


def _is_one(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same memory."""
    alike = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and a.stride() == b.stride()
    return alike and a.data_ptr() == b.data_ptr()


def _met_again(values: Mapping[fx.Node, torch.Tensor], met: Mapping[str, torch.Tensor]) -> dict[fx.Node, str]:
    """Which of the tensors that a step found for itself before each one is. What lasts is found by where it lies; what
    the step makes anew at every trace, by its numbers, among those that do not last."""
    names = {n: name for n, v in values.items() for name, old in met.items() if _is_one(old, v)}
    anew = {name: old for name, old in met.items() if name not in names.values()}
    for node, value in values.items():
        if node not in names:
            name = next((name for name, old in anew.items() if _is_alike(old, value)), None)
            if name is not None:
                names[node] = name
    return names


def _is_alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same numbers: what a step writes down, it makes anew at every trace."""
    like = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
    return like and a.device.type != "meta" and bool(torch.equal(a, b))


def _multiple(value: torch.SymInt) -> int:
    try:
        return rows.factor(value)
    except rows.Mixed:
        return 0


def _rename_results(graph: fx.Graph, names: Mapping[str, str]) -> None:
    out = next(node for node in reversed(graph.nodes) if node.op == "output")
    out.args = ({names[key]: value for key, value in out.args[0].items()},)  # type: ignore[union-attr]


def mark_primal(graph: fx.Graph, cotangents: set[str]) -> None:
    """meta["primal"]: the value belongs to the step itself, not to its backward."""
    for node in graph.nodes:
        if node.op == "placeholder":
            node.meta["primal"] = node.target not in cotangents
        elif node.op != "output":
            node.meta["primal"] = all(source.meta["primal"] for source in node.all_input_nodes)
