"""Products outside the loop, and random numbers: the native ones are right, and have the same bits for all threads."""

from __future__ import annotations

import pytest
import torch

from elman.circuit.graphs import results_of
from elman.engines.native import grouped, why_not_built
from elman.plan.form import Stage
from tests.circuits import training_of

pytestmark = pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")

Tensor = torch.Tensor
REAL = (torch.float32, torch.float64)
# (m, n, k): sizes around tiles, panels and blocks; sums longer than a block; nothing at all.
SIZES = [
    (1, 1, 1), (7, 5, 3), (13, 33, 17), (6, 16, 256), (25, 70, 257), (300, 64, 20), (20, 300, 600),
    (1100, 48, 64), (48, 40, 1100), (0, 4, 3), (4, 0, 3), (4, 3, 0), (1, 9, 0),
]  # fmt: skip
FORMS = ("plain", "turned", "sliced", "strewn", "same rows")


def native() -> object:
    from elman import _native

    return _native


def instruction_sets() -> list[str]:
    return [] if why_not_built() is not None else list(native().instruction_sets())  # type: ignore[attr-defined]


def multiply(
    isa: str, products: list[tuple[Tensor | None, Tensor, Tensor | None]], threads: int = 1
) -> list[Tensor]:
    """What comes out for (a, b, start), in memory that held NaN before."""
    told, made = [], []
    for a, b, start in products:
        out = b.new_full((1 if a is None else a.shape[0], b.shape[1]), float("nan"))
        told.append((a, b, start, out))
        made.append(out)
    native().Multiplier(isa, made[0].dtype is torch.float64)(tuple(told), threads)  # type: ignore[attr-defined]
    return made


def matrix(rows: int, columns: int, dtype: torch.dtype, form: str, seed: int) -> Tensor:
    """Random numbers, lying in memory as `form` says."""
    g = torch.Generator().manual_seed(seed)
    if form == "turned":
        return torch.randn(columns, rows, dtype=dtype, generator=g).t()
    if form == "sliced":
        return torch.randn(rows, columns + 5, dtype=dtype, generator=g)[:, 2 : columns + 2]
    if form == "strewn":  # neither rows nor columns in order
        return torch.randn(rows, columns, 2, dtype=dtype, generator=g)[:, :, 1]
    if form == "same rows":
        return torch.randn(1, columns, dtype=dtype, generator=g).expand(rows, columns)
    return torch.randn(rows, columns, dtype=dtype, generator=g)


def assert_near(got: Tensor, a: Tensor | None, b: Tensor, start: Tensor | None) -> None:
    """Against the sum in double precision, within what sums by blocks of 256 can be wrong."""
    left = torch.ones(1, b.shape[0], dtype=torch.float64) if a is None else a.double()
    right = left @ b.double() + (0 if start is None else start.double())
    size = left.abs() @ b.double().abs() + (0 if start is None else start.double().abs())
    unit = torch.finfo(got.dtype).eps
    assert (got.double() - right).abs().le(unit * (4 + min(b.shape[0], 256) + b.shape[0] / 256) * size).all()


@pytest.mark.grid
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("one", FORMS)
@pytest.mark.parametrize("other", FORMS)
def test_products_and_sums(
    size: tuple[int, int, int], one: str, other: str, dtype: torch.dtype, isa: str
) -> None:
    g, (m, n, k) = torch.Generator().manual_seed(1), size
    bias, before = torch.randn(n, dtype=dtype, generator=g), torch.randn(m, n, dtype=dtype, generator=g)
    a, b = matrix(m, k, dtype, one, 2), matrix(k, n, dtype, other, 3)
    for start in (None, bias, before):
        (made,) = multiply(isa, [(a, b, start)])
        assert_near(made, a, b, start)
    (total,) = multiply(isa, [(None, b, None)])
    assert_near(total, None, b, None)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("rows", [1, 40, 700, 3000])
