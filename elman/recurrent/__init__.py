"""recurrent: any cell as a module over whole sequences.

`layer` is the module, `layers` puts several side by side or on top of each other, `arguments` sorts out what a call is
given, `prepare` finds the program for it, `compiled` is the way under torch.compile.
"""

from elman.recurrent.layer import Recurrent
from elman.recurrent.layers import Bidirectional, Stack

__all__ = ["Bidirectional", "Recurrent", "Stack"]
