"""elman.verify: right cells are right, and whatever is put wrong on purpose is found."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import elman
from elman import noise
from elman.caches import Recent
from elman.engines import Engine, LoopResult, native
from elman.engines.reference import Reference
from elman.errors import InputError, InputTypeError, TraceError
from elman.plan.form import Loop
from elman.recurrent import programs
from elman.segments import Layout
from elman.verify import Check, Report
from tests.cases import CASES
from tests.pairwise import with_more

Tensor = torch.Tensor
CELL = elman.cells.Elman(3, 4)
X = torch.zeros(2, 3)


def test_it_says_what_it_does_where_somebody_reads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for progress in (None, False):
        assert elman.verify(CELL, X, engines=["reference"], progress=progress)
    assert capsys.readouterr() == ("", "")
    assert elman.verify(CELL, X, engines=["reference"], progress=True)
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert (said.out, len(lines)) == ("", 10)
    assert lines[3] == "Elman: lengths (4 of 10)"
    assert lines[-1] == "Elman: rounding (10 of 10)"
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich takes anything for a terminal
    assert elman.verify(CELL, X, engines=["reference"])
    said = capsys.readouterr()
    assert said.out == ""
    assert "Elman: " in said.err


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put wrong on purpose stays in programs that layers share: not in those of other tests."""
    monkeypatch.setattr(programs, "_SHARED", Recent(256))


def example(name: str, rows: int = 4) -> tuple[Any, ...]:
    """A cell of the table in float32, and one step of what it takes."""
    case, generator = CASES[name], torch.Generator().manual_seed(0)
    x = case.x(1, rows, generator, torch.float32)
    x = pytree.tree_map(lambda leaf: leaf[0] if isinstance(leaf, Tensor) else leaf, x)
    return (
        case.make(),
        x,
        case.state(rows, generator, torch.float32),
        case.context(rows, generator, torch.float32),
    )


def parts(report: Report, engine: str = "reference") -> set[tuple[str, str]]:
    """What is wrong, on an engine."""
    return {(check.way, check.part) for check in report.wrong if check.engine == engine}


# --- right cells ----------------------------------------------------------------------------------------------------

FEW = ("noisy_rnn", "token_rnn")  # nested states, and no x: test_what_is_not_checked_says_why
# The gradient of its weight is no sum over rows: see "Where it ends" in docs/gradients.md.
MANY = sorted(set(CASES) - {*FEW, "clipped_rnn", "weight_norm_rnn"})


def test_where_pytorchs_own_second_derivative_is_wrong() -> None:
    """Central differences are asked (PyTorch 2.13: weight_norm)."""
    report = elman.verify(*example("weight_norm_rnn"))
    assert report, str(report)
    settled = [check for check in report.checks if check.settled]
    assert {(check.way, check.part) for check in settled} <= {("second derivatives", "d parameters")}
    if settled:  # until PyTorch has mended it
        assert "right, where PyTorch is not" in str(report)
        assert all(check.difference is not None and check.difference < 1e-6 for check in settled)


@pytest.mark.parametrize("name", with_more(FEW, MANY))
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
def test_a_right_cell_is_right(name: str) -> None:
    report = elman.verify(*example(name))
    assert report, str(report)
    assert report.ok
    assert {check.way for check in report.checks if check.passed} >= {
        "whole",
        "in reverse",
        "lengths",
        "float32",
    }
    assert report.circuit.name == type(CASES[name].make()).__name__


