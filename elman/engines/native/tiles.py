"""Whether a pass can run over some steps at a time, one tile of time after the other (native/pass.hpp).

A tile is the pass on a part of the steps. Its states begin where those of the tile before have ended; what is summed
over rows is added up. That is the whole pass where every other value that has no time is the same in all tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elman.engines.native.extension import compiled
from elman.engines.native.places import Memory, Piece
from elman.plan.form import Loop

TIMED = {"all", "trail", "steps"}
ONE, ALL = compiled.ROWS["one"], compiled.ROWS["all"]


def tiles_of(
    pieces: Sequence[Piece], loop: Loop | None, made: Sequence[Memory], bytes: dict[str, int]
) -> list[Any] | None:
    """[places that tiles add to, [start, end, bytes of a row] of each state of the loop], as native/pass.hpp has it;
    None where tiles would not do. made: places that go out."""
    if loop is None:
        return None
    (spots,) = (piece.flat[4] for piece in pieces if piece.flat[0] == "loop")
    first, states = len(loop.constants) + len(loop.sequences), len(loop.states)
    starts, ends = spots[first : first + states], spots[len(spots) - states :]
    homes = [spot[0].home for spot in starts]
    alone = len({*homes}) == len(homes) and all(
        spot[0] is home and home.place == "given" and not spot[1]
        for spot, home in zip(starts, homes, strict=True)
    )
    if not alone:
        return None
    summed: set[Memory] = set()  # what is another number in each tile, to be added up
    ended = {spot[0].home for spot in ends}
    for piece in pieces:
        kind, *rest = piece.flat
        if kind == "products":
            if not _multiply(rest[0], summed):
                return None
        elif kind == "program":
            counts = {memory.count for memory in piece.used}
            if rest[1] not in (ONE, ALL) or (rest[1] == ONE and counts & TIMED):
                return None
        elif kind == "copy":
            source, target = rest[0][0], rest[1][0]
            begins = source.home in homes and target.home.count == "trail"
            if not begins and source.count not in TIMED and source.home not in ended:
                return None
        elif kind != "loop":
            return None
        read = {memory.home for memory in piece.used}
        if kind != "products" and read & summed:
            return None
        if kind not in ("loop", "copy") and read & (ended | {*homes}):
            return None
    copied = {p.flat[2][0].home for p in pieces if p.flat[0] == "copy" and p.flat[1][0].home in ended}
    for memory in made:
        if memory.count == "batch" and memory not in ended | copied:
            return None
        if memory.count == "one" and memory not in summed:
            return None
    totals = [memory for memory in made if memory.count == "one"]
    sizes = [end[2] * bytes[end[0].type] for end in ends]
    return [totals, [[*state] for state in zip(starts, ends, sizes, strict=True)]]


def _multiply(products: Sequence[list[Any]], summed: set[Memory]) -> bool:
    """Whether products may run tile by tile. summed: sums over rows that there are, those of these are put in."""
    before = {*summed}
    for flat in products:
        sums, m, k = flat[0], flat[1:3], flat[5:7]
        a, b, start, times, out = (flat[at : at + 5] for at in range(7, 32, 5))
        read = [side[0] for side in (a, b, start, times) if side[0] != -1]
        if k[1] == ALL or (sums and any(memory.count in TIMED for memory in read)):
            if any(memory.home in before for side in (a, b, times) if (memory := side[0]) != -1):
                return False
            if not sums and start[0] != -1 and start[0].home not in before:
                return False
            summed.add(out[0].home)
        elif m[1] != ALL or out[0].count != "all" or any(memory.home in before for memory in read):
            return False
    return True
