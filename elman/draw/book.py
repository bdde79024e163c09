"""The pictures of the book: variables as circles, time folded into delay squares or unfolded from left to right.

A step is laid out once; the unfolded picture is that step again and again, joined where the folded one has its squares.
All is placed as if signals ran up and time to the right; `Scene.turned` then turns a picture in which they do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elman.draw.lines import bent, flat
from elman.draw.measure import width
from elman.draw.scene import Box, Edge, Node, Point, Scene, Text
from elman.draw.step import NOTE, ROUND, SQUARE, StepLayout, color_of, diameter, moved, step_of
from elman.draw.variables import Equations, Influence, Variable, said, timed

SHOWN = 6  # steps that are all drawn; of more, the first and last two
_TRACK = 12.0  # between parallel lines


def folded(eq: Equations) -> Scene:
    """The circuit: every variable once, cycles through black squares."""
    step = step_of(eq, lambda v: v.name, folded=True)
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
    return _finished(eq, nodes, edges, [], said(eq, None))


def unfolded(eq: Equations, steps: int | None) -> Scene:
    """The acyclic graph of `steps` time steps, or of …, t-1, t, t+1, … where steps is None."""
    times = _times(steps, eq.reverse)
    nodes: list[Node] = []
    edges: list[Edge] = []
    texts: list[Text] = []
    longest = max((time for time in times if time is not None), key=len, default="")
    first = step_of(eq, lambda v: v.at(longest), folded=False)
    states = [v for v in eq.variables if v.role == "before"]
    bent = _exits(eq, first)
    channel = 30 + _TRACK * len(bent)
    at, previous, elided = 0.0, None, False
    for number, time in enumerate(times):
        if time is None:
            elided = True
            continue
        t = _number(time, number)
        step = step_of(eq, lambda v, time=time: v.at(time), folded=False, like=first, t=t)
        gap = channel + 64 * elided if previous is not None else 0
        here = moved(step, at - step.box.left + gap)
        nodes += here.nodes.values()
        edges += here.edges
        if previous is not None:
            for before in states:
                edges += _joined(eq, previous, here, before, bent, elided, t)
        if elided and previous is not None:
            texts += _elided(previous, here, 12 + _TRACK * len(bent) if bent else 0, edges)
        if previous is None:
            edge = None if steps is None else str((steps or 0) + 1) if eq.reverse else "0"
            around = _starts(eq, here, edge, bent)
            nodes, edges, texts = [*nodes, *around.nodes], [*edges, *around.edges], [*texts, *around.texts]
        at, previous, elided = here.box.right, here, False
    if steps is not None and previous is not None:  # what teaches a step that is not there
        idle = {v.of for v in states} - {i.source for i in eq.influences}
        last = {
            previous.nodes[key].id for key in idle if key in previous.nodes and eq.of(key).role == "input"
        }
        nodes = [node for node in nodes if node.id not in last]
    if previous is not None and (steps is None or eq.back):
        around = _ends(eq, previous, bent, None if steps is None else "0" if eq.reverse else str(steps + 1))
        nodes, edges, texts = [*nodes, *around.nodes], [*edges, *around.edges], [*texts, *around.texts]
    return _finished(eq, nodes, edges, texts, said(eq, steps if steps is not None else "…"))


@dataclass(frozen=True)
class _Around:
    """What stands before the first step or after the last."""

    nodes: list[Node]
    edges: list[Edge]
    texts: list[Text]


def _elided(previous: StepLayout, here: StepLayout, room: float, edges: Sequence[Edge]) -> list[Text]:
    """An ellipsis between two steps, in the lowest row, unless a dotted line goes through it that says the same.

    room: what the lines take that come into the second.
    """
    low = previous.box.bottom - ROUND / 2
    left = max(node.box.right for node in previous.nodes.values() if node.box.bottom > low - 1)
    right = min(node.box.left for node in here.nodes.values() if node.box.bottom > low - 1)
    text = Text((left + (here.box.left - room if room else right)) / 2, low, "…", 22, role="note")
    dotted = (point for edge in edges if edge.dashed for point in flat(edge.points))
    through = any(text.box.left < x < text.box.right and abs(y - low) < 14 for x, y in dotted)
    return [] if through else [text]


def _times(steps: int | None, reverse: bool) -> list[str | None]:
    """The names of the steps in the order in which they are computed; None for those that are elided."""
    if steps is None:
        times: list[str | None] = ["t-1", "t", "t+1"]
    elif steps <= SHOWN:
        times = [str(t) for t in range(1, steps + 1)]
    else:
        times = ["1", "2", None, str(steps - 1), str(steps)]
    return times[::-1] if reverse else times


def _number(time: str, place: int) -> int:
    return int(time) if time.isdigit() else place


# What joins one step with the next.


def _exits(eq: Equations, step: StepLayout) -> list[tuple[str, str]]:
    """("before" of a state, the variable whose value it is) for those that do not go straight on, the lowest first.

    But a line that comes in at the height at which another goes out is nearer to the step: else the two look like one.
    """
    pairs = [(v.key, v.of) for v in eq.variables if v.role == "before" and v.key not in step.straight]
    drawn = [(before, of) for before, of in pairs if of is not None and of in step.nodes]
    order = sorted(drawn, key=lambda pair: (-step.nodes[pair[1]].y, step.nodes[pair[0]].x))
    for _ in drawn:  # so often at most: two may be in each other's way
        for i, (before, _of) in enumerate(order):
            level = step.nodes[before].y
            meets = next((j for j in range(i) if abs(step.nodes[order[j][1]].y - level) < _TRACK / 2), None)
            if meets is not None:
                order.insert(meets, order.pop(i))
                break
        else:
            break
    return order


def _way_out(step: StepLayout, node: Node, x: float, number: int) -> list[Point]:
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


def _beside(edges: Sequence[Edge], start: Point, end: Point) -> bool:
    """Whether one of the lines runs along a level one for a while, so that the two would look like one."""
    near = Box(min(start[0], end[0]) + 20, start[1] - 5, max(start[0], end[0]) - 20, start[1] + 5)
    return any(
        sum(near.left < x < near.right and near.top < y < near.bottom for x, y in flat(edge.points)) > 1
        for edge in edges
    )


def _wire(
    way: list[Point], target: Node, x: float, number: int, step: StepLayout, side: int, *, arrow: bool,
    source: str = "", t: int | None = None,
) -> Edge:  # fmt: skip
    """The rest of the way, from the line at x to a square or dot, from its left (-1) or right (1) or from below."""
    others = [other.box for other in step.nodes.values() if other.id != target.id]
    end = (target.x + side * target.width / 2, target.y)
    if _blocked(others, (x, target.y), end) or _beside(step.edges, (x, target.y), end):
        y = step.box.bottom + 10 + _TRACK * number
        way = [*way, (x, y), (target.x, y), (target.x, target.y + target.height / 2)]
    else:
        way = [*way, (x, target.y), end]
    return Edge(source, target.id, bent(_simple(way)), arrow=arrow, t=t)


def _simple(way: Sequence[Point]) -> list[Point]:
    """Without points that lie on the line between their neighbours."""
    points: list[Point] = []
    for i, point in enumerate(way):
        if points and point == points[-1]:
            continue
        if points and i + 1 < len(way):
            (x0, y0), (x1, y1) = points[-1], way[i + 1]
            if x0 == point[0] == x1 or y0 == point[1] == y1:
                continue
        points.append(point)
    return points


def _loop_square(node: Node, before: str) -> Node:
    x = node.x + node.width / 2 + 34
    return Node(before, x, node.y, SQUARE, SQUARE, "delay", key=before, tip="delay of one step")


def _loop(eq: Equations, node: Node, influence: Influence, before: str) -> list[Edge]:
    """The loop on the right of a node, through a black square."""
    square, r = _loop_square(node, before), node.height / 2
    dy = 11.0
    right = node.x + node.width / 2 - r + (r * r - dy * dy) ** 0.5
    color = color_of(eq, influence.weights)
    x, half = square.x, SQUARE / 2
    out = ((right, node.y + dy), (right + 14, node.y + 24), (x, node.y + 28), (x, node.y + half))
    into = ((x, node.y - half), (x, node.y - 28), (right + 14, node.y - 24), (right, node.y - dy))
    texts = ()
    if label := influence.label:
        texts = (Text(square.x + SQUARE / 2 + 5, node.y, label, NOTE, "start", "weight", color),)
    return [
        Edge(node.id, before, out, arrow=False),
        Edge(before, node.id, into, texts, influence.weights, color),
    ]


def _joined(
    eq: Equations,
    previous: StepLayout,
    here: StepLayout,
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
    color, label = color_of(eq, influence.weights), influence.label
    texts = ()
    if label:
        x = node.x - node.width / 2 - 17 - width(label, NOTE) / 2
        texts = (Text(x, node.y - 11, label, NOTE, "middle", "weight", color),)
    end = (node.x - node.width / 2, node.y)
    return Edge(source, node.id, bent([start, end]), texts, influence.weights, color, t=t)


def _right(node: Node) -> Point:
    return node.x + node.width / 2, node.y


def _starts(eq: Equations, here: StepLayout, time: str | None, exits: Sequence[tuple[str, str]]) -> _Around:
    """What the first step starts from: states of known time in dashed circles, or an ellipsis where time is None."""
    around = _Around([], [], [])
    number = 0
    befores = [v for v in eq.variables if v.role == "before"]
    for before in sorted(befores, key=lambda v: v.key not in here.straight):
        straight = here.straight.get(before.key)
        if straight is None and (before.key not in here.nodes or not any(before.key == b for b, _ in exits)):
            continue
        target = here.nodes[straight.target if straight is not None else before.key]
        name = "…" if time is None else timed(before.name, time)
        wide = 30.0 if time is None else diameter(name)
        x, y = here.box.left - 24 - _TRACK * len(exits) - wide / 2, target.y
        taken = [node.box for node in around.nodes] + [text.box for text in around.texts]
        while any(abs(y - (box.top + box.bottom) / 2) < ROUND + 6 for box in taken):
            y += 4
        ident = f"start {before.key}"
        if time is None:
            around.texts.append(Text(x, y - 4, name, 22, role="note"))
        else:
            text = (Text(x, y, name),)
            around.nodes.append(
                Node(ident, x, y, wide, ROUND, "variable", text, before.key, 0, "known", "given")
            )
        if straight is not None:
            around.edges.append(_ahead(eq, straight, (x + wide / 2, y), target, ident, here.nodes, None))
        else:
            margin = here.box.left - 12 - _TRACK * number
            way = [(x + wide / 2, y), (margin, y)]
            around.edges.append(_wire(way, target, margin, number, here, -1, arrow=False, source=ident))
            number += 1
    return around


def _ends(eq: Equations, last: StepLayout, exits: Sequence[tuple[str, str]], time: str | None) -> _Around:
    """Lines that go on: to an ellipsis, or to the gradients of the states that the first step started from."""
    around = _Around([], [], [])
    x = last.box.right + 26
    for before in (v for v in eq.variables if v.role == "before"):
        straight = last.straight.get(before.key)
        number = next((i for i, (b, _) in enumerate(exits) if b == before.key), None)
        if straight is None and number is None:
            continue
        node = last.nodes[straight.target if straight is not None else str(before.of)]
        way = [_right(node), (x, node.y)] if straight is not None else _way_out(last, node, x, number or 0)
        if time is not None:
            name, y = timed(before.name, time), way[-1][1]
            while any(abs(y - other.y) < ROUND + 6 for other in around.nodes):
                y += 4
            middle, wide = x + 12 + diameter(name) / 2, diameter(name)
            text = (Text(middle, y, name),)
            end = Node(f"end {before.key}", middle, y, wide, ROUND, "variable", text, before.key)
            way += [(x, y), (end.box.left, y)]
            around.nodes.append(end)
            around.edges.append(Edge(node.id, end.id, bent(_simple(way))))
            continue
        dots = Text(x + 14, way[-1][1] - 4, "…", 22, role="note")
        while any(dots.box.meets(other.box) for other in around.texts):
            dots = dots.moved(30, 0)
        way[-1] = (dots.x - 14, way[-1][1])
        around.edges.append(Edge(node.id, "", bent(_simple(way)), arrow=False))
        around.texts.append(dots)
    return around


def _finished(
    eq: Equations, nodes: Sequence[Node], edges: Sequence[Edge], texts: Sequence[Text], description: str
) -> Scene:
    scene = Scene(eq.name, description, tuple(nodes), tuple(edges), (), tuple(texts), eq.parameters)
    return scene.turned(across=eq.reverse, down=eq.back)


__all__ = ["folded", "unfolded"]
