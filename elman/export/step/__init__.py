"""One step of a module as flat memory and operations, for targets that write it in another language.

single.py       the module as one cell, embedding and readout included
flat.py         its program as memories and operations on them
fixed.py        what is the same at every step
statements.py   these as loops, which C and JavaScript write nearly alike
quantised.py    its matrices in fewer bytes
"""
