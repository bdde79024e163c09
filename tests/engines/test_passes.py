"""A plan as one native call: the same bits as the function of Python that it takes the place of."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

import elman
from elman.circuit.form import Kind
from elman.engines.native import Native, extension, passes
from elman.execute import Call
from elman.execute.executable import Executable
from elman.segments.timeline import Packing
from tests.cases import CASES
from tests.eager import unroll
from tests.pairwise import with_more

Tensor = torch.Tensor
native = pytest.importorskip("elman._native", reason="the compiled part is missing")
WHOLE = with_more(
    ["gru", "lstm", "dropout_rnn", "spiking_rnn"], ["elman", "dale_rnn", "jordan", "leaky", "mgu"]
)


def plans_of(name: str, reverse: bool = False, dtype: torch.dtype = torch.float32) -> list[Executable]:
    """The forward and the backward pass of a case."""
    case = CASES[name]
    return plans(case.make(), case.x(2, 2, dtype=dtype), case.state(2, dtype=dtype), reverse)


def plans(cell: torch.nn.Module, x: Any, state: Any, reverse: bool = False) -> list[Executable]:
    rnn = elman.Recurrent(cell.to(tree_leaves(x)[0].dtype), reverse=reverse, batch_first=False)
    rnn(x, state)
    program = rnn._of_latest_call().program
    training = program.training(frozenset(port.name for port in program.inputs if port.differentiable))
    return [training.forwards, training.backwards]


def inputs_of(
    executable: Executable, T: int, B: int, generator: torch.Generator, packing: Packing | None = None
) -> list[torch.Tensor]:
    made = []
    for port in executable.plan.circuit.inputs:
        if port.kind is not Kind.NOISE:
            lead = ([T] if port.kind is Kind.SEQUENCE else []) + ([B] if port.rows else [])
            if packing is not None and lead:
                lead = [
                    (packing.rows if port.rows else packing.steps)
                    if port.kind is Kind.SEQUENCE
                    else packing.batch
                ]
            made.append(torch.rand((*lead, *port.shape), generator=generator).to(port.dtype) - 0.5)
    return made


@pytest.mark.parametrize("name", WHOLE)
def test_it_is_what_the_function_of_python_gives(name: str) -> None:
    """Of tensors in order and out of it, and of what is left out."""
    for executable in plans_of(name):
        assert executable.split("auto") is None
        emitted = executable._emitted("auto", False)
        for T, B in ((1, 1), (3, 2), (5, 1)):
            given: list[Any] = inputs_of(executable, T, B, torch.Generator().manual_seed(0))
            turned = [t.mT.contiguous().mT if t.dim() > 1 else t for t in given]
            timed = [port.kind in (Kind.STATE, Kind.SEQUENCE) for port in executable.plan.circuit.inputs]
            for tensors in (
                given,
                turned,
                [None if t else one for t, one in zip(timed, given, strict=False)],
            ):
                ours = executable.run(Call(T, B, 7, "auto"), tensors)
                theirs = emitted(T, B, 7, 0, *tensors)
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.grid(1)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["gru", "lstm", "dropout_rnn", "delayed_rnn"])
def test_on_packed_rows_too(name: str, reverse: bool) -> None:
    """Rows that end early, one that is alone, a call of which all are as long; and what is left out."""
    for executable in plans_of(name, reverse):
        emitted = executable._emitted("auto", True)
        for sizes in ((4, 4, 3, 1, 1), (2, 1), (1,), (3, 3), (5,) * 3 + (2,) * 40):
            packing = Packing(sizes, torch.device("cpu"), origin=(2, 7))
            given = inputs_of(executable, 1, 1, torch.Generator().manual_seed(0), packing)
            timed = [port.kind in (Kind.STATE, Kind.SEQUENCE) for port in executable.plan.circuit.inputs]
            for tensors in (given, [None if t else one for t, one in zip(timed, given, strict=False)]):
                call = Call(packing.steps, packing.batch, 7, "auto", packing)
                ours, theirs = executable.run(call, tensors), emitted(packing, 7, *tensors)
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert not isinstance(executable._passed("auto", True), str)


class NormedNodes(torch.nn.Module):
    """Layer norm of several lines in a row, along one dimension and along two, one of them without a shift."""

    def __init__(self, nodes: int, width: int) -> None:
        super().__init__()
        self.each, self.both = torch.nn.LayerNorm(width), torch.nn.LayerNorm((nodes, width), bias=False)
        self.W = torch.nn.Parameter(torch.rand(width, width) - 0.5)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.both(self.each(h @ self.W) + x.unsqueeze(2)))


def normed(nodes: int, width: int, dtype: torch.dtype) -> list[Executable]:
    g = torch.Generator().manual_seed(2)
    x, h = (torch.rand(sizes, generator=g).to(dtype) for sizes in ((2, 2, nodes), (2, nodes, width)))
    return plans(NormedNodes(nodes, width), x, h)


def check_close(executable: Executable, T: int, B: int) -> None:
    assert executable.split("auto") is None
    emitted = executable._emitted("auto", False)
    given: list[Any] = inputs_of(executable, T, B, torch.Generator().manual_seed(0))
    turned = [t.mT.contiguous().mT if t.dim() > 1 else t for t in given]
    timed = [port.kind in (Kind.STATE, Kind.SEQUENCE) for port in executable.plan.circuit.inputs]
    left_out = [None if t else one for t, one in zip(timed, given, strict=True)]
    for tensors, same in ((given, given), (turned, given), (left_out, left_out)):
        ours, theirs = executable.run(Call(T, B, 7, "auto"), tensors), emitted(T, B, 7, 0, *same)
        for a, b in zip(ours, theirs, strict=True):
            bound = 1e-9 * max(1.0, float(b.abs().max()))
            torch.testing.assert_close(a, b, rtol=0, atol=bound, equal_nan=True)


@pytest.mark.parametrize(
    "name",
    with_more(
        ["layer_norm_rnn", "weight_norm_rnn", "heads_rnn", "baddbmm_rnn", "competing_rnn"],
        ["layer_norm_lstm", "antisymmetric_rnn", "columns_rnn", "column_rates_rnn", "gates_first_gru", "nodes_rnn",
         "slots_rnn"],
    ),
)  # fmt: skip
def test_sums_over_rows_and_what_stands_before_them_are_part_of_the_call(name: str) -> None:
    """Gradients of a layer norm's parameters among them. What sums begin with is torch's in the function of Python, so
    close is all that they can be."""
    for T, B in ((1, 1), (3, 2), (40, 17)):
        check_close(plans_of(name, dtype=torch.float64)[1], T, B)


def test_sums_over_packed_rows_too() -> None:
    backwards = plans_of("layer_norm_rnn", dtype=torch.float64)[1]
    packing = Packing((4, 4, 3, 1, 1), torch.device("cpu"), origin=(2, 7))
    given = inputs_of(backwards, 1, 1, torch.Generator().manual_seed(0), packing)
    ours = backwards.run(Call(packing.steps, packing.batch, 7, "auto", packing), given)
    assert not isinstance(backwards._passed("auto", True), str)
    torch.testing.assert_close(
        ours, backwards._emitted("auto", True)(packing, 7, *given), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(("nodes", "width"), [(3, 7), (2, 36), (1, 1)])
def test_layer_norm_of_several_lines_in_a_row(nodes: int, width: int) -> None:
    for T, B in ((1, 1), (3, 2), (40, 17)):
        check_close(normed(nodes, width, torch.float64)[1], T, B)


class Counting(torch.nn.Module):
    """Constants that are counted out, triangles of a weight, a scale of one number, and the largest of a row, which may
    be several."""

    def __init__(self) -> None:
        super().__init__()
        self.W = torch.nn.Parameter(torch.linspace(-0.5, 0.5, 35).reshape(7, 5))
        self.scale = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        triangles = self.W.tril(1) + self.W.triu(-1) + self.W.tril(-2).tril()
        counted = (
            torch.arange(7) * 0.25
            + torch.arange(1, 15, 2)
            - torch.arange(1.5, -2, -0.5)
            + torch.arange(-3, 4)
        )
        largest = torch.stack([h[:, 0], h[:, 0], h[:, 1]], 1).amax(1, keepdim=True)
        return torch.tanh(self.scale * h + 0.1 * counted + x @ triangles.T) + largest * 0.5


class Whole(torch.nn.Module):
    """Whole numbers alone in the loop, and in a part of what runs once, beside real ones."""

    def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        found = (n.unsqueeze(1) == torch.arange(7)).to(x.dtype)  # [B, 7]
        return found * x.sum(1, keepdim=True), torch.remainder(n * 5 + 3, 7) + (n > 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_programs_without_real_numbers_run_beside_those_of_either_precision(dtype: torch.dtype) -> None:
    rnn = elman.Recurrent(Whole())
    x, n = torch.randn(6, 3, 4, dtype=dtype), torch.tensor([0, 3, 5])
    outputs, final = rnn(x, n)
    for x_t, output in zip(x, outputs, strict=True):
        expected, n = rnn.cell(x_t, n)
        torch.testing.assert_close(output, expected)
    assert torch.equal(final, n)
    assert "not" not in str(rnn.explain().engine)


def test_what_is_counted_out_is_part_of_the_call() -> None:
    for executable in plans(
        Counting(), torch.rand(2, 2, 5, dtype=torch.float64), torch.rand(2, 7, dtype=torch.float64)
    ):
        for T, B in ((1, 1), (5, 3)):
            check_close(executable, T, B)


SPECIAL = ((0.0, 0.0), (3.0, -4.0), (2.0, 1e25), (float("inf"), 1.0), (float("nan"), 1.0), (1e-3, 0.0))


class Shifted(torch.nn.Module):
    """Unit i hears of row i of a weight alone (of column i, along dimension 1): special values stay where they are."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.v = torch.nn.Parameter(torch.ones((6, 2) if dim == 0 else (2, 6)))
        self.g = torch.nn.Parameter(torch.linspace(-1, 2, 6).unsqueeze(1 - dim))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        weight = torch._weight_norm(self.v, self.g, self.dim)
        return x + h * 0.5 + (weight[:, 1] if self.dim == 0 else weight[1]) + torch.eye(6, 7)[:, 2]


