"""A picture as plain data: boxes, lines and texts with their places. Layouts make it, writers write it.

Lengths are pixels, x runs to the right and y down. Every text has the box that it fills in the widest font of the
fallback list, so that two texts meet if and only if their boxes do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from elman.draw.measure import LINE, width
from elman.errors import CircuitError

Point = tuple[float, float]
SIZE = 15.0  # of a font, where nothing else is said


@dataclass(frozen=True)
class Box:
    """A rectangle by its left, upper, right and lower side."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two share more than a border."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def moved(self, dx: float, dy: float) -> Box:
        return Box(self.left + dx, self.top + dy, self.right + dx, self.bottom + dy)

    def wider(self, by: float) -> Box:
        """The same with so much more on every side."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)


@dataclass(frozen=True)
class Text:
    """One line of text round the point (x, y): its middle in height, and its middle, start or end across.

    role: what it is for a reader and a style sheet: "name", "weight", "note", "title", "stage".
    color: the number of the parameter whose colour it has, None for that of text.
    """

    x: float
    y: float
    text: str
    size: float = SIZE
    anchor: str = "middle"
    role: str = "name"
    color: int | None = None

    @cached_property
    def box(self) -> Box:
        wide, high = width(self.text, self.size), LINE * self.size
        left = self.x - {"middle": wide / 2, "start": 0.0, "end": wide}[self.anchor]
        return Box(left, self.y - high / 2, left + wide, self.y + high / 2)

    def moved(self, dx: float, dy: float) -> Text:
        return replace(self, x=self.x + dx, y=self.y + dy)


@dataclass(frozen=True)
class Node:
    """A box of the picture round (x, y).

    shape: "variable" (round), "operation" (a box with round corners), "module" (a box), "delay" (the small black
        square), "dot" (where a line comes in), "gap" (what is elided; only its text is drawn).
    key: what it stands for, `h`, and t: the time step, None for the folded picture.
    state: one of "plain", "input", "known" (what comes from outside: dashed), "sum".
    """

    id: str
    x: float
    y: float
    width: float
    height: float
    shape: str = "variable"
    texts: tuple[Text, ...] = ()
    key: str = ""
    t: int | None = None
    state: str = "plain"
    tip: str = ""

    @cached_property
    def box(self) -> Box:
        w, h = self.width / 2, self.height / 2
        return Box(self.x - w, self.y - h, self.x + w, self.y + h)

    def moved(self, dx: float, dy: float) -> Node:
        texts = tuple(text.moved(dx, dy) for text in self.texts)
        return replace(self, x=self.x + dx, y=self.y + dy, texts=texts)


@dataclass(frozen=True)
class Edge:
    """A line from node to node.

    points: where it starts, and then three for each Bézier curve: two that guide it, and where it ends.
    weights: the parameters on it, which share a colour wherever they occur. arrow: whether its end has a head.
    """

    source: str
    target: str
    points: tuple[Point, ...]
    texts: tuple[Text, ...] = ()
    weights: tuple[str, ...] = ()
    color: int | None = None
    arrow: bool = True
    dashed: bool = False
    t: int | None = None

    def moved(self, dx: float, dy: float) -> Edge:
        points = tuple((x + dx, y + dy) for x, y in self.points)
        return replace(self, points=points, texts=tuple(text.moved(dx, dy) for text in self.texts))


@dataclass(frozen=True)
class Group:
    """A frame round some of a picture, with a heading."""

    box: Box
    texts: tuple[Text, ...] = ()
    key: str = ""

    def moved(self, dx: float, dy: float) -> Group:
        return replace(self, box=self.box.moved(dx, dy), texts=tuple(t.moved(dx, dy) for t in self.texts))


@dataclass(frozen=True)
class Scene:
    """A whole picture. title: a few words; description: what somebody who cannot see it is told."""

    title: str
    description: str
    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    groups: tuple[Group, ...] = ()
    texts: tuple[Text, ...] = ()
    parameters: tuple[str, ...] = field(default=())

    def words(self) -> Iterator[Text]:
        """Every text of the picture."""
        for thing in (*self.groups, *self.edges, *self.nodes):
            yield from thing.texts
        yield from self.texts

    @property
    def box(self) -> Box:
        """The rectangle round everything."""
        boxes = [text.box for text in self.words()]
        boxes += [node.box for node in self.nodes] + [group.box for group in self.groups]
        for edge in self.edges:
            xs, ys = [x for x, _ in edge.points], [y for _, y in edge.points]
            boxes.append(Box(min(xs), min(ys), max(xs), max(ys)))
        if not boxes:
            return Box(0, 0, 1, 1)
        return Box(
            min(box.left for box in boxes),
            min(box.top for box in boxes),
            max(box.right for box in boxes),
            max(box.bottom for box in boxes),
        )

    def moved(self, dx: float, dy: float) -> Scene:
        return replace(
            self,
            nodes=tuple(node.moved(dx, dy) for node in self.nodes),
            edges=tuple(edge.moved(dx, dy) for edge in self.edges),
            groups=tuple(group.moved(dx, dy) for group in self.groups),
            texts=tuple(text.moved(dx, dy) for text in self.texts),
        )

    def turned(self, *, across: bool, down: bool) -> Scene:
        """The same picture with left and right (across), above and below (down) exchanged; texts stay upright."""
        i, j = -1 if across else 1, -1 if down else 1

        def text(one: Text) -> Text:
            anchor = {"start": "end", "end": "start"}.get(one.anchor, "middle") if across else one.anchor
            return replace(one, x=i * one.x, y=j * one.y, anchor=anchor)

        def box(one: Box) -> Box:
            (left, right), (top, bottom) = (
                sorted((i * one.left, i * one.right)),
                sorted((j * one.top, j * one.bottom)),
            )
            return Box(left, top, right, bottom)

        return replace(
            self,
            nodes=tuple(
                replace(n, x=i * n.x, y=j * n.y, texts=tuple(map(text, n.texts))) for n in self.nodes
            ),
            edges=tuple(
                replace(e, points=tuple((i * x, j * y) for x, y in e.points), texts=tuple(map(text, e.texts)))
                for e in self.edges
            ),
            groups=tuple(Group(box(g.box), tuple(map(text, g.texts)), g.key) for g in self.groups),
            texts=tuple(map(text, self.texts)),
        )

    def check(self) -> Scene:
        """Return the scene itself; CircuitError if two texts meet, or a text and a node that is not its own."""
        words = sorted(self.words(), key=lambda text: text.box.left)
        for i, one in enumerate(words):
            for other in words[i + 1 :]:
                if other.box.left >= one.box.right:
                    break
                if one.box.meets(other.box):
                    raise CircuitError(f"'{one.text}' and '{other.text}' overlap", where=self.title)
        for node in self.nodes:
            own = set(map(id, node.texts))
            for text in words:
                if id(text) not in own and text.box.meets(node.box):
                    raise CircuitError(f"'{text.text}' lies on node '{node.id}'", where=self.title)
        return self


__all__ = ["SIZE", "Box", "Edge", "Group", "Node", "Point", "Scene", "Text"]
