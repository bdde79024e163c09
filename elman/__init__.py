"""elman: write a recurrence once, as the plain step h(t) = f(h(t-1), x(t); θ); it is traced into a circuit, unfolded
through time, and trained at hardware speed.

Rooms are imported when a name of theirs is first asked for: `elman --help` needs no torch.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elman import cells, dynamics, models, nn
    from elman.adjoint import adjoint
    from elman.caches import caches
    from elman.circuit import Circuit
    from elman.draw import draw
    from elman.engines import machine
    from elman.errors import ElmanError
    from elman.export import export
    from elman.forcing import force
    from elman.online import Online
    from elman.plan import cost, explain, pair, plan
    from elman.recurrent import Bidirectional, Recurrent, Stack, last, pool, truncated
    from elman.segments import Segments
    from elman.tangent import tangent
    from elman.trace import trace
    from elman.unfold import unfold
    from elman.verify import verify

__version__ = "0.1.0"

__all__ = [
    "Bidirectional",
    "Circuit",
    "ElmanError",
    "Online",
    "Recurrent",
    "Segments",
    "Stack",
    "adjoint",
    "caches",
    "cells",
    "cost",
    "draw",
    "dynamics",
    "explain",
    "export",
    "force",
    "last",
    "machine",
    "models",
    "nn",
    "pair",
    "plan",
    "pool",
    "trace",
    "truncated",
    "tangent",
    "unfold",
    "verify",
]

# Where the functions and classes live; what else is asked for is a room. A test compares with the imports above.
_HOMES = {
    "Bidirectional": "recurrent",
    "Circuit": "circuit",
    "ElmanError": "errors",
    "Online": "online",
    "Recurrent": "recurrent",
    "Segments": "segments",
    "Stack": "recurrent",
    "adjoint": "adjoint",
    "caches": "caches",
    "cost": "plan",
    "draw": "draw",
    "explain": "plan",
    "export": "export",
    "force": "forcing",
    "last": "recurrent",
    "machine": "engines",
    "pair": "plan",
    "plan": "plan",
    "pool": "recurrent",
    "trace": "trace",
    "truncated": "recurrent",
    "tangent": "tangent",
    "unfold": "unfold",
    "verify": "verify",
}


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "_native":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_HOMES.get(name, name)}"
    try:
        room = importlib.import_module(home)
    except ModuleNotFoundError as error:
        if error.name != home:
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(room, name) if name in _HOMES else room
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Door(types.ModuleType):
    """Python makes every module that it imports an attribute of its package. `elman.plan` is to be the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door
