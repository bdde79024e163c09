"""Teacher forcing: the same numbers and gradients as the eager loop with a teacher, and no loop left in the plan."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import elman
from elman import cells
from elman.circuit.form import Kind, Wire
from elman.errors import InputError, InputTypeError
from tests.cases import CASES
from tests.pairwise import with_more
from tests.recurrent import compare, ragged
from tests.recurrent.compare import Inputs
from tests.zoo import Base

Tensor = torch.Tensor


def teacher_like(case_name: str, T: int, B: int, width: int) -> Tensor:
    return torch.randn(T, B, width, dtype=torch.float64, requires_grad=True)


@pytest.mark.grid
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    ("name", "width"), [("jordan", 4), ("gru", 7), ("elman", 7), ("lstm", 7), ("noisy_rnn", 7)]
)
def test_it_equals_the_eager_loop(name: str, width: int, reverse: bool) -> None:
    """The LSTM keeps its second, unforced state; the noisy cell draws as it does without a teacher."""
    case = CASES[name]
    rnn = elman.Recurrent(case.make().double(), reverse=reverse)
    for T, B in ((1, 1), (2, 3), (19, 2)):
        teacher = teacher_like(name, T, B, width)
        got, expected = compare.both(rnn, Inputs.of(case, T, B), teacher=teacher)
        compare.assert_equal(got.values, expected.values)
        compare.assert_equal(got.gradients, expected.gradients)
        last = 0 if reverse else T - 1
        gradient = got.gradients["teacher"]
        if gradient is not None:
            assert not gradient[last].any(), "nobody sees the teacher's last output"
        if T > 1:
            assert gradient is not None
            assert gradient.any()


def test_no_step_at_all() -> None:
    rnn = elman.Recurrent(cells.Jordan(3, 5, 2))
    state = torch.randn(4, 2)
    outputs, final = rnn(torch.randn(0, 4, 3), state, teacher=torch.randn(0, 4, 2))
    assert outputs.shape == (0, 4, 2)
    assert torch.equal(final, state)


@pytest.mark.parametrize("name", ["jordan", "elman", "gru"])
def test_no_loop_is_left(name: str) -> None:
    case = CASES[name]
    rnn = elman.Recurrent(case.make().double())
    inputs = Inputs.of(case, 3, 2)
    compare.ours(rnn, inputs)
    assert rnn._calls.latest is not None
    assert rnn._calls.latest.program.plan.loop is not None
    width = inputs.state.shape[-1]
    compare.ours(rnn, inputs, teacher=teacher_like(name, 3, 2, width))
    program = rnn._calls.latest.program
    assert program.plan.loop is None
    wants = frozenset(port.name for port in program.inputs if port.differentiable)
    assert {"teacher", "h", "x"} <= wants
    training = program.training(wants)
    assert training.forward.loop is None
    assert training.backward.loop is None
    assert rnn.circuit.inputs_of(Kind.STATE)[0].next == Wire.input("teacher")


def test_a_second_state_keeps_its_loop() -> None:
    rnn = elman.Recurrent(CASES["lstm"].make().double())
    compare.ours(rnn, Inputs.of(CASES["lstm"], 3, 2), teacher=teacher_like("lstm", 3, 2, 7))
    assert rnn._calls.latest is not None
    loop = rnn._calls.latest.program.plan.loop
    assert loop is not None
    assert [state.name for state in loop.states] == ["c"], "only the memory c is sequential"
    assert not [node for node in loop.nodes() if "mm" in str(node.target)], "no product is left in the loop"


def test_second_derivatives_through_a_teacher() -> None:
    case = CASES["jordan"]
    rnn = elman.Recurrent(case.make().double())
    inputs, teacher = Inputs.of(case, 3, 2), teacher_like("jordan", 3, 2, 4)
    found = []
    for run in (compare.ours, compare.theirs):
        wanted = {**compare.wanted_of(rnn, inputs), "teacher": teacher}
        first = compare.gradients(compare.flat(*run(rnn, inputs, teacher=teacher)), wanted, create_graph=True)
        found.append(compare.gradients(first, wanted))
    compare.assert_equal(*found)


class Square(nn.Module):
    """A recurrence in two operations, whose derivatives are soon traced."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.4], dtype=torch.float64))

    def forward(self, x: Tensor, o: Tensor) -> Tensor:
        return x + self.w * o * o


