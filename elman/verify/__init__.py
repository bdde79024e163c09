"""verify: does a cell's recurrence compute what the plain Python loop over the cell computes, bit for rounding?

`loop` is the definition in plain PyTorch, `draw` what it is run on, `compare` how far two results are apart, `check`
runs one cell every way on every engine, and `report` is what comes out, in words and as a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from elman.engines import ENGINES, Engine
from elman.errors import InputError
from elman.trace import mistakes, trace
from elman.trace.initial import initial_state
from elman.trace.outside import outside
from elman.verify.check import Subject, checked
from elman.verify.draw import Example
from elman.verify.report import Check, Report

__all__ = ["Check", "Report", "verify"]


def verify(
    cell: torch.nn.Module, x: Any, state: Any = None, context: Any = None, *,
    engines: Sequence[str | Engine] | None = None, seed: int = 0, progress: bool | None = None,
) -> Report:  # fmt: skip
    """Hold a cell's recurrence against the plain Python loop over the cell, every way in which it can be run.

    Random sequences of odd sizes go through `elman.Recurrent(cell)` and through the loop

        for t in range(T):
            output, state = cell(x[t], state)

    and outputs, final state, and gradients of inputs, state and parameters are compared in float64: whole, in reverse,
    from the cell's own start, with lengths, a mask, resets and all of these together as docs/sequences.md defines them
    (NaN stands where nothing happens), on every engine that can run the cell. Then second derivatives, and the errors
    of float32 beside those of the loop. The cell itself is not changed, nor are PyTorch's generators.

    x, state, context: examples at one step `[B, …]`, as for `elman.trace`. Sequences are drawn like them: real numbers
        with their mean and spread, whole numbers and bools among theirs; where the cell fails on such numbers, its
        rows are those of the example.
    engines: names of engines, or engines; by default all there are. seed: of the random sequences. progress: whether
        standard error says what is being compared, which takes half a minute for a large cell; None: where it is a
        terminal.

    Returns a Report, true if all is right. Raises TraceError, as `elman.trace` does, for what cannot be a circuit;
    InputError for what has no numbers to compare (meta tensors).
    """
    from elman.training.progress import saying  # rich is imported where something is drawn

    mistakes.check_cell(cell, "verify(cell, …)")
    tensors = [*cell.parameters(), *pytree.tree_leaves((x, state, context))]
    if any(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in tensors):
        raise InputError(
            what="there are no numbers to compare", where="verify(cell, …)", got="tensors on the device meta",
            mend="verify it on the CPU",
        )  # fmt: skip
    if state is None:
        state = initial_state(cell, x, context)
    circuit = trace(cell, x, state, context)
    with outside():
        subject = Subject.of(cell, Example(x, state, context), seed)
        by_name = {engine.name: engine for engine in ENGINES}
        kinds = {None, *(tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor))}
        chosen = tuple(e for e in ENGINES if e.kind in kinds) if engines is None else tuple(
            engine if isinstance(engine, Engine) else _named(engine, by_name) for engine in engines
        )  # fmt: skip
        name = type(cell).__name__
        with saying(progress) as say:
            checks, reasons = checked(subject, chosen, lambda words: say(f"{name}: {words}"))
    return Report(name, tuple(checks), circuit, reasons, subject.note)


def _named(name: str, engines: dict[str, Engine]) -> Engine:
    if name not in engines:
        raise InputError(
            what="there is no such engine",
            where="engines=",
            got=name,
            expected=", ".join(engines),
            mend="choose one",
        )
    return engines[name]
