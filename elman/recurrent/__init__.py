"""recurrent: any cell as a module over whole sequences.

`layer` is the module, `prepare` finds the program for a call, `compiled` is the way under torch.compile.
"""

from elman.recurrent.layer import Recurrent

__all__ = ["Recurrent"]
