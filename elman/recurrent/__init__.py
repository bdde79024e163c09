"""recurrent: any cell as a module over whole sequences.

`layer` is the module, `layers` puts several side by side or on top of each other, `pooling` makes one vector of a
sequence. `arguments` sorts out what a call is given, `order` which dimension is time; `prepare` finds the program for
it, `compiled` is the way under torch.compile.
"""

from elman.recurrent.bidirectional import Bidirectional
from elman.recurrent.dropout import LockedDropout
from elman.recurrent.layer import Recurrent
from elman.recurrent.pooling import last, pool
from elman.recurrent.stack import Compound, Stack

__all__ = ["Bidirectional", "Compound", "LockedDropout", "Recurrent", "Stack", "last", "pool"]
