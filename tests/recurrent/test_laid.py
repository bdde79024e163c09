"""Ragged calls as autograd sees them: sequences are packed, and put back, inside of one node."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

import elman
from tests.cases import CASES
from tests.recurrent import compare, ragged
from tests.recurrent.compare import Inputs
from tests.recurrent.small import layer
from tests.recurrent.test_cut import LAID

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SHORTER = torch.tensor([4, 3, 1])  # the longest first: then final states lie in order


@pytest.mark.grid(1)
@pytest.mark.parametrize("way", ["alone", "kept by hooks", "checkpointed", "differentiated twice"])
@pytest.mark.parametrize("name", ["elman", "gru"])
def test_writing_into_outputs_and_final_states(name: str, way: str) -> None:
    rnn, inputs = layer(name), Inputs.of(CASES[name], 4, 3)
    wanted, found = [inputs.x, inputs.state, *rnn.parameters()], []
    for run, apart in ((ragged.ours, False), (ragged.theirs, True)):

        def call(x: Tensor, run: Any = run) -> Any:
            return run(rnn, Inputs(4, 3, x, inputs.state, None, None), lengths=SHORTER)

        found.append(compare.through_what_is_written(call, inputs.x, wanted, way, apart))
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, **EXACT)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_writing_into_the_outputs_of_a_large_call(engine: str) -> None:
    """By the reference engine its rows are moved by PyTorch, which makes views."""
    rnn = elman.Recurrent(elman.cells.GRU(5, 64), batch_first=False, engine=engine)
    x = torch.randn(90, 64, 5)
    lengths = torch.arange(90, 90 - 64, -1)
    right = torch.autograd.grad(2 * rnn(x, lengths=lengths)[0].sum(), rnn.cell.U)[0]
    outputs, final = rnn(x, lengths=lengths)
    outputs.mul_(2)
    final.zero_()
    torch.testing.assert_close(torch.autograd.grad(outputs.sum(), rnn.cell.U)[0], right)


@pytest.mark.parametrize("wants", [True, False])
def test_x_that_is_written_into_before_the_gradient_is_asked_for(wants: bool) -> None:
    """Whether or not it wants a gradient itself, as with PyTorch's own operations."""
    rnn, x = layer(), torch.randn(4, 3, 5, dtype=torch.float64)
    outputs, _ = rnn(x.requires_grad_(wants), lengths=SHORTER)
    with torch.no_grad():
        x.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(outputs.sum(), rnn.cell.U)


@pytest.mark.parametrize("wants", [True, False])
def test_several_cotangents_at_once(wants: bool) -> None:
    rnn, x = layer(), torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=wants)
    outputs, _ = rnn(x, lengths=SHORTER)
    wanted = [*[x] * wants, *rnn.parameters()]
    many = torch.randn(2, *outputs.shape, dtype=torch.float64)
    each = [torch.autograd.grad(outputs, wanted, v, retain_graph=True) for v in many]
    for got in (
        torch.autograd.grad(outputs, wanted, many, is_grads_batched=True, retain_graph=True),
        torch.func.vmap(lambda v: torch.autograd.grad(outputs, wanted, v, retain_graph=True))(many),
    ):
        for mine, *right in zip(got, *each, strict=True):
            torch.testing.assert_close(mine, torch.stack(right), **EXACT)


def test_a_direction_through_the_gradient() -> None:
    """Forward mode over reverse mode: H v, against the reverse of the reverse."""
    rnn, x = layer("elman"), torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    way = torch.randn_like(x)
    slope = torch.autograd.grad(rnn(x, lengths=SHORTER)[0].pow(2).sum(), x, create_graph=True)[0]
    right = torch.autograd.grad(slope, x, way)[0]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, way)
        slope = torch.autograd.grad(rnn(dual, lengths=SHORTER)[0].pow(2).sum(), dual, create_graph=True)[0]
        torch.testing.assert_close(forward_ad.unpack_dual(slope).tangent, right, **EXACT)


