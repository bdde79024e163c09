"""The curves that a line between two boxes may take, along the way that a layout has found for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from elman.draw.scene import Box, Node, Point

ASIDE = 11.0  # how far from its axis a line may lie where its words begin


def curves(
    source: Node, target: Node, way: Sequence[Point], mark: Point | None, others: Sequence[Box], high: float
) -> Iterator[tuple[Point, ...]]:
    """Ever more careful curves along a way, through its mark; the first that meets no box is the one to take."""
    straight = _straightened(way, mark, others)
    if mark is None and len(way) == 3 and len(straight) == 3:  # to the next row, past a neighbour
        yield _arched(source, target)
        yield _arched(target, source)[::-1]
    for points, line in ((straight, smooth), (straight, _cornered), (way, smooth)):
        curve = line([border(source, points[1]), *points[1:-1], border(target, points[-2])])
        if (
            mark is not None and rightmost(curve, mark, high) > mark[0] + ASIDE
        ):  # it would cross its own words
            side = high if way[-1][1] < way[0][1] else -high
            i = points.index(mark)
            upright = [(mark[0], mark[1] + side), (mark[0], mark[1] - side)]
            points = [*points[:i], *upright, *points[i + 1 :]]
            curve = line([border(source, points[1]), *points[1:-1], border(target, points[-2])])
        yield curve
    (_, high), (_, low) = way[0], way[-1]
    left, right = min(x for x, _ in way), max(x for x, _ in way)
    for x in (left - 4, left - 24, right + 4, right + 24) if mark is None and len(way) > 3 else ():
        for part in (0.3, 0.5, 0.7):  # round all that lies between
            past = x, high + part * (low - high)
            yield smooth([border(source, past), past, border(target, past)])
    yield _upright(source, target, way, others)


def _arched(source: Node, target: Node) -> tuple[Point, ...]:
    """A curve that leaves slantwise and comes upright to its end."""
    side = source.height / 2 if target.y > source.y else -source.height / 2
    dx, end = target.x - source.x, target.y - (target.height / 2 if side > 0 else -target.height / 2)
    start = border(source, (source.x + dx, source.y + 2.0 * side))
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


def rightmost(points: Sequence[Point], mark: Point, high: float) -> float:
    return max((x for x, y in flat(points) if abs(y - mark[1]) <= high), default=mark[0])


def _straightened(way: Sequence[Point], mark: Point | None, others: Sequence[Box]) -> list[Point]:
    """The way without the points that it can do without: where the straight line past them meets no box."""
    points, i = [way[0]], 0
    while i < len(way) - 1:

        def goes(j: int, i: int = i) -> bool:
            return j == i + 1 or (mark not in way[i + 1 : j] and clear(way[i], way[j], others))

        i = next(j for j in range(len(way) - 1, i, -1) if goes(j))
        points.append(way[i])
    return points


def clear(a: Point, b: Point, others: Sequence[Box]) -> bool:
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


def border(node: Node, toward: Point) -> Point:
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


__all__ = ["ASIDE", "bent", "border", "clear", "curves", "flat", "rightmost", "smooth"]
