"""draw: a circuit, an unfolded graph, a cell or a layer as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elman.circuit import Circuit
from elman.draw import book, ops
from elman.draw.scene import Scene
from elman.draw.svg import svg
from elman.draw.variables import equations
from elman.errors import InputError, InputTypeError
from elman.recurrent import Recurrent
from elman.trace import trace
from elman.unfold import Unfolded


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture. It shows itself in a notebook; `save` writes it to a file.

    scene: what is where, as plain data.
    """

    scene: Scene

    def save(self, path: str | Path) -> Path:
        """Write the picture; what kind of file it is, the ending says: .svg."""
        path = Path(path)
        if path.suffix.lower() != ".svg":
            raise InputError(what="no picture can be written into such a file", where="Drawing.save(path)",
                             got=path.name, expected="a name that ends in .svg")  # fmt: skip
        path.write_text(self._repr_svg_() + "\n", encoding="utf-8")
        return path

    def _repr_svg_(self) -> str:
        return svg(self.scene)


def draw(
    thing: Any, x: Any = None, state: Any = None, *, unfold: int | bool | None = None, level: str = "book"
) -> Drawing:
    """A picture of a recurrence.

    thing: a circuit, an adjoint, an unfolded graph, a layer (as of its latest call), or a cell.
    x, state: of a cell, an example of one step, as for `trace`.
    unfold: the number of time steps to unfold for; True for …, t-1, t, t+1, …; None for the circuit with its cycles.
    level: "book", variables and weights.
    """
    if isinstance(thing, Unfolded):
        unfold, thing = thing.steps if unfold is None else unfold, thing.circuit
    elif isinstance(thing, Recurrent):
        thing = thing.circuit
    elif isinstance(thing, torch.nn.Module):
        thing = trace(thing, x, state)
    if not isinstance(thing, Circuit):
        raise InputTypeError(what="this cannot be drawn", where="draw(thing)", got=type(thing).__name__,
                             expected="a circuit, an unfolded graph, a cell, a layer or a model")  # fmt: skip
    if level == "ops":
        scene = ops.planned(thing) if not unfold else ops.unfolded(thing, 3 if unfold is True else unfold)
        return Drawing(scene.check())
    eq = equations(thing)
    if unfold is None or unfold is False:
        scene = book.folded(eq)
    else:
        scene = book.unfolded(eq, None if unfold is True else unfold)
    return Drawing(scene.check())


__all__ = ["Drawing", "draw"]
