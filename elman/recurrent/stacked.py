"""A stack of layers as one cell: a step of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from elman.circuit.structure import flatten
from elman.trace.call import call_cell, understand


class StackCell(nn.Module):
    """(x, states of the layers) -> (output of the last one, new states), for a step inside of another recurrence.

    cells: of the layers, from the lowest. residual, norms: as of the stack; nothing is dropped out.
    """

    def __init__(
        self, cells: Sequence[nn.Module], residual: Sequence[bool] = (), norms: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.cells, self.norms, self.residual = nn.ModuleList(cells), nn.ModuleList(norms), tuple(residual)

    def forward(self, x: Any, states: tuple) -> tuple[Any, tuple]:
        after = []
        for i, (cell, own) in enumerate(zip(self.cells, states, strict=True)):
            given = self.norms[i - 1](x) if i and len(self.norms) else x
            returned = call_cell(cell, given, own, None, False)
            output, new = understand(returned, flatten(own, "state")[1], type(cell).__name__)
            x = x + output if self.residual and self.residual[i] else output
            after.append(new)
        return x, tuple(after)
