"""A loop whose steps run one by one, and tensors whose rows lie in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from elman.circuit import graphs
from elman.engines.base import Stepper
from elman.engines.lookups import failed
from elman.engines.native.extension import empty_strided
from elman.engines.native.values import row_sizes
from elman.noise import written
from elman.plan.form import Loop

Tensor = torch.Tensor
# NumPy's dtype, and the letters that it may go by.
_ARRAYS = {
    torch.float32: (np.dtype(np.float32), "f"), torch.float64: (np.dtype(np.float64), "d"),
    torch.int64: (np.dtype(np.int64), "lq"), torch.bool: (np.dtype(np.bool_), "?"),
}  # fmt: skip


def stepper(interpreter: Any, widths: Sequence[int], loop: Loop, weights: str | None) -> Stepper | str:
    """native/stream.hpp's `Stream` of a loop, or why there is none."""
    inputs = {str(node.target): node.meta["val"] for node in loop.graph.nodes if node.op == "placeholder"}
    results = {name: node.meta["val"] for name, node in graphs.results_of(loop.graph).items()}
    forms: list[list[tuple[Any, ...]]] = [[], []]
    for forms_of, values, names in zip(forms, (inputs, results), (loop.sequences, loop.emits), strict=True):
        for name in names:
            value, rows = values[name], name not in loop.stepped
            sizes = row_sizes(value)
            if rows and (not sizes or sizes[0] != 1):
                return f"a row of '{name}' is several"
            forms_of.append((value.dtype, *_ARRAYS[value.dtype], sizes[1:] if rows else sizes, rows))
    stream = interpreter.stream(weights or "", *forms, torch.get_num_threads, failed, empty_strided)
    return _Steps(stream, widths[: len(loop.constants)])


class _Steps:
    """The `Stepper` of native/stream.hpp."""

    def __init__(self, stream: Any, widths: Sequence[int]) -> None:
        self._stream, self._widths = stream, widths
        self.fresh, self.rows, self.resize, self.drop = stream.fresh, stream.rows, stream.resize, stream.drop
        self.read, self.write, self.step = stream.read, stream.write, stream.step

    def load(
        self, constants: Sequence[Tensor], sources: Sequence[tuple[Any, ...]], unchanged: Callable[[], bool]
    ) -> None:  # fmt: skip
        ordered, strides = in_order(constants, self._widths)
        self._stream.load(ordered, strides, list(sources), unchanged)


def in_order(values: Sequence[Tensor], widths: Sequence[int]) -> tuple[tuple[Tensor, ...], list[int]]:
    """The same values as tensors whose rows are in order themselves, and their row strides.

    A row may be several entries of the first dimension, as of `[B·heads, d]`; it is then in order with all of them.
    """
    kept, strides = [], []
    for value, width in zip(values, widths, strict=True):
        value = written(value)
        if value.is_contiguous():
            strides.append(width)
        elif width * value.shape[0] == value.numel() and _rows_in_order(value):
            strides.append(value.stride(0))
        else:
            value = value.contiguous()
            strides.append(width)
        kept.append(value)
    return tuple(kept), strides


def _rows_in_order(value: Tensor) -> bool:
    if value.dim() <= 2:
        return value.dim() < 2 or value.stride(1) == 1 or value.shape[1] == 1
    step = 1
    for size, stride in zip(reversed(value.shape[1:]), reversed(value.stride()[1:]), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