@pytest.mark.parametrize("dim", [0, 1])
def test_weight_norm_of_special_values(dim: int) -> None:
    v, g = torch.tensor(SPECIAL), torch.linspace(-1, 2, 6)
    for executable in plans(Shifted(dim), torch.zeros(2, 2, 6), torch.zeros(2, 6)):
        assert executable.split("auto") is None
        given = inputs_of(executable, 2, 2, torch.Generator().manual_seed(0))
        for i, port in enumerate(executable.plan.circuit.inputs):
            if port.kind is Kind.CONSTANT:
                given[i] = g.reshape(port.shape) if port.name == "g" else v if dim == 0 else v.T.contiguous()
        ours = executable.run(Call(2, 2, 7, "auto"), given)
        theirs = executable._emitted("auto", False)(2, 2, 7, 0, *given)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("isa", native.instruction_sets())
def test_sums_over_rows_have_the_same_bits_for_all_threads(isa: str) -> None:
    backwards, before = normed(2, 70, torch.float32)[1], torch.get_num_threads()
    engine = Native(isa)
    given = inputs_of(backwards, 50, 30, torch.Generator().manual_seed(0))
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(backwards.run(Call(50, 30, 7, engine), given))
    finally:
        torch.set_num_threads(before)
    assert backwards.split(engine) is None
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("T", [1300, 3000])
def test_much_memory_between_pieces_lies_in_blocks(T: int) -> None:
    """Values of 14.6 MB, of which two fit into a block, and of 33.6 MB, which are more than one."""
    backwards = plans_of("layer_norm_lstm")[1]
    given = inputs_of(backwards, T, 100, torch.Generator().manual_seed(0))
    ours = backwards.run(Call(T, 100, 7, "auto"), given)
    theirs = backwards._emitted("auto", False)(T, 100, 7, 0, *given)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * float(b.abs().max()))


