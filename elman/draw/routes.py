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
    def fine(self) -> list[Point]:
        """Points so close together that words can stand beside any of them."""
        return flat(self.curve, max(20, 120 // len(self.curve)))

    @cached_property
    def box(self) -> Box:
        """Where the whole curve is, with a pixel round it."""
        xs, ys = [x for x, _ in self.fine], [y for _, y in self.fine]
        return Box(min(xs), min(ys), max(xs), max(ys)).wider(1)

    def meets(self, box: Box) -> bool:
        return self.box.meets(box) and not all(
            clear(a, b, (box,)) for a, b in zip(self.fine, self.fine[1:], strict=False)
        )


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
    for out in turns:
        for into in turns:
            leaves, comes = angle + out, angle + math.pi + into
            if math.sin(leaves) * dy < 0 or math.sin(comes) * dy > 0:  # up, where all goes down
                continue
            start = border(source, _ahead((source.x, source.y), leaves, far))
            end = border(target, _ahead((target.x, target.y), comes, far))
            reach = 0.36 * math.hypot(end[0] - start[0], end[1] - start[1])
            yield start, _ahead(start, leaves, reach), _ahead(end, comes, reach), end


def _ahead(p: Point, angle: float, far: float) -> Point:
    return p[0] + far * math.cos(angle), p[1] + far * math.sin(angle)


def sampled(curve: Curve) -> np.ndarray:
    """Points [N, 2] of a curve, about `_STEP` apart."""
    p = np.array(curve)
    parts = []
    for i in range(0, len(p) - 1, 3):
        a, b, c, d = p[i : i + 4]
        count = max(3, int(np.abs(np.diff(p[i : i + 4], axis=0)).sum() / _STEP))
        u = np.linspace(0, 1, count + 1)[:, None][int(i > 0) :]
        v = 1 - u
        parts.append(v**3 * a + 3 * v * v * u * b + 3 * v * u * u * c + u**3 * d)
    return np.concatenate(parts)


def effort(points: np.ndarray) -> float:
    """What a line costs by itself: its turns, more where they are sharp or change sides, and its way round."""
    steps = np.diff(points, axis=0)
    steps = steps[np.hypot(*steps.T) > 0.1]
    length = np.hypot(*steps.T)
    turns = np.diff(np.unwrap(np.arctan2(steps[:, 1], steps[:, 0])))
    there = math.hypot(*(points[-1] - points[0])) + 1e-9
    both = min(turns[turns > 0].sum(), -turns[turns < 0].sum())
    return float(
        2.5 * np.abs(turns).sum() + 5 * both + 16 * (turns**2).sum() + 6 * (length.sum() / there - 1)
    )


def hits(points: np.ndarray, boxes: np.ndarray) -> int:
    """How many of the boxes [K, 4] (left, top, right, bottom) a line enters."""
    if not len(boxes):
        return 0
    x, y = points[:, :1], points[:, 1:]
    inside = (boxes[:, 0] < x) & (x < boxes[:, 2]) & (boxes[:, 1] < y) & (y < boxes[:, 3])
    return int(inside.any(0).sum())


def rectangles(boxes: Iterable[Box]) -> np.ndarray:
    return np.array([(box.left, box.top, box.right, box.bottom) for box in boxes]).reshape(-1, 4)


class Lines:
    """The lines that are there so far, and what one more would cost beside them.

    ends: for each line, the two nodes between which it goes.
    """

    def __init__(self, ends: Sequence[tuple[str, str]]) -> None:
        self.ends = ends
        self.chosen: dict[int, Candidate] = {}
        self.known: dict[tuple[Candidate, Candidate], float] = {}

    def put(self, number: int, candidate: Candidate) -> None:
        self.chosen[number] = candidate

    def disturbs(self, number: int, candidate: Candidate, most: float = math.inf) -> float:
        """The cost of crossing others and of running beside them; no more is looked for beyond `most`."""
        cost = 0.0
        for other, there in self.chosen.items():
            if other == number:
                continue
            pair = candidate, there
            if pair not in self.known:
                shared = bool(set(self.ends[number]) & set(self.ends[other]))
                cost_of_both = _between(candidate.points, there.points, shared)
                self.known[pair] = self.known[there, candidate] = cost_of_both
            cost += self.known[pair]
            if cost > most:
                break
        return cost


def _between(a: np.ndarray, b: np.ndarray, shared: bool) -> float:
    """What two lines cost each other; shared: whether they have an end in common, where they may be near."""
    if (a.max(0) + _NEAR < b.min(0)).any() or (b.max(0) + _NEAR < a.min(0)).any():
        return 0.0
    gaps = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)).min(1)
    beside = _STEP * float((gaps < _NEAR).sum()) - (45.0 if shared else 20.0)
    crossed = crossings(a, b) if gaps.min() < _STEP else 0
    return _CROSSES * crossed + _ALONG * max(0.0, beside)


def crossings(a: np.ndarray, b: np.ndarray) -> int:
    """How often two lines of straight pieces cross."""
    p, r = a[:-1, None], np.diff(a, axis=0)[:, None]
    q, s = b[None, :-1], np.diff(b, axis=0)[None]
    d = _cross(r, s)
    d = np.where(np.abs(d) < 1e-9, np.inf, d)
    t, u = _cross(q - p, s) / d, _cross(q - p, r) / d
    return int(((t > 1e-6) & (t < 1 - 1e-6) & (u > 1e-6) & (u < 1 - 1e-6)).sum())


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def few(candidates: Iterable[Curve], boxes: np.ndarray, most: int) -> list[Candidate]:
    """Of some curves those that enter the fewest boxes, and of these those of the least effort, which comes first."""
    ready = [Candidate(curve, points := sampled(curve), effort(points)) for curve in candidates]
    met = [hits(one.points, boxes) for one in ready]
    fine = [one for one, count in zip(ready, met, strict=True) if count == min(met)]
    return sorted(fine, key=lambda one: one.effort)[:most]


def best(number: int, candidates: Sequence[Candidate], lines: Lines, boxes: np.ndarray) -> Candidate:
    """The cheapest of some curves, of which that of the least effort comes first."""
    chosen, least = candidates[0], math.inf
    for candidate in candidates:
        if candidate.effort >= least:
            break
        cost = candidate.effort + _MEETS * hits(candidate.points, boxes)
        if cost < least:
            cost += lines.disturbs(number, candidate, least - cost)
        if cost < least:
            chosen, least = candidate, cost
    return chosen


__all__ = ["Candidate", "Curve", "Lines", "bends", "best", "few", "rectangles"]
