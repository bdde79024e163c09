"""A circuit at the level of the book: variables, what each is computed from, and by which weights.

A value is a variable if the user's code gave it a name or if it is a nonlinear function of several others; what lies
between two variables is an edge, with the parameters that multiply on the way. Values that say nothing of their own
(`x_r`, a part of U x) are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from elman.circuit.form import ROWS, Circuit, InPort, Kind, OutPort, op_name
from elman.draw.names import NABLA, names

SIGNS = {
    "sigmoid": "σ", "tanh": "tanh", "relu": "relu", "_softmax": "softmax", "_log_softmax": "log softmax",
    "gelu": "gelu", "silu": "silu", "elu": "elu", "softplus": "softplus", "leaky_relu": "relu", "hardtanh": "clip",
    "hardsigmoid": "σ", "clamp": "clip", "sigmoid_backward": "σ′", "tanh_backward": "tanh′",
    "threshold_backward": "relu′", "_softmax_backward_data": "softmax′", "gelu_backward": "gelu′",
    "native_layer_norm_backward": "norm′",
}  # fmt: skip
_LINEAR = {
    "add", "sub", "rsub", "neg", "slice", "getitem", "permute", "view", "reshape", "cat", "mm", "addmm", "bmm",
    "baddbmm", "expand", "clone", "unsqueeze", "squeeze", "select", "split", "split_with_sizes", "sum", "_to_copy",
    "convolution", "embedding", "mean", "stack", "unbind", "chunk", "alias", "transpose", "t",
}  # fmt: skip
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "embedding", "mul", "index", "index_select"}
_MANY = 16  # variables above which those that the code did not name are left out


@dataclass(frozen=True)
class Variable:
    """role: "input", "context" (the same at every step), "noise", "before" (a state's value of the step before),
    "hidden", "sign" (hidden, and named by its operation, as the code has no name for it), "output", "state", "sum" (a
    gradient added up over time), "joint" (a place where lines meet, without a name).
    of: for "before", the variable whose value it is."""

    key: str
    name: str
    role: str
    of: str | None = None
    tip: str = ""

    def at(self, time: str) -> str:
        """`h(3)`; without the time where it is the same at every step, and where tanh(3) would be read otherwise."""
        return self.name if self.role in ("context", "sign") else timed(self.name, time)


@dataclass(frozen=True)
class Influence:
    """One variable is computed from another; weights: the parameters that multiply on the way; factors: other
    variables that do (in an adjoint)."""

    source: str
    target: str
    weights: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return ", ".join((*self.weights, *self.factors))


@dataclass(frozen=True)
class Equations:
    """The step of a circuit as variables and influences.

    reverse: time runs backward. back: it is an adjoint, whose signals run from the output to the input.
    """

    name: str
    variables: tuple[Variable, ...]
    influences: tuple[Influence, ...]
    reverse: bool = False
    parameters: tuple[str, ...] = ()
    back: bool = False

    def of(self, key: str) -> Variable:
        return next(variable for variable in self.variables if variable.key == key)


def word(path: str) -> str:
    """The user's word for a tensor, `U` for `cell.U.weight`."""
    return path.removeprefix("cell.").removesuffix(".weight")


@dataclass
class _Reader:
    """What is known of a graph while it is read."""

    circuit: Circuit
    names: dict[fx.Node, str]
    data: set[fx.Node] = field(default_factory=set)  # what carries signals, of which the picture tells
    steady: set[fx.Node] = field(default_factory=set)  # what is made of parameters alone
    anchors: dict[fx.Node, str] = field(default_factory=dict)
    memo: dict[fx.Node, dict[fx.Node, tuple[tuple[fx.Node, ...], bool]]] = field(default_factory=dict)

    def sources(self, node: fx.Node) -> dict[fx.Node, tuple[tuple[fx.Node, ...], bool]]:
        """Nearest variables that an operation is computed from -> (what multiplies on the way, whether bent)."""
        nearest: dict[fx.Node, tuple[tuple[fx.Node, ...], bool]] = {}
        operands = [source for source in node.all_input_nodes if source in self.data]
        others = [source for source in node.all_input_nodes if source not in self.data and not _size(source)]
        product = op_name(node) in _PRODUCTS
        weights = tuple(others) if product else ()
        if op_name(node) in ("addmm", "baddbmm"):  # what is added is no factor
            weights = tuple(other for other in others if other is not node.args[0])
        bent = op_name(node) not in _LINEAR and not (product and len(operands) == 1)
        for operand in operands:
            through = {operand: ((), False)} if operand in self.anchors else self.between(operand)
            own = () if op_name(node) in ("addmm", "baddbmm") and operand is node.args[0] else weights
            for anchor, (way, was_bent) in through.items():
                before, before_bent = nearest.get(anchor, ((), False))
                met = tuple(dict.fromkeys((*before, *way, *own)))
                nearest[anchor] = (met, before_bent or bent or was_bent)
        return nearest

    def between(self, node: fx.Node) -> dict[fx.Node, tuple[tuple[fx.Node, ...], bool]]:
        if node not in self.memo:
            self.memo[node] = self.sources(node) if node.op == "call_function" else {}
        return self.memo[node]


def _size(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("val"), (torch.Tensor, tuple, list))


def equations(circuit: Circuit) -> Equations:
    """Read a circuit at the level of the book."""
    reader = _Reader(circuit, names(circuit))
    back = any(out.kind is Kind.SUM for out in circuit.outputs) or _gradients(circuit) != set()
    signals = _gradients(circuit) if back else _signals(circuit)
    constants = {port.name for port in circuit.inputs_of(Kind.CONSTANT) if not port.rows}
    for node in circuit.graph.nodes:
        if node.op == "placeholder":
            if node.target in signals:
                reader.data.add(node)
            if node.target in constants or node.target == ROWS:
                reader.steady.add(node)
        elif node.op == "call_function":
            if any(source in reader.data for source in node.all_input_nodes):
                reader.data.add(node)
            if all(source in reader.steady for source in node.all_input_nodes):
                reader.steady.add(node)
    results = _results(circuit)
    for node in circuit.graph.nodes:
        if node not in reader.data or node.op == "output":
            continue
        if node.op == "placeholder" or node in results:
            reader.anchors[node] = "port"
        elif node in reader.names and (not back or reader.names[node].startswith(NABLA)):
            reader.anchors[node] = "named"
        elif op_name(node) in SIGNS:
            reader.anchors[node] = "sign"
    _thin(reader)
    if len(reader.anchors) > _MANY:
        reader.anchors = {node: why for node, why in reader.anchors.items() if why != "sign"}
        _thin(reader)
    return _written(reader, results, back)


def _signals(circuit: Circuit) -> set[str]:
    """Names of the input ports that are no parameters."""
    return {port.name for port in circuit.inputs if port.rows or port.kind is not Kind.CONSTANT}


def _gradients(circuit: Circuit) -> set[str]:
    """Names of the input ports that hold gradients, in an adjoint."""
    return {port.name for port in circuit.inputs if port.cotangent_of is not None}


def _results(circuit: Circuit) -> dict[fx.Node, list[OutPort]]:
    """Node -> the outputs that it is; a node that feeds a state and is no output has none."""
    results: dict[fx.Node, list[OutPort]] = {}
    for out in circuit.outputs:
        results.setdefault(circuit.wire(out.wire), []).append(out)
    for _, node in circuit.delays():
        results.setdefault(node, [])
    return results


def _thin(reader: _Reader) -> None:
    """Leave out variables that say nothing of their own, until none is left."""
    while True:
        reader.memo.clear()
        sources = {node: reader.sources(node) for node in reader.anchors if node.op == "call_function"}
        users: dict[fx.Node, set[fx.Node]] = {}
        for node, nearest in sources.items():
            for source in nearest:
                users.setdefault(source, set()).add(node)
        drop = _drop(reader, sources, users)
        if drop is None:
            return
        del reader.anchors[drop]


def _drop(
    reader: _Reader,
    sources: Mapping[fx.Node, Mapping[fx.Node, tuple[tuple[fx.Node, ...], bool]]],
    users: Mapping[fx.Node, set[fx.Node]],
) -> fx.Node | None:
    for node, nearest in sources.items():
        kind = reader.anchors[node]
        if kind == "port":
            continue
        if not users.get(node):
            return node  # nothing that is drawn is computed from it
        source, (weights, bent) = next(iter(nearest.items()), (None, ((), False)))
        if len(nearest) == 1 and source is not None:
            if not bent and (source.op == "placeholder" or not weights):
                return node  # a part of U x, or the same value in another shape
            if kind == "sign" and not any(weight in reader.steady for weight in weights):
                return node
    for node, nearest in sources.items():
        if len(nearest) != 1:
            continue
        (source, (weights, _)), kind = next(iter(nearest.items())), reader.anchors[node]
        if not weights and source.op == "call_function" and users.get(source) == {node}:
            if reader.anchors[source] != "port":
                return source  # a of h = tanh(a)
            if kind != "port":
                return node
    return None


def _written(reader: _Reader, results: Mapping[fx.Node, list[OutPort]], back: bool) -> Equations:
    """The variables and influences of what is left."""
    circuit = reader.circuit
    delays = dict(circuit.delays())
    states = {node: port for port, node in delays.items()}
    ports = {port.name: port for port in circuit.inputs}
    key: dict[fx.Node, str] = {}
    variables: list[Variable] = []
    taken: set[str] = set()

    def add(node: fx.Node, name: str, role: str, of: str | None = None, tip: str = "") -> None:
        key[node] = node.name
        taken.add(name)
        variables.append(Variable(node.name, name, role, of, tip))

    used = {
        source for node in reader.anchors if node.op == "call_function" for source in reader.sources(node)
    }
    for node in reader.anchors:
        outs = results.get(node, [])
        if node.op == "placeholder":
            port = ports[str(node.target)]
            if port.kind is Kind.STATE:
                if node in used or node in results:
                    feeds = delays.get(port)
                    add(
                        node,
                        _state_word(reader, port.name, back),
                        "before",
                        None if feeds is None else feeds.name,
                    )
            elif node in used or node in results or port.kind is Kind.SEQUENCE:
                role = {Kind.NOISE: "noise", Kind.CONSTANT: "context"}.get(port.kind, "input")
                add(node, _input_word(reader, node, port, back), role, tip=port.path)
        elif node in states and not any(out.kind is Kind.SEQUENCE for out in outs) and back:
            add(node, "", "joint")
        elif node in states:
            add(node, _state_word(reader, states[node].name, back), "state", tip=states[node].path)
        elif outs:
            out = outs[0]
            if out.kind is Kind.SUM:
                name = ", ".join(NABLA + word(one.path.removeprefix("gradient of ")) for one in outs)
                add(node, name, "sum", tip=out.path)
            elif back:
                called = reader.names.get(node, "")
                name = (
                    called
                    if called.startswith(NABLA)
                    else NABLA + word(out.path.removeprefix("gradient of "))
                )
                add(node, name, "output", tip=out.path)
            else:
                name = reader.names.get(node) or out.path.replace("output", "o", 1)
                add(node, name, "output", tip=out.path)
        else:
            called = reader.names.get(node)
            sign = SIGNS.get(op_name(node), op_name(node))
            add(node, called or sign, "hidden" if called else "sign", tip=op_name(node))
    influences, parameters = [], {}
    for node in reader.anchors:
        if node.op != "call_function":
            continue
        for source, (way, _) in reader.sources(node).items():
            weights, factors = _labels(reader, way)
            parameters |= dict.fromkeys(weights)
            if source in key and node in key:
                influences.append(Influence(key[source], key[node], weights, factors))
    if back:  # the numbers that a gradient of a weight is multiplied with name no new colour
        parameters |= {v.name.removeprefix(NABLA): None for v in variables if v.role == "sum"}
    order = [
        word(port.path) for port in circuit.inputs
    ]  # so that a circuit and its adjoint share their colours
    colored = tuple(sorted(parameters, key=lambda name: order.index(name) if name in order else len(order)))
    eq = Equations(circuit.name, tuple(variables), tuple(influences), circuit.reverse, colored, back)
    return _gathered(eq)


def _labels(reader: _Reader, way: Iterable[fx.Node]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(parameters, other values) among what multiplies on the way, each by its name."""
    paths = {port.name: port.path for port in reader.circuit.inputs}
    weights: dict[str, None] = {}
    factors: dict[str, None] = {}
    for node in way:
        stack, into = [node], weights if node in reader.steady else factors
        while stack:
            one = stack.pop()
            if one.op == "placeholder":
                path = paths.get(str(one.target), "")
                called = reader.names.get(one) or (
                    _state_port_word(path, one.name) if path.startswith("state") else one.name
                )
                if one.target != ROWS:
                    into[word(path) if into is weights else called] = None
            elif into is factors and one in reader.names:
                into[reader.names[one]] = None
            elif into is weights or len(one.all_input_nodes) == 1:
                stack += one.all_input_nodes[::-1]
    return tuple(weights), tuple(factors)


def _state_word(reader: _Reader, name: str, back: bool) -> str:
    """The name of a state: what the code calls its new or its old value, whichever is shorter; else its port's."""
    circuit = reader.circuit
    port = circuit.input(name)
    old = next((n for n in reader.anchors if n.op == "placeholder" and n.target == name), None)
    new = circuit.wire(port.next) if port.next is not None else None
    taught = new is not None and new.op == "placeholder"  # a teacher feeds it, whose name is its own
    called = [reader.names[node] for node in (None if taught else new, old) if node in reader.names]
    if back:
        of = port.path.removeprefix("gradient of final ")
        gradient = NABLA + _state_port_word(of, (port.cotangent_of or name).removesuffix("_final"))
        return next((n for n in called if n.startswith(NABLA)), gradient)
    return min(called, key=len) if called else _state_port_word(port.path, name)


def _state_port_word(path: str, name: str) -> str:
    leaf = path.removesuffix(" before each step").removeprefix("state")
    return "h" if not leaf else leaf.split("'")[-2] if "'" in leaf else name


def _input_word(reader: _Reader, node: fx.Node, port: InPort, back: bool) -> str:
    if port.teaches is not None:
        return port.path.replace("teacher", "y", 1)
    if back and reader.names.get(node, "").startswith(NABLA):
        return reader.names[node]
    if back:
        path = port.path.removeprefix("gradient of ")
        return NABLA + (path.replace("output", "o", 1) if path.startswith("output") else path)
    return reader.names.get(node) or (port.path.split("'")[-2] if "'" in port.path else port.path)


def _gathered(eq: Equations) -> Equations:
    """Where every one of several variables acts on every one of several others, the lines meet in between."""
    into: dict[str, dict[str, Influence]] = {}
    for influence in eq.influences:
        into.setdefault(influence.target, {})[influence.source] = influence
    groups: dict[frozenset[str], list[str]] = {}
    for target, acting in into.items():
        groups.setdefault(frozenset(acting), []).append(target)
    for sources, targets in groups.items():
        if len(sources) < 2 or len(targets) < 2 or len(sources) * len(targets) < 6:
            continue
        labels = {(s, t): (into[t][s].weights, into[t][s].factors) for s in sources for t in targets}
        by_source = all(len({labels[s, t] for t in targets}) == 1 for s in sources)
        by_target = all(len({labels[s, t] for s in sources}) == 1 for t in targets)
        if not (by_source or by_target):
            continue
        meet = f"meet {min(targets)}"
        order = [v.key for v in eq.variables]
        sources_in_order = sorted(sources, key=order.index)
        ins = [
            Influence(s, meet, *(labels[s, targets[0]] if by_source else ((), ()))) for s in sources_in_order
        ]
        outs = [
            Influence(meet, t, *(((), ()) if by_source else labels[sources_in_order[0], t])) for t in targets
        ]
        kept = [i for i in eq.influences if not (i.target in targets and i.source in sources)]
        eq = Equations(
            eq.name,
            (*eq.variables, Variable(meet, "", "joint")),
            (*kept, *ins, *outs),
            eq.reverse,
            eq.parameters,
            eq.back,
        )
    return eq


def timed(name: str, time: str) -> str:
    """`h(3)`; nothing where there is no name."""
    return f"{name}({time})" if name else ""


def said(eq: Equations, steps: int | str | None) -> str:
    """The picture in words."""
    when = "folded" if steps is None else f"unfolded for {steps} time steps" if steps != "…" else "unfolded"
    lines = [f"{eq.name}, {when}; time runs {'backward' if eq.reverse else 'forward'}."]
    for v in eq.variables:
        parts = _parts(eq, v.key)
        if parts and v.name:
            lines.append(f"{v.at('t')} is computed from {', '.join(parts)}.")
    return " ".join(lines)


def _parts(eq: Equations, key: str) -> list[str]:
    parts = []
    for i in eq.influences:
        if i.target != key:
            continue
        source = eq.of(i.source)
        if source.role == "joint" and not source.name:
            parts += _parts(eq, source.key)
            continue
        time = ("t+1" if eq.reverse else "t-1") if source.role == "before" else "t"
        by = f" by {i.label}" if i.label else ""
        parts.append(source.at(time) + by)
    return parts


__all__ = ["SIGNS", "Equations", "Influence", "Variable", "equations", "said", "timed", "word"]
