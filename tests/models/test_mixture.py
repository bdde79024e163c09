"""A recurrent model and counts together: between the two it is the probability that the definition says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elman.data import built_in_text
from elman.errors import InputError
from elman.models import LanguageModel, NGram, evaluate, evaluate_mixture

CODES = torch.tensor([ord(c) % 64 for c in built_in_text()[:3000]])


def test_a_mixture_is_the_mean_of_probabilities() -> None:
    torch.manual_seed(0)
    model, counts = LanguageModel(64, hidden=8, embedding=8), NGram(CODES[:2000], 64, 3)
    tokens = CODES[2000:2200]
    assert evaluate_mixture(model, counts, tokens, 0).nats == pytest.approx(
        evaluate(model, tokens).nats, rel=1e-5
    )
    alone = float(counts.nats(tokens).sum())
    assert evaluate_mixture(model, counts, tokens, 1).nats == pytest.approx(alone, rel=1e-9)
    with torch.no_grad():
        p = torch.softmax(model(tokens[:-1, None])[0][:, 0].double(), -1).numpy()
    learnt, counted = p[np.arange(199), tokens[1:]], np.exp(-counts.nats(tokens).numpy())
    wanted = -np.log(0.7 * learnt + 0.3 * counted).sum()
    for window in (1, 60, 1000):
        found = evaluate_mixture(model, counts, tokens, 0.3, window=window)
        assert found.nats == pytest.approx(wanted, rel=1e-5)
        assert found.symbols == 199
    assert alone < wanted < evaluate(model, tokens).nats


def test_what_is_no_mixture_is_refused() -> None:
    model, counts = LanguageModel(64, hidden=8, embedding=8), NGram(CODES, 64, 2)
    for weight, tokens in ((-0.1, CODES), (1.1, CODES), (0.5, CODES[:1])):
        with pytest.raises(InputError, match="weight from 0 to 1"):
            evaluate_mixture(model, counts, tokens, weight)
