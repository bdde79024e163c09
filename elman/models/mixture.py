"""Learning and counting together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elman.errors import InputError
from elman.models.evaluating import evaluating
from elman.models.evaluation import Evaluation
from elman.models.ngram import NGram


def evaluate_mixture(
    model: Any, counts: NGram, tokens: Tensor, weight: float = 0.35, *, window: int = 1000
) -> Evaluation:
    """-log p of a whole text by a recurrent model and an n-gram model together, as one stream with the state carried.

        p(y(t)) = (1 - weight) p_model(y(t)) + weight p_counts(y(t))

    The network generalises and the counts remember: where both learnt from the same text the mixture is better than
    either. weight: of the counts, 0 … 1; choose it on text that is not measured on. tokens: int64 [N], N >= 2.
    window: steps per call; it does not change the figure.

    Source: Mikolov et al., Recurrent neural network based language model, 2010 (with Kneser-Ney, as here).
    """
    if not 0 <= weight <= 1 or len(tokens) < 2:
        raise InputError(
            what="a mixture has a weight from 0 to 1, and a text of at least 2 symbols", where="weight, tokens",
            got=f"{weight}, {len(tokens)} symbols", mend="take a weight between the two, or more text",
        )  # fmt: skip
    counted, device = counts.nats(tokens).neg(), next(model.parameters()).device
    state, total = None, 0.0
    left, right = torch.tensor([1 - weight, weight], dtype=torch.float64).log()
    with evaluating(model), torch.no_grad():
        for t in range(0, len(tokens) - 1, window):
            end = min(t + window, len(tokens) - 1)
            logits, state = model(tokens[t:end, None].to(device), state)
            log_p = torch.log_softmax(logits[:, 0].double().cpu(), -1)
            learnt = log_p.gather(1, tokens[t + 1 : end + 1, None])[:, 0]
            total -= float(torch.logaddexp(left + learnt, right + counted[t:end]).sum())
    return Evaluation(total, len(tokens) - 1)
