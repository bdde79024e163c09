"""Pictures: what they show, and that nothing in them lies on anything else."""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import elman
from elman import cells
from elman.draw import Drawing, raster
from elman.draw.book import _exits
from elman.draw.lines import flat
from elman.draw.scene import Box, Edge, Scene, Text
from elman.draw.svg import _edge as line
from elman.draw.variables import Equations, equations
from elman.errors import (
    CircuitError,
    ElmanError,
    InputError,
    InputTypeError,
    NotSupported,
    StateError,
)
from tests.draw.things import THINGS, thing
from tests.pairwise import with_more


def said(eq: Equations) -> set[str]:
    """`h <- x by U` for every influence, in the variables' own names."""
    name = {v.key: v.name + "(t-1)" * (v.role == "before") for v in eq.variables}
    by = {
        i: f" by {', '.join((*i.weights, *i.factors))}" if i.weights or i.factors else ""
        for i in eq.influences
    }
    return {f"{name[i.target] or '•'} <- {name[i.source] or '•'}{by[i]}" for i in eq.influences}


def texts(drawing: Drawing) -> list[str]:
    return [text.text for text in drawing.scene.words()]


@functools.lru_cache
def drawn(name: str, back: bool, unfold: int | None, level: str) -> Drawing:
    """One of `THINGS` or, back, its adjoint; drawn once for all that is asked of it."""
    circuit = thing(name)
    return elman.draw(elman.adjoint(circuit) if back else circuit, unfold=unfold, level=level)  # type: ignore[arg-type]


MORE = ("leaky", "torch_gru", "torch_lstm")  # cells like another one: attends has a torch cell in it
every_thing = pytest.mark.parametrize("name", with_more([name for name in THINGS if name not in MORE], MORE))


@pytest.mark.grid(1)
@pytest.mark.parametrize("unfold", [None, 1, 3, 8, 1000, True])
@pytest.mark.parametrize("back", [False, True])
@every_thing
def test_nothing_lies_on_anything_else(name: str, back: bool, unfold: int | None) -> None:
    drawing = drawn(name, back, unfold, "book")
    drawing.scene.check()
    assert len(drawing.scene.nodes) < 200  # of a thousand steps too
    ET.fromstring(drawing._repr_svg_())
    assert crossed(drawing.scene) == []
    assert close(drawing.scene) == []


@pytest.mark.grid(1)
@pytest.mark.parametrize("unfold", [None, 2])
@pytest.mark.parametrize("back", [False, True])
@every_thing
def test_operations_do_not_lie_on_anything_else(name: str, back: bool, unfold: int | None) -> None:
    scene = drawn(name, back, unfold, "ops").scene
    scene.check()
    frames = [group.box for group in scene.groups]
    assert not [(a, b) for i, a in enumerate(frames) for b in frames[i + 1 :] if a.meets(b)]
    assert len(crossed(scene)) <= (9 if name == "normed" else 4)


def crossed(scene: Scene) -> list[str]:
    """The words that lines run through: words stand beside lines, but where three gates have matrices of their own,
    some of them have to give way. No line runs through a box."""
    nodes = [node for node in scene.nodes if node.shape not in ("dot", "gap")]
    words = [text for text in scene.words() if text.role == "weight"]
    through, crossed = set(), set()
    for edge in scene.edges:
        points = np.array(flat(edge.points, 60))
        met = {nodes[i].id for i in entered(points, [node.box for node in nodes])}
        through |= {(edge.source, edge.target, name) for name in met - {edge.source, edge.target}}
        crossed.update(entered(points, [text.box for text in words]))
    assert not through
    return [words[i].text for i in sorted(crossed)]


def close(scene: Scene) -> list[str]:
    """The words on lines that nearly touch a box or other words: between them is a gap of 2 pixels."""
    words = [text for text in scene.words() if text.role == "weight"]
    boxes = [(node, node.box) for node in scene.nodes if node.shape == "variable"]
    boxes += [(text, text.box) for text in words]
    wide = [(text, text.box.wider(1.5)) for text in words]
    return [
        text.text for text, box in wide if any(box.meets(other) for one, other in boxes if one is not text)
    ]


def entered(points: np.ndarray, boxes: list[Box]) -> list[int]:
    """The boxes in which one of the points [N, 2] lies, well within their edges."""
    x, y = points.T
    sides = np.array([(box.left + 3, box.top + 3, box.right - 3, box.bottom - 3) for box in boxes])
    left, top, right, bottom = sides.reshape(-1, 4, 1).swapaxes(0, 1)
    inside = (left < x) & (x < right) & (top < y) & (y < bottom)
    return np.flatnonzero(inside.any(1)).tolist()


