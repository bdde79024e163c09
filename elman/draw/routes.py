"""Which of many curves between two boxes is taken: one that meets nothing, crosses few others and hardly bends.

A line has a cost for each box that it meets and each line that it crosses, for running along with another, and for
its length and its turns. Lines are chosen one after the other, and once more when all of them are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from elman.caches import cached
from elman.draw.lines import clear, flat
from elman.draw.scene import Box, Node, Point

Curve = tuple[Point, ...]
_MEETS, _CROSSES, _ALONG = 400.0, 9.0, 0.35  # for a box, for a line, for a pixel beside another line
_NEAR, _STEP = 7.0, 6.0  # nearer than this two lines look like one; distance of the points that are looked at
_TURNS = (0.0, 0.25, -0.25, 0.5, -0.5, 0.8, -0.8, 1.15, -1.15)  # radians


@dataclass(frozen=True, eq=False)
class Candidate:
    """A curve that a line may take; points [N, 2]: `sampled` from it; effort: what it costs by itself."""

    curve: Curve
    points: np.ndarray
    effort: float

    @cached_property
    def corners(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the rectangle in which the points are: the upper left one and the lower right one."""
        return self.points.min(0), self.points.max(0)

    @cached_property
    def fine(self) -> list[Point]:
        """Points so close together that words can stand beside any of them."""
        return flat(self.curve, max(20, 120 // len(self.curve)))

    @cached_property
    def box(self) -> Box:
        """Where the whole curve is, with a pixel round it."""
        xs, ys = [x for x, _ in self.fine], [y for _, y in self.fine]
        return Box(min(xs), min(ys), max(xs), max(ys)).wider(1)

    @cached_property
    def _pieces(self) -> np.ndarray:
        """The rectangles in which the straight pieces between the fine points are."""
        points = np.array(self.fine)
        a, b = points[:-1], points[1:]
        return np.concatenate([np.minimum(a, b), np.maximum(a, b)], 1)

    def meets(self, box: Box) -> bool:
        if not self.box.meets(box):
            return False
        near = np.flatnonzero(meeting(self._pieces, rectangles([box]))[:, 0]).tolist()
        return any(not clear(self.fine[i], self.fine[i + 1], (box,)) for i in near)


def bends(
    source: Node, target: Node, border: Callable[[Node, Point], Point], boxes: np.ndarray
) -> Iterator[Curve]:
    """Single curves: straight, and such as leave or come in with a turn, which is small where straight is free.

    border(node, toward): where a line leaves a node.
    """
    dx, dy = target.x - source.x, target.y - source.y
    angle, far = math.atan2(dy, dx), math.hypot(dx, dy)
    straight = np.linspace((source.x, source.y), (target.x, target.y), int(far / _STEP) + 2)
    turns = _TURNS if hits(straight, boxes) else _TURNS[:5]
    leave = [angle + turn for turn in turns]
    come = [angle + math.pi + turn for turn in turns]
    # None of them goes up, where all goes down.
    starts = [
        (out, border(source, _ahead((source.x, source.y), out, far)))
        for out in leave
        if math.sin(out) * dy >= 0
    ]
    ends = [
        (into, border(target, _ahead((target.x, target.y), into, far)))
        for into in come
        if math.sin(into) * dy <= 0
    ]
    for out, start in starts:
        for into, end in ends:
            reach = 0.36 * math.dist(start, end)
            yield start, _ahead(start, out, reach), _ahead(end, into, reach), end


def _ahead(p: Point, angle: float, far: float) -> Point:
    return p[0] + far * math.cos(angle), p[1] + far * math.sin(angle)


def sampled(curve: Curve) -> np.ndarray:
    """Points [N, 2] of a curve, about `_STEP` apart."""
    p = np.array(curve)
    parts = [_points(p[i : i + 4], _steps(p[i : i + 4])) for i in range(0, len(p) - 1, 3)]
    return np.concatenate([p[:1], *parts])


def _steps(p: np.ndarray) -> int:
    return max(3, int(np.abs(p[1:] - p[:-1]).sum() / _STEP))


def _points(p: np.ndarray, steps: int) -> np.ndarray:
    """So many points [..., steps, 2] of Bézier curves, each by its four [..., 4, 2], of which the first is left out."""
    a, b, c, d = (p[..., i : i + 1, :] for i in range(4))
    of_a, of_b, of_c, of_d = _bernstein(steps)
    return of_a * a + of_b * b + of_c * c + of_d * d


@cached("shares of a curve's four points", 64)
def _bernstein(steps: int) -> tuple[np.ndarray, ...]:
    """How much each of its four points counts at so many points of a Bézier curve, the first of them left out."""
    u = np.linspace(0, 1, steps + 1)[1:, None]
    v = 1 - u
    return v**3, 3 * v * v * u, 3 * v * u * u, u**3


def effort(points: np.ndarray) -> np.ndarray:
    """What lines [..., N, 2] cost by themselves: their turns, more where they are sharp or change sides, and their way
    round."""
    steps = points[..., 1:, :] - points[..., :-1, :]
    x, y = steps[..., 0], steps[..., 1]
    angles = np.arctan2(y, x)
    turns = (angles[..., 1:] - angles[..., :-1] + math.pi) % (2 * math.pi) - math.pi
    left, all_of = np.maximum(turns, 0.0).sum(-1), np.abs(turns).sum(-1)
    both = np.minimum(left, all_of - left)
    there = np.hypot(*np.moveaxis(points[..., -1, :] - points[..., 0, :], -1, 0)) + 1e-9
    round_ = np.hypot(x, y).sum(-1) / there - 1
    # Of curves that are alike the first is taken, on every machine.
    return np.round(2.5 * all_of + 5 * both + 16 * (turns**2).sum(-1) + 6 * round_, 9)


def _moving(points: np.ndarray) -> np.ndarray:
    """The points without those that hardly differ from the one before: they have no direction."""
    steps = points[1:] - points[:-1]
    return points[np.concatenate([[True], np.hypot(*steps.T) > 0.1])]


def hits(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How many of the boxes [K, 4] (left, top, right, bottom) lines [..., N, 2] enter."""
    x, y = points[..., :1], points[..., 1:]
    inside = (boxes[:, 0] < x) & (x < boxes[:, 2]) & (boxes[:, 1] < y) & (y < boxes[:, 3])
    return inside.any(-2).sum(-1)


def rectangles(boxes: Iterable[Box]) -> np.ndarray:
    return np.array([(box.left, box.top, box.right, box.bottom) for box in boxes]).reshape(-1, 4)


def meeting(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[N, K]: which of some rectangles [N, 4] meet which of others [K, 4]."""
    a, b = one[:, None], other
    return (a[..., 0] < b[:, 2]) & (b[:, 0] < a[..., 2]) & (a[..., 1] < b[:, 3]) & (b[:, 1] < a[..., 3])


class Lines:
    """The lines that are there so far, and what one more would cost beside them.

    ends: for each line, the two nodes between which it goes.
    """

    def __init__(self, ends: Sequence[tuple[str, str]]) -> None:
        self.ends = ends
        self.chosen: dict[int, Candidate] = {}
        self.known: dict[tuple[Candidate, Candidate], float] = {}
        # The corners of the rectangle in which each line is: most lines are far from one another.
        self.low, self.high = np.full((2, len(ends), 2), np.inf)

    def put(self, number: int, candidate: Candidate) -> None:
        self.chosen[number] = candidate
        self.low[number], self.high[number] = candidate.corners

    def disturbs(self, number: int, candidate: Candidate, most: float = math.inf) -> float:
        """The cost of crossing others and of running beside them; no more is looked for beyond `most`."""
        low, high = candidate.corners
        near = (low <= self.high + _NEAR) & (self.low <= high + _NEAR)
        cost = 0.0
        for other in np.flatnonzero(near[:, 0] & near[:, 1]).tolist():
            if other == number:
                continue
            there = self.chosen[other]
            if (candidate, there) not in self.known:
                shared = not set(self.ends[number]).isdisjoint(self.ends[other])
                both = _between(candidate, there, shared)
                self.known[candidate, there] = self.known[there, candidate] = both
            cost += self.known[candidate, there]
            if cost > most:
                break
        return cost


def _between(one: Candidate, other: Candidate, shared: bool) -> float:
    """What two lines cost each other; shared: whether they have an end in common, where they may be near."""
    (low, high), b = other.corners, other.points
    near = (one.points > low - _NEAR) & (one.points < high + _NEAR)
    a = one.points[near[:, 0] & near[:, 1]]
    if not len(a):
        return 0.0
    square = (a[:, :1] - b[:, 0]) ** 2
    square += (a[:, 1:] - b[:, 1]) ** 2
    nearest = square.min(1)
    beside = _STEP * int((nearest < _NEAR**2).sum()) - (45.0 if shared else 20.0)
    crossed = crossings(one, other) if nearest.min() < _STEP**2 else 0
    return _CROSSES * crossed + _ALONG * max(0.0, beside)


def crossings(one: Candidate, other: Candidate) -> int:
    """How often two lines of straight pieces cross."""
    (p, r), (q, s) = _pieces(one.points, other), _pieces(other.points, one)
    p, r = p[:, None], r[:, None]
    d = _cross(r, s)
    d = np.where(np.abs(d) < 1e-9, np.inf, d)
    t, u = _cross(q - p, s) / d, _cross(q - p, r) / d
    return int(((t > 1e-6) & (t < 1 - 1e-6) & (u > 1e-6) & (u < 1 - 1e-6)).sum())


def _pieces(points: np.ndarray, near: Candidate) -> tuple[np.ndarray, np.ndarray]:
    """(where straight pieces of a line begin, how far they go): those that may cross another."""
    (low, high), begin, end = near.corners, points[:-1], points[1:]
    there = (np.minimum(begin, end) <= high) & (np.maximum(begin, end) >= low)
    there = there[:, 0] & there[:, 1]
    return begin[there], (end - begin)[there]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def few(curves: Sequence[Curve], boxes: np.ndarray, most: int) -> list[Candidate]:
    """Of some curves those that enter the fewest boxes, and of these those of the least effort, which comes first."""
    alike: dict[int, list[int]] = {}  # single curves with as many points are looked at together
    ready: list[tuple[int, int, Candidate]] = []
    for i, curve in enumerate(curves):
        if len(curve) == 4:
            alike.setdefault(_steps(np.array(curve)), []).append(i)
        else:
            points = sampled(curve)
            own = float(effort(_moving(points)))
            ready.append((int(hits(points, boxes)), i, Candidate(curve, points, own)))
    for steps, numbers in alike.items():
        p = np.array([curves[i] for i in numbers])
        points = np.concatenate([p[:, :1], _points(p, steps)], 1)
        own, met = effort(points).tolist(), hits(points, boxes).tolist()
        ready += [(met[k], i, Candidate(curves[i], points[k], own[k])) for k, i in enumerate(numbers)]
    fewest = min(count for count, _, _ in ready)
    fine = [(one.effort, i, one) for count, i, one in ready if count == fewest]
    return [one for *_, one in sorted(fine)[:most]]


def best(number: int, candidates: Sequence[Candidate], lines: Lines, boxes: np.ndarray) -> Candidate:
    """The cheapest of some curves, of which that of the least effort comes first."""
    chosen, least = candidates[0], math.inf
    for candidate in candidates:
        if candidate.effort >= least:
            break
        cost = candidate.effort + _MEETS * int(hits(candidate.points, boxes))
        if cost < least:
            cost += lines.disturbs(number, candidate, least - cost)
        if cost < least:
            chosen, least = candidate, cost
    return chosen


__all__ = ["Candidate", "Curve", "Lines", "bends", "best", "few", "hits", "meeting", "rectangles"]
