"""A conditional random field over the tags of a sentence: both of its passes are recurrences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from elman.recurrent import Recurrent


class _Scores(nn.Module):
    """a_j(t) = x_j(t) + ⊕_i (a_i(t-1) + A_ij), where ⊕ is log-sum-exp, or max."""

    def __init__(self, transitions: nn.Parameter) -> None:
        super().__init__()
        self.transitions, self.hidden_size = transitions, len(transitions)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return x + self.over(a[:, :, None] + self.transitions)

    def over(self, scores: Tensor) -> Tensor:
        raise NotImplementedError


class LogSum(_Scores):
    """Of all ways to a tag together."""

    def over(self, scores: Tensor) -> Tensor:
        return scores.logsumexp(1)


class Best(_Scores):
    """Of the best way to a tag alone."""

    def over(self, scores: Tensor) -> Tensor:
        return scores.max(1).values  # whose gradient goes to one of them, ties included


class CRF(nn.Module):
    """Linear-chain conditional random field: which tag follows which is scored beside each tag's own score.

        s(y) = b_{y(1)} + Σ_t x_{y(t)}(t) + Σ_{t>1} A_{y(t-1) y(t)} + e_{y(T)},  p(y) = exp s(y) / Σ_{y'} exp s(y')

        crf = CRF(17)
        loss = crf(x, y, lengths)                # x [T, B, K] scores, y int64 [T, B], lengths [B] -> [B], -log p(y)
        tags = crf.decode(x, lengths)            # int64 [T, B], the y of the highest score; 0 beyond the lengths

    log Σ exp s is a recurrence whose step is log-sum-exp, the best s one whose step is max. The gradient of the best s
    by x is 1 where the best y goes through, and 0 elsewhere: so `decode` is the adjoint of that recurrence, run by the
    same engine, and no pointers are kept. Sentences are of at least one word.

    tags: K. transitions `[K, K]`, begin `[K]`, end `[K]`: A, b, e.
    Source: Lafferty, McCallum and Pereira, Conditional random fields, 2001; Mensch and Blondel, Differentiable dynamic
    programming for structured prediction and attention, 2018.
    """

    all: Recurrent
    best: Recurrent

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(tags, tags))
        self.begin, self.end = nn.Parameter(torch.zeros(tags)), nn.Parameter(torch.zeros(tags))
        # Not registered: their one weight is, above, and would have three names.
        self.__dict__["all"] = Recurrent(LogSum(self.transitions), batch_first=False)
        self.__dict__["best"] = Recurrent(Best(self.transitions), batch_first=False)

    def forward(self, x: Tensor, y: Tensor, lengths: Tensor) -> Tensor:
        """-log p(y), `[B]`, in nats."""
        return self._final(self.all, x, lengths).logsumexp(1) - self.score(x, y, lengths)

    def score(self, x: Tensor, y: Tensor, lengths: Tensor) -> Tensor:
        """s(y), `[B]`."""
        there = _there(x, lengths)
        own = x.gather(2, y[..., None])[..., 0]
        steps = self.transitions[y[:-1], y[1:]]
        final = self.end[y.gather(0, lengths.to(y.device)[None] - 1)[0]]
        return self.begin[y[0]] + (own * there).sum(0) + (steps * there[1:]).sum(0) + final

    def decode(self, x: Tensor, lengths: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            best = self._final(self.best, x, lengths).max(1).values.sum()
            (through,) = torch.autograd.grad(best, x)
        return through.argmax(2)

    def step(self, x: Tensor, a: Tensor | None) -> Tensor:
        """For a live stream: scores x `[B, K]` of one more word -> those of the best ways to its tags, `[B, K]`, from
        those of the word before (None: there is none)."""
        return x + self.begin if a is None else self.best.step(x, a)[1]

    def _final(self, layer: Recurrent, x: Tensor, lengths: Tensor) -> Tensor:
        """Scores of the ways to each last tag, `[B, K]`. The first word is the state that the others begin from."""
        first: Any = x[0] + self.begin
        if len(x) > 1:
            _, first = layer(x[1:], first, lengths=lengths - 1)
        return first + self.end


def _there(x: Tensor, lengths: Tensor) -> Tensor:
    """`[T, B]`: whether the step happens."""
    return torch.arange(len(x), device=x.device)[:, None] < lengths.to(x.device)
