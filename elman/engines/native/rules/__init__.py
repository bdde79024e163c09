"""What every ATen operation becomes: one table, `RULES`. An operation without an entry is a reason not to run a loop.

A rule is called with the program's builder `p`, what it is to make (`ResultSpec`: sizes in a row, type), and the
operation's arguments, tensors as views; it returns a view (or a tuple of them). Each file has one family:

table.py        the table itself, and what all rules use
pointwise.py    arithmetic, comparisons, logic, types
activations.py  sigmoid's relatives and their backwards, out of simpler operations
addressing.py   slices, reshapes, broadcasts, concatenations, numbers as tensors
features.py     sums, softmax, layer norm
products.py     products of matrices
convolutions.py the taps of a convolution as views, and a product
indices.py      gather, scatter, and their like
weights.py      of weights alone: weight norm, triangles, numbers counted out
"""

from elman.engines.native.rules import (
    activations,
    addressing,
    convolutions,
    features,
    indices,
    pointwise,
    products,
    weights,
)
from elman.engines.native.rules.table import RULES, ResultSpec, Rule

FAMILIES = (pointwise, activations, addressing, features, products, convolutions, indices, weights)
__all__ = ["FAMILIES", "RULES", "ResultSpec", "Rule"]
