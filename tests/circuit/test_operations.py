"""The table of operations: every row is one of ATen's, every rule is there, and nobody keeps a table beside it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from elman.circuit.operations import _TABLE, OPERATIONS, Lookup, RowRule, operation_named
from elman.circuit.verdict import RULES
from elman.engines.lookups import LOOKUPS
from elman.engines.native.extension import compiled, why_not_built

aten = torch.ops.aten
ELMAN = Path(__file__).resolve().parents[2] / "elman"
# What a file makes of operations, rather than what they are.
OWN = {
    "noise.py": "random operations as arithmetic",
    "trace/normal.py": "the normal form of each",
    "trace/values.py": "what comes out of each that goes without saying",
    "engines/codegen.py": "the shorter ways to call some",
    "vmapped/step.py": "what keeps the examples' dimension where it is",
    "online/reach.py": "which hand on a NaN by themselves",
    "export/onnx/operators.py": "what each becomes in ONNX",
    "export/step/statements.py": "what each code of the native engine is in C and JavaScript",
    "export/c/__init__.py": "the functions of C's library, and those that it lacks",
    # engines/native/: what each becomes in a program
}


def test_every_row_is_an_operation_of_its_own() -> None:
    assert len(OPERATIONS) == len(_TABLE)
    assert [name for name in OPERATIONS if not hasattr(aten, name)] == []


def test_every_rule_is_there() -> None:
    assert set(RULES) == set(RowRule)
    assert set(LOOKUPS) == set(Lookup)


def test_operands_are_those_of_the_operation() -> None:
    for operation in OPERATIONS.values():
        packet = getattr(aten, operation.name)
        most = max(len(getattr(packet, overload)._schema.arguments) for overload in packet.overloads())
        positions = [
            *operation.linear,
            *(p for p in (operation.contracts, operation.filled) if p is not None),
        ]
        assert all(position < most for position in positions), operation
        assert set(operation.nonlinear) <= set(packet.overloads()), operation
        assert not (operation.linear and operation.bilinear), operation


def test_the_backward_of_an_operation_is_linear_in_the_gradient() -> None:
    backwards = [op for op in OPERATIONS.values() if op.name.endswith(("_backward", "_backward_data"))]
    assert [op.name for op in backwards if op.linear != (0,) and not op.apart] == []
    assert operation_named(aten.gelu_backward.default).linear == (0,)
    assert operation_named(aten.gelu.default).linear == ()


@pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")
def test_the_native_engine_has_what_the_table_says() -> None:
    codes = {op.native.code for op in OPERATIONS.values() if op.native is not None}
    assert codes <= set(compiled.CODES)


def test_nothing_but_aten_has_a_row() -> None:
    assert operation_named(torch.relu).name == ""
    assert operation_named(torch.ops.prims.sum.default).rows is None


def tables(source: str) -> Iterator[int]:
    """Lines on which a set, dict, list or tuple of three or more operations of ATen is written down."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Dict(keys=parts) | ast.Set(elts=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
                if len(parts) > 2 and all(part is not None and _is_operation(part) for part in parts):
                    yield node.lineno


def _is_operation(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value in OPERATIONS
    return isinstance(node, ast.Attribute) and "aten." in ast.unparse(node)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("X = {aten.mm.default, aten.bmm.default, aten.addmm.default}", 1),
        ("X = {'mm': 1, 'bmm': 2, 'addmm': 3}", 1),
        ("if name in ('mm', 'bmm', 'addmm'): pass", 1),
        ("X = {'mm', 'bmm'}", 0),
        ("X = ('mean', 'median', 'mode')", 0),
    ],
)
def test_a_table_is_found(source: str, count: int) -> None:
    assert len(list(tables(source))) == count


def test_there_is_one_table() -> None:
    found = set()
    for path in sorted(ELMAN.rglob("*.py")):
        name = path.relative_to(ELMAN).as_posix()
        if not name.startswith("engines/native/") and any(tables(path.read_text("utf-8"))):
            found.add(name)
    assert found == set(OWN)