def test_what_is_checked() -> None:
    report = elman.verify(CELL, X)
    ways = [
        "whole",
        "in reverse",
        "from its own start",
        "lengths",
        "a mask",
        "resets",
        "all of these in reverse",
    ]
    ways += ["in segments of 3", "second derivatives", "float32"]
    assert list(dict.fromkeys(check.way for check in report.checks)) == ways
    assert all(check.passed for check in report.checks)
    assert {check.part for check in report.checks if check.way == "whole"} == {
        "outputs", "final state", "d inputs", "d state", "d parameters",
    }  # fmt: skip
    exact = [check for check in report.checks if check.way != "float32"]
    assert all(check.bound == 1e-10 for check in exact)
    assert any(check.difference for check in exact), "two computations that agree in every bit are one"
    rough = [check for check in report.checks if check.way == "float32"]
    assert all(1e-9 < check.difference <= check.bound <= 1e-5 for check in rough)
    assert report.engines == dict.fromkeys(report.engines)


@pytest.mark.conformance
def test_nothing_is_changed() -> None:
    cell = CASES["dropout_rnn"].make()
    before, state = {k: v.clone() for k, v in cell.state_dict().items()}, torch.get_rng_state()
    assert elman.verify(cell, torch.zeros(2, 5))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in cell.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in cell.parameters())


