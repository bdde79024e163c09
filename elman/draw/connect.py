"""Lines between boxes that a layout has placed: smooth, as straight as what lies between allows, with their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from elman.draw.layered import Placed
from elman.draw.lines import ASIDE, border, clear, curves, flat, rightmost
from elman.draw.routes import Candidate, Lines, bends, best, few, hits, rectangles
from elman.draw.scene import Box, Edge, Node, Point, Text
from elman.draw.words import Saying, all_beside, beside, kept

_MANY = 60  # lines; more of them keep to the rows of their layout


def connect(
    ends: Sequence[tuple[str, str]],
    placed: Placed,
    nodes: Mapping[str, Node],
    sayings: Sequence[Saying],
    free: Sequence[Box] = (),
) -> tuple[list[Edge], int]:
    """(an edge for each pair of nodes, along the way that the layout has found for it; how many words have no room
    beside their line, or are crossed by one).

    A line is as straight as the boxes allow, and its words go beside it where there is room. Words for which there is
    none stand where the layout has kept a place for them, and lines go round them. free: where no words may stand.
    """
    wiring = _Wiring(ends, placed, nodes, sayings, free)
    wiring.lay_lines()
    wiring.put_words_beside()
    wiring.try_other_ways()
    homeless = wiring.homeless()
    wiring.use_kept_places(homeless)
    wiring.go_round_words()
    edges = [
        Edge(a, b, line.curve, () if text is None else (text,), saying.weights, saying.color, saying.arrow)
        for (a, b), line, text, saying in zip(ends, wiring.laid(), wiring.texts, sayings, strict=True)
    ]
    return edges, len(homeless) + wiring.crossed()


class _Wiring:
    """The lines of a picture and their words, in the making. A line goes by its number among `ends`.

    ways: for each line the curves that it may take, without regard to others. texts: its words, once they stand.
    """

    def __init__(
        self,
        ends: Sequence[tuple[str, str]],
        placed: Placed,
        nodes: Mapping[str, Node],
        sayings: Sequence[Saying],
        free: Sequence[Box],
    ) -> None:
        self.ends, self.placed, self.nodes, self.sayings = ends, placed, nodes, sayings
        self.kept = [kept(mark, saying) for mark, saying in zip(placed.labels, sayings, strict=True)]
        self.wordless = [
            box for node in nodes.values() for box in (node.box, *(text.box for text in node.texts))
        ]
        self.wordless += free
        self.around = {node.id: node.box.wider(4) for node in nodes.values()}
        self.lines = Lines(ends)
        self.ways = [self._ways(n, None) for n in range(len(ends))]
        self.texts: list[Text | None] = [None] * len(ends)

    def lay_lines(self) -> None:
        """Each line where it is cheapest beside those that are there, the shortest first; twice more, since by then
        those are there that came after it."""
        for _ in range(3):
            for n in sorted(range(len(self.ends)), key=lambda n: len(self.placed.ways[n])):
                self.lines.put(n, self._cheapest(n, self.ways[n], {}))

    def put_words_beside(self) -> None:
        self.texts = all_beside(self.laid(), self.sayings, self.wordless)

    def homeless(self) -> list[int]:
        """Lines without the words that they need: nothing beside them says the same."""
        said = {(self.ends[n][0], self.sayings[n].text) for n in self._said()}
        lost = [n for n, box in enumerate(self.kept) if box is not None and self.texts[n] is None]
        return [
            n
            for n in lost
            if not self.sayings[n].shared or (self.ends[n][0], self.sayings[n].text) not in said
        ]

    def try_other_ways(self) -> None:
        """A line whose words have no room takes another way, beside which there is some."""
        for n in self.homeless():
            words = self._said()
            boxes = rectangles(words.values())
            open_ways = [way for way in self.ways[n] if not hits(way.points, boxes)]
            for way in sorted(open_ways, key=lambda way: way.effort + self.lines.disturbs(n, way))[:8]:
                taken = [*self.wordless, *words.values()]
                if text := beside(way, self.sayings[n], taken, self._laid_but(n, way)):
                    self._take(n, way, text)
                    break

    def use_kept_places(self, homeless: Sequence[int]) -> None:
        """Words without room stand where the layout has kept a place for them, their line passes by, and others go
        round them. Words that are in that place already go to the one that is kept for themselves."""
        moving = set(homeless)
        while more := {
            n for n, box in self._said().items() if n not in moving and self._in_kept(box, moving)
        }:
            moving |= more
        spots = {n: box.wider(6) for n, box in self._said().items() if n not in moving}
        spots |= {n: box for n in moving if (box := self.kept[n]) is not None}
        for n in range(len(self.ends)):
            mark = self.placed.labels[n] if n in moving else None
            if mark is not None:
                way = self._cheapest(n, self._ways(n, mark), spots)
                x = min(rightmost(way.curve, mark, self.sayings[n].half_height), mark[0] + ASIDE) + 5
                self._take(n, way, self.sayings[n].at(x, mark[1], "start"))
            elif _enters(self.lines.chosen[n], [spots[m] for m in moving]):
                self._take(n, self._cheapest(n, self.ways[n], spots), self.texts[n])

    def go_round_words(self) -> None:
        """Lines that cross words go round them and take their own along; once more, since the last to do so may have
        put its own words in the way of the first."""
        for n in [*range(len(self.ends))] * 2:
            words, own = self._said(), n in self._said()
            if not any(self.lines.chosen[n].meets(box) for box in words.values()):
                continue
            words.pop(n, None)
            away = self._cheapest(n, self.ways[n], {m: box.wider(5) for m, box in words.items()})
            for way in (away, self.lines.chosen[n]):  # or the same way, with its words elsewhere
                if any(way.meets(box) for box in words.values()):
                    continue
                taken = [*self.wordless, *words.values()]
                text = beside(way, self.sayings[n], taken, self._laid_but(n, way)) if own else None
                if text or not own:
                    self._take(n, way, text)
                    break

    def crossed(self) -> int:
        """How many words a line runs through."""
        boxes = [box.wider(-2) for box in self._said().values()]
        return sum(any(line.meets(box) for line in self.laid()) for box in boxes)

    def laid(self) -> list[Candidate]:
        return [self.lines.chosen[n] for n in range(len(self.ends))]

    def _laid_but(self, n: int, way: Candidate) -> list[Candidate]:
        """The lines as they are when one of them goes another way."""
        return [way if m == n else line for m, line in enumerate(self.laid())]

    def _said(self) -> dict[int, Box]:
        """Where the words are that stand."""
        return {n: text.box for n, text in enumerate(self.texts) if text is not None}

    def _in_kept(self, box: Box, of: set[int]) -> bool:
        return any(other is not None and box.meets(other) for other in (self.kept[n] for n in of))

    def _take(self, n: int, way: Candidate, text: Text | None) -> None:
        self.lines.put(n, way)
        self.texts[n] = text

    def _ways(self, n: int, mark: Point | None) -> list[Candidate]:
        """The curves that a line may take, through the mark; the last is upright between the rows and always there."""
        source, target = (self.nodes[end] for end in self.ends[n])
        boxes = self._boxes_but(n)
        wide, walls = [box.wider(3) for box in boxes], rectangles(boxes)
        along = list(curves(source, target, self.placed.ways[n], mark, wide, self.sayings[n].half_height))
        single = bends(source, target, border, walls) if mark is None and len(self.ends) <= _MANY else ()
        most = max(8, min(30, 1200 // (len(self.ends) + 1)))
        return few([*along, *single], walls, most) + few(along[-1:], walls, 1)

    def _cheapest(self, n: int, ways: Sequence[Candidate], words: Mapping[int, Box]) -> Candidate:
        """Of some ways that which fits best beside the lines that are there, boxes and the words of others."""
        boxes = self._boxes_but(n) + [box.wider(-3) for m, box in words.items() if m != n]
        return best(n, ways, self.lines, rectangles(boxes))

    def _boxes_but(self, n: int) -> list[Box]:
        """The boxes between which a line does not go."""
        return [box for name, box in self.around.items() if name not in self.ends[n]]


def _enters(line: Candidate, boxes: Sequence[Box]) -> bool:
    inner = [box.wider(-5) for box in boxes]
    points = flat(line.curve, 8)
    return not all(clear(a, b, inner) for a, b in zip(points, points[1:], strict=False))


__all__ = ["connect"]
