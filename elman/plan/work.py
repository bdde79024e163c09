"""Operations counted, and large numbers for people."""

from __future__ import annotations

import math

import torch
from torch import fx

from elman.circuit.operations import operation_of
from elman.circuit.rows import factor
from elman.plan.form import TIME_OPERATIONS, Plan


def work(node: fx.Node, rows: int) -> int:
    """Floating-point operations of one node on the given number of rows."""
    operation = operation_of(node)
    if node.target in TIME_OPERATIONS or operation.addresses:
        return 0
    values = [
        source.meta["val"] for source in node.all_input_nodes if isinstance(source.meta["val"], torch.Tensor)
    ]
    if operation.contracts is not None:
        first = node.args[operation.contracts]
        assert isinstance(first, fx.Node)
        return 2 * numel(node.meta["val"], rows) * _sizes(first.meta["val"], rows)[-1]
    result = node.meta["val"]
    out = result if isinstance(result, torch.Tensor) else result[0]
    return max([numel(value, rows) for value in (*values, out) if isinstance(value, torch.Tensor)], default=0)


def total_work(nodes: list[fx.Node], rows: int) -> int:
    return sum(work(node, rows) for node in nodes)


def _sizes(value: torch.Tensor, rows: int) -> list[int]:
    return [size if isinstance(size, int) else factor(size) * rows for size in value.shape]


def numel(value: torch.Tensor, rows: int) -> int:
    return math.prod(_sizes(value, rows))


def work_of(plan: Plan) -> int:
    """Operations of a plan for one row of one step."""
    loop = plan.loop.nodes() if plan.loop is not None else []
    return sum(total_work(nodes, 1) for nodes in (*(stage.nodes() for stage in plan.stages()[1:]), loop))


def count(number: float) -> str:
    """1_234_567 -> `1.23 M`."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000 or unit == "T":
            return f"{number:.3g} {unit}".rstrip()
        number /= 1000
    raise AssertionError


def size(number: float) -> str:
    """Bytes for people: `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError


def duration(number: float) -> str:
    """Seconds for people: `1.5 ms`."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number / 1e-6:.3g} us"


def told(number: float) -> str:
    """Bytes for people, rounded up, so that what is said is enough: `1.51 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{math.ceil(number / scale * 100) / 100:g} {unit}"
    return f"{math.ceil(number)} B"
