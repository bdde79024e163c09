"""elman: write a recurrence once, as the plain step h(t) = f(h(t-1), x(t); θ); it is traced into a circuit, unfolded
through time, and trained at hardware speed."""

from elman import cells, models, nn
from elman.adjoint import adjoint
from elman.circuit import Circuit
from elman.errors import ElmanError
from elman.plan import cost, plan
from elman.recurrent import Bidirectional, Recurrent, Stack
from elman.trace import trace, verify
from elman.unfold import unfold

__version__ = "0.1.0.dev0"

__all__ = [
    "Bidirectional",
    "Circuit",
    "ElmanError",
    "Recurrent",
    "Stack",
    "adjoint",
    "cells",
    "cost",
    "models",
    "nn",
    "plan",
    "trace",
    "unfold",
    "verify",
]
