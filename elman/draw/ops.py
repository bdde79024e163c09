"""Every operation of a circuit as a box, grouped by when it runs: once, before, in and after the loop; or by steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.form import ROWS, Circuit, Kind, is_transposition, op_name
from elman.draw.connect import connect
from elman.draw.layered import Link, Size, layered
from elman.draw.lines import bent
from elman.draw.measure import width
from elman.draw.names import NABLA, listen, values
from elman.draw.scene import Box, Edge, Group, Node, Scene, Text
from elman.draw.sentences import cut, operands_of, sentence, shape_of
from elman.draw.variables import word
from elman.draw.words import Saying, label_size
from elman.errors import NotSupported
from elman.plan import Loop
from elman.plan import plan as plan_of
from elman.plan.form import TIMELINE
from elman.unfold import unfold

_WHEN = {
    "once": "once per call",
    "before": "all steps at once",
    "loop": "step by step",
    "after": "all steps at once",
}
_SILENT = {
    "slice", "reshape", "permute", "expand", "unsqueeze", "squeeze", "select", "getitem", "view", "clone", "_to_copy",
}  # fmt: skip
MOST = 8  # steps that are drawn with all their operations
_NEAR = 3  # rows that a line crosses
_NOTE, _NAME = 12.0, 14.0


@dataclass
class _Operation:
    """A box to be: what it says, where it belongs, and (source, shape) for each line that comes in.

    name: what the code calls its value. node, words: of an operation, whose operands have a word, or None for a line.
    """

    key: str
    stage: int
    kind: str
    label: str = ""
    sources: list[tuple[str, str]] = field(default_factory=list)
    name: str = ""
    node: fx.Node | None = None
    words: list[str | None] = field(default_factory=list)

    @property
    def text(self) -> str:
        text = self.label if self.node is None else sentence(self.node, self.words)
        return f"{self.name} = {text}" if self.name and self.node is not None else text


@dataclass
class _Sheet:
    """What is gathered from a plan or an unfolded graph before it is laid out."""

    stages: list[tuple[str, str]]
    operations: dict[str, _Operation] = field(default_factory=dict)
    delays: list[tuple[str, str]] = field(default_factory=list)


def planned(circuit: Circuit) -> Scene:
    """The operations of a circuit's plan, and the delays of its loop."""
    plan, heard = plan_of(circuit), listen(circuit)
    sheet = _Sheet(list(_WHEN.items()))
    ports = {port.name: port for port in circuit.inputs}
    value: dict[str, Any] = dict(heard.inputs) | {TIMELINE: _OneStep()}
    reads: dict[str, Any] = {
        port.name: word(port.path) for port in circuit.inputs_of(Kind.CONSTANT) if not port.rows
    }
    for number, stage in enumerate((plan.once, plan.before, plan.loop, plan.after)):
        if stage is None:
            continue
        computed, named = _evaluated(heard, stage.graph, value)
        if isinstance(stage, Loop):
            for state in stage.states:
                key = f"state {state.name}"
                made_of = graphs.results_of(stage.graph).get(state.next or "")
                held = [n for n in stage.graph.nodes if n.op == "placeholder" and n.target == state.name]
                name = next((named[node] for node in (*held, made_of) if node in named), "")
                sheet.operations[key] = _Operation(
                    key, number, "delay", name or _port_word(ports.get(state.name))
                )
                reads[state.name] = key
        reader = _Stage(sheet, number, reads, named, "N" if number in (1, 3) else "B")
        for node in stage.graph.nodes:
            reader.read(node, ports)
        for name, node in graphs.results_of(stage.graph).items():
            reads[name] = reader.at.get(node)
            value[name] = computed.get(node)
        if isinstance(stage, Loop):
            for name in stage.sums:
                reads[f"{name} summed"], value[f"{name} summed"] = reads[name], value[name]
            for state in stage.states:
                end = reads.get(state.next) if state.next is not None else None
                reads[f"{state.name} final"], value[f"{state.name} final"] = end, value.get(str(state.next))
                if end is not None and end in sheet.operations:
                    sheet.delays.append((end, f"state {state.name}"))
    for out in circuit.outputs:
        end = reads.get(plan.outputs[out.name])
        if out.kind is not Kind.STATE and end in sheet.operations:
            label = (
                NABLA + word(out.path.removeprefix("gradient of ")) if "gradient of" in out.path else out.path
            )
            key = f"out {out.name}"
            sheet.operations[key] = _Operation(key, len(sheet.stages), "output", label, [(end, "")])
    return _drawn(sheet, f"{circuit.name}, operations", circuit.reverse)


