"""Spiking neurons that obey Dale's law decide which of two noisy signals is stronger.

Leaky integrate-and-fire units: v(t) = α v(t-1) (1 - s(t-1)) + W s(t-1) + U x(t) + b, s(t) = [v(t) > 1]. A spike has no
derivative; the backward pass takes a surrogate (Zenke and Ganguli, 2018), as a torch.autograd.Function. By Dale's law
four fifths of the units excite all others, the rest inhibit: W = |Ŵ| diag(±1) (Song, Yang and Wang, 2016). Each signal is
noise around a mean; the evidence is the difference of the means. Prints the psychometric function, accuracy by
evidence, and how often a unit fires.
"""

import sys

import torch
from torch import nn

import elman


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, *grad_outputs):
        (v,) = ctx.saved_tensors
        return grad_outputs[0] / (1 + 5 * v.abs()).square()


class DaleLIF(nn.Module):
    def __init__(self, n_in: int, n: int) -> None:
        super().__init__()
        self.U, self.W, self.V = nn.Linear(n_in, n), nn.Parameter(torch.randn(n, n) / n), nn.Linear(n, 2)
        self.sign = nn.Buffer(torch.where(torch.arange(n) < 0.8 * n, 1.0, -4.0))  # balanced at first

    def initial_state(self, batch: int):  # v, s, and what the readout has gathered
        return tuple(torch.zeros(batch, n) for n in (len(self.sign), len(self.sign), 2))

    def forward(self, x, state):
        v, s, decision = state
        v = 0.9 * v * (1 - s) + s @ (self.W.abs() * self.sign[:, None]) + self.U(x)
        s = Spike.apply(v - 1)
        return s, (v, s, 0.95 * decision + self.V(s))


def main(small: bool = False) -> None:
    torch.manual_seed(0)
    steps, updates, enough = (20, 150, 0.85) if small else (50, 600, 0.9)
    rnn = elman.Recurrent(DaleLIF(2, 50))
    optimizer = torch.optim.Adam(rnn.parameters(), lr=5e-3)

    def trials(evidence: torch.Tensor):
        """Spikes [T, B, 50] and the decision [B, 2], for evidence [B] of the second signal over the first."""
        x = 0.5 + 0.5 * torch.randn(steps, len(evidence), 2) + torch.stack([-evidence, evidence], -1) / 2
        spikes, (_, _, decision) = rnn(x)
        return spikes, decision

    for _ in range(updates):
        evidence = 0.5 * torch.randn(64)
        loss = nn.functional.cross_entropy(trials(evidence)[1] / 5, (evidence > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for size in (0.0, 0.1, 0.2, 0.4):
        evidence = size * torch.where(torch.arange(1000) % 2 > 0, 1.0, -1.0)
        spikes, decision = trials(evidence)
        right = (decision.argmax(-1) == torch.arange(1000) % 2).float().mean().item()
        print(f"evidence {size}: {right:.0%} right, a unit fires in {spikes.mean().item():.0%} of the steps")
    assert right > enough


if __name__ == "__main__":
    main("--small" in sys.argv)
