"""The native engine: loops as flat programs, run by the interpreter in native/ (C++), on CPUs.

extension.py   the compiled part, and its constants
values.py      what a value is: a view into a buffer, per row
builder.py     buffers and operations while a program is built
rules/         what every ATen operation becomes: one table, a file for each family
lower.py       a loop as a program: the walk
finishing.py   what comes after the walk: what goes together, where scratch memory lies, where threads meet
grouped.py     stages beside the loop, whose matrix products are this engine's, many in one call
engine.py      the engine
"""

from elman.engines.native.engine import Native
from elman.engines.native.extension import isa, why_not_built

__all__ = ["Native", "isa", "why_not_built"]