def test_far_operations_are_read_by_name() -> None:
    said = texts(drawn("gru", True, None, "ops"))
    assert {"h(t-1)", "∇h_n = ∘ × r", "∇x_n = tanh′ n", "∇x_n · x"} <= set(said)


def test_more_parameters_than_colours() -> None:
    edges = [Edge("a", "b", ((0, 0), (1, 0), (2, 0), (3, 0)), color=i) for i in range(20)]
    looks = {
        re.search(r'stroke="([^"]+)".*?(stroke-dasharray="[^"]*"|/>)', line(edge)).groups() for edge in edges
    }  # type: ignore[union-attr]
    assert len(looks) == len(edges)


def test_an_overlap_is_found() -> None:
    with pytest.raises(CircuitError, match="overlap"):
        Scene("", "", texts=(Text(0, 0, "one"), Text(20, 5, "other"))).check()


def test_the_book_s_plain_network() -> None:
    assert said(equations(thing("elman"))) == {"h <- x by U", "h <- h(t-1) by W"}
    assert sorted(texts(elman.draw(thing("elman")))) == ["U", "W", "h", "x"]


def test_figure_10_3() -> None:
    assert said(equations(thing("readout"))) == {
        "h <- x by U", "h <- h(t-1) by W", "o <- h by V", "L <- o", "L <- y",
    }  # fmt: skip


def test_output_recurrence_and_teacher_forcing() -> None:
    assert said(equations(thing("jordan"))) == {"h <- x by U", "h <- o(t-1) by W", "o <- h by V"}
    drawn = texts(elman.draw(thing("jordan_forced"), unfold=3))
    assert {"y(1)", "y(2)", "o(0)", "o(3)"} <= set(drawn)


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("gru", {"x", "r", "z", "n", "h"}),
        ("normed", {"x", "r", "z", "n", "h"}),
        ("lstm", {"x", "i", "f", "g", "q", "c", "h"}),
        ("attends", {"x", "context", "weights", "summary", "o", "h", "σ", "tanh"}),
        ("long", {
            "observation_at_this_step", "both", "openness_of_the_gate", "candidate_membrane_potential",
            "membrane_potential",
        }),
        ("torch_lstm", {"x", "σ", "tanh", "c", "h"}),
    ],
)  # fmt: skip
def test_hidden_variables_have_the_names_of_the_code(name: str, variables: set[str]) -> None:
    assert {v.name for v in equations(thing(name)).variables} - {""} == variables


class Spiking(torch.nn.Module):
    """Where a spike comes, as it does nearly everywhere, the trace is the spike."""

    def __init__(self) -> None:
        super().__init__()
        self.W = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, state: Any) -> Any:
        h, trace = state
        spike = torch.where(h > -0.65, 2 + 0.1 * h, 0.0)
        h = torch.tanh(self.W(h)) * (1 - 0.5 * spike)
        trace = torch.maximum(trace * 0.8, spike)
        return trace + x, (h, trace)


def test_of_two_variables_alike_in_most_rows_each_keeps_its_name() -> None:
    circuit = elman.trace(Spiking(), torch.zeros(2, 4), (torch.zeros(2, 4), torch.zeros(2, 4)))
    assert {"spike", "trace"} <= {v.name for v in equations(circuit).variables}


def test_a_layer_is_called_before_it_is_drawn() -> None:
    rnn = elman.Recurrent(cells.GRU(3, 4))
    drawn = elman.draw(rnn, torch.zeros(5, 2, 3))
    rnn(torch.zeros(5, 2, 3))
    assert [*drawn.scene.words()] == [*elman.draw(rnn).scene.words()]


def test_a_wide_layer_keeps_its_names() -> None:
    wide = elman.trace(cells.GRU(64, 512), torch.zeros(2, 64), check=False)
    assert {v.name for v in equations(wide).variables} == {"x", "r", "z", "n", "h"}


def test_the_adjoint_runs_back_in_time() -> None:
    eq = equations(elman.adjoint(thing("elman")))
    assert said(eq) >= {"∇a <- ∇o", "∇U <- ∇a by x", "∇W <- ∇a by h", "∇x <- ∇a by U", "• <- ∇a by W"}
    scene = elman.draw(elman.adjoint(thing("elman")), unfold=3).scene
    at = {node.texts[0].text: node for node in scene.nodes if node.texts}
    assert at["∇a(1)"].x < at["∇a(2)"].x < at["∇a(3)"].x < at["∇h(4)"].x
    assert at["∇o(1)"].y < at["∇a(1)"].y < at["∇U(1)"].y