def test_a_step_that_does_not_happen_has_no_gradient_and_a_number_that_is_none_does_no_harm() -> None:
    rnn, inputs = layer(), Inputs.of(CASES["gru"], 4, 3)
    x = ragged.poisoned(inputs.x, ragged.happens(4, 3, SHORTER))
    got = compare.flat(*rnn(x, inputs.state, lengths=SHORTER))
    compare.assert_equal(got, compare.flat(*rnn(inputs.x, inputs.state, lengths=SHORTER)))
    gradient = torch.autograd.grad(sum(v.sum() for v in got.values()), x)[0]  # type: ignore[union-attr]
    assert gradient.isfinite().all()
    assert not gradient[~ragged.happens(4, 3, SHORTER)].any()


def test_one_node_of_autograd() -> None:
    """The x of a ragged call goes straight into the node, and outputs come straight out of it."""
    rnn, x = layer(), torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    node = rnn(x, lengths=torch.tensor([1, 4, 2]))[0].grad_fn
    assert node.name() == "_EagerBackward"
    assert x.view_as(x).grad_fn.next_functions[0][0] in {one for one, _ in node.next_functions}


@pytest.mark.parametrize("how", LAID)
def test_sequences_and_cotangents_lie_as_they_like(how: str) -> None:
    """The bits are those of sequences in order, forward and back."""
    lay, _ = LAID[how]
    rnn, lengths = elman.Recurrent(elman.cells.GRU(3, 4)), torch.tensor([1, 4])
    given, back = (lay(torch.randn(4, 2, 1, n))[:, :, 0] for n in (3, 4))
    found = []
    for x, cotangent in ((given, back), (given.clone(memory_format=torch.contiguous_format), back.clone())):
        x = x.detach().requires_grad_()
        outputs, final = rnn(x, lengths=lengths)
        wanted = [x, *rnn.parameters()]
        found.append([outputs, final, *torch.autograd.grad(outputs, wanted, cotangent)])
    for mine, right in zip(*found, strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_call_whose_rows_several_threads_move(dtype: torch.dtype) -> None:
    lengths, found = torch.randint(1, 91, (64,)), []
    rnn = elman.Recurrent(elman.cells.GRU(64, 64).to(dtype), batch_first=False)
    x, before = torch.randn(90, 64, 64, dtype=dtype, requires_grad=True), torch.get_num_threads()
    for engine, threads in (("auto", 2), ("auto", 1), ("reference", 1)):
        rnn.engine = engine
        try:
            torch.set_num_threads(threads)
            outputs, final = rnn(x, lengths=lengths)
            found.append([outputs, final, *torch.autograd.grad(outputs.sin().sum(), [x, *rnn.parameters()])])
        finally:
            torch.set_num_threads(before)
    for two, one, right in zip(*found, strict=True):
        assert torch.equal(two, one)
        torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["every other", "int32", "a list", "of the other sign"])
def test_lengths_however_they_lie(how: str) -> None:
    rnn, x = layer(), torch.randn(4, 3, 5, dtype=torch.float64)
    plain = torch.tensor([1, 4, 2])
    said: dict[str, Any] = {
        "every other": torch.tensor([1, 0, 4, 0, 2, 0])[::2],
        "int32": plain.int(),
        "a list": [1, 4, 2],
        "of the other sign": torch._neg_view(-plain),
    }
    assert torch.equal(rnn(x, lengths=said[how])[0], rnn(x, lengths=plain)[0])


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_states_of_rows_that_change_places_in_a_circle(engine: str) -> None:
    """Sorted by length they are rows 2, 0, 1: back is another order than there."""
    rnn, lengths = layer("gru", engine=engine), [2, 1, 4]
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    state = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    final = rnn(x, state, lengths=torch.tensor(lengths))[1]
    alone = [rnn(x[:n, b : b + 1], state[b : b + 1])[1] for b, n in enumerate(lengths)]
    wanted, weights = [x, state, *rnn.parameters()], torch.randn(3, 7, dtype=torch.float64)
    torch.testing.assert_close(final, torch.cat(alone), **EXACT)
    got = torch.autograd.grad(final, wanted, weights)
    for mine, right in zip(got, torch.autograd.grad(torch.cat(alone), wanted, weights), strict=True):
        torch.testing.assert_close(mine, right, **EXACT)
