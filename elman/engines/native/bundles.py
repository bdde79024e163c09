"""What a forward pass keeps for its backward pass, in as few tensors as will do (`elman.engines.base.Bundle`).

A tensor costs two microseconds to make and one more to save and to read again, as much as a small layer computes at a
step. So real numbers that are kept, and that nobody else sees, share one tensor, one value behind the other; a value
that shares memory with an output goes out as the whole of that memory; whole numbers and bools as tensors of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from elman.circuit import graphs
from elman.circuit.form import OutPort
from elman.engines.base import Bundle
from elman.engines.native.places import Behind, Memory, Places
from elman.engines.native.values import REAL, Unsupported, View, type_of

ROWS_OF: dict[str, Behind] = {"one": (1, 0, 0), "batch": (0, 1, 0), "all": (0, 0, 1), "trail": (0, 1, 1)}


def kept(
    places: Places, values: Sequence[tuple[OutPort, View]], bundle: Bundle
) -> list[tuple[Memory, OutPort]]:
    """The memories that go out in the place of kept values, each with an output that lies in it; the bundle is told
    where each value lies. The size of the one whose place is "bundle", which values share, is its `behind`. Raises
    Unsupported for a value that has no rows for all steps or is an input's."""
    room = Memory("rows", REAL, 0, place="bundle")
    tensors: dict[Memory, OutPort] = {}
    bundle.lies.clear()
    for out, value in values:
        memory = value.buffer
        assert type(memory) is Memory
        home = memory.home
        if not value.whole or memory.count != "all" or home.place == "given":
            raise Unsupported(f"'{out.name}', to be kept with others")
        if home.place == "kept" and home.type == REAL:
            home.put_within(room, room.behind)
            room.behind = _sum(room.behind, ROWS_OF[home.count], home.width)
        tensors.setdefault(memory.home, out)
        number = [*tensors].index(memory.home)
        bundle.lies[bundle.kept[out.name]] = number, memory.type, memory.from_home
    if room in tensors:
        places.memories.insert(0, room)  # a place comes after the one that it lies in
    bundle.tensors = [
        (memory.type, _sum(memory.behind, ROWS_OF[memory.count], memory.width)) for memory in tensors
    ]
    return [*tensors.items()]


def read(places: Places, bundle: Bundle) -> list[Memory]:
    """The tensors of a bundle as memories that are given; the values in them are put in their places. Raises
    Unsupported for a value that is of another type here."""
    tensors = [places.memory(type, 0, "one", place="given", behind=size) for type, size in bundle.tensors]
    for name, (tensor, type, behind) in bundle.lies.items():
        like = graphs.placeholder(places.plan.circuit.graph, name).meta["val"]
        if type_of(like) != type:
            raise Unsupported(f"'{name}', which is kept as another type")
        value = places.values[name] = places.new(like, "all")
        assert isinstance(value.buffer, Memory)
        value.buffer.put_within(tensors[tensor], behind)
    return tensors


def _sum(behind: Behind, rows: Behind, width: int) -> Behind:
    one, batches, all = (b + width * r for b, r in zip(behind, rows, strict=True))
    return one, batches, all
