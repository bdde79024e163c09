"""What a plan says to a reader: what is sequential, and why."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from torch import fx

from elman.circuit import graphs
from elman.circuit.form import Kind, op_name
from elman.circuit.operations import operation_of
from elman.errors import InputTypeError
from elman.plan.cost import bytes_kept
from elman.plan.form import Loop, Plan

_WHEN = {
    "once": "once per call",
    "before": "before the loop, on all T·B rows at once",
    "loop": "in the loop, T times, one step after the other",
    "after": "after the loop, on all T·B rows at once",
}


@dataclass(frozen=True)
class StageSummary:
    """One stage in words: its operations in order with how often each occurs, and how many only address."""

    name: str
    operations: tuple[tuple[str, int], ...]
    addressing: int

    def text(self) -> str:
        words = [f"{count} {name}" if count > 1 else name for name, count in self.operations]
        if self.addressing:
            words.append(
                f"({self.addressing} for addressing)" if words else f"addressing only ({self.addressing})"
            )
        return ", ".join(words) if words else "nothing"


@dataclass(frozen=True, eq=False)
class Explanation:
    """Plans, forward and backward, in words. `str()` for a terminal, `_repr_html_` for a notebook.

    parts: of several layers, the explanation of each under its name; plans then are those of all. memory: what the
    latest call stored under its budget.
    """

    plans: tuple[Plan, ...]
    engine: str | None = None
    parts: tuple[tuple[str, Explanation], ...] = ()
    memory: str | None = None

    @classmethod
    def of(cls, parts: Mapping[str, Explanation]) -> Explanation:
        """The explanation of several layers."""
        return cls(tuple(plan for part in parts.values() for plan in part.plans), None, tuple(parts.items()))

    def _each(self, before: str = "") -> Iterator[tuple[str, Explanation]]:
        """The explanations that are of one layer alone, with their full names."""
        for name, part in self.parts:
            if part.parts:
                yield from part._each(f"{before}{name}, ")
            else:
                yield f"{before}{name}", part

    def __str__(self) -> str:
        if self.parts:
            return "\n\n".join(f"{name}\n\n{part}" for name, part in self._each())
        blocks = []
        for plan in self.plans:
            lines = [_title(plan), ""]
            for part in parts(plan):
                lines.append(f"  {part.name:7} {_WHEN[part.name]}")
                lines += [f"          {line}" for line in _wrap(part.text(), 100)]
            lines += ["", *(f"  {line}" for line in why(plan))]
            blocks.append("\n".join(lines))
        if self.engine is not None:
            blocks.append(f"engine: {self.engine}")
        if self.memory is not None:
            blocks.append("\n".join(_wrap(f"memory: {self.memory}", 100)))
        return "\n\n".join(blocks)

    def _repr_html_(self) -> str:
        if self.parts:
            return "".join(f"<h4>{html.escape(name)}</h4>{part._repr_html_()}" for name, part in self._each())
        rows = []
        for plan in self.plans:
            rows.append(f"<tr><th colspan=3 style='text-align:left'>{html.escape(_title(plan))}</th></tr>")
            for part in parts(plan):
                shade = " style='background:#fdeccf'" if part.name == "loop" else ""
                cells = (f"<b>{part.name}</b>", html.escape(_WHEN[part.name]), html.escape(part.text()))
                rows.append(
                    f"<tr{shade}>" + "".join(f"<td style='text-align:left'>{c}</td>" for c in cells) + "</tr>"
                )
            reasons = "<br>".join(html.escape(line) for line in why(plan))
            rows.append(f"<tr><td></td><td colspan=2 style='text-align:left'>{reasons}</td></tr>")
        if self.engine is not None:
            rows.append(
                f"<tr><td>engine</td><td colspan=2 style='text-align:left'>{html.escape(self.engine)}</td></tr>"
            )
        if self.memory is not None:
            rows.append(
                f"<tr><td>memory</td><td colspan=2 style='text-align:left'>{html.escape(self.memory)}</td></tr>"
            )
        return f"<table>{''.join(rows)}</table>"


@runtime_checkable
class Explains(Protocol):
    """A layer or a model, which explains itself once it has been called."""

    def explain(self) -> Explanation: ...


def explain(*things: Plan | Explains) -> Explanation:
    """What runs once, before, in and after the loop of plans, and why: print it, or show it in a notebook.

    things: plans, or one layer or model after a call. Raises InputTypeError for anything else, StateError for a layer
    before any call.
    """
    if len(things) == 1 and isinstance(things[0], Explains):
        return things[0].explain()
    for thing in things:
        if not isinstance(thing, Plan):
            raise InputTypeError(
                what="what is explained is a plan, or one layer or model", where="explain(…)", got=type(thing).__name__,
                mend="elman.plan(circuit) gives a plan",
            )  # fmt: skip
    return Explanation(cast("tuple[Plan, ...]", things))


def parts(plan: Plan) -> list[StageSummary]:
    """The four stages of a plan in words; a plan without a loop has three."""
    stages = []
    origin, makers = _origins(plan), _makers(plan)
    for name, stage in (
        ("once", plan.once),
        ("before", plan.before),
        ("loop", plan.loop),
        ("after", plan.after),
    ):
        if stage is None:
            continue
        nodes = stage.nodes()
        computing = Counter(
            _label(node, origin, makers) for node in nodes if not operation_of(node).addresses
        )
        addressing = sum(operation_of(node).addresses for node in nodes)
        stages.append(StageSummary(name, tuple(computing.items()), addressing))
    return stages


def _origins(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Value of the once stage -> the parameters that it is made of."""
    constants = {port.name: port.path for port in plan.circuit.inputs_of(Kind.CONSTANT)}
    origins: dict[str, tuple[str, ...]] = {
        name: (path.removeprefix("cell."),) for name, path in constants.items()
    }
    for name, node in graphs.results_of(plan.once.graph).items():
        names = [
            str(n.target) for n in graphs.ancestors([node]) if n.op == "placeholder" and n.target in constants
        ]
        origins[name] = tuple(constants[n].removeprefix("cell.") for n in sorted(names))
    return origins