@pytest.mark.parametrize(
    ("weight", "wants", "memory"),
    with_more(
        [
            (None, None, None), ("yes or no", None, None), ("a part", "teacher", None),
            ("a part", "teacher_weight", None), (None, None, elman.Segments(2)),
        ],
        [("a part", None, None)],
        together=True,
    ),
)  # fmt: skip
def test_derivatives_of_any_order_beside_a_teacher_that_is_data(
    weight: str | None, wants: str | None, memory: Any
) -> None:
    """What is handed on as it goes in has a gradient that nobody reads."""
    rnn = elman.Recurrent(Square(), memory=memory)
    x, o = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((4, 2, 2), (2, 2)))
    said = {"lengths": torch.tensor([4, 3]), "teacher": torch.randn(4, 2, 2, dtype=torch.float64)}
    if weight is not None:
        w = torch.rand(4, 2, dtype=torch.float64)
        said["teacher_weight"] = w < 0.5 if weight == "yes or no" else w
    if wants is not None:
        said[wants].requires_grad_()
    inputs, found = Inputs(4, 2, x, o, None, None), []
    for run in (ragged.ours, ragged.theirs):
        wanted = {**compare.wanted_of(rnn, inputs), **{n: t for n, t in said.items() if t.requires_grad}}
        values, orders = compare.flat(*run(rnn, inputs, **said)), {}
        for order in range(3 if weight is None else 2):
            values = compare.gradients(values, wanted, create_graph=True)
            orders |= {f"{order} {name}": value for name, value in values.items()}
        found.append(orders)
    compare.assert_equal(*found, tolerance=1e-9)


class TwoOutputs(Base):
    """Both tensors of the output are entries of the state."""

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        h = torch.tanh(self.U(x) + self.W(state["k"]))
        k = 0.5 * state["k"] + torch.sin(state["h"])
        return {"first": h, "second": k}, {"h": h, "k": k}


def test_an_output_of_two_tensors_has_two_teachers() -> None:
    rnn = elman.Recurrent(TwoOutputs(3, 4).double())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    state = {name: torch.randn(2, 4, dtype=torch.float64) for name in "hk"}
    teacher = {name: torch.randn(5, 2, 4, dtype=torch.float64) for name in ("first", "second")}
    inputs = Inputs(5, 2, x, state, None, None)
    got, expected = compare.both(rnn, inputs, teacher=teacher)
    compare.assert_equal(got.values, expected.values)
    compare.assert_equal(got.gradients, expected.gradients)
    assert rnn._calls.latest is not None
    assert rnn._calls.latest.program.plan.loop is None


