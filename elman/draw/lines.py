"""Lines between boxes that a layout has placed: smooth, as straight as what lies between allows, with their words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from elman.draw.layered import Placed, Size
from elman.draw.measure import LINE, width
from elman.draw.routes import Candidate, Lines, bends, best, few, hits, rectangles
from elman.draw.scene import Box, Edge, Node, Point, Text

_MANY = 60  # lines; more of them keep to the rows of their layout
_SIDE = 11.0  # how far from its axis a line may lie where its words begin


@dataclass(frozen=True)
class Saying:
    """What stands on a line, and how the line looks. shared: whether lines from one box that say the same are alike, so
    that one of them may speak for all."""

    text: str
    size: float
    color: int | None = None
    weights: tuple[str, ...] = ()
    arrow: bool = True
    shared: bool = False


def label_size(text: str, size: float) -> Size | None:
    """The room that words take beside their line."""
    return Size(6, width(text, size) + _SIDE + 7, LINE * size + 2) if text else None


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
    boxes = {node.id: _wider(node.box, 4) for node in nodes.values()}
    kept = [_kept(mark, saying) for mark, saying in zip(placed.labels, sayings, strict=True)]
    lines = Lines(ends)
    most = max(8, min(30, 1200 // (len(ends) + 1)))

    def candidates(number: int, through: Point | None) -> list[Candidate]:
        source, target = nodes[ends[number][0]], nodes[ends[number][1]]
        others = [box for name, box in boxes.items() if name not in (source.id, target.id)]
        wide, walls = [_wider(box, 3) for box in others], rectangles(others)
        careful = list(_curves(source, target, placed.ways[number], through, wide, _high(sayings[number])))
        free = bends(source, target, _border, walls) if through is None and len(ends) <= _MANY else ()
        return few([*careful, *free], walls, most) + few(careful[-1:], walls, 1)

    def line(number: int, words: Mapping[int, Box], through: Point | None) -> Candidate:
        others = [box for name, box in boxes.items() if name not in ends[number]]
        others += [_wider(box, -3) for other, box in words.items() if other != number]
        found = free_ways[number] if through is None else candidates(number, through)
        return best(number, found, lines, rectangles(others))

    free_ways = [candidates(number, None) for number in range(len(ends))]
    order = sorted(range(len(ends)), key=lambda number: len(placed.ways[number]))
    for _ in range(3):
        for number in order:
            lines.put(number, line(number, {}, None))
    curves = [lines.chosen[number][0] for number in range(len(ends))]
    walls = [box for node in nodes.values() for box in (node.box, *(text.box for text in node.texts))] + [
        *free
    ]
    texts = beside(curves, sayings, walls)

    def wanting() -> list[int]:
        """Lines without the words that they need: nothing beside them says the same."""
        said = {(ends[n][0], sayings[n].text) for n, text in enumerate(texts) if text is not None}
        lost = [n for n, box in enumerate(kept) if box is not None and texts[n] is None]
        return [n for n in lost if not sayings[n].shared or (ends[n][0], sayings[n].text) not in said]

    for n in wanting():  # another way, beside which there is room
        taken = [_wider(box, 2) for box in (*walls, *(text.box for text in texts if text is not None))]
        others = [_fine(curve) for m, curve in enumerate(curves) if m != n]
        words = rectangles(text.box for text in texts if text is not None)
        ways = [(way[2] + lines.disturbs(n, way), way) for way in free_ways[n] if not hits(way[1], words)]
        for _, way in sorted(ways, key=lambda pair: pair[0])[:8]:
            fine = [*others, _fine(way[0])]
            if text := _spot(fine[-1], sayings[n], taken, fine, [_bounds(line) for line in fine]):
                texts[n], curves[n] = text, way[0]
                lines.put(n, way)
                break
    missing = wanting()
    without = set(missing)
    while more := {n for n, t in enumerate(texts) if t and n not in without and _hits(t.box, kept, without)}:
        without |= more
    spots = {n: _wider(text.box, 6) for n, text in enumerate(texts) if text is not None and n not in without}
    spots |= {n: box for n in without if (box := kept[n]) is not None}
    for n, curve in enumerate(curves):
        if n in without or _meets(curve, [spots[other] for other in without if other != n]):
            mark = placed.labels[n] if n in without else None
            lines.put(n, line(n, spots, mark))
            curves[n] = lines.chosen[n][0]
            if mark is not None:
                x = min(_rightmost(curves[n], mark, _high(sayings[n])), mark[0] + _SIDE) + 5
                texts[n] = _text(sayings[n], x, mark[1], "start")
    fine = [_fine(curve) for curve in curves]
    bounds = [_bounds(one) for one in fine]
    for n in [*range(len(ends))] * 2:  # lines go round words, and take their own along
        around = {m: text.box for m, text in enumerate(texts) if text is not None and m != n}
        own = texts[n]
        if not any(
            _crossed(box, fine[n], bounds[n]) for box in (*around.values(), *([own.box] if own else ()))
        ):
            continue
        taken = [_wider(box, 2) for box in (*walls, *around.values())]
        for way in (line(n, {m: _wider(box, 5) for m, box in around.items()}, None), lines.chosen[n]):
            lines_then = [*fine[:n], _fine(way[0]), *fine[n + 1 :]]
            bounds_then = [*bounds[:n], _bounds(lines_then[n]), *bounds[n + 1 :]]
            text = _spot(lines_then[n], sayings[n], taken, lines_then, bounds_then) if own else None
            if not any(_crossed(box, lines_then[n], bounds_then[n]) for box in around.values()) and (
                text or not own
            ):
                texts[n], curves[n], fine, bounds = text, way[0], lines_then, bounds_then
                lines.put(n, way)
                break
    edges = [
        Edge(a, b, curve, () if text is None else (text,), saying.weights, saying.color, saying.arrow)
        for (a, b), curve, text, saying in zip(ends, curves, texts, sayings, strict=True)
    ]
    words = [_wider(text.box, -2) for text in texts if text is not None]
    crossed = sum(any(_crossed(box, *one) for one in zip(fine, bounds, strict=True)) for box in words)
    return edges, len(missing) + crossed


def _high(saying: Saying) -> float:
    """Half the height of its words."""
    return LINE * saying.size / 2 + 1


def _text(saying: Saying, x: float, y: float, anchor: str = "middle") -> Text:
    return Text(x, y, saying.text, saying.size, anchor, "weight", saying.color)


def _kept(mark: Point | None, saying: Saying) -> Box | None:
    """The room that the layout has kept for words."""
    size = label_size(saying.text, saying.size)
    if mark is None or size is None:
        return None
    (x, y), high = mark, size.height / 2
    return Box(x - size.left, y - high, x + size.right, y + high)


def _hits(box: Box, kept: Sequence[Box | None], of: Iterable[int]) -> bool:
    return any(other is not None and box.meets(other) for other in (kept[n] for n in of))


def beside(
    curves: Sequence[tuple[Point, ...]], sayings: Sequence[Saying], boxes: Sequence[Box]
) -> list[Text | None]:
    """For each line its words, near its middle and on either side, where they meet no box, line or other words."""
    fine = [_fine(curve) for curve in curves]
    bounds = [_bounds(line) for line in fine]
    taken = [_wider(box, 2) for box in boxes]
    texts: list[Text | None] = [None] * len(curves)
    for number in sorted(range(len(curves)), key=lambda n: -len(sayings[n].text)):
        if sayings[number].text:
            texts[number] = text = _spot(fine[number], sayings[number], taken, fine, bounds)
            taken += [] if text is None else [_wider(text.box, 2)]
    return texts


def _spot(
    line: Sequence[Point], saying: Saying, taken: Sequence[Box], lines: Sequence[Sequence[Point]],
    bounds: Sequence[Box],
) -> Text | None:  # fmt: skip
    """Where the words of a line meet no box and none of the lines."""
    for _, text in sorted(_places(line, saying), key=lambda pair: pair[0]):
        close = _wider(text.box, 1)
        if any(close.meets(box) for box in taken):
            continue
        near = (other for other, bound in zip(lines, bounds, strict=True) if close.meets(bound))
        if not any(_crossed(close, other) for other in near):
            return text
    return None


def _fine(curve: tuple[Point, ...]) -> list[Point]:
    return flat(curve, max(20, 120 // len(curve)))


def _places(line: Sequence[Point], saying: Saying) -> Iterator[tuple[float, Text]]:
    """(how far from what is wished, words) at points of a line, on both of its sides."""
    high, half = _high(saying), width(saying.text, saying.size) / 2
    lengths = [0.0]
    for (x0, y0), (x1, y1) in zip(line, line[1:], strict=False):
        lengths.append(lengths[-1] + ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5)
    for (x, y), so_far in zip(line, lengths, strict=True):
        part = so_far / (lengths[-1] or 1.0)
        if not 0.12 < part < 0.88:
            continue
        wish = abs(part - 0.5)
        beside = [px for px, py in line if abs(py - y) <= high + 4]
        for near, side, more in ((max(beside), 1, 0.0), (min(beside), -1, 0.05)):
            if abs(near - x) < 28:
                yield wish + more + abs(near - x) / 120, _text(saying, near + side * (5 + half), y)
        over = [py for px, py in line if abs(px - x) <= half + 4]
        for near, side, more in ((min(over), -1, 0.1), (max(over), 1, 0.12)):
            if abs(near - y) < 22:
                yield wish + more + abs(near - y) / 100, _text(saying, x, near + side * (high + 1))


def _crossed(box: Box, line: Sequence[Point], bound: Box | None = None) -> bool:
    if bound is not None and not box.meets(bound):
        return False
    return any(not _free(a, b, (box,)) for a, b in zip(line, line[1:], strict=False))


def _bounds(line: Sequence[Point]) -> Box:
    xs, ys = [x for x, _ in line], [y for _, y in line]
    return Box(min(xs) - 1, min(ys) - 1, max(xs) + 1, max(ys) + 1)


def _curves(
    source: Node, target: Node, way: Sequence[Point], mark: Point | None, others: Sequence[Box], high: float
) -> Iterator[tuple[Point, ...]]:
    """Ever more careful curves along a way, through its mark; the first that meets no box is the one to take."""
    straight = _straightened(way, mark, others)
    if mark is None and len(way) == 3 and len(straight) == 3:  # to the next row, past a neighbour
        yield _arched(source, target)
        yield _arched(target, source)[::-1]
    for points, line in ((straight, smooth), (straight, _cornered), (way, smooth)):
        curve = line([_border(source, points[1]), *points[1:-1], _border(target, points[-2])])
        if (
            mark is not None and _rightmost(curve, mark, high) > mark[0] + _SIDE
        ):  # it would cross its own words
            side = high if way[-1][1] < way[0][1] else -high
            i = points.index(mark)
            upright = [(mark[0], mark[1] + side), (mark[0], mark[1] - side)]
            points = [*points[:i], *upright, *points[i + 1 :]]
            curve = line([_border(source, points[1]), *points[1:-1], _border(target, points[-2])])
        yield curve
    (_, high), (_, low) = way[0], way[-1]
    left, right = min(x for x, _ in way), max(x for x, _ in way)
    for x in (left - 4, left - 24, right + 4, right + 24) if mark is None and len(way) > 3 else ():
        for part in (0.3, 0.5, 0.7):  # round all that lies between
            past = x, high + part * (low - high)
            yield smooth([_border(source, past), past, _border(target, past)])
    yield _upright(source, target, way, others)


def _arched(source: Node, target: Node) -> tuple[Point, ...]:
    """A curve that leaves slantwise and comes upright to its end."""
    side = source.height / 2 if target.y > source.y else -source.height / 2
    dx, end = target.x - source.x, target.y - (target.height / 2 if side > 0 else -target.height / 2)
    start = _border(source, (source.x + dx, source.y + 2.0 * side))
    return start, (start[0] + 0.4 * (target.x - start[0]), start[1] + 0.3 * (end - start[1])), (
        target.x - 0.04 * dx, start[1] + 0.2 * (end - start[1])), (target.x, end)  # fmt: skip


def _cornered(way: Sequence[Point]) -> tuple[Point, ...]:
    return bent(way, 24.0)


def _upright(source: Node, target: Node, way: Sequence[Point], others: Sequence[Box]) -> tuple[Point, ...]:
    """Curves that are upright at each point of a way, and so stay between its rows."""
    up = way[-1][1] < way[0][1]

    def out_of_row(y: float, up: bool) -> float:  # a dot is lower than the boxes of its row
        row = [box for box in others if box.top < y < box.bottom]
        return min([y, *(box.top for box in row)]) if up else max([y, *(box.bottom for box in row)])

    start, end = (source.box.top, target.box.bottom) if up else (source.box.bottom, target.box.top)
    points = [(way[0][0], start), (way[0][0], out_of_row(start, up))]
    points += [*way[1:-1], (way[-1][0], out_of_row(end, not up)), (way[-1][0], end)]
    curve = [points[0]]
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        middle = (y0 + y1) / 2
        curve += [(x0, middle), (x1, middle), (x1, y1)]
    return tuple(curve)


def _meets(points: Sequence[Point], boxes: Sequence[Box]) -> bool:
    close = [_wider(box, -5) for box in boxes]
    fine = flat(points, 8)
    return not all(_free(a, b, close) for a, b in zip(fine, fine[1:], strict=False))


def _rightmost(points: Sequence[Point], mark: Point, high: float) -> float:
    return max((x for x, y in flat(points) if abs(y - mark[1]) <= high), default=mark[0])


def _wider(box: Box, by: float) -> Box:
    return Box(box.left - by, box.top - by, box.right + by, box.bottom + by)


def _straightened(way: Sequence[Point], mark: Point | None, others: Sequence[Box]) -> list[Point]:
    """The way without the points that it can do without: where the straight line past them meets no box."""
    points, i = [way[0]], 0
    while i < len(way) - 1:

        def goes(j: int, i: int = i) -> bool:
            return j == i + 1 or (mark not in way[i + 1 : j] and _free(way[i], way[j], others))

        i = next(j for j in range(len(way) - 1, i, -1) if goes(j))
        points.append(way[i])
    return points


def _free(a: Point, b: Point, others: Sequence[Box]) -> bool:
    """Whether a straight line meets none of the boxes."""
    low, high = (a[1], b[1]) if a[1] < b[1] else (b[1], a[1])
    left, right = (a[0], b[0]) if a[0] < b[0] else (b[0], a[0])
    dx, dy = b[0] - a[0], b[1] - a[1]
    for box in others:
        if box.top >= high or box.bottom <= low or box.left >= right + 1e-9 or box.right <= left - 1e-9:
            continue
        if abs(dy) < 1e-9:
            return False
        # Where the line enters and leaves the height of the box.
        xs = [a[0] + dx * (min(max(y, low), high) - a[1]) / dy for y in (box.top, box.bottom)]
        if min(xs) < box.right and max(xs) > box.left:
            return False
    return True


def _border(node: Node, toward: Point) -> Point:
    """Where the straight line from the middle of a node to a point leaves it."""
    if node.shape == "dot":
        return node.x, node.y
    dx, dy = toward[0] - node.x, toward[1] - node.y
    length = (dx * dx + dy * dy) ** 0.5 or 1.0
    if node.shape == "delay":
        part = min(node.width / 2 / (abs(dx) or 1e-9), node.height / 2 / (abs(dy) or 1e-9))
        return node.x + dx * part, node.y + dy * part
    r, flat_part = node.height / 2, node.width / 2 - node.height / 2
    if abs(dy) > 1e-9 and abs(dx) * r / abs(dy) <= flat_part:
        return node.x + dx * r / abs(dy), node.y + (r if dy > 0 else -r)
    # On one of the half circles: the distance from the middle of the node, by bisection.
    low, high = 0.0, node.width
    for _ in range(30):
        part = (low + high) / 2
        x, y = dx / length * part, dy / length * part
        over = max(0.0, abs(x) - flat_part)
        low, high = (part, high) if over * over + y * y < r * r else (low, part)
    return node.x + dx / length * low, node.y + dy / length * low


def smooth(way: Sequence[Point]) -> tuple[Point, ...]:
    """Bézier curves through points (Catmull and Rom's); straight between two."""
    points = [way[0]]
    for i, (p, q) in enumerate(zip(way, way[1:], strict=False)):
        before, after = way[max(i - 1, 0)], way[min(i + 2, len(way) - 1)]
        length = ((q[0] - p[0]) ** 2 + (q[1] - p[1]) ** 2) ** 0.5
        points += [_along(p, before, q, length / 3), _along(q, after, p, length / 3), q]
    return tuple(points)


def _along(p: Point, a: Point, b: Point, far: float) -> Point:
    """From p, `far` in the direction from a to b."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = (dx * dx + dy * dy) ** 0.5 or 1.0
    return p[0] + dx / length * far, p[1] + dy / length * far


def flat(points: Sequence[Point], parts: int = 16) -> list[Point]:
    """Points on Bézier curves, close together."""
    line = [points[0]]
    for i in range(0, len(points) - 1, 3):
        p, a, b, q = points[i : i + 4]
        for k in range(1, parts + 1):
            u = k / parts
            v = 1 - u
            line.append(
                tuple(v**3 * p[d] + 3 * v * v * u * a[d] + 3 * v * u * u * b[d] + u**3 * q[d] for d in (0, 1))  # type: ignore[arg-type]
            )
    return line


def bent(way: Sequence[Point], radius: float = 9.0) -> tuple[Point, ...]:
    """Straight pieces with round corners through points."""
    way = [p for i, p in enumerate(way) if not i or p != way[i - 1]]
    points = [way[0]]

    def straight(end: Point) -> None:
        (x0, y0), (x1, y1) = points[-1], end
        points.extend(
            [(x0 + (x1 - x0) / 3, y0 + (y1 - y0) / 3), (x0 + 2 * (x1 - x0) / 3, y0 + 2 * (y1 - y0) / 3), end]
        )

    for before, corner, after in zip(way, way[1:], way[2:], strict=False):
        near, far = _toward(corner, before, radius), _toward(corner, after, radius)
        straight(near)
        points.extend([corner, corner, far])
    straight(way[-1])
    return tuple(points)


def _toward(start: Point, end: Point, most: float) -> Point:
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    part = min(most, length / 2) / length if length else 0.0
    return start[0] + dx * part, start[1] + dy * part


__all__ = ["Saying", "bent", "connect", "flat", "label_size", "smooth"]
