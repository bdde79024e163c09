"""Pictures of dynamics: phase portrait, spectrum, gradient flow; SVG, for light and dark surroundings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import torch

from elman.circuit.structure import flatten
from elman.draw import Picture, picture_of
from elman.draw.measure import FONTS, width
from elman.draw.svg import COLORS, INK, PAPER, SOFT, style
from elman.dynamics.exponents import Lyapunov
from elman.dynamics.fixed import FixedPoints
from elman.dynamics.reaching import GradientFlow
from elman.errors import InputError
from elman.report.figures import Axis, axis, labels

Tensor = torch.Tensor
Places = Sequence[tuple[float, float]]
SMALL, TEXT = 12.0, 13.0
_LINES = 32  # trajectories of a portrait, at most
_POINTS = 400  # of a line


class _Panel:
    """A pair of axes at a place of the picture, and what is drawn on them."""

    def __init__(self, left: float, top: float, wide: float, high: float, along: Axis, up: Axis) -> None:
        self.left, self.top, self.wide, self.high = left, top, wide, high
        self.along, self.up = along, up
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        return self.left + self.wide * self.along.share(value)

    def y(self, value: float) -> float:
        return self.top + self.high * (1 - self.up.share(value))

    def frame(self, x: str, y: str) -> None:
        """Both axes with ticks and names; y stands over its axis."""
        bottom, right = self.top + self.high, self.left + self.wide
        self.parts.append(
            f'<path class="line" d="M{self.left:.1f} {self.top:.1f}V{bottom:.1f}H{right:.1f}" fill="none" '
            f'stroke="{INK}" stroke-opacity="0.55"/>'
        )
        end = -math.inf  # of the label before
        for tick, label in zip(self.along.ticks, _said(self.along), strict=True):
            self._line([(self.x(tick), bottom), (self.x(tick), bottom + 4)], None, 1, opacity=0.55)
            half = width(label, SMALL) / 2
            if self.x(tick) - half > end:
                self.text(self.x(tick), bottom + 17, label, "middle")
                end = self.x(tick) + half + 4
        for tick, label in zip(self.up.ticks, _said(self.up), strict=True):
            self._line([(self.left - 4, self.y(tick)), (self.left, self.y(tick))], None, 1, opacity=0.55)
            self.text(self.left - 8, self.y(tick) + 4, label, "end")
        self.text(right, bottom + 37, x, "end", TEXT)
        self.text(self.left - 4, self.top - 14, y, "start", TEXT)

    def text(
        self, x: float, y: float, words: str, anchor: str = "start", size: float = SMALL, color: int | None = None
    ) -> None:  # fmt: skip
        kind, fill = ("soft", SOFT) if color is None else (f"ink p{color}", COLORS[color])
        self.parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" '
            f'fill="{fill}">{escape(words)}</text>'
        )

    def line(
        self, points: Places, color: int | None, wide: float = 1.8, dash: str = "", opacity: float = 1.0
    ) -> None:
        """A line through points of the axes."""
        self._line([(self.x(a), self.y(b)) for a, b in points], color, wide, dash, opacity)

    def _line(
        self, places: Places, color: int | None, wide: float, dash: str = "", opacity: float = 1.0
    ) -> None:
        d = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
        kind, stroke = ("line", INK) if color is None else (f"line p{color}", COLORS[color])
        more = f' stroke-dasharray="{dash}"' if dash else ""
        more += f' stroke-opacity="{opacity:g}"' if opacity < 1 else ""
        self.parts.append(
            f'<path class="{kind}" d="M{d}" fill="none" stroke="{stroke}" stroke-width="{wide:g}" '
            f'stroke-linejoin="round" stroke-linecap="round"{more}/>'
        )

    def band(self, low: Places, high: Places, color: int) -> None:
        d = "L".join(f"{self.x(a):.1f} {self.y(b):.1f}" for a, b in (*low, *reversed(high)))
        self.parts.append(
            f'<path class="ink p{color}" d="M{d}Z" fill="{COLORS[color]}" fill-opacity="0.16"/>'
        )

    def mark(self, x: float, y: float, kind: str, size: float = 5.0, tip: str = "") -> None:
        """The sign of a kind of point at a place of the picture: full where neighbours come, hollow where they go."""
        color = _KINDS[kind]
        told = f"<title>{escape(tip)}</title>" if tip else ""
        if kind == "slow":
            d = f"M{x:.1f} {y - size:.1f}l{size:g} {size:g}l{-size:g} {size:g}l{-size:g} {-size:g}z"
            shape = f'<path class="ink p{color}" d="{d}" fill="{COLORS[color]}" stroke="none">{told}</path>'
        elif kind == "stable":
            shape = (
                f'<circle class="ink p{color}" cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" fill="{COLORS[color]}">'
                f"{told}</circle>"
            )
        else:
            shape = (
                f'<circle class="body p{color}" cx="{x:.1f}" cy="{y:.1f}" r="{size - 0.6:g}" fill="{PAPER}" '
                f'stroke="{COLORS[color]}" stroke-width="2">{told}</circle>'
            )
        self.parts.append(shape)


def _said(of: Axis) -> list[str]:
    """What stands at the ticks of an axis; of a logarithmic one, powers of ten far from 1 as such."""
    return [
        _power(tick) if of.log and _is_power(tick) else label.replace("-", "−")
        for tick, label in zip(of.ticks, labels(of), strict=True)
    ]


def _is_power(tick: float) -> bool:
    power = round(math.log10(tick))
    return abs(power) >= 3 and math.isclose(tick, 10.0**power, rel_tol=1e-9)


def _power(tick: float) -> str:
    return "10" + str(round(math.log10(tick))).translate(_RAISED)


def _beside(up: Axis, least: float) -> float:
    """The room that the labels of an axis need to its left."""
    return max(least, 14 + max((width(label, SMALL) for label in _said(up)), default=0.0))


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_KINDS = {
    "stable": 0,
    "saddle": 1,
    "unstable": 3,
    "slow": 2,
    "neutral": 4,
}  # kind of a point -> number of its colour


def _picture(panels: Sequence[_Panel], wide: float, high: float, title: str, told: str) -> Picture:
    svg = "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" class="elman-picture" viewBox="0 0 {wide:.0f} {high:.0f}" '
        f'width="{wide:.0f}" height="{high:.0f}" role="img" aria-label={quoteattr(f"{title}: {told}")} '
        f'font-family={quoteattr(FONTS)}>',
        f"<title>{escape(title)}</title>", f"<desc>{escape(told)}</desc>", f"<style>{style()}</style>",
        f'<rect class="paper" width="100%" height="100%" rx="6" fill="{PAPER}"/>',
        *(part for panel in panels for part in panel.parts), "</svg>",
    ])  # fmt: skip
    return Picture(title, lambda: svg)


# --- the phase portrait ----------------------------------------------------------------------------------------------


@picture_of.register(FixedPoints)
def portrait(found: FixedPoints, trajectories: Any = None) -> Picture:
    """Points by kind and trajectories `[T, B, …]`, in the two principal directions of the trajectories (or points).

    Through a point that neighbours leave goes a stroke, the way in which they leave it fastest.
    """
    lines = _rows(trajectories, found.points)
    cloud = found.points if lines is None else lines.flatten(0, 1)
    if not len(cloud):
        raise InputError(
            what="there is nothing to draw",
            where="draw(points)",
            got="no points",
            mend="draw(points, trajectories)",
        )
    middle = cloud.mean(0)
    _, sizes, ways = torch.linalg.svd(cloud - middle, full_matrices=False)
    ways = ways[:2]
    if len(ways) < 2:
        ways = torch.cat([ways, ways.new_zeros(2 - len(ways), ways.shape[1])])
    ways = ways * torch.where(ways.sum(-1, keepdim=True) < 0, -1.0, 1.0)  # a sign of its own
    shares = (sizes.square() / sizes.square().sum().clamp(min=1e-300)).tolist()
    points, modes = (found.points - middle) @ ways.T, found.modes @ ways.T
    drawn = [points] if lines is None else [points, ((lines - middle) @ ways.T).flatten(0, 1)]
    low, high = torch.cat(drawn).aminmax(dim=0)
    panel = _square(low.tolist(), high.tolist())
    names = [
        f"{word} principal direction"
        + (f", {100 * shares[i]:.0f} % of the variance" if i < len(shares) else "")
        for i, word in enumerate(("first", "second"))
    ]
    panel.frame(names[0], names[1])
    if lines is not None:
        for b in range(min(_LINES, lines.shape[1])):
            path = (lines[:, b] - middle) @ ways.T
            panel.line(_thin(path.tolist()), None, 0.8, opacity=0.22)
    kinds = [kind.split()[0] if kind.startswith("slow") else kind for kind in found.kinds()]
    for i, kind in enumerate(kinds):  # strokes lie under all signs
        length = float(modes[i].norm())
        if not bool(found.stable[i]) and length > 1e-6:
            reach = 0.05 * (panel.along.high - panel.along.low) / length
            (a, b), (da, db) = points[i].tolist(), (modes[i] * reach).tolist()
            panel.line([(a - da, b - db), (a + da, b + db)], _KINDS[kind], 1.8)
    for i in sorted(range(len(kinds)), key=lambda i: -list(_KINDS).index(kinds[i])):
        a, b = points[i].tolist()
        size = abs(complex(found.eigenvalues[i, 0]))
        panel.mark(
            panel.x(a),
            panel.y(b),
            kinds[i],
            tip=f"{found.kinds()[i]}, largest |eigenvalue| {size:.4f}, residual {float(found.residual[i]):.1e}",
        )
    at = panel.left + panel.wide
    for kind in reversed([kind for kind in _KINDS if kind in kinds]):
        words = f"{kinds.count(kind)} {kind}"
        at -= width(words, SMALL)
        panel.text(at, panel.top - 38, words, "start", SMALL, _KINDS[kind])
        panel.mark(at - 11, panel.top - 42, kind)
        at -= 34
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in _KINDS if kind in kinds) or "no points"
    return _picture(
        [panel],
        panel.left + panel.wide + 26,
        panel.top + panel.high + 52,
        "phase portrait in two principal directions",
        told,
    )


def _rows(trajectories: Any, like: Tensor) -> Tensor | None:
    """States `[T, B, …]` in a cell's structure, flattened: `[T, B, n]`."""
    if trajectories is None:
        return None
    leaves = [leaf for leaf in flatten(trajectories, "trajectories")[0] if leaf.is_floating_point()]
    rows = torch.cat([leaf.flatten(2) if leaf.dim() > 2 else leaf.unsqueeze(-1) for leaf in leaves], -1)
    if rows.shape[-1] != like.shape[-1]:
        raise InputError(
            what="these are trajectories of another state", where="draw(points, trajectories)",
            got=f"n = {rows.shape[-1]}", expected=f"states [T, B, …] that are n = {like.shape[-1]} numbers wide",
            mend="elman.dynamics.trajectory(rnn, x)",
        )  # fmt: skip
    return rows.detach().to(like)