class HalfInTheState(Base):
    """One tensor of the output is an entry of the state, the other is not."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        h = torch.tanh(self.U(x) + self.W(h))
        return {"h": h, "twice": 2 * h}, h


@pytest.mark.parametrize("name", ["dropout_rnn", "cat_rnn", "loss_rnn", "silent_rnn", "dict_output_rnn"])
def test_a_cell_whose_output_is_no_state_is_refused(name: str) -> None:
    case = CASES[name]
    rnn = elman.Recurrent(case.make().double())
    inputs = Inputs.of(case, 3, 2)
    outputs, _ = compare.ours(rnn, inputs)
    teacher = outputs if outputs is not None else torch.zeros(3, 2, 7)
    with pytest.raises((InputError, InputTypeError), match="teacher"):
        compare.ours(rnn, inputs, teacher=teacher)


@pytest.mark.parametrize(
    ("teacher", "error"),
    [
        (torch.zeros(2, 2, 4), InputError),  # too short
        (torch.zeros(3, 1, 4), InputError),  # another batch
        (torch.zeros(3, 2, 5), InputError),  # too wide
        (torch.zeros(3, 2), InputError),
        (torch.zeros(3, 2, 4, dtype=torch.float64), InputError),
        ((torch.zeros(3, 2, 4),), InputTypeError),  # another structure
        ({"o": torch.zeros(3, 2, 4)}, InputTypeError),
    ],
    ids=["steps", "batch", "width", "rank", "dtype", "tuple", "dict"],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher: Any, error: type[Exception]) -> None:
    rnn = elman.Recurrent(cells.Jordan(3, 5, 4))
    with pytest.raises(error, match="teacher"):
        rnn(torch.zeros(3, 2, 3), teacher=teacher)


def test_a_teacher_for_half_of_the_output() -> None:
    """What has no entry in the state takes no teacher; the teacher's tensor for it is not looked at."""
    rnn = elman.Recurrent(HalfInTheState(3, 4).double())
    x, h = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    taught = torch.randn(5, 2, 4, dtype=torch.float64)
    outputs, final = rnn(x, h, teacher={"h": taught, "twice": torch.zeros_like(taught)})
    before = torch.cat([h.unsqueeze(0), taught[:-1]])
    expected = torch.stack([rnn.cell(*pair)[1] for pair in zip(x, before, strict=True)])
    torch.testing.assert_close(outputs["h"], expected)
    torch.testing.assert_close(outputs["twice"], 2 * expected)
    torch.testing.assert_close(final, expected[-1])


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = elman.Recurrent(cells.Jordan(3, 5, 2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.rnn(x, teacher=y)[0]


def test_it_trains() -> None:
    """y(t) = y(t-1) + x(t): learned from the targets themselves."""
    model = Head()
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    x = 0.1 * torch.randn(20, 8, 3)
    y = x[..., :2].cumsum(0)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (model(x, y) - y).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


class Speaks(torch.nn.Module):
    """Its output, logits, is its state: the next step reads their softmax. A symbol stands for a sure choice of it."""

    def __init__(self) -> None:
        super().__init__()
        self.U, self.W = torch.nn.Linear(3, 5), torch.nn.Linear(5, 5)

    def initial_state(self, batch: int) -> torch.Tensor:
        return self.W.bias.new_zeros(batch, 5)

    def forward(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.U(x) + self.W(logits.softmax(-1)))

    def as_output(self, symbols: torch.Tensor) -> torch.Tensor:
        return 20.0 * torch.nn.functional.one_hot(symbols, 5).to(self.W.bias.dtype)


@pytest.mark.parametrize("how", ["whole", "ragged", "packed", "weight", "compiled", "compiled ragged"])
def test_a_teacher_of_symbols(how: str) -> None:
    rnn = elman.Recurrent(Speaks().double())
    x, symbols = torch.randn(4, 3, 3, dtype=torch.float64), torch.randint(5, (4, 3))
    more: dict[str, Any] = {}
    given, expected = symbols, rnn.cell.as_output(symbols)
    if "ragged" in how:
        more["lengths"] = torch.tensor([4, 1, 2])
        given = symbols.where(torch.arange(4)[:, None] < more["lengths"], -100)  # padding is no symbol
    if how == "weight":
        more["teacher_weight"] = torch.rand(4, 3) > 0.5
    if how == "packed":
        pack = functools.partial(
            torch.nn.utils.rnn.pack_padded_sequence, lengths=torch.tensor([4, 2, 1]), enforce_sorted=True
        )
        x, given, expected = pack(x), pack(symbols), pack(expected)
    run = torch.compile(rnn, backend="eager", fullgraph=True) if "compiled" in how else rnn
    got, right = run(x, teacher=given, **more), rnn(x, teacher=expected, **more)
    for mine, theirs in zip(
        torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(right), strict=True
    ):
        if isinstance(mine, torch.Tensor):
            torch.testing.assert_close(mine, theirs)
