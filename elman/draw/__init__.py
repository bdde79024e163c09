"""draw: a circuit, an unfolded graph, an adjoint, a cell, a layer or a whole model as a picture.

`names` finds what the user's code called its values, `variables` reads a circuit at the level of the book and `ops` at
that of operations, whose `sentences` it writes; `layered`, `step`, `book` and `modules` lay it out into a `scene` of
plain data, and `connect` draws the lines: `lines` has curves, of which `routes` takes one, and `words` stand beside.
Of a scene `svg`, `raster` and `alive` write what `picture` saves; what `alive` plays is `told` of and computed by
`example`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, overload

import torch

from elman.circuit import Circuit
from elman.draw import alive, book, modules, ops
from elman.draw.picture import Picture
from elman.draw.scene import Scene
from elman.draw.svg import svg
from elman.draw.variables import equations
from elman.errors import InputError, InputTypeError, expect
from elman.recurrent import Compound, Recurrent
from elman.trace import trace
from elman.unfold import Unfolded

LEVELS = ("book", "ops")


class Drawing(Picture):
    """The picture of a recurrence. It shows itself in a notebook; `save` writes it to a file.

    scene: what is where, as plain data. circuit: what is drawn, where that is one circuit. variants: the same thing
    drawn otherwise, by steps to unfold for (0 for none), or by which repeats of a model are open ("0 2").
    """

    def __init__(
        self, scene: Scene, circuit: Circuit | None = None, unfold: int | bool | None = None, level: str = "book",
        variants: Callable[[Any], Scene] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(scene.title, lambda: svg(scene))
        self.scene, self.circuit, self.variants = scene, circuit, variants
        self.unfold, self.level = unfold, level

    def save(self, path: str | Path) -> Path:
        """As `Picture.save`, and .html: one file, alive, that needs nothing from elsewhere."""
        return super().save(path)

    def _kinds(self) -> dict[str, Callable[[], bytes]]:
        def page() -> bytes:
            return alive.page(self.scene, self.variants, self.circuit, self.unfold, self.level).encode()

        return {**super()._kinds(), ".html": page}

    def __repr__(self) -> str:
        box = self.scene.box
        return f"<drawing of {self.scene.title}, {box.right - box.left:.0f} × {box.bottom - box.top:.0f}>"


@functools.singledispatch
def picture_of(thing: Any, x: Any = None) -> Picture | None:
    """The picture of what is no recurrence, but was found out about one; rooms above this one register theirs."""
    return None


@overload
def draw(
    thing: Circuit | Unfolded | torch.nn.Module, x: Any = None, state: Any = None, *, unfold: int | bool | None = None,
    level: str = "book",
) -> Drawing: ...  # fmt: skip
@overload
def draw(
    thing: object, x: Any = None, state: Any = None, *, unfold: int | bool | None = None, level: str = "book"
) -> Picture: ...
def draw(
    thing: Any, x: Any = None, state: Any = None, *, unfold: int | bool | None = None, level: str = "book"
) -> Picture:
    """A picture of a recurrence, or of what was found out about one.

        elman.draw(cell, x).save("folded.svg")
        elman.draw(cell, x, unfold=3).save("unfolded.svg")

    thing: a circuit, an adjoint, an unfolded graph, a cell, a layer or any module that holds layers. A layer is drawn
        as of its latest call. Or what `elman.dynamics` finds: fixed points, Lyapunov exponents, the gradient's flow.
    x, state: of a cell, an example of one step, as for `trace`; of a layer, or a module that holds layers, what it is
        called with, without a gradient, before it is drawn; of fixed points, trajectories `[T, B, …]` among which they
        lie.
    unfold: the number of time steps to unfold for (the book's τ), of many the first and last two are drawn; True for
        …, t-1, t, t+1, …; None for the circuit, whose delays of one step are black squares.
    level: "book", variables and weights, as in Goodfellow, Bengio and Courville 2016, figures 10.2 to 10.11; "ops",
        every operation, grouped by when it runs.

    Returns a `Drawing` of a recurrence, a `Picture` of what was found out about one.

    Raises InputTypeError for a thing that holds no recurrence, StateError for a layer before any call, TraceError for a
    cell that cannot be a circuit, NotSupported for too many steps at the level of operations.
    """
    if (picture := picture_of(thing, x)) is not None:
        return picture
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

    layered = isinstance(thing, torch.nn.Module) and any(
        isinstance(part, (Recurrent, Compound)) for part in thing.modules()
    )
    if layered and x is not None:
        with torch.no_grad(), torch.random.fork_rng():
            thing(x) if state is None else thing(x, state)
    if isinstance(thing, Recurrent):
        thing = thing.circuit
    elif isinstance(thing, torch.nn.Module):
        if layered:
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


__all__ = ["Drawing", "Picture", "draw", "picture_of"]