def unfolded(circuit: Circuit, steps: int) -> Scene:
    """The operations of `steps` copies of the step; NotSupported for more than `MOST`."""
    if steps > MOST:
        raise NotSupported(
            what="so many steps with all their operations are too large a picture", where="draw(unfold=, level='ops')",
            got=steps, expected=f"at most {MOST}", mend="level='book' draws any number",
        )  # fmt: skip
    graph = unfold(circuit, steps).graph
    order = range(steps - 1, -1, -1) if circuit.reverse else range(steps)
    place = {t: i for i, t in enumerate(order)}
    sheet = _Sheet([(f"t = {t + 1}", "") for t in order])
    ports = {f"{p.name}_t{t}": p for p in circuit.inputs for t in order} | {p.name: p for p in circuit.inputs}
    reads: dict[str, Any] = {p.name: word(p.path) for p in circuit.inputs_of(Kind.CONSTANT) if not p.rows}
    names = {node.name: name for node, name in listen(circuit).names(circuit.graph).items()}
    states = {p.name: circuit.wire(p.next).name for p in circuit.inputs_of(Kind.STATE) if p.next is not None}
    start = f"({steps + 1})" if circuit.reverse else "(0)"
    readers = {t: _Stage(sheet, place[t], reads, {}, "B", f"({t + 1})", start) for t in order}
    at: dict[fx.Node, str | None] = {}
    for node in graph.nodes:
        base, _, t = node.name.rpartition("_t")
        step = int(t) if t.isdigit() and base else order[0] if order else 0
        if node.op == "call_function" and not (t.isdigit() and base):  # a sum over the steps
            used = [n.name.rpartition("_t")[2] for n in node.all_input_nodes]
            step = min(int(u) for u in used if u.isdigit()) if any(u.isdigit() for u in used) else order[-1]
        reader = readers[step]
        reader.at = at
        if node.op == "placeholder" and (called := names.get(states.get(node.name, ""))):
            reader.named[node] = called
        if t.isdigit() and base in names:  # a sum over the steps has no name of the step's
            reader.named[node] = names[base]
        reader.read(node, ports)
    for name, node in graphs.results_of(graph).items():
        out = next(
            (o for o in circuit.outputs if name in (o.name, f"{o.name}_t{name.rpartition('_t')[2]}")), None
        )
        end = at.get(node)
        if (
            out is not None
            and out.kind is not Kind.STATE
            and end in sheet.operations
            and out.kind is Kind.SUM
        ):
            label = NABLA + word(out.path.removeprefix("gradient of "))
            sheet.operations[f"out {name}"] = _Operation(
                f"out {name}", steps, "output", label, [(str(end), "")]
            )
    return _drawn(sheet, f"{circuit.name}, operations of {steps} steps", circuit.reverse)


class _OneStep:
    """The timeline of a call of one step, to run a plan's stages on the numbers of one step."""

    def shift(self, value: Any, initial: Any) -> Any:
        return torch.zeros_like(value) if initial is None else initial

    def spread(self, value: Any, dim: int) -> Any:
        return value

    def total(self, value: Any) -> Any:
        return value

    def last(self, value: Any, initial: Any) -> Any:
        return value

    def times(self, value: Any, rows: bool) -> Any:
        return value


def _evaluated(
    heard, graph: fx.Graph, inputs: Mapping[str, Any]
) -> tuple[dict[fx.Node, Any], dict[fx.Node, str]]:  # type: ignore[no-untyped-def]
    """The values of a stage on the numbers heard, and the names of those that variables held; nothing if it fails."""
    try:
        return values(graph, inputs), heard.names(graph, inputs)
    except Exception:  # numbers that mean nothing, in code that may raise anything
        return {}, {}


def _port_word(port: Any) -> str:
    if port is None:
        return ""
    if port.path.startswith("gradient of"):
        of = word(port.path.removeprefix("gradient of ").removeprefix("final "))
        return NABLA + ("h" if of == "state" else of)
    return port.path if not port.path.startswith("state") else port.name


