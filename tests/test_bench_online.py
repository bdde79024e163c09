"""The benchmark of learning on a stream: its ways run on a short one, and its picture can be read."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from matplotlib.text import Text

from bench import online
from bench.online import Run
from tests.pairwise import with_more

# What a stream of 10^6 steps came to: docs/gradients.md.
MADE = [
    Run("rtrl", 10**6, 6.3e-6, 541_696, 939), Run("snap-1", 10**6, 0.685, 96_256, 1045),
    Run("rflo", 10**6, 0.682, 88_576, 887), Run("e-prop", 10**6, 0.682, 88_576, 970),
    Run("uoro", 10**6, 1.002, 8_320, 1158),
    Run("truncated, 3 steps", 10**6, 0.995, 7_680, 408), Run("truncated, 6 steps", 10**6, 0.993, 15_360, 681),
    Run("truncated, 30 steps", 10**6, 6.7e-6, 76_800, 821), Run("truncated, 300 steps", 10**6, 1.4e-6, 768_000, 1061),
    Run("all steps", 10**6, 1.006, 2_560_000_000, 10), Run("all steps, 64 MB", 10**6, 1.006, 16_795_648, 10),
    Run("braintrace, D-RTRL", 10**6, 0.775, 18_952, 41), Run("braintrace, pp-prop", 10**6, 0.894, 2_632, 52),
]  # fmt: skip


@pytest.mark.parametrize("way", with_more(["rtrl", "all steps, 64 MB"], ["truncated, 6 steps"]))
def test_a_way_runs(way: str) -> None:
    assert way in online.ways()
    told: list[int] = []
    found = online.run(way, 40, told.append)
    assert (found.way, found.steps, found.error > 0, found.bytes > 0) == (way, 40, True, True)
    assert told == [0] or way.startswith("all")


def test_the_mean_is_of_the_last_losses_alone() -> None:
    last = online._Last(3, 10)
    for part in torch.arange(10.0).split([1, 4, 3, 2]):
        last.add(part if len(part) > 1 else part[0])
    assert last.mean == (7 + 8 + 9) / 3


def test_words_of_the_picture_lie_on_nothing() -> None:
    figure = online.picture(MADE)
    (axes,) = figure.axes
    words = [Text.get_window_extent(text) for text in axes.texts]
    said = "\n".join(text.get_text() for text in axes.texts)
    assert all(f"{run.way.removeprefix(online.CUT)}: {run.microseconds:,.0f} µs" in said for run in MADE)
    assert not [pair for pair in combinations(words, 2) if pair[0].overlaps(pair[1])]
    assert all(axes.bbox.contains(*corner) for box in words for corner in (box.min, box.max))
    for run in MADE:
        point = axes.transData.transform((run.bytes, run.error))
        assert not any(box.contains(*point) for box in words)
