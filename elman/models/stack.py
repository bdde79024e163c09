"""What every model is made of: recurrences by name, on top of one another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from elman import cells
from elman.errors import InputError
from elman.models.find import MakeCell, digest_of, find_cells
from elman.recurrent import Bidirectional, Recurrent, Stack

Cells = str | type[nn.Module] | MakeCell | nn.Module | Sequence[Any]


def stack_of(
    cell: Cells, n_in: int, hidden: int, layers: int | None = None, *, dropout: float = 0.0, residual: bool = False,
    norm: bool = False, both: bool = False,
) -> tuple[Stack, dict[str, Any]]:  # fmt: skip
    """(the stack, the settings that make it again).

    cell: a name as `elman.models.find_cell` reads it, a class, a factory (n_in, n_hidden) -> cell, or a cell; or a list
    with one of these for each layer. n_in: I, of what the lowest layer reads. hidden: H of each layer. layers: how
    many; by default one, or as many as cells. dropout: the share of a layer's output that the next one does not see in
    training, the same units for a whole sequence. residual: every layer but the first adds what it reads to its output.
    norm: what it reads is layer-normalised. both: each layer reads in both directions, with a cell of H for each; its
    output is 2 H wide.

    settings: "cell", its name or names, None where there is none, and what is not as ever: "cell_digest" of a cell of
    one's own (`elman.models.find.allow` compares it), "residual", "norm", "both".
    """
    if layers is None:
        layers = len(cell) if isinstance(cell, (list, tuple, nn.ModuleList)) else 1
    makers = find_cells(cell, layers)
    names = [name for _, name in makers]
    settings: dict[str, Any] = {"cell": names if isinstance(cell, (list, tuple, nn.ModuleList)) else names[0]}
    if isinstance(named := settings["cell"], str) and (digest := digest_of(named)) is not None:
        settings["cell_digest"] = digest  # so that whoever opens the model learns of an edit
    settings |= {name: True for name, on in (("residual", residual), ("norm", norm), ("both", both)) if on}
    width = 2 * hidden if both else hidden
    by_layer = [
        [make(n_in if k == 0 else width, hidden) for _ in range(1 + both)]
        for k, (make, _) in enumerate(makers)
    ]
    if len({id(one) for layer in by_layer for one in layer}) < layers * (1 + both):
        raise InputError(
            what="several layers would be one and the same cell", where="cell", got=type(by_layer[0][0]).__name__,
            mend="pass a list with a cell for each layer, or a class, of which each layer and direction gets its own",
        )  # fmt: skip
    norms = [nn.LayerNorm(width) for _ in by_layer[1:]] if norm else []
    stack = Stack(
        *((Bidirectional if both else Recurrent)(*one) for one in by_layer),
        dropout=dropout, locked=True, residual=residual, norms=norms, batch_first=False,
    )  # fmt: skip
    return stack, settings


def learning_rate(layers: Iterable[Any], hidden: int) -> float:
    """For AdamW: 4e-3, and less in wide layers, 2 / H with gates (GRU, LSTM) and 0.5 / H without.

    Stable in short trials with 64 to 1024 units. Above, a tanh state ends in corners from which it does not come
    back, and only held-out data, which are read without a past, tell.
    """
    one = [layer.forward_layer if isinstance(layer, Bidirectional) else layer for layer in layers]
    gated = all(isinstance(layer.cell, (cells.GRU, cells.LSTM)) for layer in one)
    return min(4e-3, (2.0 if gated else 0.5) / hidden)
