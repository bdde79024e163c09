"""Words on lines: beside their line, near its middle, where they meet no box, line or other words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from elman.draw.layered import Size
from elman.draw.lines import ASIDE
from elman.draw.measure import LINE, width
from elman.draw.routes import Candidate, meeting, rectangles
from elman.draw.scene import Box, Point, Text


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

    @property
    def half_height(self) -> float:
        """Of its words."""
        return LINE * self.size / 2 + 1

    def at(self, x: float, y: float, anchor: str = "middle") -> Text:
        return Text(x, y, self.text, self.size, anchor, "weight", self.color)


def label_size(text: str, size: float) -> Size | None:
    """The room that words take beside their line."""
    return Size(6, width(text, size) + ASIDE + 7, LINE * size + 2) if text else None


def kept(mark: Point | None, saying: Saying) -> Box | None:
    """The room that the layout has kept for words."""
    size = label_size(saying.text, saying.size)
    if mark is None or size is None:
        return None
    (x, y), high = mark, size.height / 2
    return Box(x - size.left, y - high, x + size.right, y + high)


def beside(line: Candidate, saying: Saying, taken: Iterable[Box], lines: Sequence[Candidate]) -> Text | None:
    """The words of a line, on either side of it, where they meet no box and none of the lines."""
    texts = [text for _, text in sorted(_places(line.fine, saying), key=lambda pair: pair[0])]
    close = [text.box.wider(1) for text in texts]
    boxes = rectangles(box.wider(2) for box in taken)
    for i in np.flatnonzero(~meeting(rectangles(close), boxes).any(1)).tolist():
        if not any(other.meets(close[i]) for other in lines):
            return texts[i]
    return None


def all_beside(
    lines: Sequence[Candidate], sayings: Sequence[Saying], taken: Sequence[Box]
) -> list[Text | None]:
    """The words of each line, the longest first, which find a place least easily."""
    texts: list[Text | None] = [None] * len(lines)
    for n in sorted(range(len(lines)), key=lambda n: -len(sayings[n].text)):
        if sayings[n].text:
            said = (text.box for text in texts if text is not None)
            texts[n] = beside(lines[n], sayings[n], [*taken, *said], lines)
    return texts


def _places(line: Sequence[Point], saying: Saying) -> Iterator[tuple[float, Text]]:
    """(how far from what is wished, words) at points of a line, on both of its sides."""
    high, half = saying.half_height, width(saying.text, saying.size) / 2
    points = np.array(line)
    lengths = np.concatenate([[0.0], np.hypot(*(points[1:] - points[:-1]).T).cumsum()])
    parts = lengths / (lengths[-1] or 1.0)
    (xs, ys), inf = points.T, np.inf
    # How far the line reaches to each side, within the height of the words, and up and down, within their width.
    level = np.abs(ys - ys[:, None]) <= high + 4
    right, left = np.where(level, xs, -inf).max(1).tolist(), np.where(level, xs, inf).min(1).tolist()
    over = np.abs(xs - xs[:, None]) <= half + 4
    top, bottom = np.where(over, ys, inf).min(1).tolist(), np.where(over, ys, -inf).max(1).tolist()
    for i, ((x, y), part) in enumerate(zip(line, parts.tolist(), strict=True)):
        if not 0.12 < part < 0.88:
            continue
        wish = abs(part - 0.5)
        for near, side, more in ((right[i], 1, 0.0), (left[i], -1, 0.05)):
            if abs(near - x) < 28:
                yield wish + more + abs(near - x) / 120, saying.at(near + side * (5 + half), y)
        for near, side, more in ((top[i], -1, 0.1), (bottom[i], 1, 0.12)):
            if abs(near - y) < 22:
                yield wish + more + abs(near - y) / 100, saying.at(x, near + side * (high + 1))


__all__ = ["Saying", "all_beside", "beside", "kept", "label_size"]
