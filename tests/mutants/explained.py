"""Faults that no test notices, and why none could: by their names, or the beginning of them.

Kinds: *equivalent* (the same numbers, plans and words), *slower* (the same numbers, with more work or memory, and no
test of plans says how much), *unreachable* (what it changes does not occur), *guarded* (a later check catches it).
"""

from __future__ import annotations

import re

from tests.mutants import Mutant

EXPLAINED: dict[str, str] = {
    r"adjoint\.py: an input named as a cotangent is taken for it": "guarded: a trace gives no port "
    "a name that begins so",
    r"recurrent/programs\.py: a cell computes with a tensor that another one has caught": "guarded: a tensor that is "
    "caught counts by identity in the trace key, so that no other cell has this key",
    r"trace/walk\.py Walk\._inside left out 2": "guarded: what a step reads of a module counts by itself",
    r"circuit/verdict\.py (_product_of turned 4|_pointwise turned 1|_addmm turned 4)": "unreachable: PyTorch pairs no "
    "dimension of any size with a fixed one",
    r"circuit/verdict\.py _product_of turned 3": "guarded: a result that holds the batch twice is refused for that",
    r"plan/cut\.py _minimum_cut \+1 2": "equivalent: of n states no n + 1 can be chosen",
    r"plan/rewrite\.py _use_of_join condition 12": "unreachable: a turned concatenation of rows is not multiplied with "
    "itself",
    r"plan/regions\.py regions negated 17": "guarded: what has no rows and changes from step to step is in the loop "
    "for that reason",
    r"execute/segmented\.py run_of \+1 1": "slower: a byte for each row more in the estimate of a call without "
    "gradients",
    r"recurrent/truncated\.py _joined \+1 3": "equivalent: all parts have one structure",
    r"noise\.py .*\+1 6": "slower: from how many numbers on threads share them",
    r"table addmm\.recomputed": "unreachable: where it is decided what is kept, addmm is a product and a sum",
    r"table square\.native": "unreachable: torch.square is traced as a power",
    r"circuit/verdict\.py _cat (negated 3|turned 2)": "unreachable: PyTorch pairs no dimension of any "
    "size with a fixed one",
    r"recurrent/programs\.py Programs\.seen not compared 1": "slower: marks are compared entry by entry",
    r"recurrent/bound\.py Arguments\.of left out 3": "equivalent: `leading` tells a step from a sequence, and a "
    "step runs the program of a packed one",
    r"trace/walk\.py Walk\._port left out 4": "guarded: a cell lies where its arguments do, whose device counts in the "
    "key of a call",
    r"execute/segmented\.py run_of condition 4": "slower: more may be counted than a native pass keeps",
    r"segments/layout\.py Layout\.whole without device": "unreachable with one device: tests/devices.py is for "
    "machines with two",
    r"plan/memory\.py halfway swapped 7": "equivalent: the other terms choose as well, for up to 200 segments "
    "and 11 states",
    r"trace/fingerprint\.py Seen\.holds not compared 1": "slower: the key is worked out at every call",
    r"trace/watch\.py Watched\._same not compared 1": "slower: the same comparison in Python",
    r"engines/native/builder\.py Builder\.(in_order left out [24]|_pack left out [234])": ""
    "unreachable: parts of what is fixed are values of their own, which the once stage takes",
    r"engines/native/builder\.py Builder\.number (condition 1|left out 1)": "guarded: whole numbers and others are 0 "
    "and 1 only, and none is read as another type",
    r"engines/native/engine\.py _multiplier without name": "equivalent but for rounding: the products of another "
    "instruction set",
    r"table arange\.counts": "guarded: its size goes in where a number is expected, which is looked for as well",
    r"table empty\.linear gained": "equivalent: it has no operand that could be a sum",
    r"table (unbind|select_backward)\.rows": "unreachable: PyTorch cannot trace it along a batch of any size",
}


def reason(mutant: Mutant) -> str:
    """Why a fault survives; empty where nobody has said so."""
    return next((why for name, why in EXPLAINED.items() if re.fullmatch(name, mutant.name)), "")
