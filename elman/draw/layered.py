"""Places for an acyclic graph in layers, after Sugiyama: rank, order, place, each in one function.

Ranks are rows, row 0 on top. What an edge says is a box of its own in a row between, beside its line, and an edge that
passes a row has a small box there: so no text can meet anything, whatever the graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elman.draw.scene import Point

GAP = 22.0  # between neighbours in a row
_PASS = 5.0  # half the width of an edge that passes a row


@dataclass(frozen=True)
class Size:
    """How far a box reaches from its axis to the left and to the right, and its height."""

    left: float
    right: float
    height: float


@dataclass(frozen=True)
class Link:
    """An edge between boxes; label: the size of what it says, None for nothing."""

    source: str
    target: str
    label: Size | None = None


@dataclass(frozen=True)
class Placed:
    """places: box -> (x of its axis, y of its middle). ways: for each link, the points that it passes, from the
    source's axis to the target's. labels: for each link, where its label's axis and middle are."""

    places: dict[str, Point]
    ways: list[list[Point]]
    labels: list[Point | None]


def layered(
    sizes: Mapping[str, Size],
    links: Sequence[Link],
    *,
    ranks: Mapping[str, int] | None = None,
    first: Sequence[str] = (),
    last: Sequence[str] = (),
    row_gap: float = 26.0,
) -> Placed:
    """Lay a graph out, sources on top.

    ranks: the row of a box, where it is not the longest path that says it. first, last: boxes that
    stand leftmost and rightmost in their rows.
    """
    row = _ranks(sizes, links, ranks or {})
    rows, chains, size = _with_dummies(sizes, links, row)
    sides = {name: i - len(first) for i, name in enumerate(first)} | {
        name: i + 1 for i, name in enumerate(last)
    }
    rows = _ordered(rows, chains, sides)
    across = _across(rows, chains, size)
    down, half = _down(rows, size, row_gap)
    places = {name: (across[name], down[2 * row[name]]) for name in sizes}
    ways, labels = [], []
    for link, chain in zip(links, chains, strict=True):
        marked, way = [], [(across[chain[0][0]], down[chain[0][1]])]
        for box, level in chain[1:-1]:
            x, y, high = across[box], down[level], half[level]
            if box.startswith("label\0"):
                marked.append((x, y))
                way.append((x, y))
            elif level % 2 == 0:  # upright past the boxes of a row
                way += [(x, y - high), (x, y + high)]
            else:
                way.append((x, y))
        ways.append([*way, (across[chain[-1][0]], down[chain[-1][1]])])
        labels.append(marked[0] if marked and link.label is not None else None)
    return Placed(places, ways, labels)


def _ranks(sizes: Mapping[str, Size], links: Sequence[Link], given: Mapping[str, int]) -> dict[str, int]:
    """The row of every box: that of the longest path that leads to it, and a source's as low as its targets allow."""
    before: dict[str, list[str]] = defaultdict(list)
    after: dict[str, list[str]] = defaultdict(list)
    for link in links:
        before[link.target].append(link.source)
        after[link.source].append(link.target)
    row: dict[str, int] = {}

    def rank(name: str) -> int:
        stack = [name]
        while stack:
            one = stack[-1]
            waiting = [other for other in before[one] if other not in row]
            if waiting:
                stack.extend(waiting)
                continue
            row[one] = max([given.get(one, 0), *(row[other] + 1 for other in before[one])])
            stack.pop()
        return row[name]

    for name in sizes:
        if name not in row:
            rank(name)
    for name in sizes:
        if name not in given and not before[name] and after[name]:
            row[name] = min(row[other] for other in after[name]) - 1
    return row


def _with_dummies(
    sizes: Mapping[str, Size], links: Sequence[Link], row: Mapping[str, int]
) -> tuple[list[list[str]], list[list[tuple[str, int]]], dict[str, Size]]:
    """Rows, twice as many, the odd ones for labels; the chain of (box, row) of every link; the sizes of all boxes."""
    rows: list[list[str]] = [[] for _ in range(2 * max(row.values(), default=0) + 1)]
    size = dict(sizes)
    for name in sizes:
        rows[2 * row[name]].append(name)
    chains = []
    for number, link in enumerate(links):
        start, end = 2 * row[link.source], 2 * row[link.target]
        chain = [(link.source, start)]
        for level in range(start + 1, end):
            labelled = link.label is not None and level == end - 1
            name = f"{'label' if labelled else 'pass'}\0{number}\0{level}"
            size[name] = link.label if labelled and link.label is not None else Size(_PASS, _PASS, 0)
            rows[level].append(name)
            chain.append((name, level))
        chains.append([*chain, (link.target, end)])
    return rows, chains, size


