"""Sequences with labels, numbers and strings, and the settings of a classifier that learns them in a second."""

from __future__ import annotations

from typing import Any

import numpy as np

SMALL: dict[str, Any] = {"hidden": 8, "layers": 1, "steps": 40, "lr": 0.02, "batch": 16}


def voices(count: int, seed: int) -> tuple[list[Any], list[str]]:
    """Three speakers: sequences [T, 4] of different lengths, each channel with its own place and size."""
    rng = np.random.default_rng(seed)
    x, y = [], []
    for k in range(count):
        t = np.linspace(0, 1, rng.integers(6, 15))[:, None]
        wave = np.sin(2 * np.pi * (1 + k % 3) * t + np.arange(4)) + 0.2 * rng.normal(size=(len(t), 4))
        x.append(wave * [1, 10, 100, 0.1] + [0, 5, -300, 2])
        y.append(f"speaker {k % 3}")
    return x, y


def spelled() -> tuple[list[str], list[str]]:
    """Strings of three kinds of letters, and what kind each is of."""
    rng = np.random.default_rng(0)
    kinds = {"ab": "abx", "cd": "cdx", "ef": "efx"}
    names = [
        ("".join(rng.choice(list(k), rng.integers(3, 9))), label)
        for label, k in kinds.items()
        for _ in range(40)
    ]
    return [a for a, _ in names], [b for _, b in names]
