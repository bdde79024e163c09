"""What a plan says to a reader."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import elman
from elman.app.cli import app
from elman.engines import choose
from elman.plan import plan
from elman.plan.explain import Explanation, cycles, parts, why
from elman.trace import trace
from tests.cases import CASES
from tests.circuits import circuit_of, plan_of, training_of


def test_the_books_network_is_explained() -> None:
    text = str(Explanation((plan_of("elman"),)))
    assert "Elman: 2 operations in the loop, time runs forward" in text
    for stage in ("once", "before", "loop", "after"):
        assert any(line.split()[:1] == [stage] for line in text.splitlines())
    assert "addmm[b, U]" in text or "addmm[U, b]" in text, "the hoisted product, by its weights"
    assert "addmm[W]" in text, "the sequential product, by its weight"
    assert "h waits for its own last value: h → addmm → tanh → h" in text


class Named(nn.Module):
    hidden_size = 4

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return torch.tanh(x + s)


class Before(Named):
    def forward(self, x: Tensor, memory_prev: Tensor) -> Tensor:
        return torch.tanh(x + memory_prev)


class Renamed(Named):
    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        s = state
        return torch.tanh(x + s)


class Plain(Named):
    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(x + state)


class Output(Named):
    def forward(self, x: Tensor, o: Tensor) -> Tensor:  # a name that circuits have for outputs
        return torch.tanh(x + o)


@pytest.mark.parametrize(
    ("cell", "word"), [(Named, "s"), (Before, "memory"), (Renamed, "s"), (Plain, "h"), (Output, "h")]
)
def test_a_state_is_called_what_the_cell_calls_it(cell: type[nn.Module], word: str) -> None:
    rnn = elman.Recurrent(cell())
    rnn(torch.zeros(2, 3, 4))
    assert f"  {word} waits for its own last value: {word} → " in str(rnn.explain())


def test_the_backward_pass_is_explained() -> None:
    forward, backward = training_of("elman")
    text = str(Explanation((forward, backward), engine="reference"))
    assert "time runs backward" in text
    assert "engine: reference" in text
    assert "kept for the backward pass, 56 bytes per row and step: h, tanh" in text
    assert "g_h_final waits for its own last value: g_h_final → add → tanh_backward → mm → g_h_final" in text


def test_a_plan_without_a_loop_says_so() -> None:
    from elman.forcing import force

    made = plan(force(circuit_of("jordan")))
    assert why(made) == ["no cycle is left: nothing waits for the step before, all T steps run at once"]
    assert [part.name for part in parts(made)] == ["once", "before", "after"]


def test_two_cycles_are_two_sentences() -> None:
    said = "\n".join(why(plan_of("two_level_gru")))
    assert said.count("waits for its own last value") == 2


def test_a_cycle_through_two_states() -> None:
    found = dict(cycles(plan_of("henon").loop))
    assert set(found) == {"p", "q"}
    assert "p" in found["q"], "q comes of p, which comes of q"


@pytest.mark.parametrize(
    "cell",
    [elman.cells.LSTM(3, 4), torch.nn.LSTMCell(3, 4), elman.cells.GRU(3, 4)],
    ids=lambda c: type(c).__name__,
)
def test_states_are_called_as_in_pictures(cell: torch.nn.Module) -> None:
    circuit = trace(cell, torch.zeros(2, 3))
    waiting = {re.match(r"(\w+) waits", line) for line in why(plan(circuit))} - {None}
    drawn = {text.text for text in elman.draw(circuit).scene.words()}
    assert waiting
    assert {found[1] for found in waiting} <= drawn


def test_reasons_are_told() -> None:
    text = str(Explanation(training_of("clipped_rnn")))
    assert "is in the loop because" in text


@pytest.mark.parametrize("name", CASES)
def test_every_case_can_be_explained(name: str) -> None:
    for made in (plan_of(name), *training_of(name)):
        said = Explanation((made,))
        assert max(map(len, str(said).splitlines())) < 2000
        counted = sum(count for part in parts(made) if part.name == "loop" for _, count in part.operations)
        addressing = sum(part.addressing for part in parts(made) if part.name == "loop")
        assert counted + addressing == (len(made.loop.nodes()) if made.loop is not None else 0)
        _well_formed(said._repr_html_())


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _well_formed(html: str) -> _Tags:
    parser = _Tags()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    assert set(parser.seen) <= {"table", "tr", "th", "td", "b", "br"}
    return parser


def test_html_is_escaped() -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x + h)

    Plain.__name__ = "<script>&"
    x = torch.randn(2, 3)
    html = Explanation((plan(trace(Plain(), x, x.clone(), check=False)),), engine="<b>")._repr_html_()
    assert "<script>" not in html
    parser = _well_formed(html)
    assert "<script>&: 2 operations" in parser.text
    assert "<b>" in parser.text


def test_a_layer_explains_its_latest_call() -> None:
    rnn = elman.Recurrent(elman.cells.GRU(3, 4))
    rnn(torch.randn(2, 1, 3))
    text = str(rnn.explain())
    assert "GRU" in text
    assert (
        f"engine: {choose('auto', rnn._of_latest_call().program.plan.loop, torch.device('cpu')).describe()}"
        in text
    )


def test_an_engine_that_is_passed_over_says_why() -> None:
    rnn = elman.Recurrent(elman.cells.GRU(3, 4).bfloat16())
    rnn(torch.randn(2, 1, 3, dtype=torch.bfloat16))
    assert "engine: reference (not native: " in str(rnn.explain())


def test_the_command_line_explains_a_cell() -> None:
    result = CliRunner().invoke(app, ["explain", "elman", "--input", "3", "--hidden", "4"])
    assert result.exit_code == 0, result.output
    assert "2 operations in the loop" in result.output
    assert "waits for its own last value" in result.output
