"""Benchmarks: the tests' cells beside their peers, in one process, in turns; a result that is wrong is not timed.

form          what a contest is made of: a shape, a problem, a contestant
contestants   the cells, and every way to run each: elman, torch.nn, Python loops, torch.compile, JAX
hoisted       Python loops with U x + b before them
jaxed         lax.scan under jit
agree         whether two ways compute the same: outputs, final state, every gradient
bound         the products alone
measure       rounds in turns, medians, ratios
targets       what is to be reached
foreign       layers of flax nnx, equinox and Keras
newton        pararnn's solver on its own cells
limits        multiply-adds and bytes a second that the machine can do, measured in the run
peers         the table of proof: the goals beside each peer, one thread and two
proof         that table for docs/native.md
busy          beside a process that keeps a core busy
overhead      what is paid once or per call: import, trace, call, step
machine       the header of a report
tables        measurements as tables
report        what one run prints and writes
__main__      the command line: `python -m bench --help`
"""