def _makers(plan: Plan) -> dict[fx.Node, str]:
    """Operation outside the loop -> the output that it makes, where nothing but addressing lies between."""
    makers: dict[fx.Node, str] = {}
    for out, name in plan.outputs.items():
        for stage in reversed(plan.stages()):
            node = graphs.results_of(stage.graph).get(name)
            while node is not None and operation_of(node).addresses and len(node.all_input_nodes) == 1:
                node = node.all_input_nodes[0]
            if node is not None and node.op == "placeholder":
                name = str(node.target)  # made by a stage before
            elif node is not None:
                makers.setdefault(node, out)
                break
    return makers


def _label(node: fx.Node, origin: dict[str, tuple[str, ...]], makers: dict[fx.Node, str]) -> str:
    """The operation; for a product the weights that it multiplies with, `addmm[U, b]`; what it makes, `d_W = mm`."""
    name = op_name(node)
    if operation_of(node).contracts is not None:
        weights: dict[str, None] = {}
        for source in (*node.all_input_nodes[1:], node.all_input_nodes[0]):  # addmm's start comes last
            while operation_of(source).addresses and len(source.all_input_nodes) == 1:
                source = source.all_input_nodes[0]
            if source.op == "placeholder":
                weights |= dict.fromkeys(origin.get(str(source.target), ()))
        name = f"{name}[{', '.join(weights)}]" if weights else name
    return f"{makers[node]} = {name}" if node in makers else name


def why(plan: Plan) -> list[str]:
    """Sentences: which cycles make the loop sequential, what else is in it and why, what is kept."""
    sentences = []
    if plan.loop is None:
        sentences.append("no cycle is left: nothing waits for the step before, all T steps run at once")
    else:
        for state, way in cycles(plan.loop):
            sentences.append(f"{state} waits for its own last value: {' → '.join([state, *way, state])}")
        for node, reason in plan.reasons.items():
            sentences.append(f"{node} is in the loop because {reason}")
    kept = [out.kept for out in plan.circuit.outputs if out.kept is not None]
    if kept:
        names = ", ".join(kept)
        sentences.append(
            f"kept for the backward pass, {bytes_kept(plan.circuit)} bytes per row and step: {names}"
        )
    return sentences


def cycles(loop: Loop) -> list[tuple[str, list[str]]]:
    """For each state of a loop that depends on itself, the longest way round: the operations it passes."""
    results = graphs.results_of(loop.graph)
    inputs = {str(node.target): node for node in loop.graph.nodes if node.op == "placeholder"}
    ends = {s.name: results[s.next] for s in loop.states if s.next is not None and s.name in inputs}
    ways = []
    for name in ends:
        way = _way(loop, inputs, ends, name)
        if way is not None:
            ways.append((name, way))
    return ways


def _way(loop: Loop, inputs: dict[str, fx.Node], ends: dict[str, fx.Node], name: str) -> list[str] | None:
    """The operations from a state to what feeds it: in one step if it can be, else through the other states."""
    ways: dict[str, list[str]] = {name: []}
    for _ in ends:
        longer: dict[str, list[str]] = {}
        for state, so_far in ways.items():
            longest = _longest(loop.graph, inputs[state])
            for other, end in ends.items():
                if end in longest:
                    way = [*so_far, *([state] if state != name else []), *longest[end]]
                    longer.setdefault(other, way)
        if name in longer:
            return longer[name]
        if set(longer) <= set(ways):
            return None
        ways = longer | ways
    return None


def _longest(graph: fx.Graph, start: fx.Node) -> dict[fx.Node, list[str]]:
    """Node that depends on `start` -> the longest chain of operations that compute, from there to it."""
    ways: dict[fx.Node, list[str]] = {start: []}
    for node in graph.nodes:
        before = [ways[source] for source in node.all_input_nodes if source in ways]
        if before and node.op == "call_function":
            own = [] if operation_of(node).addresses else [op_name(node)]
            ways[node] = max(before, key=len) + own
    return ways


def _title(plan: Plan) -> str:
    direction = "time runs backward" if plan.circuit.reverse else "time runs forward"
    count = len(plan.loop.nodes()) if plan.loop is not None else 0
    return f"{plan.circuit.name}: {count} operations in the loop, {direction}"


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split(", "):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word + ", "
    return [line.removesuffix(" ") for line in (*lines[:-1], lines[-1].removesuffix(", "))]


__all__ = ["Explanation", "StageSummary", "cycles", "explain", "parts", "why"]
