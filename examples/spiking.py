"""Spiking neurons that obey Dale's law decide which of two noisy signals is stronger.

Leaky integrate-and-fire: v(t) = α v(t-1) (1 - s(t-1)) + W s(t-1) + U x(t) + b, s(t) = [v(t) > 1], with a surrogate for
the derivative of a spike (Zenke and Ganguli, 2018). Four fifths of the units excite, the others inhibit (Song, Yang and
Wang, 2016). Prints accuracy by evidence, which is the difference of the signals' means.
"""

import sys

import torch

import elman


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, *grad_outputs):
        return grad_outputs[0] / (1 + 5 * ctx.saved_tensors[0].abs()).square()


class DaleLIF(torch.nn.Module):
    def __init__(self, n_in: int, n: int) -> None:
        super().__init__()
        self.hidden_size, self.U = n, torch.nn.Linear(n_in, n)
        self.W = torch.nn.Parameter(torch.randn(n, n) / n)
        self.sign = torch.nn.Buffer(torch.where(torch.arange(n) < 0.8 * n, 1.0, -4.0))  # balanced at first

    def forward(self, x, v):
        s = Spike.apply(v - 1)
        v = 0.9 * v * (1 - s) + s @ (self.W.abs() * self.sign[:, None]) + self.U(x)
        return Spike.apply(v - 1), v


def main(small: bool = False) -> None:
    torch.manual_seed(0)
    steps, updates, enough = (20, 150, 0.85) if small else (50, 600, 0.9)
    rnn, readout = elman.Recurrent(DaleLIF(2, 50)), torch.nn.Linear(50, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *readout.parameters()], lr=5e-3)
    for trial in range(updates + 4):
        size = 0.5 * torch.rand(64, 1) if trial < updates else torch.full((1000, 1), (trial - updates) / 10)
        second = torch.rand(len(size), 1).round()  # is it the second signal that is stronger?
        x = 0.5 + size * (second - 0.5) * torch.tensor([-1.0, 1.0]) + 0.5 * torch.randn(steps, len(size), 2)
        logit = readout(rnn(x)[0].mean(0))
        if trial < updates:
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(logit, second).backward()
            optimizer.step()
        else:
            right = ((logit > 0) == (second > 0)).float().mean()
            print(f"evidence {size[0, 0]:.1f}: {100 * right:.0f} % right")
            assert trial < updates + 3 or right > enough


if __name__ == "__main__":
    main("--small" in sys.argv)
