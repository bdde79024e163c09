"""export: a trained recurrence as a file that runs where there is no elman.

A target is a file of this room, and a line of `TARGETS`. It has a frozen dataclass `Options`, whose fields are its own
keywords of `export` and options of the command, and a function `write(module, path, options)`, which returns the paths
of what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from elman.data.files import refusing
from elman.errors import InputError, InputTypeError, expect

__all__ = ["TARGETS", "export"]


def _onnx() -> Any:
    from elman.export import onnx

    return onnx


def _pt2() -> Any:
    from elman.export import pt2

    return pt2


def _c() -> Any:
    from elman.export import c

    return c


def _page() -> Any:
    from elman.export import page

    return page


# Suffix -> the target, imported when it is wanted.
TARGETS: dict[str, Callable[[], Any]] = {".onnx": _onnx, ".pt2": _pt2, ".c": _c, ".html": _page}


def export(
    module: Any, path: str | Path, *, lengths: bool = False, weights: str | None = None, **own: Any
) -> tuple[Path, ...]:  # fmt: skip
    """Write a layer or a model as a file that runs where there is no elman, and return the paths of what was written.

        elman.export(rnn, "rnn.onnx")                # ONNX Runtime, in any of its languages
        elman.export(rnn, "rnn.pt2")                 # PyTorch without elman
        elman.export(rnn, "rnn.c")                   # C99 without anything, one step at a time
        elman.export(model, "model.html")            # a page that runs it, of a model of `elman.models`

    module: `Recurrent`, `Bidirectional`, `Stack`, a layer of `elman.nn`, or a model of `elman.models`. Widths, dtypes
        and structures are those of its latest call; T and B stay open.
    path: its suffix says the target.
    lengths: whether the file takes lengths `[B]` too: padding's outputs are zero, and the final state is that of the
        last step that happens.
    weights: the form in which weights are stored, None for that in which they are (of a page: int8).
    own: the target's own options, as docs/export.md lists them.

    Raises InputError for a suffix that no target has and for an option that the target does not take, StateError for a
    layer before any call, NotSupported for what the target cannot express, naming the operation and the user's line.
    """
    from elman.export.calls import network_of  # with all models behind it

    module = network_of(module)
    expect(module, torch.nn.Module, "a module is exported", "export(module)")
    path = Path(path)
    target = target_of(path)
    options = options_for(target, path, {"lengths": lengths, "weights": weights}, own)
    with refusing("the file cannot be written", path, "choose another path"):
        return tuple(target.write(module, path, options))


def target_of(path: Path) -> Any:
    """The target of a path's suffix."""
    if path.suffix.lower() not in TARGETS:
        raise InputError(
            what="nothing is exported into such a file", where="export(path)", got=path.name,
            expected=f"a name that ends in {', '.join(TARGETS)}", mend="give the file another ending",
        )  # fmt: skip
    return TARGETS[path.suffix.lower()]()


def options_for(target: Any, path: Path, shared: dict[str, Any], own: dict[str, Any]) -> Any:
    """The options of a target; shared: those of all targets, which one that does not take them leaves at their
    defaults (False and None)."""
    names = {field.name for field in fields(target.Options)}
    given = {**{name: value for name, value in shared.items() if value or name in names}, **own}
    for name in given:
        if name not in names:
            raise InputError(
                what=f"{path.suffix} files have no such option", where=f"export({name}=)", got=repr(given[name]),
                expected=", ".join(sorted(names)) or "no option at all",
            )  # fmt: skip
    try:
        return target.Options(**given)
    except TypeError as error:
        raise InputTypeError(what=str(error), where="export()") from error
