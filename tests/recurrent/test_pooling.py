"""From a sequence to one vector, against plain loops over the steps that happened."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import elman
from elman import Bidirectional, Recurrent, Stack
from elman.errors import InputError, InputTypeError
from tests.cases import CASES

Tensor = torch.Tensor
LENGTHS = torch.tensor([6, 2, 4, 0])


def cell(name: str, *sizes: int) -> torch.nn.Module:
    return CASES[name].make(*sizes).double()


def test_last_is_what_the_outputs_end_with() -> None:
    both = Bidirectional(cell("gru"), cell("gru"))
    x, lengths = torch.randn(6, 4, 5, dtype=torch.float64), [6, 2, 4, 1]
    ends = torch.arange(4), torch.tensor(lengths) - 1
    for layer in (
        Recurrent(cell("gru")),
        Stack(Recurrent(cell("gru")), Recurrent(cell("gru", 7, 7))),
        Stack(both, Stack(Recurrent(cell("lstm", 14, 3)))),
    ):
        outputs, state = layer(x, lengths=lengths)
        expected = outputs[ends[1], ends[0]]
        torch.testing.assert_close(elman.last(state), expected, rtol=0, atol=0)
        torch.testing.assert_close(elman.last(state, layer), expected, rtol=0, atol=0)
        mapped = torch.utils._pytree.tree_map(torch.detach, state)
        torch.testing.assert_close(elman.last(mapped), expected.detach(), rtol=0, atol=0)
    outputs, state = both(x, lengths=lengths)
    expected = torch.cat([outputs[ends[1], ends[0], :7], outputs[0, :, 7:]], -1)
    torch.testing.assert_close(elman.last(state), expected, rtol=0, atol=0)
    torch.testing.assert_close(elman.last(tuple(state), both), expected, rtol=0, atol=0)
    with pytest.raises(InputTypeError, match="a tuple of 2"):
        elman.last(state[0], both)
    with pytest.raises(InputError, match="no tensor"):
        elman.last(None)


@pytest.mark.parametrize(("kind", "both_ways"), [("GRU", True), ("LSTM", False)])
def test_last_of_torchs_layers(kind: str, both_ways: bool) -> None:
    layer = getattr(torch.nn, kind)(5, 7, num_layers=2, bidirectional=both_ways)
    outputs, state = layer(torch.randn(6, 4, 5))
    found = elman.last(state, layer)
    expected = torch.cat([outputs[-1, :, :7], outputs[0, :, 7:]], -1)  # of one way the second is empty
    assert torch.equal(found, expected)


@pytest.mark.parametrize("how", ["max", "mean"])
def test_pooling_is_over_the_steps_that_happened(how: str) -> None:
    outputs = torch.randn(6, 4, 5, requires_grad=True)
    mask = torch.rand(6, 4) < 0.7
    for said in ({}, {"lengths": LENGTHS}, {"mask": mask}, {"lengths": LENGTHS.tolist(), "mask": mask}):
        rows = []
        for b in range(4):
            steps = [
                t for t in range(6)
                if t < ("lengths" not in said or LENGTHS[b]) * 6 and (t < LENGTHS[b] or "lengths" not in said)
                and ("mask" not in said or mask[t, b])
            ]  # fmt: skip
            some = outputs[steps, b]
            rows.append((some.amax(0) if how == "max" else some.mean(0)) if steps else torch.zeros(5))
        expected = torch.stack(rows)
        torch.testing.assert_close(elman.pool(outputs, how=how, **said), expected)
        turned = {k: v.T if k == "mask" else v for k, v in said.items()}
        first = elman.pool(outputs.transpose(0, 1), how=how, batch_first=True, **turned)
        torch.testing.assert_close(first, expected)
    filled = outputs.detach().masked_fill(~(torch.arange(6)[:, None] < LENGTHS)[..., None], torch.nan)
    filled.requires_grad_()
    pooled = elman.pool(filled, LENGTHS, how)
    assert pooled.isfinite().all()
    assert torch.autograd.grad(pooled.sum(), filled)[0].isfinite().all()


def test_a_packed_sequence_knows_its_lengths() -> None:
    x = torch.randn(6, 3, 5)
    packed: Any = pack_padded_sequence(x, [2, 6, 4], enforce_sorted=False)
    assert torch.equal(elman.pool(packed), elman.pool(x, [2, 6, 4]))
    with pytest.raises(InputError, match="says itself"):
        elman.pool(packed, [2, 6, 4])


def test_what_cannot_be_pooled_is_refused() -> None:
    x = torch.randn(6, 4, 5)
    with pytest.raises(InputError, match='"max" or "mean"'):
        elman.pool(x, LENGTHS, "sum")
    with pytest.raises(InputError, match="lengths"):
        elman.pool(x, [1, 2])
    with pytest.raises(InputTypeError, match="a tensor of floats"):
        elman.pool(torch.zeros(3, 2, dtype=torch.int64))
