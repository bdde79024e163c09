"""A call for several examples at once: what it is a vmap of becomes more rows, a circuit of its own, or a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from elman.circuit.form import InPort, Kind
from elman.errors import NotSupported
from elman.execute.executable import Call
from elman.execute.program import Program
from elman.execute.vmaps import vmaps

Tensor = torch.Tensor
Apply = Callable[[Program, Call, Sequence["Tensor | None"]], Sequence[Tensor]]


def examples(
    apply: Apply, program: Program, call: Call, tensors: Sequence[Tensor | None], dims: Sequence[int | None], size: int,
    randomness: str,
) -> tuple[Sequence[Tensor], Sequence[int]]:  # fmt: skip
    """The outputs for several examples, and where their dimension stands in each. apply: runs a program. dims: where it
    stands in each tensor, None in what all examples share."""
    # A vmap that began after the seed was drawn (jacrev's, over cotangents) is no matter of the noise.
    drawn_inside = program.has_noise and (call.level or 0) > vmaps()
    if drawn_inside and randomness == "error":
        raise NotSupported(
            what="this cell draws random numbers inside torch.func.vmap", where=program.circuit.name,
            mend='say vmap(…, randomness="different") or "same"',
        )  # fmt: skip
    noise = drawn_inside and randomness == "different"
    if call.memory is not None:  # a budget is that of one example
        return _one_by_one(apply, program, call, tensors, dims, size, noise)

    def lead(kind: Kind, rows: bool) -> int:
        """How many dimensions stand in front of the features: time, unless it lies in the rows, and rows."""
        return (kind is Kind.SEQUENCE and not (rows and call.packing is not None)) + rows

    def placed(port: InPort, tensor: Tensor | None, dim: int | None, differs: bool) -> Tensor | None:
        if tensor is None or not differs:
            return tensor
        place = lead(port.kind, port.rows)
        if dim is not None:
            return tensor.movedim(dim, place)
        return tensor.unsqueeze(place).expand(*tensor.shape[:place], size, *tensor.shape[place:])

    given = list(zip(program.inputs, tensors, dims, strict=True))
    over = frozenset(port.name for port, _, dim in given if dim is not None)
    if call.packing is None and program.rows_apart and all(p.rows for p in program.inputs if p.name in over):
        # More rows, [B, V] of them.
        more = [
            None
            if t is None
            else whole.flatten(at - 1, at)
            if port.rows
            and (whole := placed(port, t, dim, True)) is not None
            and (at := lead(port.kind, True))
            else t
            for port, t, dim in given
        ]
        results = apply(program, call._replace(batch=call.batch * size), more)
        at_rows = [lead(out.kind, True) - 1 for out in program.outputs]
        parted = [r.unflatten(d, (call.batch, size)) for r, d in zip(results, at_rows, strict=True)]
        return tuple(parted), tuple(d + 1 for d in at_rows)
    several = program.vmapped(size, over, noise)
    if isinstance(several, NotSupported):
        if noise:  # a loop over the examples would draw other numbers than the derivative, if that is no loop
            raise several
        return _one_by_one(apply, program, call, tensors, dims, size, noise)
    differing = several.differing
    results = apply(several, call, [placed(port, t, dim, port.name in differing) for port, t, dim in given])
    places = [lead(out.kind, rows) for out, rows in zip(program.outputs, program.rowed, strict=True)]
    return tuple(results), tuple(places)


def _one_by_one(
    apply: Apply, program: Program, call: Call, tensors: Sequence[Tensor | None], dims: Sequence[int | None], size: int,
    noise: bool,
) -> tuple[Sequence[Tensor], Sequence[int]]:  # fmt: skip
    """The slow, obvious way."""
    results = []
    for i in range(size):
        one = [
            t if t is None or dim is None else t.select(dim, i) for t, dim in zip(tensors, dims, strict=True)
        ]
        results.append(apply(program, call._replace(seed=call.seed + i * noise), one))
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)