def test_sizes_that_change_and_none() -> None:
    for executable in plans_of("gru"):
        generator = torch.Generator().manual_seed(0)
        for T, B in ((4, 3), (400, 9), (0, 2), (2, 0), (4, 3)):
            given = inputs_of(executable, T, B, generator)
            ours, theirs = (
                executable.run(Call(T, B, 0, "auto"), given),
                executable._emitted("auto", False)(T, B, 0, 0, *given),
            )
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_threads_with_calls_of_other_sizes() -> None:
    """Where values lie depends on T and B: a call is not disturbed by one of other sizes beside it."""
    forwards = plans_of("gru")[0]
    calls = []
    for T, B in ((40, 1), (60, 5), (20, 30), (90, 2)):
        given = inputs_of(forwards, T, B, torch.Generator().manual_seed(0))
        calls.append((T, B, given, forwards._emitted("auto", False)(T, B, 0, 0, *given)))

    def one(index: int) -> bool:
        T, B, given, wanted = calls[index % len(calls)]
        ours = forwards.run(Call(T, B, 0, "auto"), given)
        return all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(800)))


def test_a_call_of_other_sizes_amid_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call asks for much memory in Python, where another thread may make one of other sizes."""
    amid: list[Callable[[], Any]] = []

    def made(*given: Any) -> Any:
        *others, empty_strided, uint8 = given

        def memory(sizes: Any, strides: Any, dtype: torch.dtype) -> torch.Tensor:
            if amid and dtype is uint8:
                amid.pop()()
            return empty_strided(sizes, strides, dtype)

        return native.Pass(*others, memory, uint8)

    monkeypatch.setattr(passes, "compiled", SimpleNamespace(**{**vars(passes.compiled), "Pass": made}))
    rnn, generator = (
        elman.Recurrent(elman.cells.LSTM(3, 17), batch_first=False),
        torch.Generator().manual_seed(0),
    )

    def gradients(T: int, B: int, then: list[Callable[[], Any]]) -> tuple[torch.Tensor, ...]:
        loss = rnn(torch.rand(T, B, 3, generator=generator.manual_seed(T)))[0].sum()
        amid.extend(then)
        return torch.autograd.grad(loss, list(rnn.parameters()))

    wanted = gradients(300, 9, [])
    few = rnn(torch.rand(50, 7, 3))[0].sum()
    found = gradients(300, 9, [lambda: torch.autograd.grad(few, list(rnn.parameters()))])
    assert not amid
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_tensors_come_from_either_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own is faster, and nothing that PyTorch has promised."""
    asked: list[torch.dtype] = []

    def counted(sizes: Any, strides: Any, dtype: torch.dtype) -> torch.Tensor:
        asked.append(dtype)
        return extension.empty_by_torch(sizes, strides, dtype)

    monkeypatch.setattr(passes, "empty_strided", counted)
    cell, x = elman.cells.LSTM(3, 19), torch.randn(7, 2, 3)

    def results(engine: str) -> list[torch.Tensor]:
        outputs, _ = elman.Recurrent(cell, engine=engine, batch_first=False)(x)
        return [outputs, *torch.autograd.grad(outputs.sum(), list(cell.parameters()))]

    for found, wanted in zip(results("native"), results("reference"), strict=True):
        torch.testing.assert_close(found, wanted)
    assert torch.float32 in asked


