"""The table of operations against the operations themselves: each row's fields are what real tensors show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import fx

from elman.circuit.graphs import insert
from elman.circuit.linear import is_zero
from elman.circuit.operations import OPERATIONS, Operation
from elman.circuit.rows import rows_of
from elman.circuit.verdict import ROWWISE, SUMMED, Does, batch_as_value, verdict
from elman.trace.fakes import Fakes
from tests.circuit.samples import ANY, COMPLEX, REAL, SAMPLES, SHORT, TRUE, UNKNOWN, WHOLE, B, Sample

aten = torch.ops.aten
Tensor = torch.Tensor
BATCH = 6
DTYPES = {
    REAL: torch.float64,
    WHOLE: torch.int64,
    SHORT: torch.int32,
    TRUE: torch.bool,
    COMPLEX: torch.complex128,
}

# Without operands, so without a sample.
OUT_OF_NOTHING = {name for name, op in OPERATIONS.items() if op.counts} | {
    "zeros",
    "empty",
    "full",
    "scalar_tensor",
}
FILLED = ["zeros", "zeros_like", "new_zeros", "full", "full_like", "new_full", "fill", "scalar_tensor"]
# Linear in what it says no word of: it does not occur among sums over rows, and what is not said is never wrong.
NOT_SAID = {"lift_fresh_copy", "copy", "_unsafe_index", "embedding"}
# Gives numbers of its operands, or constants, and counts as work all the same: it copies what it moves, ...
COPIES = {
    "_conj", "_conj_physical", "conj", "_unsafe_index", "alias", "clone", "complex", "copy", "detach", "diag_embed",
    "diagonal", "fill", "imag", "index_select", "lift_fresh_copy", "new_full", "new_ones", "ones_like", "real",
    "repeat", "roll", "split_with_sizes", "tril", "triu", "unbind", "unfold", "view_as_complex", "view_as_real",
}  # fmt: skip
# ... or looks at them first.
CHOOSES = {
    "amax", "amin", "cummax", "cummin", "hardtanh_backward", "kthvalue", "masked_fill", "max", "maximum", "min",
    "minimum", "relu", "sort", "topk", "where",
}  # fmt: skip


def names(sample: Any) -> str:
    """Between dashes, so that `-k of-mm-` is mm and not bmm."""
    return f"of-{sample if isinstance(sample, str) else sample.name}-"


def called(sample: Sample) -> fx.Node:
    """The operation in a graph of fake tensors, with a symbolic batch."""
    fakes, graph, operands = Fakes(), fx.Graph(), []
    for k, shape in enumerate(sample.shapes):
        with fakes.mode:
            value = torch.empty(
                [fakes.batch if size == B else size for size in shape], dtype=DTYPES[sample.type(k)]
            )
        node = graph.create_node("placeholder", f"a{k}", (), {}, name=f"a{k}")
        node.meta["val"] = value
        operands.append(node)

    def make(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with fakes.mode:
            return insert(graph, target, *args, **kwargs)

    made = sample.call(make, *operands)
    assert isinstance(made, fx.Node)
    return made


def operands_of(sample: Sample) -> list[Tensor]:
    """Numbers on both sides of 0, 1 and 3."""
    made = []
    for k, shape in enumerate(sample.shapes):
        sizes, kind = [BATCH if size == B else size for size in shape], sample.type(k)
        if kind in (WHOLE, SHORT):
            made.append(torch.randint(1, 3, sizes, dtype=DTYPES[kind]))
        elif kind == TRUE:
            made.append(torch.rand(sizes) < 0.5)
        else:
            made.append(torch.randn(sizes, dtype=DTYPES[kind]) * 2)
    return made


def arguments(sample: Sample, operands: list[Tensor]) -> tuple[Any, list[Any], dict[str, Any]]:
    """What is called last, and with what."""
    calls: list[Any] = []

    def make(target: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((target, list(args), kwargs))
        return target(*args, **kwargs)

    sample.call(make, *operands)
    return calls[-1]


def results(target: Any, args: list[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    given = [list(a) if isinstance(a, list) else a.clone() if isinstance(a, Tensor) else a for a in args]
    made = target(*given, **kwargs)
    return [
        part for part in (made if isinstance(made, (tuple, list)) else (made,)) if isinstance(part, Tensor)
    ]


def added(a: Any, b: Any) -> Any:
    return [added(x, y) for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a + b


def is_linear(sample: Sample, positions: tuple[int, ...]) -> bool:
    """Whether f(a + b) = f(a) + f(b) in the operands at these positions, the others as they are."""
    target, args, kwargs = arguments(sample, operands_of(sample))
    _, others, _ = arguments(sample, operands_of(sample))
    here = [p for p in positions if p < len(args) and _holds_tensors(args[p])]
    b, whole = list(args), list(args)
    for p in here:
        b[p], whole[p] = others[p], added(args[p], others[p])
    count = (
        1 if sample.name == "triangular_solve" else 9
    )  # its second result is the matrix, which nobody reads
    return bool(here) and all(
        torch.allclose(
            total.to(torch.complex128), (one + two).to(torch.complex128), equal_nan=True, rtol=1e-9, atol=1e-9
        )
        and total.dtype in (torch.float64, torch.complex128)
        for total, one, two in zip(
            *(results(target, a, kwargs)[:count] for a in (whole, args, b)), strict=True
        )
        if total.numel()
    )


def _holds_tensors(value: Any) -> bool:
    parts = value if isinstance(value, list) else [value]
    return bool(parts) and all(
        isinstance(p, Tensor) and p.dtype in (torch.float64, torch.complex128) for p in parts
    )


def sampled() -> Iterator[tuple[Operation, list[Sample]]]:
    for operation in OPERATIONS.values():
        if not operation.apart and operation.name not in OUT_OF_NOTHING:
            yield operation, [s for s in SAMPLES if s.name == operation.name]


NAMES = [operation.name for operation, _ in sampled()]


def test_every_row_has_a_sample() -> None:
    assert {s.name for s in SAMPLES} == set(NAMES)


@pytest.mark.parametrize("sample", SAMPLES, ids=names)
def test_the_verdict(sample: Sample) -> None:
    said = verdict(called(sample))
    if sample.said in (ROWWISE, SUMMED):
        assert said == sample.said
    else:
        assert said not in (ROWWISE, SUMMED)
        assert sample.said == ANY or str(sample.said) in said.reason
        assert sample.said in (ANY, UNKNOWN) or said.does is not Does.UNKNOWN


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.said in (ROWWISE, SUMMED) and s.fixed], ids=names)
def test_the_verdict_is_true(sample: Sample) -> None:
    """ROWWISE: rows chosen before are rows chosen after. SUMMED: two halves of the batch add up to the whole."""
    operands = operands_of(sample)

    def some(rows: list[int]) -> list[Tensor]:
        chosen = [
            v.index_select(shape.index(B), torch.tensor(rows)) if B in shape else v
            for v, shape in zip(operands, sample.shapes, strict=True)
        ]
        return results(*arguments(sample, chosen))

    whole = some([*range(BATCH)])
    if sample.said == SUMMED:
        for total, first, second in zip(whole, some([0, 1, 2]), some([3, 4, 5]), strict=True):
            torch.testing.assert_close(first + second, total, rtol=1e-12, atol=1e-12)
        return
    described = called(sample).meta["val"]
    parts = [
        p for p in (described if isinstance(described, (tuple, list)) else (described,)) if p is not None
    ]
    for one, everything, mine in zip(parts, whole, some([4, 0, 5]), strict=True):
        where = rows_of(one)
        if where is not None:
            many = everything.unflatten(where.dim, (BATCH, where.factor)).index_select(
                where.dim, torch.tensor([4, 0, 5])
            )
            torch.testing.assert_close(many.flatten(where.dim, where.dim + 1), mine, equal_nan=True)


@pytest.mark.parametrize("name", NAMES, ids=names)
def test_an_operation_is_linear_in_what_it_says(name: str) -> None:
    operation = OPERATIONS[name]
    for sample in (s for s in SAMPLES if s.name == name):
        assert sample.fixed or not operation.linear, "random numbers, or any"
        if operation.linear:
            assert is_linear(sample, operation.linear), sample
        if operation.bilinear:
            assert is_linear(sample, (0,)), sample
            assert is_linear(sample, (1,)), sample
            assert not is_linear(sample, (0, 1)), sample


def test_an_operation_says_in_what_it_is_linear() -> None:
    silent = {
        name
        for name in NAMES
        if not (OPERATIONS[name].linear or OPERATIONS[name].bilinear or OPERATIONS[name].zeros)
        for samples in [[s for s in SAMPLES if s.name == name and s.fixed]]
        if any(samples and all(is_linear(s, (p,)) for s in samples) for p in range(4))
    }
    assert silent == NOT_SAID


@pytest.mark.parametrize(("name", "overload"), [
    ("div", "Tensor_mode"), ("div", "Scalar_mode"), ("scatter", "reduce"), ("scatter", "value_reduce"),
])  # fmt: skip
def test_overloads_that_are_not_linear_are_said(name: str, overload: str) -> None:
    x, i, two = (
        torch.tensor([[0.7, -0.7]]).double(),
        torch.tensor([[0, 0]]),
        torch.tensor([[2.0, 2.0]]).double(),
    )
    f = {
        "Tensor_mode": lambda x: aten.div.Tensor_mode(x, two, rounding_mode="floor"),
        "Scalar_mode": lambda x: aten.div.Scalar_mode(x, 2.0, rounding_mode="trunc"),
        "reduce": lambda x: aten.scatter.reduce(x, 1, i, x, reduce="multiply"),
        "value_reduce": lambda x: aten.scatter.value_reduce(x, 1, i, 2.0, reduce="add"),
    }[overload]
    assert not torch.allclose(f(3 * x), f(x) + f(2 * x))
    assert overload in OPERATIONS[name].nonlinear


def test_what_only_addresses_computes_nothing() -> None:
    """Every number of the result is one of an operand, or 0, or what it is filled with."""
    assert all(OPERATIONS[name].addresses for name in ("zeros", "empty", "full"))
    found = set()
    for operation, samples in sampled():
        moves = True
        for sample in (s for s in samples if s.fixed):
            target, args, kwargs = arguments(sample, operands_of(sample))
            given = [a for arg in args for a in (arg if isinstance(arg, list) else [arg])]
            known = {0.0, 1.0} | {float(a) for a in given if isinstance(a, (int, float))}
            for a in given:
                if isinstance(a, Tensor) and a.dtype in (torch.float64, torch.complex128):
                    known |= set(
                        torch.view_as_real(a).flatten().tolist() if a.is_complex() else a.flatten().tolist()
                    )
                    known |= {-v for v in known} if a.is_complex() else set()
            made = results(target, args, kwargs)[0]
            flat = (
                torch.view_as_real(made.resolve_conj()).flatten()
                if made.is_complex()
                else made.flatten().double()
            )
            moves &= made.dtype != torch.bool and set(flat.tolist()) <= known
        if moves and any(s.fixed for s in samples):
            found.add(operation.name)
        elif any(s.fixed for s in samples):
            assert not operation.addresses, operation
    assert {name for name in found if not OPERATIONS[name].addresses} == COPIES | CHOOSES


@pytest.mark.parametrize("name", ["arange", "linspace", "randperm", "eye", "tril_indices"], ids=names)
def test_what_counts_computes_with_the_number_of_rows(name: str) -> None:
    fakes, graph = Fakes(), fx.Graph()
    x = graph.create_node("placeholder", "x", (), {}, name="x")
    with fakes.mode:
        x.meta["val"] = torch.empty(fakes.batch, 3)
    size = graph.call_function(aten.sym_size.int, (x, 0))
    size.meta["val"] = fakes.batch
    given: dict[str, tuple[Any, ...]] = {"linspace": (0, 1, size), "tril_indices": (size, 3)}
    node = graph.call_function(getattr(aten, name).default, given.get(name, (size,)))
    node.meta["val"] = torch.empty(3)
    assert batch_as_value(node)


@pytest.mark.parametrize("name", FILLED, ids=names)
def test_what_is_filled_with_zero_is_zero(name: str) -> None:
    fakes, graph = Fakes(), fx.Graph()
    x = graph.create_node("placeholder", "x", (), {}, name="x")
    with fakes.mode:
        x.meta["val"] = torch.empty(2, 3)

    def made(number: float) -> fx.Node:
        target = aten.fill.Scalar if name == "fill" else getattr(aten, name).default
        before: dict[str, tuple[Any, ...]] = {
            "zeros": ([2, 3],), "full": ([2, 3],), "new_zeros": (x, [2, 3]), "new_full": (x, [2, 3]),
            "scalar_tensor": (),
        }  # fmt: skip
        args = before.get(name, (x,)) + (() if OPERATIONS[name].zeros or "zeros" in name else (number,))
        with fakes.mode:
            return insert(graph, target, *args)

    assert is_zero(made(0.0))
    assert is_zero(made(1.0)) == ("zeros" in name)


@pytest.mark.parametrize("name", ["mm", "bmm", "addmm"], ids=names)
def test_a_product_sums_over_what_it_contracts(name: str) -> None:
    """Over the last dimension of that operand: with the other's it makes no number of the result."""
    (sample, *_) = (s for s in SAMPLES if s.name == name and s.said == ROWWISE)
    target, args, kwargs = arguments(sample, operands_of(sample))
    left, right = args[OPERATIONS[name].contracts], args[OPERATIONS[name].contracts + 1]
    assert left.shape[-1] == right.shape[-2] != right.shape[-1]
    args[OPERATIONS[name].contracts] = torch.zeros_like(left)
    (made,) = results(target, args, kwargs)
    assert torch.equal(made, args[0].expand_as(made) if name == "addmm" else torch.zeros_like(made))


def test_what_broadcasts_needs_no_operand_expanded() -> None:
    for name in ("add", "sub", "mul", "div", "maximum", "minimum", "where"):
        assert OPERATIONS[name].broadcasts
        x, y = torch.randn(BATCH, 3), torch.randn(3)
        packet = getattr(aten, name)
        f = (
            packet.self
            if name == "where"
            else packet.Tensor
            if "Tensor" in packet.overloads()
            else packet.default
        )
        first = (x > 0,) if name == "where" else ()
        assert torch.equal(f(*first, x, y), f(*first, x, y.expand(BATCH, 3).contiguous()))