def _square(low: list[float], high: list[float]) -> _Panel:
    """Axes on which both directions have one scale, so that angles are angles; never very flat or tall."""
    spans = [max(b - a, 1e-9) for a, b in zip(low, high, strict=True)]
    least = 0.45 * max(spans)
    for i in (0, 1):
        if spans[i] < least:
            low[i], high[i] = low[i] - (least - spans[i]) / 2, high[i] + (least - spans[i]) / 2
    axes = [axis(a, b, log=False) for a, b in zip(low, high, strict=True)]
    sizes = [one.high - one.low for one in axes]
    scale = min(500 / sizes[0], 400 / sizes[1])
    return _Panel(_beside(axes[1], 56), 64, scale * sizes[0], scale * sizes[1], *axes)


def _thin(points: list[Any]) -> list[tuple[float, float]]:
    every = -(-len(points) // _POINTS)
    return [(a, b) for a, b in points[::every]]


# --- the spectrum ----------------------------------------------------------------------------------------------------


@picture_of.register(Lyapunov)
def spectrum(found: Lyapunov, _: Any = None) -> Picture:
    """Exponents in order with their error bars; and how each settled."""
    values, errors = found.exponents.tolist(), found.error.nan_to_num().tolist()
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    up = axis(min(0.0, *finite), max(0.0, *finite), log=False)
    few = len(values) <= 12
    left = _Panel(_beside(up, 64), 52, 300, 240, Axis(0.4, len(values) + 0.6, _whole(len(values)), False), up)
    left.line([(left.along.low, 0), (left.along.high, 0)], None, 1, "3 4", 0.5)
    for i, (value, error) in enumerate(zip(values, errors, strict=True), 1):
        if not math.isfinite(value):
            continue
        color = 1 if value > 3 * error else 0
        if few:
            left.line([(i, 0), (i, value)], color, 1.4, opacity=0.5)
        low, high = max(value - error, up.low), min(value + error, up.high)
        if left.y(low) - left.y(high) > 3:
            left.line([(i, low), (i, high)], color, 3.2, opacity=0.6)
        left.parts.append(
            f'<circle class="ink p{color}" cx="{left.x(i):.1f}" cy="{left.y(value):.1f}" r="{4.2 if few else 2.2}" '
            f'fill="{COLORS[color]}"><title>{escape(f"{i}: {value:+.4g} ± {error:.1g}")}</title></circle>'
        )
    left.frame("number", "exponent, nats per step")
    text = f"dimension {found.dimension:.2f}" if math.isfinite(found.dimension) else ""
    text += (", " if text else "") + f"entropy {found.entropy:.3g}" if found.entropy > 0 else ""
    left.text(
        left.left + 8, left.top + left.high - 10, text
    )  # exponents fall, so the lower left corner is free

    chosen = sorted({0, 1, 2, len(values) // 2, len(values) - 1} & {*range(len(values))})
    history, at = found.history[:, chosen], found.at.tolist()
    from_ = len(at) // 20  # the very first means jump about
    shown = history[from_:]
    shown = shown[shown.isfinite()]
    low, high = (float(shown.min()), float(shown.max())) if shown.numel() else (-1.0, 1.0)
    up, along = axis(min(low, 0), max(high, 0), log=False), axis(0, at[-1], log=False, loose=False)
    right = _Panel(left.left + left.wide + _beside(up, 82), 52, 240, 240, along, up)
    right.line([(0, 0), (at[-1], 0)], None, 1, "3 4", 0.5)
    taken: list[float] = []
    for place, i in enumerate(chosen):
        color = 1 if values[i] > 3 * errors[i] else 0
        line = [
            (t, v)
            for t, v in zip(at[from_:], history[from_:, place].tolist(), strict=True)
            if math.isfinite(v)
        ]
        if not line:
            continue
        right.line(line, color, 1.6, opacity=0.9)
        high_at = right.y(line[-1][1])
        if all(abs(high_at - other) > 13 for other in taken):
            right.text(right.left + right.wide + 6, high_at + 4, str(i + 1), "start", SMALL, color)
            taken.append(high_at)
    right.frame("steps", "mean so far")
    told = ", ".join(f"{value:+.3g}" for value in values[:6]) + (" …" if len(values) > 6 else "")
    return _picture([left, right], right.left + right.wide + 36, 348, "Lyapunov exponents", told)


def _whole(count: int) -> tuple[float, ...]:
    """Round numbers from 1 to a count."""
    if count <= 8:
        return tuple(range(1, count + 1))
    ticks = [tick for tick in axis(1, count, log=False, loose=False).ticks if tick >= 1 and tick == int(tick)]
    return (1.0, *[tick for tick in ticks if tick > 0.08 * count])


# --- the gradient's flow ---------------------------------------------------------------------------------------------


@picture_of.register(GradientFlow)
def flow(found: GradientFlow, _: Any = None) -> Picture:
    """Norms against k on a logarithmic axis: the mean, the middle half of the places, and the rate that was fitted."""
    norms = found.norms.double().cpu()
    ks = [*range(1, norms.shape[1] + 1)]
    mean = found.mean.double().cpu().tolist()
    low, high = (torch.quantile(norms, q, dim=0).tolist() for q in (0.25, 0.75))
    good = [
        k for k in ks if 1e-290 < mean[k - 1] < 1e290 and low[k - 1] > 1e-290 and high[k - 1] < 1e290
    ]  # what a logarithmic axis can hold
    if not good:
        raise InputError(what="every norm is zero or no number", where="draw(flow)", got=str(mean[:3]))
    ends = [v for k in good for v in (low[k - 1], high[k - 1], mean[k - 1])] + [1.0]
    along, up = axis(0, ks[-1], log=False, loose=False), axis(min(ends), max(ends), log=True)
    panel = _Panel(_beside(up, 64), 52, 420, 250, along, up)
    panel.line([(0, 1), (ks[-1], 1)], None, 1, "3 4", 0.5)
    panel.band([(k, low[k - 1]) for k in good], [(k, high[k - 1]) for k in good], 0)
    start = [(0, 1.0)] if found.norm != "frobenius" else []  # the norm of the identity
    panel.line([*start, *((k, mean[k - 1]) for k in good)], 0, 2)
    rate = found.rate
    if math.isfinite(rate):
        half = [k for k in good if k > ks[-1] / 2]
        middle = sum(half) / len(half) if half else 0.0
        level = sum(math.log(mean[k - 1]) for k in half) / len(half) if half else 0.0
        fit = [(k, math.exp(level + rate * (k - middle))) for k in (half[0], half[-1])] if half else []
        fit = [(k, min(max(v, panel.up.low), panel.up.high)) for k, v in fit]
        panel.line(fit, 1, 1.8, "6 4")
        label = f"{'vanishes' if rate < 0 else 'grows'}, {rate:+.3g} nats a step".replace("-", "−")
        panel.text(panel.left + panel.wide, panel.top - 14, label, "end", SMALL, 1)
    panel.frame("k, steps back", "‖∂s(t)/∂s(t-k)‖" + {"rms": ", rms"}.get(found.norm, f", {found.norm}"))
    told = f"from {mean[0]:.3g} at k = 1 to {mean[-1]:.3g} at k = {ks[-1]}"
    return _picture([panel], panel.left + panel.wide + 28, 356, "what is left of a state k steps later", told)