def test_what_has_no_form_is_said() -> None:
    rnn = elman.Recurrent(CASES["linear_rnn"].make().float(), batch_first=False)
    rnn(CASES["linear_rnn"].x(2, 2, dtype=torch.float32))
    assert re.search(
        r"the (forward|backward) pass is not one call: it has no form for \S", str(rnn.explain())
    )
    assert "not one call" not in str(_called(elman.cells.GRU(2, 3)).explain())
    assert (
        plans_of("convolutional_rnn")[1].split("auto") == "it has no form for convolution_backward over rows"
    )


def _called(cell: torch.nn.Module) -> elman.Recurrent:
    rnn = elman.Recurrent(cell)
    rnn(torch.zeros(2, 2, 2))
    return rnn


class HandsOn(torch.nn.Module):
    """Hands out its state, and the x of the step before: what a cell that looks at two steps at once carries along."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        h, before = state
        h = torch.tanh(0.5 * h + x)
        return (h, before), (h, x)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, 3), torch.zeros(batch, 3)


@pytest.mark.parametrize("reverse", [False, True])
def test_what_nothing_flows_back_to_is_zeros_in_a_delay_too(reverse: bool) -> None:
    """Of a gradient that is not there the pass has one row of zeros, of which a delay takes no later rows."""
    cell, x = HandsOn(), torch.randn(4, 2, 3, requires_grad=True)
    results = elman.Recurrent(cell, reverse=reverse)(x)
    loop = unroll(cell, x, cell.initial_state(2), reverse=reverse)
    for got, expected in zip(*map(tree_leaves, (results, loop)), strict=True):
        ours, theirs = (
            torch.autograd.grad(one.square().sum(), x, retain_graph=True)[0] for one in (got, expected)
        )
        torch.testing.assert_close(ours, theirs)