def _ordered(
    rows: list[list[str]], chains: Sequence[Sequence[tuple[str, int]]], left: Mapping[str, int]
) -> list[list[str]]:
    """Every row in an order with few crossings: sweeps of barycenters, then swaps of neighbours, the best kept."""
    up: dict[str, list[str]] = defaultdict(list)
    down: dict[str, list[str]] = defaultdict(list)
    for chain in chains:
        for (a, _), (b, _) in zip(chain, chain[1:], strict=False):
            down[a].append(b)
            up[b].append(a)

    def sweep(
        rows: list[list[str]], near: Mapping[str, list[str]], order: Sequence[int], turned: bool
    ) -> list[list[str]]:
        rows = [list(row) for row in rows]
        place = {name: i for row in rows for i, name in enumerate(row)}
        for level in order:

            def middle(name: str, place: Mapping[str, int] = place) -> tuple[int, float]:
                others = near.get(name) or [name]
                return left.get(name, 0), sum(place[other] for other in others) / len(others)

            if turned:  # who is even with a neighbour may stand on its other side
                rows[level].reverse()
            rows[level].sort(key=middle)
            place |= {name: i for i, name in enumerate(rows[level])}
        return rows

    rows = [sorted(row, key=lambda name: left.get(name, 0)) for row in rows]
    best, fewest = rows, _crossings(rows, down)
    for turn in range(16):
        levels, turned = range(len(rows)), turn // 2 % 2 == 1
        rows = sweep(rows, up, levels, turned) if turn % 2 == 0 else sweep(rows, down, levels[::-1], turned)
        rows = _swapped(rows, up, down, left)
        count = _crossings(rows, down)
        if count < fewest:
            best, fewest = rows, count
        if not fewest:
            break
    return best


def _swapped(
    rows: list[list[str]], up: Mapping[str, list[str]], down: Mapping[str, list[str]], left: Mapping[str, int]
) -> list[list[str]]:
    """Neighbours change places where that takes crossings away."""
    rows = [list(row) for row in rows]
    place = {name: i for row in rows for i, name in enumerate(row)}
    for row in rows:
        for i in range(len(row) - 1):
            a, b = row[i], row[i + 1]
            if a in left or b in left:
                continue
            now = later = 0
            for near in (up, down):
                for p in near.get(a, ()):
                    for q in near.get(b, ()):
                        now += place[p] > place[q]
                        later += place[q] > place[p]
            if later < now:
                row[i], row[i + 1] = b, a
                place[a], place[b] = i + 1, i
    return rows


def _crossings(rows: Sequence[Sequence[str]], down: Mapping[str, list[str]]) -> int:
    count = 0
    for upper, lower in zip(rows, rows[1:], strict=False):
        place = {name: i for i, name in enumerate(lower)}
        ends = [place[other] for name in upper for other in sorted(down.get(name, ()), key=place.__getitem__)]
        count += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
    return count


def _across(
    rows: Sequence[Sequence[str]], chains: Sequence[Sequence[tuple[str, int]]], size: Mapping[str, Size]
) -> dict[str, float]:
    """The x of every axis: each row as near below and above its neighbours as its own widths allow."""
    near: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for chain in chains:
        for (a, _), (b, _) in zip(chain, chain[1:], strict=False):
            # An edge that passes rows is to be straight before anything else.
            weight = 1.0 + 3.0 * (a.count("\0") + b.count("\0") > 2)
            near[a].append((b, weight))
            near[b].append((a, weight))
    offsets = []
    for row in rows:
        so_far, offset = 0.0, []
        for i, name in enumerate(row):
            if i:
                so_far += size[row[i - 1]].right + size[name].left + _gap(row[i - 1], name)
            offset.append(so_far)
        offsets.append(offset)
    x: dict[str, float] = {}
    for row, offset in zip(rows, offsets, strict=True):
        middle = offset[-1] / 2 if offset else 0
        x |= {name: place - middle for name, place in zip(row, offset, strict=True)}
    for turn in range(40):
        order = range(len(rows)) if turn % 2 == 0 else range(len(rows) - 1, -1, -1)
        for level in order:
            row = rows[level]
            wish, weight = [], []
            for name in row:
                others = near.get(name)
                total = sum(w for _, w in others) if others else 0.0
                wish.append(sum(x[other] * w for other, w in others) / total if others else x[name])
                weight.append(total or 0.1)
            for name, place in zip(row, _kept_apart(wish, weight, offsets[level]), strict=True):
                x[name] = place
    return x


def _gap(a: str, b: str) -> float:
    return GAP if "\0" not in a and "\0" not in b else GAP / 2


def _kept_apart(wish: list[float], weight: list[float], offset: list[float]) -> list[float]:
    """The places nearest to `wish` (least squares) that are as far apart as `offset`: pool adjacent violators."""
    blocks: list[list[float]] = []  # [sum of weighted wishes, weight, count]
    for w, k, o in zip(wish, weight, offset, strict=True):
        blocks.append([(w - o) * k, k, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            value, total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + value, blocks[-1][1] + total, blocks[-1][2] + count]
    flat = [value / total for value, total, count in blocks for _ in range(int(count))]
    return [place + o for place, o in zip(flat, offset, strict=True)]


def _down(
    rows: Sequence[Sequence[str]], size: Mapping[str, Size], gap: float
) -> tuple[list[float], list[float]]:
    """The y of every row's middle, and half its height."""
    y, middles, half = 0.0, [], []
    for level, row in enumerate(rows):
        high = max((size[name].height for name in row), default=0.0)
        if level:
            y += gap / 2 + high / 2
        middles.append(y + (high / 2 if not level else 0.0))
        y = middles[-1] + high / 2
        half.append(high / 2)
    return middles, half


__all__ = ["GAP", "Link", "Placed", "Size", "layered"]
