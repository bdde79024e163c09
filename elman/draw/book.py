"""The pictures of the book: variables as circles, time folded into delay squares or unfolded from left to right.

A step is laid out once; the unfolded picture is that step again and again, joined where the folded one has its squares.
All is placed as if signals ran up and time to the right; `_turned` then turns the picture of an adjoint round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from elman.draw.layered import Link, Placed, Size, layered
from elman.draw.lines import Saying, bent, connect, flat, label_size
from elman.draw.measure import width
from elman.draw.scene import SIZE, Box, Edge, Group, Node, Point, Scene, Text
from elman.draw.variables import Equations, Influence, Variable

ROUND = 44.0  # diameter of a variable
SQUARE = 11.0  # side of the square that stands for a delay of one step
NOTE = 13.0  # font size of what stands on an edge
SHOWN = 6  # steps that are all drawn; of more, the first and last two
GAPS = (24.0, 44.0, 70.0)  # between rows
_TRACK = 12.0  # between parallel lines


@dataclass(frozen=True)
class _Step:
    """One time step in its place: its nodes by key, its edges, and which states go straight to their next value."""

    nodes: dict[str, Node]
    edges: tuple[Edge, ...]
    straight: dict[str, Influence]  # "before" of a state -> its one influence
    box: Box


def folded(eq: Equations) -> Scene:
    """The circuit: every variable once, cycles through black squares."""
    step = _step(eq, lambda v: v.name, folded=True)
    nodes, edges = list(step.nodes.values()), list(step.edges)
    routes = _exits(eq, step)
    for number, (before, source) in enumerate(routes):
        square, start = step.nodes[before], step.nodes[source]
        others = [node.box for node in step.nodes.values() if node.id not in (square.id, start.id)]
        ends = _right(start), (square.x - square.width / 2, square.y)
        if start.y == square.y and start.x < square.x and not _blocked(others, *ends):  # a teacher
            edges.append(Edge(start.id, square.id, bent(list(ends))))
            continue
        margin = step.box.right + 14 + _TRACK * number
        way = _way_out(step, start, margin, number)
        edges.append(_wire(way, square, margin, number, step, 1, arrow=True, source=start.id))
    for before, influence in step.straight.items():
        node = step.nodes[influence.target]
        nodes, edges = [*nodes, _loop_square(node, before)], [*edges, *_loop(eq, node, influence, before)]
    return _finished(eq, nodes, edges, [], _said(eq, None))


def unfolded(eq: Equations, steps: int | None) -> Scene:
    """The acyclic graph of `steps` time steps, or of …, t-1, t, t+1, … where steps is None."""
    times = _times(steps, eq.reverse)
    nodes: list[Node] = []
    edges: list[Edge] = []
    texts: list[Text] = []
    longest = max((time for time in times if time is not None), key=len, default="")
    first = _step(eq, lambda v: _timed(v.name, longest), folded=False)
    states = [v for v in eq.variables if v.role == "before"]
    bent = _exits(eq, first)
    channel = 30 + _TRACK * len(bent)
    at, previous, elided = 0.0, None, False
    for number, time in enumerate(times):
        if time is None:
            elided = True
            continue
        t = _number(time, number)
        step = _step(eq, lambda v, time=time: _timed(v.name, time), folded=False, like=first, t=t)
        gap = channel + 64 * elided if previous is not None else 0
        here = _moved(step, at - step.box.left + gap)
        nodes += here.nodes.values()
        edges += here.edges
        if previous is not None:
            for before in states:
                edges += _joined(eq, previous, here, before, bent, elided, t)
        if elided:
            texts.append(Text(here.box.left - gap / 2, here.box.bottom - ROUND / 2, "…", 22, role="note"))
        if previous is None:
            edge = None if steps is None else str((steps or 0) + 1) if eq.reverse else "0"
            around = _starts(eq, here, edge, bent)
            nodes, edges, texts = [*nodes, *around.nodes], [*edges, *around.edges], [*texts, *around.texts]
        at, previous, elided = here.box.right, here, False
    if previous is not None and steps is None:
        around = _ends(eq, previous, bent)
        edges, texts = [*edges, *around.edges], [*texts, *around.texts]
    return _finished(eq, nodes, edges, texts, _said(eq, steps if steps is not None else "…"))


@dataclass(frozen=True)
class _Around:
    """What stands before the first step or after the last."""

    nodes: list[Node]
    edges: list[Edge]
    texts: list[Text]


def _times(steps: int | None, reverse: bool) -> list[str | None]:
    """The names of the steps in the order in which they are computed; None for those that are elided."""
    if steps is None:
        found: list[str | None] = ["t-1", "t", "t+1"]
    elif steps <= SHOWN:
        found = [str(t) for t in range(1, steps + 1)]
    else:
        found = ["1", "2", None, str(steps - 1), str(steps)]
    return found[::-1] if reverse else found


def _number(time: str, place: int) -> int:
    return int(time) if time.isdigit() else place


def _timed(name: str, time: str) -> str:
    return f"{name}({time})" if name else ""


def _step(eq: Equations, name, *, folded: bool, like: _Step | None = None, t: int | None = None) -> _Step:  # type: ignore[no-untyped-def]
    """Lay a step out; like: a step whose places it takes."""
    straight = _straight(eq) if like is None else like.straight
    while True:
        made = _laid_out(eq, name, straight, folded, like, t)
        crowded = [b for b, i in straight.items() if not _alone(made, i.target)]
        if not crowded or like is not None:
            return made
        straight = {b: i for b, i in straight.items() if b not in crowded}


def _straight(eq: Equations) -> dict[str, Influence]:
    """States that act on their own next value and on nothing else: their line is a loop, or runs straight on."""
    found = {}
    for before in (v for v in eq.variables if v.role == "before" and v.of is not None):
        acts = [i for i in eq.influences if i.source == before.key]
        if len(acts) == 1 and acts[0].target == before.of:
            found[before.key] = acts[0]
    return found


def _alone(step: _Step, key: str) -> bool:
    """Whether nothing stands beside a node in its row."""
    y = step.nodes[key].y
    return all(other.key == key or abs(other.y - y) > ROUND / 2 for other in step.nodes.values())


def _laid_out(
    eq: Equations, name, straight: Mapping[str, Influence], folded: bool, like: _Step | None, t: int | None
) -> _Step:  # type: ignore[no-untyped-def]
    shown = [v for v in eq.variables if v.key not in straight]
    sizes = {v.key: _size(v, name(v), eq, straight, folded) for v in shown}
    influences = [i for i in eq.influences if i.source not in straight]
    links = [Link(i.source, i.target, _label_size(i)) for i in influences]
    ranks = dict.fromkeys(_bottom(eq), 0)
    befores = [v.key for v in shown if v.role == "before"]
    feeds = [v.of for v in shown if v.role == "before" and v.of is not None and v.of in sizes]
    first, last = ([], [*feeds, *befores]) if folded else (befores, feeds)
    if like is not None:
        nodes = {
            v.key: _node(v, name(v), like.nodes[v.key].x, like.nodes[v.key].y, folded, t, eq) for v in shown
        }
        return replace(like, nodes={key: replace(node, width=like.nodes[key].width) for key, node in nodes.items()},
                       edges=tuple(replace(edge, t=t) for edge in like.edges))  # fmt: skip
    fewest, nodes, edges = len(links) + 1, {}, []
    for gap in GAPS:  # rows as near to one another as words on lines allow
        placed = layered(sizes, links, ranks=ranks, first=first, last=last, row_gap=gap)
        tried = {
            v.key: _node(v, name(v), placed.places[v.key][0], -placed.places[v.key][1], folded, t, eq)
            for v in shown
        }
        lines, without = _edges(eq, influences, placed, tried)
        if without < fewest:
            fewest, nodes, edges = without, tried, lines
        if not without:
            break
    boxes = [node.box for node in nodes.values()] + [text.box for edge in edges for text in edge.texts]
    boxes += [Box(x, y, x, y) for edge in edges for x, y in flat(edge.points)]
    boxes += [
        Box(nodes[key].x - size.left, nodes[key].y, nodes[key].x + size.right, nodes[key].y)
        for key, size in sizes.items()
    ]
    box = Box(
        min(b.left for b in boxes),
        min(b.top for b in boxes),
        max(b.right for b in boxes),
        max(b.bottom for b in boxes),
    )
    return _Step(nodes, tuple(edges), dict(straight), box)


def _bottom(eq: Equations) -> set[str]:
    """The inputs that belong to the lowest row: those that are wanted first, x rather than a target y."""
    rank: dict[str, int] = {}
    into: dict[str, list[str]] = {}
    for influence in eq.influences:
        into.setdefault(influence.target, []).append(influence.source)

    def depth(key: str) -> int:
        if key not in rank:
            rank[key] = max((depth(source) + 1 for source in into.get(key, ())), default=0)
        return rank[key]

    first: dict[str, int] = {}
    for influence in eq.influences:
        if eq.of(influence.source).role == "input":
            first[influence.source] = min(first.get(influence.source, 10**6), depth(influence.target))
    return {key for key, low in first.items() if low == min(first.values())}


def _size(v: Variable, name: str, eq: Equations, straight: Mapping[str, Influence], folded: bool) -> Size:
    if v.role in ("before", "joint"):
        return Size(10, 10, ROUND / 2)
    half = _diameter(name) / 2
    left = right = half
    for influence in straight.values():
        if influence.target == v.key:
            said = width(_label(influence), NOTE)
            if folded:
                right += 52 + said
            else:
                left += 34 + said
    return Size(left, right, ROUND)


def _diameter(name: str) -> float:
    return max(ROUND, width(name, SIZE) + 14)


def _label(influence: Influence) -> str:
    return ", ".join((*influence.weights, *influence.factors))


def _label_size(influence: Influence) -> Size | None:
    return label_size(_label(influence), NOTE)


def _node(v: Variable, name: str, x: float, y: float, folded: bool, t: int | None, eq: Equations) -> Node:
    ident = v.key if t is None else f"{v.key}@{t}"
    if v.role == "before":
        shape = "delay" if folded else "dot"
        size = SQUARE if folded else 5.0
        tip = f"delay: {v.name} of the step before"
        return Node(ident, x, y, size, size, shape, key=v.key, t=t, tip=tip)
    if v.role == "joint":
        return Node(ident, x, y, 5, 5, "dot", key=v.key, t=t)
    state = {"input": "input", "context": "known", "noise": "known", "sum": "sum"}.get(v.role, "plain")
    color = _color(eq, (v.name.removeprefix("∇"),)) if v.role == "sum" else None
    text = Text(x, y, name, color=color)
    return Node(ident, x, y, _diameter(name), ROUND, "variable", (text,), v.key, t, state, v.tip)


def _color(eq: Equations, weights: Sequence[str]) -> int | None:
    return next((eq.parameters.index(w) for w in weights if w in eq.parameters), None)


def _edges(
    eq: Equations, influences: Sequence[Influence], placed: Placed, nodes: Mapping[str, Node]
) -> tuple[list[Edge], int]:
    said = []
    for i in influences:
        said.append(Saying(_label(i), NOTE, _color(eq, i.weights), i.weights, nodes[i.target].shape != "dot"))
    ends = [(influence.source, influence.target) for influence in influences]
    return connect(ends, _upright(placed), nodes, said)


def _upright(placed: Placed) -> Placed:
    """The same with the sources below."""
    return Placed(
        {key: (x, -y) for key, (x, y) in placed.places.items()},
        [[(x, -y) for x, y in way] for way in placed.ways],
        [None if mark is None else (mark[0], -mark[1]) for mark in placed.labels],
    )


# What joins one step with the next.


def _exits(eq: Equations, step: _Step) -> list[tuple[str, str]]:
    """("before" of a state, the variable whose value it is) for those that do not go straight on, the lowest first."""
    pairs = [(v.key, v.of) for v in eq.variables if v.role == "before" and v.key not in step.straight]
    known = [(before, of) for before, of in pairs if of is not None and of in step.nodes]
    return sorted(known, key=lambda pair: (-step.nodes[pair[1]].y, step.nodes[pair[0]].x))


def _way_out(step: _Step, node: Node, x: float, number: int) -> list[Point]:
    """From a node to the line at x, on its right: straight if nothing is there, else round."""
    blocks = [other.box for other in step.nodes.values() if other.id != node.id]
    blocks += [text.box for edge in step.edges for text in edge.texts]
    start = _right(node)
    if not _blocked(blocks, start, (x, node.y)):
        return [start, (x, node.y)]
    down = node.y + ROUND / 2 >= step.box.bottom - 1
    y = step.box.bottom + 10 + _TRACK * number if down else node.y - ROUND / 2 - 9
    return [(node.x, node.box.bottom if down else node.box.top), (node.x, y), (x, y)]


def _blocked(boxes: Sequence[Box], start: Point, end: Point) -> bool:
    line = Box(min(start[0], end[0]), start[1] - 2, max(start[0], end[0]), start[1] + 2)
    return any(box.meets(line) for box in boxes)


def _wire(
    way: list[Point], target: Node, x: float, number: int, step: _Step, side: int, *, arrow: bool, source: str = "",
    t: int | None = None,
) -> Edge:  # fmt: skip
    """The rest of the way, from the line at x to a square or dot, from its left (-1) or right (1) or from below."""
    others = [other.box for other in step.nodes.values() if other.id != target.id]
    end = (target.x + side * target.width / 2, target.y)
    if _blocked(others, (x, target.y), end):
        y = step.box.bottom + 10 + _TRACK * number
        way = [*way, (x, y), (target.x, y), (target.x, target.y + target.height / 2)]
    else:
        way = [*way, (x, target.y), end]
    return Edge(source, target.id, bent(_simple(way)), arrow=arrow, t=t)


def _simple(way: Sequence[Point]) -> list[Point]:
    """Without points that lie on the line between their neighbours."""
    found: list[Point] = []
    for i, point in enumerate(way):
        if found and point == found[-1]:
            continue
        if found and i + 1 < len(way):
            (x0, y0), (x1, y1) = found[-1], way[i + 1]
            if x0 == point[0] == x1 or y0 == point[1] == y1:
                continue
        found.append(point)
    return found


def _loop_square(node: Node, before: str) -> Node:
    x = node.x + node.width / 2 + 34
    return Node(before, x, node.y, SQUARE, SQUARE, "delay", key=before, tip="delay of one step")


def _loop(eq: Equations, node: Node, influence: Influence, before: str) -> list[Edge]:
    """The loop on the right of a node, through a black square."""
    square, r = _loop_square(node, before), node.height / 2
    dy = 11.0
    right = node.x + node.width / 2 - r + (r * r - dy * dy) ** 0.5
    color = _color(eq, influence.weights)
    x, half = square.x, SQUARE / 2
    out = ((right, node.y + dy), (right + 14, node.y + 24), (x, node.y + 28), (x, node.y + half))
    into = ((x, node.y - half), (x, node.y - 28), (right + 14, node.y - 24), (right, node.y - dy))
    texts = ()
    if said := _label(influence):
        texts = (Text(square.x + SQUARE / 2 + 5, node.y, said, NOTE, "start", "weight", color),)
    return [
        Edge(node.id, before, out, arrow=False),
        Edge(before, node.id, into, texts, influence.weights, color),
    ]


def _joined(
    eq: Equations,
    previous: _Step,
    here: _Step,
    before: Variable,
    exits: Sequence[tuple[str, str]],
    elided: bool,
    t: int,
) -> list[Edge]:
    """The edges that carry a state from one step into the next that is drawn."""
    straight = here.straight.get(before.key)
    if straight is not None:
        node, source = here.nodes[straight.target], previous.nodes[straight.target]
        if not elided:
            return [_ahead(eq, straight, _right(source), node, source.id, here.nodes, t)]
        middle = (here.box.left - 10, node.y)
        first = Edge(source.id, node.id, bent([_right(source), middle]), arrow=False, dashed=True, t=t)
        return [first, _ahead(eq, straight, middle, node, source.id, here.nodes, t)]
    target = here.nodes.get(before.key)
    number = next((i for i, pair in enumerate(exits) if pair[0] == before.key), None)
    if target is None or number is None:
        return []
    x = here.box.left - 12 - _TRACK * number
    node = previous.nodes[str(before.of)]
    way = _way_out(previous, node, x, number)
    if not elided:
        return [_wire(way, target, x, number, here, -1, arrow=False, source=node.id, t=t)]
    first = Edge(node.id, target.id, bent(_simple(way)), arrow=False, dashed=True, t=t)
    return [first, _wire([way[-1]], target, x, number, here, -1, arrow=False, source=node.id, t=t)]


def _ahead(
    eq: Equations,
    influence: Influence,
    start: Point,
    node: Node,
    source: str,
    nodes: Mapping[str, Node],
    t: int | None,
) -> Edge:
    """A straight line to a node from its left, with what it says above its end."""
    color, said = _color(eq, influence.weights), _label(influence)
    texts = ()
    if said:
        x = node.x - node.width / 2 - 17 - width(said, NOTE) / 2
        texts = (Text(x, node.y - 11, said, NOTE, "middle", "weight", color),)
    end = (node.x - node.width / 2, node.y)
    return Edge(source, node.id, bent([start, end]), texts, influence.weights, color, t=t)


def _right(node: Node) -> Point:
    return node.x + node.width / 2, node.y


def _starts(eq: Equations, here: _Step, time: str | None, exits: Sequence[tuple[str, str]]) -> _Around:
    """What the first step starts from: states of known time in dashed circles, or an ellipsis where time is None."""
    found = _Around([], [], [])
    number = 0
    befores = [v for v in eq.variables if v.role == "before"]
    for before in sorted(befores, key=lambda v: v.key not in here.straight):
        straight = here.straight.get(before.key)
        if straight is None and (before.key not in here.nodes or not any(before.key == b for b, _ in exits)):
            continue
        target = here.nodes[straight.target if straight is not None else before.key]
        name = "…" if time is None else _timed(before.name, time)
        wide = 16.0 if time is None else _diameter(name)
        x, y = here.box.left - 24 - _TRACK * len(exits) - wide / 2, target.y
        taken = [node.box for node in found.nodes] + [text.box for text in found.texts]
        while any(abs(y - (box.top + box.bottom) / 2) < ROUND + 6 for box in taken):
            y += 4
        ident = f"start {before.key}"
        if time is None:
            found.texts.append(Text(x, y - 4, name, 22, role="note"))
        else:
            text = (Text(x, y, name),)
            found.nodes.append(
                Node(ident, x, y, wide, ROUND, "variable", text, before.key, 0, "known", "given")
            )
        if straight is not None:
            found.edges.append(_ahead(eq, straight, (x + wide / 2, y), target, ident, here.nodes, None))
        else:
            margin = here.box.left - 12 - _TRACK * number
            way = [(x + wide / 2, y), (margin, y)]
            found.edges.append(_wire(way, target, margin, number, here, -1, arrow=False, source=ident))
            number += 1
    return found


def _ends(eq: Equations, last: _Step, exits: Sequence[tuple[str, str]]) -> _Around:
    """Lines that go on to an ellipsis."""
    found = _Around([], [], [])
    x = last.box.right + 26
    for before in (v for v in eq.variables if v.role == "before"):
        straight = last.straight.get(before.key)
        number = next((i for i, (b, _) in enumerate(exits) if b == before.key), None)
        if straight is None and number is None:
            continue
        node = last.nodes[straight.target if straight is not None else str(before.of)]
        way = [_right(node), (x, node.y)] if straight is not None else _way_out(last, node, x, number or 0)
        text = Text(x + 14, way[-1][1] - 4, "…", 22, role="note")
        while any(text.box.meets(other.box) for other in found.texts):
            text = text.moved(30, 0)
        way[-1] = (text.x - 14, way[-1][1])
        found.edges.append(Edge(node.id, "", bent(_simple(way)), arrow=False))
        found.texts.append(text)
    return found


def _moved(step: _Step, dx: float) -> _Step:
    return replace(
        step,
        nodes={key: node.moved(dx, 0) for key, node in step.nodes.items()},
        edges=tuple(edge.moved(dx, 0) for edge in step.edges),
        box=step.box.moved(dx, 0),
    )


def _finished(
    eq: Equations, nodes: Sequence[Node], edges: Sequence[Edge], texts: Sequence[Text], said: str
) -> Scene:
    scene = Scene(_title(eq), said, tuple(nodes), tuple(edges), (), tuple(texts), eq.parameters)
    return turned(scene) if eq.reverse else scene


def turned(scene: Scene) -> Scene:
    """The same picture with left and right, above and below exchanged; texts stay upright."""

    def text(one: Text) -> Text:
        anchor = {"start": "end", "end": "start"}.get(one.anchor, "middle")
        return replace(one, x=-one.x, y=-one.y, anchor=anchor)

    def box(one: Box) -> Box:
        return Box(-one.right, -one.bottom, -one.left, -one.top)

    return replace(
        scene,
        nodes=tuple(replace(n, x=-n.x, y=-n.y, texts=tuple(map(text, n.texts))) for n in scene.nodes),
        edges=tuple(
            replace(e, points=tuple((-x, -y) for x, y in e.points), texts=tuple(map(text, e.texts)))
            for e in scene.edges
        ),
        groups=tuple(Group(box(g.box), tuple(map(text, g.texts)), g.key) for g in scene.groups),
        texts=tuple(map(text, scene.texts)),
    )


def _title(eq: Equations) -> str:
    return eq.name


def _said(eq: Equations, steps: int | str | None) -> str:
    """The picture in words."""
    name = {v.key: v.name for v in eq.variables}
    when = "folded" if steps is None else f"unfolded for {steps} time steps" if steps != "…" else "unfolded"
    lines = [f"{eq.name}, {when}; time runs {'backward' if eq.reverse else 'forward'}."]
    for v in eq.variables:
        parts = _parts(eq, v.key, name)
        if parts and v.name:
            lines.append(f"{_timed(v.name, 't')} is computed from {', '.join(parts)}.")
    return " ".join(lines)


def _parts(eq: Equations, key: str, name: Mapping[str, str]) -> list[str]:
    found = []
    for i in eq.influences:
        if i.target != key:
            continue
        source = eq.of(i.source)
        if source.role == "joint" and not source.name:
            found += _parts(eq, source.key, name)
            continue
        time = ("t+1" if eq.reverse else "t-1") if source.role == "before" else "t"
        by = f" by {_label(i)}" if _label(i) else ""
        found.append(_timed(source.name, time) + by)
    return found


__all__ = ["folded", "turned", "unfolded"]