def test_bits_do_not_depend_on_threads_or_company(rows: int, isa: str) -> None:
    """A backward pass: gradients of weights and inputs read the same rows chunk by chunk, one starts from another."""
    d, h, x = (matrix(rows, width, torch.float32, "plain", width) for width in (96, 32, 40))
    U, V = matrix(96, 40, torch.float32, "plain", 4), matrix(96, 40, torch.float32, "plain", 5)
    dx = torch.full((rows, 40), float("nan"))

    def products(threads: int) -> list[Tensor]:
        told = [(d.t(), h, None), (d.t(), x, None), (None, d, None), (d, U, None), (d, V, dx)]
        outs = [
            torch.full((96, 32), float("nan")),
            torch.full((96, 40), float("nan")),
            torch.full((1, 96), float("nan")),
        ]
        outs += [dx, torch.full((rows, 40), float("nan"))]
        given = tuple((*product, out) for product, out in zip(told, outs, strict=True))
        native().Multiplier(isa, False)(given, threads)  # type: ignore[attr-defined]
        return [out.clone() for out in outs]

    alone = products(1)
    for a, b, made in ((d.t(), h, alone[0]), (d.t(), x, alone[1]), (d, U, alone[3])):
        assert_near(made, a, b, None)
    assert_near(alone[2], None, d, None)
    assert_near(alone[4], torch.cat([d, d], 1), torch.cat([U, V]), None)
    for threads in (2, 3, 4):
        for made, expected in zip(products(threads), alone, strict=True):
            assert torch.equal(made, expected)
    for (a, b), expected in zip(((d.t(), h), (d.t(), x), (None, d), (d, U)), alone[:4], strict=True):
        assert torch.equal(multiply(isa, [(a, b, None)])[0], expected)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 40, 511, 600])
def test_threads_share_the_columns_of_few_rows(rows: int, isa: str) -> None:
    """Of which one product starts from what another one makes; its columns are no whole number of panels."""
    x, h = (matrix(rows, width, torch.float32, "plain", width) for width in (70, 300))
    U, W = matrix(70, 530, torch.float32, "plain", 1), matrix(530, 300, torch.float32, "plain", 2).t()
    bias = torch.linspace(-1, 1, 530)

    def made(threads: int) -> list[Tensor]:
        outs = [torch.full((rows, 530), float("nan")) for _ in range(3)]
        given = ((x, U, bias, outs[0]), (h, W, outs[0], outs[1]), (h, W, None, outs[2]))
        native().Multiplier(isa, False)(given, threads)  # type: ignore[attr-defined]
        return outs

    alone = made(1)
    assert_near(alone[0], x, U, bias)
    assert_near(alone[1], torch.cat([x, h], 1), torch.cat([U, W]), bias)
    assert_near(alone[2], h, W, None)
    for threads in (2, 3, 4, 9):
        assert all(torch.equal(one, expected) for one, expected in zip(made(threads), alone, strict=True))


def test_a_sum_over_rows_that_another_one_starts_from_is_complete() -> None:
    """Both are summed over 2,000 rows: taken chunk by chunk, the second would begin with a part of the first."""
    a, b, c, e = (matrix(2000, 24, torch.float64, "plain", seed) for seed in range(4))
    first, second = torch.full((24, 24), float("nan")).double(), torch.full((24, 24), float("nan")).double()
    native().Multiplier(instruction_sets()[0], True)(((a.t(), b, None, first), (c.t(), e, first, second)), 2)  # type: ignore[attr-defined]
    torch.testing.assert_close(second, a.t() @ b + c.t() @ e, rtol=1e-11, atol=1e-11)


