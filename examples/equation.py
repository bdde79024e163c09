"""A cell from the equations of a paper, trained to add two marked numbers.

The minimal gated unit (Zhou, Wu, Zhang and Zhou, Minimal gated unit for recurrent neural networks, 2016):

    f(t) = σ(W_f h(t-1) + U_f x(t) + b_f),  n(t) = tanh(W_n (f(t) ⊙ h(t-1)) + U_n x(t) + b_n)
    h(t) = (1 - f(t)) ⊙ h(t-1) + f(t) ⊙ n(t)

Of T numbers in [0, 1] two are marked, and the last output is to be their sum (Hochreiter and Schmidhuber, 1997).
Prints the squared error on new sequences as training goes on; whoever always says 1 has 0.167.
"""

import sys

import torch
from torch import nn

import elman


class MinimalGatedUnit(nn.Module):
    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden  # the state starts from zeros [B, hidden_size]
        self.U_f, self.W_f = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_hidden, bias=False)
        self.U_n, self.W_n = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_hidden, bias=False)
        nn.init.constant_(self.U_f.bias, -2.0)  # at first most of h(t-1) is kept

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        f = torch.sigmoid(self.W_f(h) + self.U_f(x))
        n = torch.tanh(self.W_n(f * h) + self.U_n(x))
        return (1 - f) * h + f * n


def batch_of(steps: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:  # x [T, B, 2], the sums [B]
    numbers = torch.rand(steps, batch)
    marks = torch.zeros(steps, batch).scatter_(0, torch.rand(steps, batch).topk(2, 0).indices, 1.0)
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)


def main(small: bool = False) -> None:
    torch.manual_seed(0)
    steps, updates, enough = (10, 300, 0.03) if small else (50, 1500, 0.01)
    rnn, readout = elman.Recurrent(MinimalGatedUnit(2, 64)), nn.Linear(64, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *readout.parameters()], lr=3e-3)
    for update in range(1, updates + 1):
        x, y = batch_of(steps, 64)
        loss = (readout(rnn(x)[1]).squeeze(-1) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(rnn.parameters(), 1.0)
        optimizer.step()
        if update % (updates // 5) == 0:
            x, y = batch_of(steps, 1000)
            error = (readout(rnn(x)[1]).squeeze(-1) - y).square().mean().item()
            print(f"T {steps}, update {update:4}: squared error {error:.4f}")
            assert update < updates or error < enough, f"it has not learnt to add: {error}"


if __name__ == "__main__":
    main("--small" in sys.argv)
