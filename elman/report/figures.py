"""Figures as inline SVG: lines over a linear or logarithmic axis, and bars. Colours are the page's variables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from elman.data.words import plain
from elman.report.record import Point
from elman.training.measure import percent

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 26, 34  # room around the plot
POINTS = 1000  # of a curve, at most
NOTHING = '<p class="none">nothing was logged</p>'
_FEW, _ALL = 3, 17  # digits of a number at an axis; of a float, which tell any two apart
_LEAST = 1e-290  # below it and above its inverse there is no room for an axis


@dataclass(frozen=True)
class Curve:
    """Points joined by a line. colour: the name of a CSS variable. marked: with a dot at each point."""

    name: str
    points: Sequence[Point]
    colour: str
    marked: bool = False


@dataclass(frozen=True)
class Band:
    """What lies between two lines over the same steps, shaded: the more bands over one another, the stronger."""

    low: Sequence[Point]
    high: Sequence[Point]
    colour: str


@dataclass(frozen=True)
class Axis:
    """From low to high over so many units of a drawing; on a logarithmic one both are above 0."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool

    def share(self, value: float) -> float:
        """Where a value lies, 0 at low and 1 at high."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def lines(
    curves: Sequence[Curve], *, x: str, y: str, log: bool = False, wide: float = 1.0, bands: Sequence[Band] = ()
) -> str:  # fmt: skip
    """Curves over one another, and bands under them. x, y: what the axes are called. wide: of so many figures' width.

    On a logarithmic axis what is not above 0 is left out, and so is what floats cannot reckon with. Long curves are
    thinned: see `thinned`.
    """
    drawn = [
        Curve(curve.name, thinned([p for p in curve.points if _drawable(p, log)]), curve.colour, curve.marked)
        for curve in curves
    ]
    drawn = [curve for curve in drawn if curve.points]
    if not drawn:
        return NOTHING
    ends = [p for band in bands for p in (*band.low, *band.high) if _drawable(p, log)]
    values = [p.value for p in (*(p for curve in drawn for p in curve.points), *ends)]
    steps = [p.step for p in (*(p for curve in drawn for p in curve.points), *ends)]
    up, along = axis(min(values), max(values), log=log), axis(min(steps), max(steps), log=False, loose=False)
    across = round(WIDTH * wide)
    heights = labels(up)
    left = max(LEFT, 10 + 7 * max(map(len, heights), default=0))
    inner, tall = across - left - RIGHT, HEIGHT - TOP - BOTTOM
    parts = [_open(across, HEIGHT, f"{y} against {x}: {', '.join(curve.name for curve in drawn)}")]

    def at_x(step: float) -> float:
        return left + inner * along.share(step)

    def at_y(value: float) -> float:
        return TOP + tall * (1 - up.share(value))

    for tick, label in zip(up.ticks, heights, strict=True):
        height = f"{at_y(tick):.1f}"
        parts.append(f'<path d="M{left} {height}H{across - RIGHT}" stroke="var(--grid)"/>')
        parts.append(_text(left - 6, at_y(tick) + 4, label, "end"))
    for tick, label in zip(along.ticks, labels(along), strict=True):
        near = "end" if at_x(tick) > across - 24 else "middle"
        parts.append(_text(at_x(tick), HEIGHT - BOTTOM + 15, label, near))
    parts.append(_text(across - RIGHT, HEIGHT - 4, x, "end"))
    parts.append(_text(2, 12, y))
    legend = across - RIGHT
    for curve in reversed(drawn if len(drawn) > 1 else []):
        parts.append(_text(legend, 12, curve.name, "end", curve.colour))
        legend -= 7 * len(curve.name) + 14
    for band in bands:
        around = [p for p in (*band.low, *reversed(band.high)) if _drawable(p, log)]
        path = "L".join(f"{at_x(p.step):.1f} {at_y(p.value):.1f}" for p in around)
        if path:
            parts.append(f'<path d="M{path}Z" fill="var(--{band.colour})" fill-opacity="0.18"/>')
    digits = max(4, _digits(up) + 1)
    for curve in drawn:
        places = [(at_x(p.step), at_y(p.value)) for p in curve.points]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
        parts.append(
            f'<path d="M{path}" fill="none" stroke="var(--{curve.colour})" stroke-width="1.6" '
            'stroke-linejoin="round"/>'
        )
        if curve.marked or len(places) == 1:
            for (a, b), p in zip(places, curve.points, strict=True):
                told = plain(f"{curve.name} at {p.step:,.0f}: {p.value:.{digits}g}")
                parts.append(
                    f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="var(--{curve.colour})">'
                    f"<title>{told}</title></circle>"
                )
    return "".join(parts) + "</svg>"


def _drawable(point: Point, log: bool) -> bool:
    return (
        abs(point.step) < 1e300 and (point.value > _LEAST if log else True) and abs(point.value) < 1 / _LEAST
    )


def bars(values: dict[str, float], unit: str) -> str:
    """A bar for each value, with the value and, where it is no share itself, its share of all."""
    if not values:
        return NOTHING
    labels = [
        (f"{value:,}" if isinstance(value, int) else f"{value:,.1f}")
        + f" {unit}"
        + f", {percent(value / (sum(values.values()) or 1))}" * (unit != "%")
        for value in values.values()
    ]
    names = [name if len(name) < 24 else f"{name[:22]}…" for name in values]
    row, left = 24, max(96, *(_wide(name) + 10 for name in names))
    right = max(108, *(_wide(label) + 8 for label in labels))
    height, most = row * len(values) + 4, max(values.values())
    parts = [_open(WIDTH, height, ", ".join(f"{name} {value:.3g} {unit}" for name, value in values.items()))]
    for k, (name, value) in enumerate(zip(names, values.values(), strict=True)):
        length = (WIDTH - left - right) * value / (most or 1)
        parts.append(_text(left - 8, row * k + 17, name, "end"))
        parts.append(
            f'<rect x="{left:.1f}" y="{row * k + 5}" width="{max(length, 1):.1f}" height="16" rx="2" '
            'fill="var(--first)"/>'
        )
        parts.append(_text(left + length + 6, row * k + 17, labels[k]))
    return "".join(parts) + "</svg>"


_LABELS = 60  # of a matrix


def matrix(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """A confusion matrix: how many of each row's label were given each column's, the stronger the larger their share of
    the row. Of many labels those with the most examples are drawn."""
    most = sorted(range(len(names)), key=lambda k: -sum(counts[k]))[:_LABELS]
    drawn = sorted(most)
    if not drawn:
        return NOTHING
    left = min(8 + 6.2 * max(len(names[k]) for k in drawn), 110)
    cell = max((WIDTH - left - 4) / len(drawn), 4.0)
    across, size = round(left + cell * len(drawn) + 4), min(cell * 0.9, 11)
    height = round(cell * len(drawn) + left + 4)
    parts = [_open(across, height, f"confusion matrix of {len(drawn)} labels, rows: what is right")]
    for i, row in enumerate(drawn):
        total, y = sum(counts[row]), left + cell * i
        name = names[row] if len(names[row]) < 18 else f"{names[row][:16]}…"
        style = f'font-size="{size:.1f}" fill="var(--faint)"'
        middle = cell * (i + 0.5) + size * 0.35
        parts.append(
            f'<text x="{left - 5:.1f}" y="{left + middle:.1f}" text-anchor="end" {style}>{plain(name)}</text>'
        )
        parts.append(
            f'<text transform="translate({left + middle:.1f} {left - 5:.1f}) rotate(-90)" {style}>{plain(name)}</text>'
        )
        for j, column in enumerate(drawn):
            count = counts[row][column]
            share = count / total if total else 0.0
            told = plain(f"{names[row]} taken for {names[column]}: {count:,} of {total:,}, {percent(share)}")
            colour = "grid" if not count else "first" if i == j else "second"
            strength = 0.35 if not count else 0.15 + 0.85 * min(share, 1)
            parts.append(
                f'<rect x="{left + cell * j:.1f}" y="{y:.1f}" width="{cell * 0.95:.1f}" height="{cell * 0.95:.1f}" '
                f'fill="var(--{colour})" fill-opacity="{strength:.2f}"><title>{told}</title></rect>'
            )
    return "".join(parts) + "</svg>"


def roll(frames: Sequence[Sequence[int]], strengths: Sequence[Sequence[float]] = ()) -> str:
    """A piano roll: time to the right, a mark for each channel that is in a frame; strengths: of each, 0 … 1."""
    notes = [i for frame in frames for i in frame]
    if not notes:
        return '<p class="none">nothing</p>'
    low, high = min(notes), max(notes)
    cells = [
        (2 * t, 2 * (high - i), strengths[t][k] if strengths else 1.0)
        for t, frame in enumerate(frames) for k, i in enumerate(frame)
    ]  # fmt: skip
    marks = "".join(
        f'<rect x="{x}" y="{y}" width="2" height="2"' + (f' fill-opacity="{s:.2f}"' if s < 1 else "") + "/>"
        for x, y, s in cells
    )
    return (
        f'<svg viewBox="0 0 {2 * len(frames)} {2 * (high - low + 1)}" role="img" aria-label="piano roll" '
        f'fill="var(--first)" style="margin: .5rem 0">{marks}</svg>'
    )


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most so many points: means of groups that lie side by side."""
    size = -(-len(points) // most)
    groups = [points[k : k + size] for k in range(0, len(points), size)] if size > 1 else []
    if not groups:
        return list(points)
    return [
        Point(sum(p.step for p in group) / len(group), sum(p.value for p in group) / len(group))
        for group in groups
    ]


def axis(low: float, high: float, *, log: bool, loose: bool = True) -> Axis:
    """An axis for values from low to high, with round ticks. loose: with a little room at both ends."""
    if log and 0 < high - low < 1e-6 * low:
        log = False  # which looks the same, and logarithms of such neighbours may be one float
    if high - low < _LEAST:
        low, high = (low * 0.5, high * 2) if log else (low - abs(low) / 2 - 0.5, high + abs(high) / 2 + 0.5)
    elif loose:
        room = (high / low) ** 0.04 if log else (high - low) * 0.04
        low, high = (low / room, high * room) if log else (low - room, high + room)
    if log and high / low > 8:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = max(-(-(last - first) // 6), 1)
        ticks = [10.0**k for k in range(first, last + 1, every) if low <= 10.0**k <= high]
        if len(ticks) < 3 and every == 1:
            ticks = [
                m * 10.0**k for k in range(first, last + 1) for m in (1, 2, 5) if low <= m * 10.0**k <= high
            ]
        return Axis(low, high, tuple(ticks), log)
    if log:
        ticks = [m * 10.0**k for k in range(-12, 13) for m in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return Axis(low, high, tuple(ticks), log)
    raw = (high - low) / 5
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw * 0.999)
    ticks = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    # Where floats lie farther apart than a step, several ticks are one.
    return Axis(low, high, tuple(dict.fromkeys(ticks)), log)


def labels(of: Axis) -> list[str]:
    """Of each tick what is written at it, with as many digits as tell them apart: 100.0002M beside 100.0003M."""
    digits = _digits(of)
    return [short(tick, digits) for tick in of.ticks]


def _digits(of: Axis) -> int:
    """So many at least, of each tick, that it is not rounded by what could be seen."""
    pairs = list(itertools.pairwise(of.ticks)) or [(of.low, of.high)]
    apart = [abs(b - a) for a, b in pairs]
    seen = [(tick, 0.01 * min(apart[max(k - 1, 0) : k + 1])) for k, tick in enumerate(of.ticks)]
    for digits in range(_FEW, _ALL):
        if all(abs(float(f"{tick:.{digits}g}") - tick) <= least for tick, least in seen):
            return digits
    return _ALL


def short(value: float, digits: int = _FEW) -> str:
    """A number for an axis: 0, 0.25, 1200 -> "1.2k", 1e-05. digits: of it; of one with a letter four at least."""
    if value == 0:
        return "0"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e13:
            return f"{value / size:.{max(digits, 4)}g}{letter}"
    return f"{value:.{digits}g}"


def _wide(text: str) -> float:
    """Pixels of a line of it, at most."""
    return sum(10.0 if char.isupper() or char in "→%…" else 8.2 for char in text)


def _open(width: int, height: int, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{plain(label)}" '
        'font-family="system-ui, sans-serif" font-size="12">'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "faint") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="var(--{colour})">{plain(text)}</text>'