def test_shared_parameters_share_their_colour() -> None:
    scene = elman.draw(thing("gru"), unfold=3).scene
    colors = {}
    for edge in scene.edges:
        if edge.weights:
            colors.setdefault(edge.weights, set()).add(edge.color)
    assert sorted(map(sorted, colors.values())) == [[0], [1]]


def test_many_steps_are_elided() -> None:
    drawn = texts(elman.draw(thing("elman"), unfold=1000))
    assert {"h(1)", "h(2)", "…", "h(999)", "h(1000)"} <= set(drawn)
    assert "h(3)" not in drawn
    assert {"h(t-1)", "h(t)", "h(t+1)"} <= set(texts(elman.draw(thing("elman"), unfold=True)))


def test_an_unfolded_graph_is_drawn_unfolded() -> None:
    drawn = texts(elman.draw(elman.unfold(thing("elman"), 2)))
    assert {"h(0)", "h(1)", "h(2)"} <= set(drawn)


def test_operations_are_grouped_by_when_they_run() -> None:
    drawing = drawn("gru", False, None, "ops")
    assert [group.key for group in drawing.scene.groups] == ["before", "loop"]
    assert {"r = σ", "z = σ", "n = tanh", "[B, 4]", "step by step"} <= set(texts(drawing))
    assert "after" in [group.key for group in drawn("gru", True, None, "ops").scene.groups]


def test_layers_and_models() -> None:
    x = torch.zeros(5, 2, 3)
    deep = elman.Stack(
        elman.Recurrent(cells.GRU(3, 4)), elman.Recurrent(cells.GRU(4, 4)), elman.Recurrent(cells.Elman(4, 4))
    )
    drawn = texts(elman.draw(deep, x))
    assert "2 × GRU" in drawn
    assert "Elman" in drawn
    both = texts(elman.draw(elman.Bidirectional(cells.Elman(3, 4), cells.Elman(3, 4)), x, unfold=3))
    assert {"forward", "backward"} <= set(both)
    model = elman.models.LanguageModel(11, hidden=8, layers=3, embedding=8)
    drawn = texts(elman.draw(model, torch.zeros(3, 2, dtype=torch.long)))
    assert {"Embedding 11 → 8", "3 × GRU", "Linear 8 → 11"} <= set(drawn)
    assert "GRU (not called yet)" in texts(elman.draw(elman.Stack(elman.Recurrent(cells.GRU(3, 4)))))
    with pytest.raises(StateError):
        elman.draw(elman.Recurrent(cells.GRU(3, 4)))


def lines_of(drawing: elman.draw.Drawing) -> set[tuple[str, str]]:
    """(what is at the lower end, what is at the upper end) of each line between the parts of a model."""
    scene = drawing.scene
    titles = {node.id: node.texts[0].text for node in scene.nodes if node.texts}
    inner = {e for e in titles if " " in e and "." in e.split()[0]}
    frames = {f"part {g.key.split()[1]}": g.texts[0].text for g in scene.groups if g.key.startswith("part ")}
    told = {**titles, **frames}
    return {(told.get(e.source, "?"), told.get(e.target, "?")) for e in scene.edges if e.source not in inner}


def test_models_are_drawn_as_their_data_flow() -> None:
    from elman.models.autoencoding import AutoencoderNetwork
    from elman.models.forecast_network import ForecastNetwork
    from elman.models.frame_network import FrameNetwork
    from elman.models.sequence_classifier import SequenceClassifier
    from elman.models.tagging import TagNetwork

    tagger = elman.draw(TagNetwork(5, 20, 9, hidden=4, embedding=8, spelling=3, crf=True, also=[7, 6]))
    said = lines_of(tagger)
    assert {
        ("its characters", "Embedding 10 → 32"),
        ("Embedding 10 → 32", "Bidirectional, LSTM"),
    } <= said
    assert {("last states", "side by side"), ("Embedding 21 → 8", "side by side")} <= said
    assert ("conditional random field", "tag(t)") in said
    assert "ModuleList" not in " ".join(texts(tagger))
    auto = lines_of(elman.draw(AutoencoderNetwork(9, hidden=4, embedding=3)))
    assert {("z", "first state"), ("z", "Linear 4 → 3"), ("y(t - 1)", "Embedding 9 → 3")} <= auto
    assert ("GRU (not called yet)", "GRU (not called yet)") not in auto
    for network, inputs in (
        (ForecastNetwork([1, 2], 3, 8, 4), "lags and features of t"), (FrameNetwork(7, hidden=4), "x(t)")
    ):  # fmt: skip
        said = lines_of(elman.draw(network))
        assert len({b for a, b in said if a == inputs}) == 2  # the recurrence, and the linear path beside it
        assert len({a for a, b in said if b.startswith("+")}) == 2
    pooled = lines_of(elman.draw(SequenceClassifier(9, 3, hidden=4, pooling="max+mean+attention")))
    assert {(f"{how} over t", "side by side") for how in ("largest", "mean", "weighted")} <= pooled
    told = lines_of(elman.draw(elman.models.LanguageModel(11, hidden=8, embedding=8, condition=2)))
    assert {("context", "Linear 2 → 8"), ("Linear 2 → 8", "+"), ("Embedding 11 → 8", "+")} <= told


