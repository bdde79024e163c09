"""Benchmarks: the tests' cells beside their peers, in one process, in turns; a result that is wrong is not timed.

contestants   the cells, and every way to run each: elman, torch.nn, Python loops
agree         whether two ways compute the same: outputs, final state, every gradient
measure       rounds in turns, medians, ratios; the bound
overhead      what is paid once: import, trace, one call
__main__      the command line and the tables: `python -m bench --help`
"""
