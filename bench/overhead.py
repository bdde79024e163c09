"""What is paid once: importing elman, tracing a cell; and what a call costs that has next to nothing to compute."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import elman
from bench.contestants import SHIPPED

_IMPORT = "import time, torch; t = time.perf_counter(); import elman; print(time.perf_counter() - t)"
_TRACE = "import json; from bench.overhead import traces; print(json.dumps(traces()))"


def import_seconds(times: int = 3) -> float:
    """Seconds that `import elman` takes after `import torch`, in a fresh process, the median."""
    return statistics.median(float(_fresh(_IMPORT)) for _ in range(times))


def trace_seconds() -> dict[str, dict[str, float]]:
    """`traces`, in a fresh process."""
    return json.loads(_fresh(_TRACE))  # type: ignore[no-any-return]


def traces() -> dict[str, dict[str, float]]:
    """Shipped cell -> seconds from the cell to its first result: the first inference, the first training step after it,
    and the first of each for another instance with the same trace key. "first in a process" stands by itself."""
    found = {"first in a process": _trace(elman.cells.Elman, 12)}
    for name, kind in SHIPPED.items():
        found[name] = _trace(kind, 8)
    return found


def _trace(kind: Any, width: int) -> dict[str, float]:
    made = {}
    for words in ("", ", second instance"):
        layer = elman.Recurrent(
            kind(width, width, width) if kind is elman.cells.Jordan else kind(width, width)
        )
        x = torch.randn(3, 2, width)
        with torch.no_grad():
            made[f"inference{words}"] = _seconds(lambda layer=layer, x=x: layer(x))
        made[f"training{words}"] = _seconds(lambda layer=layer, x=x: layer(x)[0].sum().backward())
    return made


def call_seconds(times: int = 300) -> dict[str, dict[str, float]]:
    """Shipped cell -> median seconds of one call at T = 1, B = 1, H = 64 without gradients: the layer, its `step`, the
    cell itself."""
    found = {}
    for name, kind in SHIPPED.items():
        cell = kind(64, 64, 64) if kind is elman.cells.Jordan else kind(64, 64)
        layer, x = elman.Recurrent(cell), torch.randn(1, 1, 64)
        with torch.no_grad():
            _, state = layer(x)
            ways: dict[str, Callable[[], Any]] = {
                "layer(x)": lambda layer=layer, x=x: layer(x),
                "layer(x, state)": lambda layer=layer, x=x, state=state: layer(x, state),
                "layer.step(x, state)": lambda layer=layer, x=x, state=state: layer.step(x[0], state),
                "cell(x, state)": lambda cell=cell, x=x, state=state: cell(x[0], state),
            }
            rounds = [{words: _seconds(way) for words, way in ways.items()} for _ in range(times)]
        found[name] = {words: statistics.median(each[words] for each in rounds) for words in ways}
    return found


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]
