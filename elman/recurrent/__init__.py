"""recurrent: any cell as a module over whole sequences.

`layer` is the module, `layers` puts several side by side or on top of each other, `pooling` makes one vector of a
sequence, `truncated` runs a layer over a stream. `arguments` sorts out what a call is given, `order` which dimension is
time; `prepare` finds the program for it, `compiled` is the way under torch.compile.
"""

from elman.recurrent.bidirectional import Bidirectional
from elman.recurrent.dropout import LockedDropout
from elman.recurrent.layer import Recurrent
from elman.recurrent.pooling import last, pool
from elman.recurrent.stack import Compound, Stack
from elman.recurrent.truncated import Truncated, Window, truncated

__all__ = [
    "Bidirectional",
    "Compound",
    "LockedDropout",
    "Recurrent",
    "Stack",
    "Truncated",
    "Window",
    "last",
    "pool",
    "truncated",
]
