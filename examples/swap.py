"""A PyTorch model whose nn.GRU layers elman takes over in place: the same numbers before and after, faster.

The model tags a sequence of two symbols: at every step, has there been more of the second than of the first so far? It
is ordinary PyTorch, and knows nothing of elman. Prints what was swapped, the time of a training step before and after,
and how many tags are right on longer sequences once the swapped model has been trained.
"""

import sys
import time

import torch
from torch import nn

import elman


class Tagger(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, 8)
        self.gru = nn.GRU(8, hidden, num_layers=2)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.gru(self.embedding(symbols))
        return self.readout(outputs).squeeze(-1)


def main(small: bool = False) -> None:
    torch.manual_seed(0)
    model = Tagger(32 if small else 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def train(updates: int, steps: int = 40) -> float:
        """Milliseconds for a training step."""
        began = time.perf_counter()
        for _ in range(updates):
            symbols = torch.randint(2, (steps, 16))  # [T, B]
            more = (2 * symbols - 1).cumsum(0) > 0
            loss = nn.functional.binary_cross_entropy_with_logits(model(symbols), more.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - began) / updates * 1000

    symbols = torch.randint(2, (80, 100))
    theirs = [train(10), train(10 if small else 50)][1]  # both are warm when they are timed
    before = model(symbols)
    print(elman.nn.swap(model))
    torch.testing.assert_close(model(symbols), before)  # the same weights, the same numbers
    ours = [train(10), train(10 if small else 50)][1]
    train(80 if small else 500)
    print(f"a training step: {theirs:.1f} ms by torch.nn, {ours:.1f} ms by elman")
    right = ((model(symbols) > 0) == ((2 * symbols - 1).cumsum(0) > 0)).float().mean().item()
    print(f"{100 * right:.1f} % of the tags are right at twice the length of training")
    assert right > (0.85 if small else 0.95)


if __name__ == "__main__":
    main("--small" in sys.argv)
