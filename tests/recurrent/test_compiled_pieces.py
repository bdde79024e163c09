"""Lengths, masks and resets under torch.compile: what the plain call gives, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch.utils import _pytree as pytree

import elman
from tests import pairwise, zoo
from tests.cases import CASES
from tests.pairwise import with_more
from tests.recurrent import compare
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor


STARTLESS = ("named_tuple_lstm", "zoneout_lstm")


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def happens(kind: str, steps: int, batch: int) -> dict[str, Tensor]:
    made = {
        "lengths": torch.randint(0, steps + 1, (batch,)),
        "mask": torch.rand(steps, batch) < 0.7,
        "reset": torch.rand(steps, batch) < 0.3,
    }
    if kind == "nothing":
        return {"mask": torch.zeros(steps, batch, dtype=torch.bool)}
    return made if kind == "all" else {kind: made[kind]}


def results(run: Any, rnn: elman.Recurrent, inputs: Inputs, **more: Any) -> list[Any]:
    torch.manual_seed(5)
    values = compare.flat(*run(inputs.x, inputs.state, steps=inputs.steps, context=inputs.context, **more))
    return [values, compare.gradients(values, compare.wanted_of(rnn, inputs))]


KINDS = [("gru", "all"), ("gru", "nothing"), ("context_rnn", "all"), ("learned_start_rnn", "all")]
KINDS += [(STARTLESS[0], "lengths")]
MORE = [
    ("loss_rnn", "all"),
    ("dict_output_rnn", "all"),
    (STARTLESS[1], "lengths"),
    ("gru", "lengths"),
    ("gru", "mask"),
    ("gru", "reset"),
    ("noisy_rnn", "all"),
]  # each of them is in "all"


@pytest.mark.grid(1)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name, kind", with_more(KINDS, MORE, together=True))
def test_compiled_pieces(name: str, kind: str, reverse: bool) -> None:
    rnn = elman.Recurrent(CASES[name].make().double(), reverse=reverse)
    fast = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    for steps, batch in ((5, 3), (4, 4)) if (name, kind) == KINDS[0] or pairwise.exhaustive else ((5, 3),):
        inputs, more = Inputs.of(CASES[name], steps, batch), happens(kind, steps, batch)
        found = [results(run, rnn, inputs, **more) for run in (fast, rnn)]
        for mine, right in zip(*found, strict=True):
            compare.assert_equal(mine, right)


@pytest.mark.parametrize("name", STARTLESS)
def test_a_reset_of_a_cell_without_a_start_is_refused(name: str) -> None:
    rnn, inputs = elman.Recurrent(CASES[name].make().double()), Inputs.of(CASES[name], 4, 2)
    with pytest.raises(Exception, match="does not say which state it starts from"):
        torch.compile(rnn, backend="aot_eager")(inputs.x, inputs.state, reset=torch.rand(4, 2) < 0.5)


def test_one_compilation_does_for_all_sizes() -> None:
    rnn = elman.Recurrent(CASES["gru"].make().double())
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    fast = torch.compile(rnn, fullgraph=True, backend=counter, dynamic=True)
    for steps, batch in ((3, 2), (5, 4)):
        inputs, more = Inputs.of(CASES["gru"], steps, batch), happens("all", steps, batch)
        found = [results(run, rnn, inputs, **more) for run in (fast, rnn)]
        for mine, right in zip(*found, strict=True):
            compare.assert_equal(mine, right)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("ragged", "numbers"),
    with_more([(True, True)], [(False, False), (False, True), (True, False)], together=True),
)
def test_a_compiled_teacher_with_a_weight(ragged: bool, numbers: bool) -> None:
    rnn = elman.Recurrent(elman.cells.Jordan(3, 4, 4).double())
    fast = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        teacher = torch.randn_like(rnn(x)[0])
    weight = torch.rand(5, 3, dtype=torch.float64) if numbers else torch.rand(5, 3) < 0.5
    more = {"lengths": torch.tensor([2, 5, 0])} if ragged else {}
    found = []
    for run in (fast, rnn):
        outputs, final = run(x, teacher=teacher, teacher_weight=weight, **more)
        total = outputs.square().sum() + sum(t.square().sum() for t in pytree.tree_leaves(final))
        found.append([outputs, final, *torch.autograd.grad(total, [x, *rnn.parameters()])])
    for mine, right in zip(*found, strict=True):
        compare.assert_equal(compare.flat(mine, None), compare.flat(right, None))


class Sharing(zoo.Base):
    """Gives out numbers that all rows have alike, some as wide as a batch may be. mixes: rows, as no circuit does."""

    mixes = False

    def forward(self, x: Tensor, h: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        h = torch.tanh(self.U(x) + self.W(h))
        weight = self.W.weight
        if self.mixes:
            h = h - h.mean(0)
        sums = {"whole": weight.sum(), "vector": weight.square().sum(0), "kept": weight.sum(0, keepdim=True)}
        return {**sums, "matrix": 2 * weight, "row": h[:, :1]}, h


@pytest.mark.grid(1)
@pytest.mark.parametrize("rows", [1, 2, 6])  # of 6 units
@pytest.mark.parametrize("recording", [True, False])
def test_a_compiled_step_tells_what_all_rows_share_where_a_batch_is_as_wide(
    rows: int, recording: bool
) -> None:
    cell, x = Sharing(5, 6).double(), torch.randn(rows, 5).double()
    rnn, h = elman.Recurrent(cell), torch.randn(rows, 6).double()
    fast = torch.compile(rnn.step, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(recording):
        (made, ended), (expected, final) = fast(x, h), rnn.step(x, h)
    torch.testing.assert_close((made, ended), (expected, final))
    assert {name: list(value.shape[:1]) for name, value in made.items()} == {name: [rows] for name in made}
    if recording:
        factors = {name: torch.randn_like(value) for name, value in made.items()}
        mine, right = (
            torch.autograd.grad(sum((o[name] * factors[name]).sum() for name in o), cell.W.weight)
            for o in (made, expected)
        )
        torch.testing.assert_close(mine, right)


def test_a_compiled_step_does_for_all_batches() -> None:
    rnn, counter = elman.Recurrent(Sharing(5, 6)), torch._dynamo.testing.CompileCounter()
    fast = torch.compile(rnn.step, fullgraph=True, backend=counter, dynamic=True)
    for rows in (2, 2, 4, 6, 3):
        x, h = torch.randn(rows, 5), torch.randn(rows, 6)
        torch.testing.assert_close(fast(x, h), rnn.step(x, h))
    assert counter.frame_count == 1


def test_a_compiled_step_without_a_circuit_is_the_cells() -> None:
    rnn = elman.Recurrent(Sharing(5, 6))
    rnn.cell.mixes = True
    x, h = torch.randn(6, 5), torch.randn(6, 6)
    expected = rnn.step(x, h)
    assert expected[0]["vector"].shape == (6,)
    torch.testing.assert_close(torch.compile(rnn.step, backend="aot_eager")(x, h), expected)


@pytest.mark.conformance
def test_compiled_layers() -> None:
    GRU = elman.cells.GRU
    both = elman.Bidirectional(GRU(5, 4), GRU(5, 4))
    model = elman.Stack(both, elman.Recurrent(elman.cells.LSTM(8, 3))).double()
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, more = torch.randn(6, 3, 5, dtype=torch.float64, requires_grad=True), happens("all", 6, 3)
    for given in ({}, more):
        found = []
        for run in (fast, model):
            outputs, final = run(x, **given)
            leaves = [outputs, *pytree.tree_leaves(final)]
            total = sum(leaf.square().sum() for leaf in leaves)
            found.append([*leaves, *torch.autograd.grad(total, [x, *model.parameters()])])
        for mine, right in zip(*found, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-10)


@pytest.mark.conformance  # test_doors.py compiles a plain sequence with it
def test_inductor_takes_them_too() -> None:
    rnn = elman.Recurrent(elman.cells.GRU(5, 7))
    x, lengths = torch.randn(6, 4, 5), torch.tensor([6, 0, 3, 5])
    outputs, final = torch.compile(rnn, fullgraph=True)(x, lengths=lengths)
    expected, last = rnn(x, lengths=lengths)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(final, last)