def test_what_does_not_fit_is_refused() -> None:
    a, b = torch.zeros(3, 4), torch.zeros(5, 6)
    call = native().Multiplier(instruction_sets()[0], False)  # type: ignore[attr-defined]
    for product in (
        (a, b, None, torch.zeros(3, 6)), (a, b[:4], None, torch.zeros(3, 5)), (a, b[:4], None, torch.zeros(6, 3).t()),
        (a, torch.zeros(4), None, torch.zeros(3, 1)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"fit|form|matrices|columns"):
            call((product,), 1)


@pytest.mark.parametrize("name", ["elman", "gru", "lstm", "mgu"])
def test_all_products_of_a_stage_are_one_call(name: str) -> None:
    forward, backward = training_of(name)
    for after in (forward.before, backward.after):
        calls: list[int] = []

        def counted(products: tuple[object, ...], threads: int, calls: list[int] = calls) -> None:
            calls.append(len(products))

        run, arguments = _function(after, counted)
        run(*arguments)
        assert len(calls) == 1, calls


def _function(one: Stage, multiply: object) -> tuple[object, list[object]]:
    placeholders = [node for node in one.graph.nodes if node.op == "placeholder"]
    real = next(n.meta["val"].dtype for n in placeholders if isinstance(n.meta.get("val"), Tensor))
    results = [key for key, node in results_of(one.graph).items() if node.op != "placeholder"]
    run = grouped.function(one.graph, [str(n.target) for n in placeholders], results, multiply, real)  # type: ignore[arg-type]
    values: list[object] = []
    for node in placeholders:
        value = node.meta.get("val")
        shape = (
            [size if isinstance(size, int) else 6 for size in value.shape]
            if isinstance(value, Tensor)
            else None
        )
        values.append(6 if shape is None else torch.zeros(shape, dtype=value.dtype))
    return run, values


# --- random numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", instruction_sets())
def test_uniform_numbers_are_threefry(isa: str) -> None:
    """Random123's known answers for threefry2x32, 20 rounds: counters 0, 0 and key 0, 0."""
    single, double = torch.empty(1, 40), torch.empty(1, 40, dtype=torch.float64)
    native().draw("uniform", single, False, 0, 0, 1, 40, 1, isa)  # type: ignore[attr-defined]
    native().draw("uniform", double, True, 0, 0, 1, 40, 1, isa)  # type: ignore[attr-defined]
    first, second = 0x6B200159, 0x99BA4EFE
    assert single[0, 0].item() == (first >> 8) / 2**24
    assert single[0, 16].item() == (second >> 8) / 2**24
    assert double[0, 0].item() == ((first << 32 | second) >> 11) / 2**53


@pytest.mark.parametrize("dtype", REAL)
def test_uniform_numbers_depend_on_seed_step_and_place_only(dtype: torch.dtype) -> None:
    def drawn(
        first: int, steps: int, count: int, threads: int = 1, isa: str = "", seed: int = 2**63 + 5
    ) -> Tensor:
        to = torch.full((steps, count), float("nan"), dtype=dtype)
        native().draw("uniform", to, dtype is torch.float64, seed, first, steps, count, threads, isa)  # type: ignore[attr-defined]
        return to

    all_steps = drawn(0, 50, 1000)
    assert ((all_steps >= 0) & (all_steps < 1)).all()
    assert torch.equal(drawn(20, 7, 1000), all_steps[20:27])
    assert torch.equal(drawn(0, 50, 333), all_steps[:, :333])  # a smaller batch has the same rows
    for threads in (2, 3):
        assert torch.equal(drawn(0, 50, 1000, threads), all_steps)
    for isa in instruction_sets():
        assert torch.equal(drawn(0, 50, 1000, 2, isa), all_steps)
    assert drawn(0, 50, 1000, seed=6).ne(all_steps).float().mean() > 0.99
    values = drawn(0, 400, 1000).double().flatten()
    counts = torch.histc(values, 64, 0, 1)
    assert ((counts - values.numel() / 64) ** 2 / (values.numel() / 64)).sum() < 130  # chi² of 63 degrees
    for shift in (1, 16, 32, 1000):  # neighbours in a chunk, its two words, chunks, steps
        assert (
            abs(torch.corrcoef(torch.stack([values[:-shift], values[shift:]]))[0, 1])
            < 6 / values.numel() ** 0.5
        )


def test_a_start_may_lie_in_any_way() -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 6)
    call = native().Multiplier(instruction_sets()[0], False)  # type: ignore[attr-defined]
    for start in (
        torch.randn(6, 3).t(),
        torch.randn(3, 12)[:, ::2],
        torch.randn(6).expand(3, 6),
        torch.randn(6, 2)[:, 1],
    ):
        out = torch.full((3, 6), float("nan"))
        call(((a, b, start, out),), 1)
        torch.testing.assert_close(out, a @ b + start)
