"""recurrent: any cell as a module over whole sequences.

`layer` is the module, `bidirectional` and `stack` put several side by side or on top of each other; what a stack holds
is in `layers`. `budget` says what memory they have, `joined` runs a stack under a budget as one, `shares` gives each
layer its part where that cannot be, `truncated` a layer over a stream, `pooling` makes one
vector of a sequence. `stream` takes one step after another without gradients, its state `kept` by an engine, its
arguments maybe `arrays`. `flow` is what a model says for its picture. `arguments` sorts out what a call is
given, `order` which dimension is time; `programs` finds the program for it, `compiled` is the way under torch.compile.
"""

from elman.recurrent.bidirectional import Bidirectional
from elman.recurrent.budget import Budget, set_memory
from elman.recurrent.dropout import LockedDropout
from elman.recurrent.flow import Flow, Piece
from elman.recurrent.layer import Recurrent
from elman.recurrent.layers import Compound
from elman.recurrent.pooling import last, pool
from elman.recurrent.stack import Stack
from elman.recurrent.stream import Stream
from elman.recurrent.truncated import Truncated, Window, truncated

__all__ = [
    "Bidirectional",
    "Budget",
    "Compound",
    "Flow",
    "LockedDropout",
    "Piece",
    "Recurrent",
    "Stack",
    "Stream",
    "Truncated",
    "Window",
    "last",
    "pool",
    "set_memory",
    "truncated",
]
