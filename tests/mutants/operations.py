"""Faults of the table of operations (elman/circuit/operations.py): each meaningful field of each row, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.mutants import Mutant, appended

_FILE = "elman/circuit/operations.py"
_TABLE = ("circuit/test_table.py", "circuit/test_rows.py circuit/test_operations.py plan/test_linear.py")
# Where the laws of the table say nothing: what is computed from a field.
_WIDER = {
    "recomputed": "plan/test_structure.py -k computed_again",
    "broadcasts": "trace/test_normal.py plan/test_structure.py",
    "lookup": "engines/test_lookups.py",
    "native": "engines/test_native_operations.py engines/test_special_values.py engines/test_native.py",
    "apart": "trace/test_normal.py -k taken_apart",
}


def mutants() -> Iterator[Mutant]:
    from elman.circuit.operations import OPERATIONS, Operation

    for name, row in OPERATIONS.items():
        if row.apart:
            yield _fault(name, "apart", False, "it stays whole in a trace")
            continue
        for position in row.linear:
            fewer = tuple(p for p in row.linear if p != position)
            yield _fault(name, "linear", fewer, f"is not linear in operand {position}", f"without {position}")
        if not (row.linear or row.bilinear or row.filled is not None or row.zeros or row.counts):
            yield _fault(name, "linear", (0,), "counts as linear", "gained")
        if row.bilinear:
            yield _fault(name, "bilinear", False, "is linear in nothing")
        for overload in row.nonlinear:
            fewer = tuple(o for o in row.nonlinear if o != overload)
            yield _fault(name, "nonlinear", fewer, f"is linear as {overload}, too", overload)
        if row.rows is not None:
            yield _fault(name, "rows", *_turned(row))
        if row.contracts is not None:
            yield _fault(name, "contracts", 1 - row.contracts, "sums over the dimension of another operand")
        if row.native is not None:
            yield _fault(name, "native", *_another_code(row))
        for field, said in (
            ("addresses", "counts as work"), ("zeros", "is not known to be zero"), ("counts", "may count rows"),
            ("broadcasts", "needs its operands expanded"),
        ):  # fmt: skip
            if getattr(row, field):
                yield _fault(name, field, False, said)
        if not row.recomputed:
            yield _fault(name, "recomputed", True, "is computed again in the backward pass")
        if row.filled is not None:
            yield _fault(name, "filled", row.filled + 1, "is filled with another argument")
        if row.lookup is not None:
            yield _fault(name, "lookup", None, "has no indices")
    assert Operation("").linear == ()


def _turned(row: Any) -> tuple[Any, str]:
    """Another rule: the dangerous one, that rows never meet; or where that is right, that they are added up."""
    from elman.circuit.operations import RowRule

    if row.rows in (RowRule.ELEMENTS, RowRule.TURNS):
        return RowRule.ADDS_ROWS, "adds up its rows"
    return RowRule.TURNS, "keeps rows apart, whatever it does"


def _another_code(row: Any) -> tuple[Any, str]:
    """The kernel that comes next in the table among its family."""
    from elman.circuit.operations import OPERATIONS, NativeOp

    codes = list(dict.fromkeys(
        op.native.code for op in OPERATIONS.values() if op.native is not None and op.native.family == row.native.family
    ))  # fmt: skip
    code = codes[(codes.index(row.native.code) + 1) % len(codes)]
    return NativeOp(row.native.family, code), f"is computed by the kernel of {code}"


def _fault(name: str, field: str, value: Any, breaks: str, which: str = "") -> Mutant:
    more = (
        "import dataclasses\n\n"
        f'OPERATIONS["{name}"] = dataclasses.replace(OPERATIONS["{name}"], {field}={_source(value)})'
    )
    label = f"table {name}.{field}" + (f" {which}" if which else "")
    first = (
        f"circuit/test_table.py -k 'of-{name}- or says_in_what or only_addresses or overloads or broadcasts'"
    )
    tests = (
        (_WIDER[field],)
        if field in ("native", "recomputed", "apart")
        else (first, *_TABLE[1:], *filter(None, [_WIDER.get(field)]))
    )
    return Mutant(label, "the table of operations", _FILE, appended(more), f"{name} {breaks}", tests)


def _source(value: Any) -> str:
    import enum

    return str(value) if isinstance(value, enum.Enum) else repr(value)
