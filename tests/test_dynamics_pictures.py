"""Axes of pictures of dynamics: labels that differ where ticks do, with room for them."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest
import torch

import elman
from elman.draw.measure import width
from elman.dynamics import GradientFlow
from elman.dynamics.pictures import SMALL

Label = tuple[float, float, str]


def labels(svg: str, anchor: str) -> list[Label]:
    """(x, y, words) of the small texts with an anchor: `end` at the axis that goes up, `middle` at the other one."""
    texts = [text for text in ElementTree.fromstring(svg).iter() if text.tag.endswith("text")]
    return [
        (float(text.attrib["x"]), float(text.attrib["y"]), text.text or "")
        for text in texts
        if text.attrib["text-anchor"] == anchor and text.attrib["font-size"] == f"{SMALL:g}"
    ]


def at_the_left(svg: str) -> list[Label]:
    return [one for one in labels(svg, "end") if "nats" not in one[2]]


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-5, 1e-8, 1e-12])
def test_norms_close_to_one_another_are_told_apart(apart: float) -> None:
    """As those of a rotation are, which keeps them but for rounding."""
    norms = (1 + apart * torch.linspace(0, 1, 40, dtype=torch.float64)).expand(3, 40)
    svg = elman.draw(GradientFlow(norms, "spectral")).svg
    found = at_the_left(svg)
    assert len(found) >= 2
    assert len({words for *_, words in found}) == len(found), [words for *_, words in found]
    assert all(x - width(words, SMALL) >= 2 for x, _, words in found)


def test_labels_below_an_axis_do_not_touch() -> None:
    norms = torch.linspace(1, 0.01, 4000, dtype=torch.float64).expand(3, 4000)
    found = labels(elman.draw(GradientFlow(norms, "spectral")).svg, "middle")
    assert len(found) >= 3
    for (a, _, first), (b, _, then) in itertools.pairwise(found):
        assert a + width(first, SMALL) / 2 + 2 < b - width(then, SMALL) / 2


def test_powers_of_ten_are_said_as_such() -> None:
    norms = torch.logspace(0, -30, 50, dtype=torch.float64).expand(3, 50)
    words = [words for *_, words in at_the_left(elman.draw(GradientFlow(norms, "spectral")).svg)]
    assert "10⁻²⁰" in words
