"""Circuits: a traced step with its cycles closed, as plain data.

`form` says what a circuit is and checks it, `structure` how tensors lie in arguments, `operations` what each operation
is, `rows` which dimension of a value is the batch, `verdict` and `linear` what may be done to all time steps at once;
`graphs` holds the few ways in which graphs are rewritten.
"""

from elman.circuit.form import Circuit, InPort, Joint, Kind, OutPort, Wire
from elman.circuit.rows import Rows

__all__ = ["Circuit", "InPort", "Joint", "Kind", "OutPort", "Rows", "Wire"]
