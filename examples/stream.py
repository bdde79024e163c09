"""A live stream: readings come one by one, and each is compared with what was expected.

A GRU learns to predict noisy oscillations. Then `step` takes a reading of each sensor and the state; `reset` says which
were just plugged in again. What comes of the stream equals one call on the whole of it. Prints the error beside that of
"as it was", the time of a step, and when it was noticed that a sensor had broken.
"""

import math
import sys
import time

import torch
from torch import nn

import elman


def readings(steps: int, sensors: int) -> torch.Tensor:  # [T, B, 1]
    frequency, phase = 0.2 + 0.5 * torch.rand(sensors), 2 * math.pi * torch.rand(sensors)
    values = torch.sin(frequency * torch.arange(steps)[:, None] + phase) + 0.05 * torch.randn(steps, sensors)
    return values[:, :, None]


def main(small: bool = False) -> None:
    torch.manual_seed(0)
    rnn, readout = elman.Recurrent(elman.cells.GRU(1, 48)), nn.Linear(48, 1)
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
    x[150:, 2] = 1.5  # sensor 2 is broken
    h, outputs, alarms, expected = None, [], [], x[0]
    with torch.no_grad():
        for t in range(steps):
            if t > 20 and (x[t] - expected)[2].abs() > 0.5:
                alarms.append(t)
            o, h = rnn.step(x[t], h, reset=reset[t])
            expected, outputs = readout(o), [*outputs, o]
        began = time.perf_counter()
        for t in range(100):
            rnn.step(x[t], h, reset=reset[t])
        micro = (time.perf_counter() - began) * 1e4
        whole, final = rnn(x, reset=reset)
    error, as_it_was = ((y[20:-1, 0] - x[21:, 0]).square().mean() for y in (readout(whole), x))
    torch.testing.assert_close(torch.stack(outputs), whole)
    torch.testing.assert_close(h, final)
    print(f"squared error {error:.4f}; of 'as it was' {as_it_was:.4f}; noise alone 0.0025")
    print(f"{micro:.0f} µs for a step of {sensors}; sensor 2 broke at 150, noticed at {min(alarms)}")
    assert error < as_it_was / (3 if small else 8)
    assert 150 <= min(alarms) < 155


if __name__ == "__main__":
    main("--small" in sys.argv)
