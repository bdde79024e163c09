"""PackedSequence: a call on one is that on padded sequences with lengths, and torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

import elman
from elman.errors import InputError
from elman.segments import Layout
from tests.cases import CASES
from tests.recurrent import compare
from tests.recurrent.compare import Inputs
from tests.recurrent.test_sequences import EXACT, layer, random, ways


@pytest.mark.grid
@ways
@pytest.mark.parametrize("name", ["lstm", "dict_output_rnn", "silent_rnn"])
@pytest.mark.parametrize(
    "lengths", [[5, 4, 4, 1], [2, 5, 1, 5], [3, 3, 3, 3]], ids=["sorted", "mixed", "even"]
)
def test_a_packed_sequence_is_one_with_lengths(name: str, lengths: list[int], reverse: bool) -> None:
    rnn, inputs = layer(name, reverse=reverse), Inputs.of(CASES[name], 5, 4)
    packed = pack_padded_sequence(inputs.x, torch.tensor(lengths), enforce_sorted=False)
    wanted, found = compare.wanted_of(rnn, inputs), []
    outputs, final = rnn(packed, inputs.state)
    padded = (
        pytree.tree_map(
            lambda leaf: pad_packed_sequence(leaf, total_length=5)[0],
            outputs,
            is_leaf=lambda leaf: isinstance(leaf, PackedSequence),
        )
        if outputs is not None
        else None
    )
    for made in ((padded, final), rnn(inputs.x, inputs.state, lengths=torch.tensor(lengths))):
        values = compare.flat(*made)
        found.append((values, compare.gradients(values, wanted)))
    for mine, right in zip(*found, strict=True):
        compare.assert_equal(mine, right)


def test_a_packed_sequence_as_torch_has_it() -> None:
    """Outputs, order, state and gradients of torch.nn.GRU."""
    theirs = torch.nn.GRU(5, 7).double()
    cell = torch.nn.GRUCell(5, 7).double()
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in theirs.state_dict().items()})
    rnn, x, h = elman.Recurrent(cell), random(6, 4, 5), random(4, 7)
    for sorted_ in (False, True):
        lengths = torch.tensor([6, 3, 3, 1] if sorted_ else [3, 6, 1, 3])
        packed = pack_padded_sequence(x, lengths, enforce_sorted=sorted_)
        (mine, final), (right, last) = rnn(packed, h), theirs(packed, h.unsqueeze(0))
        assert torch.equal(mine.batch_sizes, right.batch_sizes)
        assert (mine.sorted_indices is None) == (right.sorted_indices is None)
        torch.testing.assert_close(mine.data, right.data, **EXACT)
        torch.testing.assert_close(final, last[0], **EXACT)


def test_a_packed_sequence_is_not_copied() -> None:
    packed = pack_padded_sequence(random(6, 3, 5), torch.tensor([6, 3, 1]))
    layout = Layout.of_packed(packed)
    assert layout.pack(packed.data) is packed.data
    data = random(10, 7)
    assert layout.unpack(data).data is data


def test_a_packed_teacher() -> None:
    rnn, x, y = layer("jordan"), random(5, 3, 5), random(5, 3, 4)
    lengths, weight = torch.tensor([2, 5, 4]), torch.rand(5, 3) < 0.5
    packed = [pack_padded_sequence(value, lengths, enforce_sorted=False) for value in (x, y, weight)]
    outputs, final = rnn(packed[0], teacher=packed[1], teacher_weight=packed[2])
    expected, ended = rnn(x, lengths=lengths, teacher=y, teacher_weight=weight)
    torch.testing.assert_close(pad_packed_sequence(outputs)[0], expected, **EXACT)
    torch.testing.assert_close(final, ended, **EXACT)
    for wrong in (y, pack_padded_sequence(y, torch.tensor([2, 5, 3]), enforce_sorted=False)):
        with pytest.raises(InputError, match="packed as x"):
            rnn(packed[0], teacher=wrong)


@pytest.mark.grid(1)
@pytest.mark.parametrize("lengths", [[3, 3], [3, 2]], ids=["even", "uneven"])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_second_derivatives_on_a_packed_sequence_in_bounded_memory(lengths: list[int], engine: str) -> None:
    found = []
    for memory in (None, elman.Segments(2)):
        torch.manual_seed(0)
        rnn, x = elman.Recurrent(CASES["gru"].make().double(), memory=memory, engine=engine), random(3, 2, 5)
        outputs, final = rnn(pack_padded_sequence(x.requires_grad_(), torch.tensor(lengths)))
        wants = [x, *rnn.parameters()]
        first = torch.autograd.grad(outputs.data.square().sum() + final.sum(), wants, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), wants))
    torch.testing.assert_close(*found)