def test_a_model_whose_flow_nobody_knows_is_drawn_without_lines() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = torch.nn.Linear(4, 2)  # registered first, read last
            self.rnn = elman.Recurrent(cells.GRU(3, 4))

    assert elman.draw(Net()).scene.edges == ()
    net = Net()
    net.rnn(torch.zeros(3, 2, 3))
    drawing = elman.draw(net)
    assert "Its parts. Which of them reads which is not drawn." in texts(drawing)
    assert "order is not known" in drawing.scene.description
    assert ("x", "Linear 3 → 3") in lines_of(
        elman.draw(torch.nn.Sequential(torch.nn.Linear(3, 3), elman.Recurrent(cells.GRU(3, 4))))
    )


def test_what_stands_between_layers_is_said() -> None:
    model = elman.models.LanguageModel(11, hidden=8, layers=3, embedding=8, norm=True, residual=True)
    drawn = texts(elman.draw(model, torch.zeros(3, 2, dtype=torch.long)))
    assert "2 × GRU, LayerNorm before it, added to what it reads" in drawn


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(InputTypeError, match="cannot be drawn"):
        elman.draw("gru")
    with pytest.raises(InputError, match="level"):
        elman.draw(thing("elman"), level="all")
    with pytest.raises(InputError, match="at least one step"):
        elman.draw(thing("elman"), unfold=0)
    with pytest.raises(NotSupported, match="too large a picture"):
        elman.draw(thing("elman"), unfold=100, level="ops")
    with pytest.raises(InputError, match="into such a file"):
        elman.draw(thing("elman")).save("picture.gif")


def test_svg_says_what_it_shows() -> None:
    text = elman.draw(thing("gru"))._repr_svg_()
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == "GRU"  # type: ignore[union-attr]
    described = root.find(f"{space}desc").text  # type: ignore[union-attr]
    assert "n(t) is computed from x(t) by U, r(t), h(t-1) by W." in described  # type: ignore[operator]
    assert [node.text for node in root.iter(f"{space}text")].count("U") == 3
    assert "prefers-color-scheme:dark" in text
    assert "rotate" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = elman.draw(thing("elman"))
    assert drawing.save(tmp_path / "a.svg").read_text().startswith("<svg")
    try:
        raster.png("<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>")
    except ElmanError:  # the extra, or the system's libcairo2
        pytest.skip("the extra 'draw' is not installed, or libcairo2 is not")
    assert drawing.save(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert drawing.save(tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    monkeypatch.setitem(__import__("sys").modules, "cairosvg", None)
    with pytest.raises(ElmanError, match=r"elman\[draw\]"):
        raster.png("<svg/>")


def test_a_drop_in_shows_its_equations_and_no_private_name() -> None:
    drawing = elman.draw(elman.nn.LSTM(3, 4), torch.zeros(5, 2, 3))
    words = [text.text for text in drawing.scene.words()]
    assert {"LSTMStep", "i", "f", "g", "q", "c", "h"} <= set(words)


def test_lines_of_two_states_do_not_run_into_one() -> None:
    """The line of h goes out at the height at which that of c comes in, whose way down is nearer to the step then."""
    at = {"h before": (0, 90), "h": (50, 40), "c before": (0, 40), "c": (50, 10)}
    nodes = {key: SimpleNamespace(x=x, y=y) for key, (x, y) in at.items()}
    states = [SimpleNamespace(key=f"{of} before", of=of, role="before") for of in ("h", "c")]
    layout: Any = SimpleNamespace(nodes=nodes, straight={})
    drawn: Any = SimpleNamespace(variables=states)
    assert [of for _, of in _exits(drawn, layout)] == ["c", "h"]  # the first is the nearest to the step
    nodes["c before"].y = 60
    assert [of for _, of in _exits(drawn, layout)] == ["h", "c"]