class _Stage:
    """Reads the nodes of one stage into boxes.

    reads: name of a value made before -> the key of its box, or the words for one that needs none, as `Uᵀ`.
    """

    def __init__(
        self, sheet: _Sheet, number: int, reads: dict[str, Any], named: dict[fx.Node, str], rows: str,
        suffix: str = "", start: str = "",
    ) -> None:  # fmt: skip
        self.sheet, self.number, self.reads, self.named = sheet, number, reads, named
        self.rows, self.suffix, self.start = rows, suffix, start
        self.at: dict[fx.Node, str | None] = {}

    def read(self, node: fx.Node, ports: Mapping[str, Any]) -> None:
        if node.op == "placeholder" and node.target not in (ROWS, TIMELINE):
            self.at[node] = self._input(node, ports)
        elif node.op == "call_function" and isinstance(node.meta.get("val"), (torch.Tensor, tuple, list)):
            self.at[node] = self._operation(node)

    def _input(self, node: fx.Node, ports: Mapping[str, Any]) -> str | None:
        name = str(node.target)
        if name not in self.reads:
            port = ports.get(name)
            key, suffix = f"in {name}", self.suffix
            if port is not None and port.kind in (Kind.STATE, Kind.CONSTANT):
                suffix = self.start if port.kind is Kind.STATE else ""
            if port is not None and port.kind is Kind.SEQUENCE and port.path.endswith("before each step"):
                suffix = f"({_before(self.suffix)})"
            label = (self.named.get(node) or _port_word(port)) + suffix
            self.sheet.operations[key] = _Operation(key, self.number, "input", label, name=label)
            self.reads[name] = key
        return self.reads[name]

    def _operation(self, node: fx.Node) -> str:
        """The key of its box; words alone where it only turns or cuts a parameter."""
        boxes = self.sheet.operations
        operands = [
            (source, self.at.get(source)) for source in operands_of(node) if self.at.get(source) is not None
        ]
        silent = op_name(node) in _SILENT and len(operands) == 1
        if silent and operands[0][1] not in boxes:
            parameter = str(operands[0][1])
            return f"{parameter}ᵀ" if is_transposition(node) else f"{parameter}{cut(node)}"
        if silent:
            return str(operands[0][1])
        if op_name(node) == "scalar_tensor" and isinstance(node.args[0], (int, float)):
            return f"{node.args[0]:g}"
        key, name = f"{self.number} {node.name}", self.named.get(node)
        box = _Operation(
            key, self.number, "operation", node=node, name=f"{name}{self.suffix}" if name else ""
        )
        for source, at in operands:
            line = at in boxes and at is not None
            box.words.append(None if line else str(at))
            if line:
                box.sources.append((str(at), shape_of(source, self.rows)))
        boxes[key] = box
        return key


def _before(suffix: str) -> str:
    """The time of the step before that of a suffix, `(3)`."""
    t = suffix.strip("()")
    return str(int(t) - 1) if t.isdigit() else "t-1"


def _drawn(sheet: _Sheet, title: str, reverse: bool) -> Scene:
    """Rows of boxes, a frame round every stage, the delays on the right."""
    boxes = sheet.operations
    _read_by_name(boxes, _rows(boxes, len(sheet.stages) + 1))
    used = {source for one in boxes.values() for source, _ in one.sources} | {end for end, _ in sheet.delays}
    used |= {key for key, one in boxes.items() if one.kind == "output"}
    boxes = {key: one for key, one in boxes.items() if key in used or one.sources}
    ranks = _rows(boxes, len(sheet.stages) + 1)
    sizes = {key: _size(one) for key, one in boxes.items()}
    links, labels, seen = [], [], set()
    for key, one in boxes.items():
        for source, shape in dict(one.sources).items():
            label = shape if (source, shape, ranks[key]) not in seen else ""
            links.append(Link(source, key, label_size(label, _NOTE)))
            labels.append(label)
            seen.add((source, shape, ranks[key]))
    delays = [key for key, one in boxes.items() if one.kind == "delay"]
    placed = layered(sizes, links, ranks=ranks, last=delays, row_gap=26)
    nodes = {key: _node(one, *placed.places[key], sizes[key]) for key, one in boxes.items()}
    bends = [
        (nodes[end].box.bottom + 7 + 3 * (number % 2), nodes[start].box.top - 8 - 5 * number)
        for number, (end, start) in enumerate(sheet.delays)
    ]
    free = [
        Box(nodes[key].x, y - 3, 1e6, y + 3)
        for ends, bend in zip(sheet.delays, bends, strict=True)
        for key, y in zip(ends, bend, strict=True)
    ]
    edges, _ = connect(
        [(link.source, link.target) for link in links],
        placed,
        nodes,
        [Saying(label, _NOTE, shared=True) for label in labels],
        free,
    )
    left = min((node.box.left for node in nodes.values()), default=0.0)
    groups, lines = [], []
    flat_boxes = [Box(min(x for x, _ in e.points), 0, max(x for x, _ in e.points), 0) for e in edges]
    right = max([node.box.right for node in nodes.values()] + [box.right for box in flat_boxes], default=0.0)
    right = max([right, *(text.box.right for edge in edges for text in edge.texts)])
    left = min([left, *(box.left for box in flat_boxes)])
    room = 24 + 12 * len(sheet.delays)
    heading = max((width(text, 13) for pair in sheet.stages for text in pair), default=0) + 30
    for number, (end, start) in enumerate(sheet.delays):
        x = right + 14 + 12 * number
        a, b = nodes[end], nodes[start]
        low, high = bends[number]
        way = [(a.x, a.box.bottom), (a.x, low), (x, low), (x, high), (b.x, high), (b.x, b.box.top)]
        lines.append(Edge(a.id, b.id, bent(way, 5), dashed=True))
    for number, (name, when) in enumerate(sheet.stages):
        members = [nodes[key] for key, one in boxes.items() if one.stage == number and one.kind != "input"]
        members = [node for node in members if not node.id.startswith("out ")]
        if not members:
            continue
        above = 14 + (5 * len(sheet.delays) + 4) * any(n.shape == "delay" for n in members)
        top, bottom = min(n.box.top for n in members) - above, max(n.box.bottom for n in members) + 14
        y = (top + bottom) / 2
        words = [Text(left - heading, y - (9 if when else 0), name, 15, "start", "stage")]
        if when:
            words.append(Text(left - heading, y + 9, when, 12, "start", "note"))
        groups.append(Group(Box(left - heading - 14, top, right + room, bottom), tuple(words), name))
    order = ", ".join(
        f"{name}: {'; '.join(_texts(boxes, number))}" for number, (name, _) in enumerate(sheet.stages)
    )
    direction = "backward" if reverse else "forward"
    return Scene(
        title,
        f"{title}; time runs {direction}. {order}.",
        tuple(nodes.values()),
        (*edges, *lines),
        tuple(groups),
    )


