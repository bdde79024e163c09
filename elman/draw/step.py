"""A time step of the book's pictures in its place: variables as circles, what acts on what as lines with words.

All is placed as if signals ran up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from elman.draw.connect import connect
from elman.draw.layered import Link, Placed, Size, layered
from elman.draw.lines import flat
from elman.draw.measure import width
from elman.draw.scene import SIZE, Box, Edge, Node, Text
from elman.draw.variables import Equations, Influence, Variable
from elman.draw.words import Saying, label_size

ROUND = 44.0  # diameter of a variable
SQUARE = 11.0  # side of the square that stands for a delay of one step
NOTE = 13.0  # font size of what stands on an edge
_GAPS = (24.0, 44.0, 70.0)  # between rows

Name = Callable[[Variable], str]


@dataclass(frozen=True)
class StepLayout:
    """One time step in its place: its nodes by key, its edges, and which states go straight to their next value."""

    nodes: dict[str, Node]
    edges: tuple[Edge, ...]
    straight: dict[str, Influence]  # "before" of a state -> its one influence
    box: Box


def step_of(
    eq: Equations,
    name: Name,
    *,
    folded: bool,
    like: StepLayout | None = None,
    t: int | None = None,
) -> StepLayout:
    """Lay a step out; like: a step whose places it takes."""
    straight = _straight(eq) if like is None else like.straight
    while True:
        step = _laid_out(eq, name, straight, folded, like, t)
        crowded = [b for b, i in straight.items() if not _alone(step, i.target)]
        if not crowded or like is not None:
            return step
        straight = {b: i for b, i in straight.items() if b not in crowded}


def _straight(eq: Equations) -> dict[str, Influence]:
    """States that act on their own next value and on nothing else: their line is a loop, or runs straight on."""
    straight = {}
    for before in (v for v in eq.variables if v.role == "before" and v.of is not None):
        acts = [i for i in eq.influences if i.source == before.key]
        if len(acts) == 1 and acts[0].target == before.of:
            straight[before.key] = acts[0]
    return straight


def _alone(step: StepLayout, key: str) -> bool:
    """Whether nothing stands beside a node in its row."""
    y = step.nodes[key].y
    return all(other.key == key or abs(other.y - y) > ROUND / 2 for other in step.nodes.values())


def _laid_out(
    eq: Equations,
    name: Name,
    straight: Mapping[str, Influence],
    folded: bool,
    like: StepLayout | None,
    t: int | None,
) -> StepLayout:
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
        nodes = {key: replace(node, width=like.nodes[key].width) for key, node in nodes.items()}
        edges = (replace(e, t=t, source=nodes[e.source].id, target=nodes[e.target].id) for e in like.edges)
        return replace(like, nodes=nodes, edges=tuple(edges))
    fewest, nodes, edges = len(links) + 1, {}, []
    for gap in _GAPS:  # rows as near to one another as words on lines allow
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
    return StepLayout(nodes, tuple(edges), dict(straight), box)


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
    half = diameter(name) / 2
    left = right = half
    for influence in straight.values():
        if influence.target == v.key:
            wide = width(influence.label, NOTE)
            if folded:
                right += 52 + wide
            else:
                left += 34 + wide
    return Size(left, right, ROUND)


def diameter(name: str) -> float:
    return max(ROUND, width(name, SIZE) + 14)


def _label_size(influence: Influence) -> Size | None:
    return label_size(influence.label, NOTE)


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
    color = color_of(eq, (v.name.removeprefix("∇"),)) if v.role == "sum" else None
    text = Text(x, y, name, color=color)
    return Node(ident, x, y, diameter(name), ROUND, "variable", (text,), v.key, t, state, v.tip)


def color_of(eq: Equations, weights: Sequence[str]) -> int | None:
    return next((eq.parameters.index(w) for w in weights if w in eq.parameters), None)


def _edges(
    eq: Equations, influences: Sequence[Influence], placed: Placed, nodes: Mapping[str, Node]
) -> tuple[list[Edge], int]:
    sayings = []
    for i in influences:
        sayings.append(
            Saying(
                i.label,
                NOTE,
                color_of(eq, i.weights),
                i.weights,
                nodes[i.target].shape != "dot",
                bool(i.weights),
            )
        )
    ends = [(influence.source, influence.target) for influence in influences]
    return connect(ends, _upright(placed), nodes, sayings)


def _upright(placed: Placed) -> Placed:
    """The same with the sources below."""
    return Placed(
        {key: (x, -y) for key, (x, y) in placed.places.items()},
        [[(x, -y) for x, y in way] for way in placed.ways],
        [None if mark is None else (mark[0], -mark[1]) for mark in placed.labels],
    )


def moved(step: StepLayout, dx: float) -> StepLayout:
    return replace(
        step,
        nodes={key: node.moved(dx, 0) for key, node in step.nodes.items()},
        edges=tuple(edge.moved(dx, 0) for edge in step.edges),
        box=step.box.moved(dx, 0),
    )


__all__ = ["NOTE", "ROUND", "SQUARE", "StepLayout", "color_of", "diameter", "moved", "step_of"]