class Log(nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.log1p(h + x)


def test_where_random_numbers_break_the_cell_it_runs_on_the_examples_rows() -> None:
    cell = Log()
    rows = torch.rand(5, 3) + 0.5
    report = elman.verify(cell, rows, rows)
    assert report, str(report)
    assert all(check.difference < 1e-10 for check in report.checks if check.way == "whole")


def test_a_cell_that_gives_no_number_is_not_right() -> None:
    class Nowhere(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return (x + h) / torch.zeros_like(h) * 0

    report = elman.verify(Nowhere(), X, X)
    assert not report.ok
    assert "the loop gives no finite number" in {check.said for check in report.checks}


def test_a_cell_of_float32_alone_is_compared_there() -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x + h).float()

    report = elman.verify(Single(), X, X)
    assert report, str(report)
    assert report.note.startswith("compared in float32: in float64 the cell fails")
    assert {check.bound for check in report.checks if check.passed} == {1024 * torch.finfo(torch.float32).eps}


def test_a_cell_of_bfloat16_is_held_against_float64() -> None:
    report = elman.verify(elman.cells.Elman(3, 4).bfloat16(), X.bfloat16())
    assert report, str(report)
    rough = [check for check in report.checks if check.way == "bfloat16" and check.passed]
    assert any(check.difference > 1e-4 for check in rough)


def test_what_is_not_checked_says_why() -> None:
    class Hard(nn.Module):
        def forward(self, x: Tensor | None, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            a, b = states
            return nn.functional.hardsigmoid(a * b), b

    report = elman.verify(Hard(), None, (X, X), engines=["reference"])
    assert report, str(report)
    said = {check.way: check.said for check in report.checks if check.passed is None}
    assert "hardsigmoid_backward is not implemented" in said["second derivatives"]
    assert said["resets"].startswith("nobody knows what the cell starts from (")
    assert said["from its own start"] == "without x, only a state says the batch size"


def test_an_engine_that_cannot_run_the_cell_says_why() -> None:
    report = elman.verify(*example("clipped_rnn"))
    assert "sums over rows inside the loop" in str(report.engines["native"])
    assert "native cannot run it: engine 'native' cannot run this loop: it has no form" in str(report)
    assert {check.engine for check in report.checks} == {"reference"}


# --- what is put wrong ----------------------------------------------------------------------------------------------


class Wrong(Reference):
    """The reference engine, and then something done to what it has computed."""

    name = "wrong"

    def __init__(self, spoil: Callable[..., None], when: Callable[..., bool] = lambda *_: True) -> None:
        super().__init__()
        self.spoil, self.when = spoil, when

    def run(
        self, loop: Loop, values: Mapping[str, Tensor], batch_sizes: Sequence[int], reverse: bool,
        out: Mapping[str, Tensor],
    ) -> LoopResult:  # fmt: skip
        result = super().run(loop, values, batch_sizes, reverse, out)
        if self.when(values, batch_sizes, reverse):
            self.spoil(result, out)
        return result


def nudge(result: LoopResult, out: Mapping[str, Tensor]) -> None:
    """One number in the last place but a few."""
    for value in (*out.values(), *result.finals.values()):
        if value.numel() and value.is_floating_point():
            value.view(-1)[-1] += 1e-8 if value.dtype == torch.float64 else 1e-4


def fail(result: LoopResult, out: Mapping[str, Tensor]) -> None:
    raise RuntimeError("out of order")


def nan(result: LoopResult, out: Mapping[str, Tensor]) -> None:
    for value in out.values():
        value.fill_(math.nan)


def double(values: Mapping[str, Tensor]) -> bool:
    return any(value.dtype == torch.float64 for value in values.values())


FAULTS: dict[str, tuple[Engine, set[str]]] = {
    "always": (Wrong(nudge), {"whole", "in reverse", "lengths", "second derivatives", "float32"}),
    "when it runs backward": (Wrong(nudge, lambda v, sizes, reverse: reverse), {"whole", "in reverse"}),
    "when rows end": (
        Wrong(nudge, lambda v, sizes, reverse: sizes[0] != sizes[-1]),
        {"lengths", "a mask", "resets", "all of these in reverse"},
    ),
    "after sixteen steps": (Wrong(nudge, lambda v, sizes, reverse: len(sizes) > 16), {"whole", "in reverse"}),
    "at one row": (Wrong(nudge, lambda v, sizes, reverse: sizes[0] == 1), {"whole", "in reverse"}),
    "in float32": (Wrong(nudge, lambda v, sizes, reverse: not double(v)), {"float32"}),
    "with an error": (Wrong(fail), {"whole", "lengths"}),
    "with NaN": (Wrong(nan), {"whole", "lengths"}),
}  # fmt: skip


@pytest.mark.parametrize("when", with_more([*FAULTS][::3], [w for i, w in enumerate(FAULTS) if i % 3]))
def test_a_wrong_engine_is_found(when: str) -> None:
    engine, ways = FAULTS[when]
    report = elman.verify(CELL, X, engines=["reference", engine])
    assert not report.ok
    assert parts(report) == set(), "the right engine is right"
    assert {way for way, _ in parts(report, "wrong")} >= ways
    if when in ("when rows end", "in float32"):
        assert {way for way, _ in parts(report, "wrong")} <= ways | {"from its own start"}
    assert "WRONG" in str(report)


def test_a_start_that_leaks_over_a_reset_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(self: Layout, states: Sequence[Tensor], reverse: bool, initial: Any) -> list[Tensor]:
        return right(self, states, reverse, lambda count: [s[:1].expand(count, *s.shape[1:]) for s in states])

    right = Layout.start
    monkeypatch.setattr(Layout, "start", leaking)
    report = elman.verify(CELL, X, engines=["reference"])
    assert {way for way, _ in parts(report)} == {"resets", "all of these in reverse"}


def test_a_padding_that_is_looked_at_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def put_back(self: Layout, value: Tensor) -> Tensor:
        made = right(self, value)
        return made + 1e-3 if self._move is not None else made

    right = Layout.put_back
    monkeypatch.setattr(Layout, "put_back", put_back)
    assert ("lengths", "outputs") in parts(elman.verify(CELL, X, engines=["reference"]))


class Noisy(nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + h) * torch.rand_like(h)


def test_noise_that_is_another_in_the_backward_pass_is_found(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(port: Any, index: int, seed: int, *place: int) -> Tensor:
        return right(port, index, seed + next(calls) % 2, *place)

    right, calls = noise.draw, itertools.count()
    monkeypatch.setattr(noise, "draw", other)
    assert not elman.verify(Noisy(), X, X, engines=["reference"])


ADJOINT = sys.modules["elman.adjoint"]  # the function of that name hides it


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.3, 0.8]))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + self.w * h)