def _read_by_name(boxes: Mapping[str, _Operation], rows: Mapping[str, int]) -> None:
    """What is wanted far below, in another stage, is read there by its name: lines are for what is near."""
    number = 0
    for key, one in boxes.items():
        if one.kind == "output" and rows[key] - rows[one.sources[0][0]] > 2 * _NEAR:
            maker = boxes[one.sources.pop()[0]]
            maker.name = maker.name or f"v{(number := number + 1)}"
            one.label = f"{one.label} = {maker.name}"
        if one.node is None:
            continue
        lines = iter(list(one.sources))
        for place, operand in enumerate(one.words):
            if operand is not None:
                continue
            source, shape = next(lines)
            maker = boxes[source]
            far = rows[key] - rows[source] > (_NEAR if maker.name else 2 * _NEAR)
            if maker.kind == "delay" or not far or (maker.stage == one.stage and maker.kind != "input"):
                continue
            maker.name = maker.name or f"v{(number := number + 1)}"
            one.words[place] = maker.name
            one.sources.remove((source, shape))


def _texts(boxes: Mapping[str, _Operation], stage: int) -> Iterable[str]:
    texts = [one.text for one in boxes.values() if one.stage == stage and one.kind == "operation"]
    return texts or ["nothing"]


def _rows(boxes: Mapping[str, _Operation], stages: int) -> dict[str, int]:
    """The row of every box: stages one below the other, in each the longest path; what comes in stands above it."""
    rows: dict[str, int] = {}
    start = 0
    for stage in range(stages):
        here = [key for key, one in boxes.items() if one.stage == stage]
        if not here:
            continue
        inputs = [key for key in here if boxes[key].kind == "input"]
        if rows and not inputs and stage < stages - 1:
            start += 1  # room for the frames
        rows |= dict.fromkeys(inputs, start)
        first = start + bool(inputs)
        for key in here:
            if key in rows:
                continue
            own = [rows[source] + 1 for source, _ in boxes[key].sources if boxes[source].stage == stage]
            rows[key] = max([first, *own])
        start = max(rows[key] for key in here) + 1
    return rows


def _size(one: _Operation) -> Size:
    if one.kind == "delay":
        return Size(12, width(one.text, _NAME) + 22, 30)
    half = max(34.0, width(one.text, _NAME) + 18) / 2
    return Size(half, half, 34 if one.kind == "operation" else 32)


def _node(one: _Operation, x: float, y: float, size: Size) -> Node:
    wide = size.left + size.right
    if one.kind == "delay":
        text = Text(x + 11, y, one.text, _NAME, "start")
        return Node(one.key, x, y, 12, 12, "delay", (text,), one.text, tip="delay of one step")
    shape = "operation" if one.kind == "operation" else "variable"
    state = "input" if one.kind == "input" else "sum" if one.kind == "output" else "plain"
    return Node(
        one.key, x, y, wide, size.height, shape, (Text(x, y, one.text, _NAME),), one.text, None, state
    )


__all__ = ["MOST", "planned", "unfolded"]
