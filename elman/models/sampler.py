"""Writing as a recurrence of its own: the symbol that comes out at one step goes in at the next.

    s(t) ~ softmax(o(t) / temperature),   o(t) = c + V h(t),   h(t) = f(h(t-1), E[s(t-1)])

Its state is the last symbol beside the state of the model, and it has no input: an autonomous system. So an engine runs
it like any other loop, drawing included, and nothing is asked of Python between two symbols.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elman.recurrent.stacked import StackCell

_COMPARED = (
    512  # up to so many symbols, each is compared with each, which an engine can do; sorting it cannot
)


class Sampler(nn.Module):
    """One step of writing, as a cell: (None, (last symbol int64 [B], states of the layers)) -> (symbol, new state).

    embedding, readout: of the model. stack: of its layers, as a cell. condition: what a context adds to the embedding,
    or None. temperature: 0 takes the likeliest symbol. top_k: only the k likeliest. top_p: only the likeliest that
    together have the probability p. exclude: symbols that are never written.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    def __init__(
        self, embedding: nn.Embedding, stack: StackCell, readout: nn.Linear, condition: nn.Module | None, *,
        temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, exclude: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        if top_k is not None and top_k >= readout.out_features:
            top_k = None
        self.embedding, self.stack, self.readout, self.condition = embedding, stack, readout, condition
        # What is drawn, and how many are left out, are decided now; the numbers may be others in another sampler, which
        # is then no other recurrence.
        like = readout.weight
        self.draws, self.few, self.likely = temperature > 0, top_k is not None, top_p is not None
        for name, number in (("temperature", temperature), ("top_k", top_k or 0), ("top_p", top_p or 0)):
            self.register_buffer(name, torch.tensor(float(number), dtype=like.dtype, device=like.device))
        never = torch.zeros(readout.out_features, dtype=readout.weight.dtype, device=readout.weight.device)
        never[list(exclude)] = -torch.inf
        self.register_buffer("never", never)

    def forward(
        self, x: None, state: tuple[Tensor, tuple], context: Tensor | None = None
    ) -> tuple[Tensor, tuple]:
        symbol, before = state
        h = self.embedding(symbol)
        if self.condition is not None and context is not None:
            h = h + self.condition(context)
        h, after = self.stack(h, before)
        symbol = self._chosen(self.readout(h) + self.never)
        return symbol, (symbol, after)

    def _chosen(self, scores: Tensor) -> Tensor:
        if not self.draws:
            return scores.argmax(-1)
        scores = scores / self.temperature
        if self.few:
            scores = torch.where(_above(scores, torch.ones_like(scores)) < self.top_k, scores, -torch.inf)
        if self.likely:
            p = torch.softmax(scores, -1)
            scores = torch.where(_above(scores, p) < self.top_p, scores, -torch.inf)
        p = torch.softmax(scores, -1)
        # The first symbol at which the sum of all up to it passes a random number. What has no probability is never it,
        # the last one not even where rounding leaves the whole sum below 1.
        passed = torch.cumsum(p, -1)
        drawn = torch.rand_like(p[:, :1]) * passed[:, -1:]
        return ((passed > drawn) & (p > 0)).to(p.dtype).argmax(-1)  # the first of the largest


def _above(scores: Tensor, weight: Tensor) -> Tensor:
    """For each symbol, the weight of all that are likelier."""
    if scores.shape[-1] <= _COMPARED:
        likelier = scores.unsqueeze(-2) > scores.unsqueeze(-1)
        return torch.where(likelier, weight.unsqueeze(-2), 0).sum(-1)
    _, order = scores.sort(-1, descending=True)
    before = torch.gather(weight, -1, order).cumsum(-1) - torch.gather(weight, -1, order)
    return torch.zeros_like(before).scatter(-1, order, before)
