"""draw: a circuit, an unfolded graph, an adjoint, a cell, a layer or a whole model as a picture.

`names` finds what the user's code called its values, `variables` reads a circuit at the level of the book and `ops` at
that of operations, whose `sentences` it writes; `layered`, `step`, `book` and `modules` lay it out into a `scene` of
plain data, and `connect` draws the lines: `lines` has curves, of which `routes` takes one, and `words` stand beside.
Of a scene `svg`, `raster` and `alive` write files; what `alive` plays is `told` of and computed by `example`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from elman.circuit import Circuit
from elman.draw import alive, book, modules, ops, raster
from elman.draw.scene import Scene
from elman.draw.svg import svg
from elman.draw.variables import equations
from elman.errors import InputError, InputTypeError, expect
from elman.recurrent import Recurrent
from elman.recurrent.stack import Compound
from elman.trace import trace
from elman.unfold import Unfolded

LEVELS = ("book", "ops")


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture. It shows itself in a notebook; `save` writes it to a file.

    scene: what is where, as plain data. circuit: what is drawn, where that is one circuit. variants: the same thing
    drawn otherwise, by steps to unfold for (0 for none), or by which repeats of a model are open ("0 2").
    """

    scene: Scene
    circuit: Circuit | None = None
    unfold: int | bool | None = None
    level: str = "book"
    variants: Callable[[Any], Scene] | None = field(default=None, repr=False)
    _svg: list[str] = field(default_factory=list, repr=False)

    def save(self, path: str | Path) -> Path:
        """Write the picture and return its path. What kind of file it is, the ending says.

        .svg: text stays text; light and dark surroundings. .png (twice as large), .pdf: light; they need
        `pip install "elman[draw]"`. .html: one file, alive, that needs nothing from elsewhere.
        Raises InputError for another ending, NotSupported where the package for .png and .pdf is missing.
        """
        path = Path(path)
        kinds: dict[str, Callable[[], bytes]] = {
            ".svg": lambda: (self._repr_svg_() + "\n").encode(),
            ".png": lambda: raster.png(self._repr_svg_()),
            ".pdf": lambda: raster.pdf(self._repr_svg_()),
            ".html": lambda: alive.page(
                self.scene, self.variants, self.circuit, self.unfold, self.level
            ).encode(),
        }
        if path.suffix.lower() not in kinds:
            raise InputError(
                what="no picture can be written into such a file", where="Drawing.save(path)", got=path.name,
                expected=f"a name that ends in {', '.join(kinds)}",
                mend="give the file another ending",
            )  # fmt: skip
        path.write_bytes(kinds[path.suffix.lower()]())
        return path

    def _repr_svg_(self) -> str:
        if not self._svg:
            self._svg.append(svg(self.scene))
        return self._svg[0]

    def __repr__(self) -> str:
        box = self.scene.box
        return f"<drawing of {self.scene.title}, {box.right - box.left:.0f} × {box.bottom - box.top:.0f}>"


def draw(
    thing: Any, x: Any = None, state: Any = None, *, unfold: int | bool | None = None, level: str = "book"
) -> Drawing:
    """A picture of a recurrence.

        elman.draw(cell, x).save("folded.svg")
        elman.draw(cell, x, unfold=3).save("unfolded.svg")

    thing: a circuit, an adjoint, an unfolded graph, a cell, a layer or any module that holds layers. A layer is drawn
        as of its latest call.
    x, state: of a cell, an example of one step, as for `trace`; of a module that holds layers, x is what it is called
        with, without a gradient, before it is drawn.
    unfold: the number of time steps to unfold for (the book's τ), of many the first and last two are drawn; True for
        …, t-1, t, t+1, …; None for the circuit, whose delays of one step are black squares.
    level: "book", variables and weights, as in Goodfellow, Bengio and Courville 2016, figures 10.2 to 10.11; "ops",
        every operation, grouped by when it runs.

    Raises InputTypeError for a thing that holds no recurrence, StateError for a layer before any call, TraceError for a
    cell that cannot be a circuit, NotSupported for too many steps at the level of operations.
    """
    if level not in LEVELS:
        raise InputError(
            what="there is no such level", where="draw(level=)", got=repr(level), expected=" or ".join(LEVELS)
        )
    if isinstance(thing, Unfolded):
        unfold, thing = thing.steps if unfold is None else unfold, thing.circuit
    expect(unfold, (int, bool, type(None)), "the number of steps is a whole number", "draw(unfold=)")
    if unfold is False:
        unfold = None
    if unfold is not None and unfold is not True and unfold < 1:
        raise InputError(
            what="a picture shows at least one step", where="draw(unfold=)", got=unfold, expected="1 or more"
        )

    def scene_of(circuit: Circuit) -> Scene:
        return _scene(circuit, unfold, level)

    if isinstance(thing, Recurrent):
        thing = thing.circuit
    elif isinstance(thing, torch.nn.Module):
        if any(isinstance(part, (Recurrent, Compound)) for part in thing.modules()):
            if x is not None:
                with torch.no_grad(), torch.random.fork_rng():
                    thing(x) if state is None else thing(x, state)
            return Drawing(
                modules.composed(thing, scene_of).check(),
                variants=lambda opened: modules.composed(thing, scene_of, opened),
            )
        thing = trace(thing, x, state)
    if not isinstance(thing, Circuit):
        raise InputTypeError(
            what="this cannot be drawn", where="draw(thing)", got=type(thing).__name__,
            expected="a circuit, an unfolded graph, a cell, a layer or a model",
        )  # fmt: skip
    circuit = thing
    return Drawing(
        scene_of(thing).check(), thing, unfold, level, lambda steps: _scene(circuit, steps or None, level)
    )


def _scene(circuit: Circuit, unfold: int | bool | None, level: str) -> Scene:
    if level == "ops":
        return (
            ops.planned(circuit) if unfold is None else ops.unfolded(circuit, 3 if unfold is True else unfold)
        )
    eq = equations(circuit)
    if unfold is None:
        return book.folded(eq)
    return book.unfolded(eq, None if unfold is True else unfold)


__all__ = ["Drawing", "draw"]