def test_a_wrong_rule_of_the_adjoint_is_found(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that flows into a value, one part is forgotten."""
    monkeypatch.setattr(ADJOINT, "_added", lambda graph, terms: terms[0])
    report = elman.verify(Scaled(), X, X, engines=["reference"])
    assert {("whole", "d state"), ("whole", "d parameters"), ("lengths", "d inputs")} <= parts(report)
    assert "outputs" not in {part for _, part in parts(report)}


def test_a_wrong_second_derivative_is_found(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ADJOINT, "_sum", lambda inputs, entries: inputs[entries[0].port.name])
    report = elman.verify(Scaled(), X, X, engines=["reference"])
    assert {way for way, _ in parts(report)} == {"second derivatives"}


def test_a_cell_that_cannot_be_traced() -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x + h - h.mean(0))

    with pytest.raises(TraceError, match="mixes the rows of the batch"):
        elman.verify(Mixing(), X, X)
    with pytest.raises(InputTypeError, match="a cell is"):
        elman.verify(3, X)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no such engine"):
        elman.verify(CELL, X, engines=["fast"])
    with pytest.raises(InputError, match="no numbers"):
        elman.verify(elman.cells.GRU(3, 4).to("meta"), X.to("meta"))


# --- what is said ---------------------------------------------------------------------------------------------------


@pytest.mark.conformance
def test_the_table_fits_and_says_what_is_wrong() -> None:
    report = elman.verify(CELL, X, engines=["reference", Wrong(nudge)])
    said = str(report)
    assert max(map(len, said.splitlines())) <= 100
    assert said.startswith("Elman is WRONG: ")
    assert re.search(
        r"wrong: whole: outputs: \d\.\de-\d+, at most 1\.0e-10 \(outputs at T \d+, B \d+\)", said
    )
    assert "✗ " in said
    assert "✗ " not in str(elman.verify(CELL, X, engines=["reference"]))


def test_a_report_is_as_good_as_its_checks() -> None:
    circuit = elman.trace(CELL, X)
    right = Check("native", "whole", "outputs", True, 1e-16, 1e-10, "outputs at T 2, B 3")
    unknown = Check("native", "resets", "", None, None, None, "nobody knows")
    wrong = dataclasses.replace(right, passed=False, difference=1.0)
    for checks, ok in (
        ((right,), True),
        ((right, unknown), True),
        ((unknown,), False),
        ((right, wrong), False),
        ((), False),
    ):
        report = Report("GRU", checks, circuit, {"native": None})
        assert report.ok is ok
        assert bool(report) is ok
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.checks = ()  # type: ignore[misc]


def test_a_page_holds_nothing_but_what_it_says(tmp_path: Path) -> None:
    circuit = elman.trace(CELL, X)
    evil = "<script>alert(1)</script>"
    checks = (
        Check(evil, evil, "outputs", False, 1.0, 1e-10, evil),
        Check(evil, "resets", "", None, None, None, evil),
        Check(evil, "float32", "outputs", True, 1e-7, 1e-6, "", own=2e-7),
    )
    file = tmp_path / "report.html"
    file.write_text("old")
    assert Report(evil, checks, circuit, {evil: None, "other": evil}, evil).save(str(file)) == file
    page = file.read_text("utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8
    assert "prefers-color-scheme: dark" in page
    assert "the loop 2.0e-07" in page
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(elman.ElmanError, match="cannot be written"):
        Report("GRU", checks, circuit, {}).save(tmp_path / "no" / "report.html")


@pytest.mark.conformance  # in words of an engine that is there: test_an_engine_that_cannot_run_the_cell_says_why
def test_without_the_compiled_part(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.Native, "supports", lambda *_: "it is not built")
    report = elman.verify(CELL, X)
    assert report
    assert report.engines == {
        "native": "engine 'native' cannot run this loop: it is not built",
        "reference": None,
    }
    assert "native cannot run it: engine 'native' cannot run this loop: it is not built" in str(report)
