"""A live stream: one reading at a time comes from several sensors, and each is compared with what was expected.

A GRU learns to predict the next value of noisy oscillations, each of its own frequency. Then readings come in one by
one: `step` takes a batch of them and the state, `reset` says which sensors have just been plugged in again. Prints the
error of the prediction beside that of "as it was", the time of a step, and the reading at which a sensor stuck. What
came of the stream equals one call on the whole of it.
"""

import math
import sys
import time

import torch
from torch import nn

import elman


def readings(steps: int, sensors: int) -> torch.Tensor:
    """[T, B, 1]"""
    frequency, phase = 0.2 + 0.5 * torch.rand(sensors), 2 * math.pi * torch.rand(sensors)
    clean = torch.sin(frequency * torch.arange(steps)[:, None] + phase)
    return (clean + 0.05 * torch.randn(steps, sensors))[:, :, None]


def main(small: bool = False) -> None:
    torch.manual_seed(0)
    rnn, readout = elman.Recurrent(elman.cells.GRU(1, 32 if small else 64)), nn.Linear(32 if small else 64, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *readout.parameters()], lr=5e-3)
    for _ in range(200 if small else 1500):
        x = readings(60, 32)
        loss = (readout(rnn(x[:-1])[0]) - x[1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    steps, sensors = 200, 4
    x, reset = readings(steps, sensors), torch.zeros(steps, sensors, dtype=torch.bool)
    x[100:, 1], reset[100, 1] = readings(100, 1)[:, 0], True  # sensor 1 is plugged in again, as another
    x[150:, 2] = x[150, 2]  # sensor 2 sticks
    h, outputs, alarm = torch.zeros(sensors, rnn.cell.hidden_size), [], None
    expected, seconds = x[0], 0.0
    with torch.no_grad():
        for t in range(steps):
            surprise = (x[t] - expected).abs().squeeze(-1)
            if t > 20 and surprise[2] > 0.5 and alarm is None:
                alarm = t
            began = time.perf_counter()
            o, h = rnn.step(x[t], h, reset=reset[t])
            seconds += time.perf_counter() - began
            expected = readout(o)
            outputs.append(o)
        whole, final = rnn(x, reset=reset)
        error = (readout(whole)[20:-1, [0, 3]] - x[21:, [0, 3]]).square().mean().item()
    as_it_was = (x[21:, [0, 3]] - x[20:-1, [0, 3]]).square().mean().item()
    torch.testing.assert_close(torch.stack(outputs), whole)
    torch.testing.assert_close(h, final)
    print(f"squared error {error:.4f}; of 'as it was' {as_it_was:.4f}; noise alone 0.0025")
    print(
        f"{seconds / steps * 1e6:.0f} µs for a step of {sensors} sensors; sensor 2 stuck at 150, noticed at {alarm}"
    )
    assert error < as_it_was / (3 if small else 8)
    assert alarm is not None and 150 < alarm < 165


if __name__ == "__main__":
    main("--small" in sys.argv)
