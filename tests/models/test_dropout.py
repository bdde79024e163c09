"""Dropout that stays for a window: one mask per call and sequence, nothing in use, the mean kept."""

from __future__ import annotations

import torch

from elman.models import LanguageModel
from elman.recurrent import LockedDropout


def test_the_same_units_are_out_at_every_step_and_others_in_each_sequence() -> None:
    torch.manual_seed(0)
    dropout, x = LockedDropout(0.25), torch.ones(7, 40, 50, requires_grad=True)
    y = dropout(x)
    assert torch.equal(y, y[:1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(y[0].mean().item() - 1) < 0.05
    assert not torch.equal(y[0, 0], y[0, 1])
    assert not torch.equal(dropout(x), y)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y)


def test_in_use_nothing_is_out() -> None:
    x = torch.randn(3, 2, 5)
    assert LockedDropout(0.0)(x) is x
    assert LockedDropout(0.5).eval()(x) is x


def test_a_model_with_dropout_learns_with_it_and_is_exact_without() -> None:
    torch.manual_seed(0)
    model, plain = (LanguageModel(11, "gru", hidden=8, embedding=8, layers=2, dropout=p) for p in (0.5, 0.0))
    plain.load_state_dict(model.state_dict())
    x = torch.randint(11, (20, 3))
    assert model.loss(x[:-1], x[1:])[0] != model.loss(x[:-1], x[1:])[0]
    model.eval()
    torch.testing.assert_close(model.loss(x[:-1], x[1:])[0], plain.loss(x[:-1], x[1:])[0])
    hs, state = model(x)
    state = None
    for t in range(20):
        logits, state = model.step(x[t], state)
        torch.testing.assert_close(logits, hs[t])
