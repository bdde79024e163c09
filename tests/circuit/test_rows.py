"""The rules for rows as a table, and each verdict against what the operation does to real tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import fx

from elman.circuit.graphs import insert, run
from elman.circuit.linear import stays_summed
from elman.circuit.rows import Mixed, Rows, carries, factor, rows_of
from elman.circuit.verdict import ROWWISE, SUMMED, Does, Verdict, batch_as_value, verdict
from elman.trace.fakes import Fakes

aten = torch.ops.aten
Tensor = torch.Tensor
B = "B"
ANY = "a reason"


@dataclass(frozen=True)
class Row:
    """One line of the table: shapes of the operands (B is the batch), the call, the verdict or words of the reason."""

    name: str
    shapes: tuple[tuple[Any, ...], ...]
    call: Callable[..., Any]
    said: Verdict | str
    integer: tuple[int, ...] = ()  # operands that are indices below 3


def op(target: Any, *after: Any, **named: Any) -> Callable[..., Any]:
    return lambda make, *operands: make(target, *operands, *after, **named)


def through(target: Any, *after: Any) -> Callable[..., Any]:
    """A call whose operands go in as a list."""
    return lambda make, *operands: make(target, list(operands), *after)


TABLE = [
    # Products, the batch in every place.
    Row("mm_rows_free", ((B, 3), (3, 4)), op(aten.mm.default), ROWWISE),
    Row("mm_rows_free_right", ((4, 3), (3, B)), op(aten.mm.default), ROWWISE),
    Row("mm_contracted", ((4, B), (B, 3)), op(aten.mm.default), SUMMED),
    Row("mm_pairs", ((B, 3), (3, B)), op(aten.mm.default), "two dimensions"),
    Row("bmm_rows", ((B, 2, 3), (B, 3, 4)), op(aten.bmm.default), ROWWISE),
    Row("bmm_free", ((2, B, 3), (2, 3, 4)), op(aten.bmm.default), ROWWISE),
    Row("bmm_free_right", ((2, 4, 3), (2, 3, B)), op(aten.bmm.default), ROWWISE),
    Row("bmm_contracted", ((2, 3, B), (2, B, 4)), op(aten.bmm.default), SUMMED),
    Row("bmm_pairs", ((2, B, 3), (2, 3, B)), op(aten.bmm.default), "two dimensions"),
    Row("addmm_bias", ((4,), (B, 3), (3, 4)), op(aten.addmm.default), ROWWISE),
    Row("addmm_rows", ((B, 4), (B, 3), (3, 4)), op(aten.addmm.default), ROWWISE),
    Row("addmm_contracted", ((2, 4), (2, B), (B, 4)), op(aten.addmm.default), "contracts the batch"),
    # Pointwise.
    Row("tanh", ((B, 3),), op(aten.tanh.default), ROWWISE),
    Row("add", ((B, 3), (3,)), op(aten.add.Tensor), ROWWISE),
    Row("add_rows", ((B, 3), (B, 1)), op(aten.add.Tensor), ROWWISE),
    Row("add_second_dimension", ((3, B), (3, B)), op(aten.add.Tensor), ROWWISE),
    Row("add_crossed", ((B, 1), (1, B)), op(aten.add.Tensor), "two dimensions"),
    Row("where", ((B, 3), (B, 3)), lambda make, a, b: make(aten.where.self, make(aten.gt.Scalar, a, 0), a, b), ROWWISE),
    # Along the features, along the batch.
    *(
        Row(f"{name}_features", ((B, 3),), op(target, *features), ROWWISE)
        for name, target, features in (
            ("softmax", aten._softmax.default, (1, False)), ("log_softmax", aten._log_softmax.default, (-1, False)),
            ("cumsum", aten.cumsum.default, (1,)), ("flip", aten.flip.default, ([1],)),
            ("roll", aten.roll.default, ([1], [1])), ("mean", aten.mean.dim, ([1],)),
            ("amax", aten.amax.default, ([-1],)), ("sum", aten.sum.dim_IntList, ([1],)),
            ("var_mean", aten.var_mean.correction, ([1],)), ("sort", aten.sort.default, (1,)),
            ("slice", aten.slice.Tensor, (1, 0, 2)), ("select", aten.select.int, (1, 0)),
            ("argmax", aten.argmax.default, (1,)), ("logsumexp", aten.logsumexp.default, ([1],)),
            ("pad", aten.constant_pad_nd.default, ([1, 2],)), ("prod", aten.prod.dim_int, (1,)),
        )
    ),
    *(
        Row(f"{name}_batch", ((B, 3),), op(target, *batch), "along the batch")
        for name, target, batch in (
            ("softmax", aten._softmax.default, (0, False)), ("cumsum", aten.cumsum.default, (0,)),
            ("flip", aten.flip.default, ([0],)), ("roll", aten.roll.default, ([1], [0])),
            ("mean", aten.mean.dim, ([0],)), ("mean_both", aten.mean.dim, ([0, 1],)),
            ("amax", aten.amax.default, ([0],)),
            ("var_mean", aten.var_mean.correction, ([0],)), ("sort", aten.sort.default, (-2,)),
            ("select", aten.select.int, (0, 0)), ("argmax", aten.argmax.default, (0,)),
            ("logsumexp", aten.logsumexp.default, ([0],)), ("prod", aten.prod.dim_int, (0,)),
        )
    ),
    Row("sum_batch", ((B, 3),), op(aten.sum.dim_IntList, [0]), SUMMED),
    Row("sum_both", ((B, 3),), op(aten.sum.dim_IntList, [0, 1]), SUMMED),
    Row("sum_all", ((B, 3),), op(aten.sum.default), SUMMED),
    Row("sum_second", ((3, B),), op(aten.sum.dim_IntList, [-1]), SUMMED),
    Row("layer_norm", ((B, 3), (3,), (3,)), lambda make, x, w, b: make(
        aten.native_layer_norm.default, x, [3], w, b, 1e-5), ROWWISE),
    # Views.
    Row("reshape_features", ((B, 6),), op(aten.reshape.default, [-1, 2, 3]), ROWWISE),
    Row("reshape_into_rows", ((B, 2, 3),), op(aten.reshape.default, [-1, 3]), ROWWISE),
    Row("reshape_moves", ((2, B, 3),), op(aten.reshape.default, [-1, 3]), "moves the batch"),
    Row("permute", ((B, 2, 3),), op(aten.permute.default, [1, 0, 2]), ROWWISE),
    Row("expand", ((B, 1),), op(aten.expand.default, [-1, 4]), ROWWISE),
    Row("unsqueeze", ((B, 3),), op(aten.unsqueeze.default, 0), ROWWISE),
    Row("repeat_features", ((B, 3),), op(aten.repeat.default, [1, 2]), ROWWISE),
    Row("repeat_batch", ((B, 3),), op(aten.repeat.default, [2, 1]), "repeats the batch"),
    # Concatenation.
    Row("cat_features", ((B, 3), (B, 2)), through(aten.cat.default, 1), ROWWISE),
    Row("cat_batch", ((B, 3), (B, 3)), through(aten.cat.default, 0), "along the batch"),
    # Reading and writing by index.
    Row("embedding", ((5, 3), (B,)), op(aten.embedding.default), ROWWISE, (1,)),
    Row("embedding_of_rows", ((B, 3), (2,)), op(aten.embedding.default), "carries the batch", (1,)),
    Row("gather_features", ((B, 3), (B, 2)), lambda make, a, i: make(aten.gather.default, a, 1, i), ROWWISE, (1,)),
    Row("gather_batch", ((B, 3), (B, 3)), lambda make, a, i: make(
        aten.gather.default, a, 0, i), "along the batch", (1,)),
    Row("scatter_features", ((B, 3), (B, 2), (B, 2)), lambda make, a, i, v: make(
        aten.scatter_add.default, a, 1, i, v), ROWWISE, (1,)),
    Row("index_features", ((B, 3), (2,)), lambda make, a, i: make(aten.index.Tensor, a, [None, i]), ROWWISE, (1,)),
    Row("index_batch", ((B, 3), (2,)), lambda make, a, i: make(aten.index.Tensor, a, [i]), ANY, (1,)),
    Row("index_table", ((5, 3), (B,)), lambda make, a, i: make(aten.index.Tensor, a, [i]), ROWWISE, (1,)),
    Row("index_select_features", ((B, 3), (2,)), lambda make, a, i: make(
        aten.index_select.default, a, 1, i), ROWWISE, (1,)),
    Row("index_put_sum", ((B, 3), (B,)), lambda make, v, i: make(
        aten.index_put.default, make(aten.zeros.default, [5, 3], dtype=torch.float64), [i], v, True), SUMMED, (1,)),
    Row("index_put_overwrites", ((B, 3), (B,)), lambda make, v, i: make(
        aten.index_put.default, make(aten.zeros.default, [5, 3], dtype=torch.float64), [i], v, False), ANY, (1,)),
    Row("embedding_backward", ((B, 3), (B,)), lambda make, g, i: make(
        aten.embedding_dense_backward.default, g, i, 5, -1, False), SUMMED, (1,)),
]  # fmt: skip


def built(row: Row) -> tuple[fx.Graph, fx.Node]:
    fakes = Fakes()
    graph = fx.Graph()
    operands = []
    for k, shape in enumerate(row.shapes):
        sizes = [fakes.batch if size == B else size for size in shape]
        dtype = torch.int64 if k in row.integer else torch.float64
        with fakes.mode:
            value = torch.empty(sizes, dtype=dtype)
        node = graph.create_node("placeholder", f"a{k}", (), {}, name=f"a{k}")
        node.meta["val"] = value
        operands.append(node)

    def make(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with fakes.mode:
            return insert(graph, target, *args, **kwargs)

    node = row.call(make, *operands)
    graph.output({"out": node})
    return graph, node


def parts(value: Any) -> list[Tensor]:
    return [v for v in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(v, Tensor)]


def operands_of(row: Row, batch: int) -> list[Tensor]:
    made = []
    for k, shape in enumerate(row.shapes):
        sizes = [batch if size == B else size for size in shape]
        made.append(
            torch.randint(0, 2, sizes) if k in row.integer else torch.randn(sizes, dtype=torch.float64)
        )
    return made


def rows_kept(row: Row, values: list[Tensor], chosen: Tensor) -> list[Tensor]:
    """The operands with only the chosen rows of the batch."""
    return [
        value.index_select(shape.index(B), chosen) if B in shape else value
        for value, shape in zip(values, row.shapes, strict=True)
    ]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_the_verdict(row: Row) -> None:
    _, node = built(row)
    said = verdict(node)
    if row.said in (ROWWISE, SUMMED):
        assert said == row.said
    else:
        assert said not in (ROWWISE, SUMMED)
        assert row.said == ANY or str(row.said) in said.reason
        assert said.does is not Does.UNKNOWN, "a rule spoke, not the lack of one"


@pytest.mark.parametrize(
    "row", [row for row in TABLE if row.said in (ROWWISE, SUMMED)], ids=lambda row: row.name
)
def test_the_verdict_is_true_of_real_tensors(row: Row) -> None:
    """ROWWISE: rows chosen before are rows chosen after. SUMMED: two halves of the batch add up to the whole."""
    graph, node = built(row)

    def compute(values: list[Tensor], batch: int) -> list[Tensor]:
        return parts(run(graph, {f"a{k}": value for k, value in enumerate(values)}, batch)["out"])

    batch = 6
    values = operands_of(row, batch)
    whole = compute(values, batch)
    if verdict(node) == SUMMED:
        halves = [compute(rows_kept(row, values, half), 3) for half in (torch.arange(3), torch.arange(3, 6))]
        for total, first, second in zip(whole, *halves, strict=True):
            torch.testing.assert_close(first + second, total, rtol=1e-12, atol=1e-12)
        return
    for chosen in (torch.tensor([4, 0, 5, 2]), torch.tensor([1]), torch.randperm(batch)):
        alone = compute(rows_kept(row, values, chosen), len(chosen))
        for described, everything, mine in zip(parts(node.meta["val"]), whole, alone, strict=True):
            where = rows_of(described)
            if where is None:
                continue
            many = everything.unflatten(where.dim, (batch, where.factor)).index_select(where.dim, chosen)
            torch.testing.assert_close(many.flatten(where.dim, where.dim + 1), mine, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "row",
    [row for row in TABLE if "along the batch" in row.said or "moves" in row.said],
    ids=lambda row: row.name,
)
def test_what_is_refused_does_mix_rows(row: Row) -> None:
    """A refusal that is not needed would be a rule too strict: here the rows do depend on one another."""
    graph, _ = built(row)
    values = operands_of(row, 6)
    order = torch.tensor([3, 1, 5, 0, 2, 4])

    def compute(given: list[Tensor]) -> Tensor:
        return parts(run(graph, {f"a{k}": value for k, value in enumerate(given)}, 6)["out"])[0]

    mixed, whole = compute(rows_kept(row, values, order)), compute(values)
    fewer = rows_kept(row, values, torch.tensor([0, 1]))
    same = mixed.shape == whole.shape and mixed.shape[:1] == (6,) and torch.allclose(mixed, whole[order])
    assert not same or compute(fewer).shape[0] != 2 or not torch.allclose(compute(fewer), whole[:2])


def test_the_batch_size_as_a_value() -> None:
    fakes, graph = Fakes(), fx.Graph()
    x = graph.create_node("placeholder", "x", (), {}, name="x")
    with fakes.mode:
        x.meta["val"] = torch.empty(fakes.batch, 3)
    size = graph.call_function(aten.sym_size.int, (x, 0))
    size.meta["val"] = fakes.batch
    with fakes.mode:
        scaled = graph.call_function(aten.mul.Tensor, (x, size))
        scaled.meta["val"] = x.meta["val"] * 2
        ranged = graph.call_function(aten.arange.default, (size,))
        ranged.meta["val"] = torch.empty(fakes.batch)
        shaped = graph.call_function(aten.full.default, ([size, 3], 1.0))
        shaped.meta["val"] = torch.empty(fakes.batch, 3)
    halved = graph.call_function(operator.truediv, (size, 2))
    halved.meta["val"] = fakes.batch
    for node in (scaled, ranged, halved):
        assert batch_as_value(node), node
        assert verdict(node).does is Does.BATCH_SIZE
    assert not batch_as_value(shaped)
    assert verdict(shaped) == ROWWISE


def test_two_batch_dimensions() -> None:
    fakes = Fakes()
    with fakes.mode:
        square = torch.empty(fakes.batch, fakes.batch)
        more = torch.empty(fakes.batch + 1, 3)
        many = torch.empty(2, 4 * fakes.batch)
        none = torch.empty(2, 3)
    with pytest.raises(Mixed, match="two dimensions"):
        rows_of(square)
    with pytest.raises(Mixed, match="no multiple"):
        rows_of(more)
    assert rows_of(many) == Rows(1, 4)
    assert rows_of(none) is None
    assert carries(square)
    assert factor(5) == 0
    assert factor(fakes.batch * 3) == 3


def test_an_operation_without_a_rule_says_so() -> None:
    row = Row("svd", ((B, 3, 3),), op(aten.linalg_inv_ex.default), "")
    _, node = built(row)
    assert verdict(node).does is Does.UNKNOWN


def test_what_stays_a_sum() -> None:
    """f(a + b) = f(a) + f(b) for what is let through; a product of two sums, or a sum with a constant, is none."""
    fakes, graph = Fakes(), fx.Graph()
    nodes = []
    for name in ("s", "t", "c"):
        node = graph.create_node("placeholder", name, (), {}, name=name)
        with fakes.mode:
            node.meta["val"] = torch.empty(3, 3)
        nodes.append(node)
    s, t, c = nodes
    with fakes.mode:
        zero = insert(graph, aten.full.default, [3, 3], 0.0)
        i = insert(graph, aten.full.default, [3], 1, dtype=torch.int64)
        m = insert(graph, aten.full.default, [3, 3], True, dtype=torch.bool)
        late = insert(graph, aten.full.default, [3, 3], True, dtype=torch.bool)  # a mask that varies in time
        j = insert(graph, aten.full.default, [1, 3], 1, dtype=torch.int64)

    def stays(target: Any, *args: Any) -> bool:
        with fakes.mode:
            more = {"rounding_mode": "floor"} if target is aten.div.Tensor_mode else {}
            made = insert(graph, target, *args, **more)
        return stays_summed(made, {s, t}, lambda n: n in (c, i, j, m))

    for yes in (
        (aten.permute.default, s, [1, 0]), (aten.neg.default, s), (aten.add.Tensor, s, t), (aten.sub.Tensor, s, t),
        (aten.mul.Tensor, s, c), (aten.mul.Tensor, c, s), (aten.div.Tensor, s, c), (aten.mm.default, s, c),
        (aten.mm.default, c, s), (aten.sum.dim_IntList, s, [0]), (aten.cat.default, [s, t]),
        (aten.slice.Tensor, s, 0, 0, 2),
        (aten.tanh_backward.default, s, c), (aten.mul.Tensor, s, 3.0), (aten.constant_pad_nd.default, s, [1, 1]),
        (aten.where.self, m, s, t), (aten.where.self, m, zero, s), (aten.masked_fill.Scalar, s, m, 0.0),
        (aten.flip.default, s, [0]), (aten.cumsum.default, s, 0), (aten.mean.dim, s, [0]), (aten.zeros_like.default, s),
        (aten.index_put.default, zero, [i], s, True), (aten.gather.default, s, 0, j), (aten.add.Tensor, s, zero),
    ):  # fmt: skip
        assert stays(*yes), yes
    for no in (
        (aten.mul.Tensor, s, t), (aten.mul.Tensor, s, s), (aten.add.Tensor, s, c), (aten.add.Tensor, s, 1.0),
        (aten.div.Tensor, c, s), (aten.mm.default, s, t), (aten.tanh.default, s), (aten.square.default, s),
        (aten.cat.default, [s, c]), (aten.tanh_backward.default, c, s), (aten.abs.default, s),
        (aten.constant_pad_nd.default, s, [1, 1], 1.0), (aten.relu.default, s), (aten.where.self, m, s, c),
        (aten.where.self, late, s, zero), (aten.masked_fill.Scalar, s, m, 1.0), (aten.masked_fill.Scalar, s, late, 0.0),
        (aten.div.Tensor_mode, s, c), (aten.index_put.default, c, [i], s), (aten.cumprod.default, s, 0),
    ):  # fmt: skip
        assert not stays(*no), no
    with fakes.mode:
        rounded = insert(graph, aten._to_copy.default, s, dtype=torch.int64)
    assert not stays_summed(rounded, {s, t}, lambda n: n is c)
