"""Products by tiles (native/amx.hpp), where PyTorch was told that they may be: right, only then, the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import elman
from elman.engines.native import Native
from elman.engines.native.extension import compiled
from tests.engines.test_products import FORMS, matrix, multiply
from tests.precision import needs_tiles, precision

Tensor = torch.Tensor
LEAST = 16  # terms of a sum: those of fewer are as ever


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


# --- one product ------------------------------------------------------------------------------------------------------

# (m, n, k) around tiles of 16 and 32, strips, blocks of 256 terms and of 512 columns.
SIZES = [
    (1, 1, 16), (1, 33, 31), (15, 16, 32), (16, 17, 33), (17, 31, 48), (31, 64, 64), (33, 65, 100), (64, 40, 255),
    (20, 513, 256), (48, 70, 257), (300, 24, 20), (12, 600, 530), (5, 7, 1100),
]  # fmt: skip


@needs_tiles
@pytest.mark.parametrize("m, n, k", SIZES)
@pytest.mark.parametrize("left", FORMS)
@pytest.mark.parametrize("right", FORMS)
@pytest.mark.grid(strength=2)
def test_a_product_is_that_of_rounded_factors(m: int, n: int, k: int, left: str, right: str) -> None:
    a, b = matrix(m, k, torch.float32, left, 1), matrix(k, n, torch.float32, right, 2)
    for start in (None, matrix(1, n, torch.float32, "plain", 3)[0], matrix(m, n, torch.float32, "plain", 4)):
        with precision():
            (found,) = multiply("avx512", [(a, b, start)])
        wanted = rounded(a) @ rounded(b) + (0 if start is None else start.double())
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5 * k**0.5)


@needs_tiles
@pytest.mark.parametrize("m, n, k", [(40, 70, 300), (3, 200, 64), (300, 20, 90)])
def test_a_product_has_the_same_bits_for_all_threads_and_rows(m: int, n: int, k: int) -> None:
    a, b = matrix(m, k, torch.float32, "plain", 1), matrix(k, n, torch.float32, "plain", 2)
    some = slice(1, 3)
    with precision():
        (whole,) = multiply("avx512", [(a, b, None)])
        (shared,) = multiply("avx512", [(a, b, None)], threads=3)
        (part,) = multiply("avx512", [(a[some], b, None)])
    assert torch.equal(whole, shared)
    assert torch.equal(whole[some], part)


@needs_tiles
def test_few_terms_and_doubles_are_as_they_are() -> None:
    for k, dtype in ((LEAST - 1, torch.float32), (64, torch.float64)):
        a, b = matrix(9, k, dtype, "plain", 1), matrix(k, 20, dtype, "plain", 2)
        (wanted,) = multiply("avx512", [(a, b, None)])
        with precision():
            (found,) = multiply("avx512", [(a, b, None)])
        assert torch.equal(found, wanted)


@needs_tiles
def test_what_is_no_number_stays_in_its_row() -> None:
    a, b = matrix(20, 64, torch.float32, "plain", 1), matrix(64, 40, torch.float32, "plain", 2)
    a[3, 5], a[17, 0], b[7, 9] = float("nan"), float("inf"), float("-inf")
    with precision():
        (found,) = multiply("avx512", [(a, b, None)])
    wanted = rounded(a) @ rounded(b)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.isinf(), wanted.isinf())
    assert torch.equal(found.sign().nan_to_num(), wanted.sign().nan_to_num())


# --- recurrences ------------------------------------------------------------------------------------------------------


class Gated(torch.nn.Module):
    """A cell of one's own: two products a step, one of them with what another has made."""

    def __init__(self, n: int, h: int) -> None:
        super().__init__()
        self.hidden_size = h
        self.U, self.W, self.V = (torch.nn.Linear(width, h) for width in (n, h, h))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.lerp(h, torch.tanh(self.U(x) + self.V(torch.relu(self.W(h)))), torch.sigmoid(h))


CELLS: dict[str, Callable[[], torch.nn.Module]] = {
    "gru": lambda: torch.nn.GRUCell(40, 48),
    "lstm": lambda: torch.nn.LSTMCell(17, 64),
    "elman": lambda: torch.nn.RNNCell(100, 80),
    "wide": lambda: torch.nn.RNNCell(20, 290),  # more terms than are packed at once
    "own": lambda: Gated(20, 33),
}
each_cell = pytest.mark.parametrize("name", CELLS)


def layer(name: str, engine: str = "native") -> tuple[elman.Recurrent, Tensor]:
    torch.manual_seed(1)
    made = elman.Recurrent(CELLS[name](), engine=engine)
    width = next(p for n, p in made.named_parameters() if p.dim() == 2).shape[1]
    return made, torch.randn(12, 21, width)


def trained(rnn: elman.Recurrent, x: Tensor, **how: Tensor) -> list[Tensor]:
    """Outputs and gradients."""
    x = x.clone().requires_grad_()
    y, _ = rnn(x, **how)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *rnn.parameters()])]


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest of the tensors' errors, each over its own norm."""
    pairs = zip(found, wanted, strict=True)
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)


@needs_tiles
@each_cell
def test_a_layer_is_as_wrong_as_pytorch_is(name: str) -> None:
    rnn, x = layer(name)
    twice, _ = layer(name, "reference")
    wanted = trained(twice.double(), x.double())
    with precision():
        found, reference = trained(rnn, x), trained(layer(name, "reference")[0], x)
    assert 2e-4 < error(found, wanted) < 2e-2  # a float's last place would be 1e-7
    assert error(found, wanted) < 2 * error(reference, wanted) + 1e-3
    assert error(trained(rnn, x), wanted) < 1e-5  # said anew at every call


@needs_tiles
@each_cell
def test_a_row_has_the_same_bits_however_it_is_run(name: str) -> None:
    rnn, x = layer(name)
    rows = slice(4, 7)
    with precision(), torch.no_grad():
        whole, state = rnn(x)
        part, _ = rnn(x[:, rows])
        torch.set_num_threads(2)
        try:
            shared, _ = rnn(x)
        finally:
            torch.set_num_threads(1)
        ragged, _ = rnn(x, lengths=torch.tensor([12, 3, 12, *[7] * 18]))
        steps, h = [], None
        for x_t in x:
            y, h = rnn.step(x_t) if h is None else rnn.step(x_t, h)
            steps.append(y)
    assert torch.equal(whole[:, rows], part)
    assert torch.equal(whole, shared)
    assert torch.equal(whole[:, 2], ragged[:, 2])
    assert torch.equal(whole[:3, 1], ragged[:3, 1])
    assert torch.equal(whole, torch.stack(steps))
    torch.testing.assert_close(h, state, rtol=0, atol=0)


@needs_tiles
def test_bounded_memory_computes_the_same_again() -> None:
    rnn, x = layer("lstm")
    x = x.repeat(10, 1, 1)
    with precision():
        wanted = trained(rnn, x)
        rnn.memory = "1200 kB"
        found = trained(rnn, x)
    assert torch.equal(found[0], wanted[0])  # gradients of weights are added up in other parts
    assert error(found, [w.double() for w in wanted]) < 1e-5


@needs_tiles
def test_it_says_so() -> None:
    rnn, x = layer("gru")
    rnn(x)
    assert "bfloat16" not in str(rnn.explain())
    with precision():
        assert "products of float32 in bfloat16" in str(rnn.explain())


@needs_tiles
def test_a_stream_packs_its_weights_by_what_was_said_then() -> None:
    rnn, x = layer("gru")
    with torch.no_grad():
        exact, _ = rnn(x)
        with precision():
            halved, _ = rnn(x)
    early, late, narrow, whole = (
        rnn.stream(batch=21, weights=w) for w in (None, None, "bfloat16", "bfloat16")
    )
    with precision():
        first = late.step(x[0]).clone(), narrow.step(x[0]).clone()
    assert torch.equal(first[0], halved[0])
    assert torch.equal(early.step(x[0]), exact[0])
    assert torch.equal(whole.step(x[0]), first[1])  # weights in fewer bits are another matter
    with precision():
        assert torch.equal(early.step(x[1]), exact[1])
    rest = torch.stack([late.step(x_t).clone() for x_t in x[1:]])
    assert torch.equal(rest, halved[1:])


@pytest.mark.skipif(compiled is None, reason="the compiled part is missing")
@each_cell
def test_other_instruction_sets_compute_as_ever(name: str) -> None:
    rnn, x = layer(name)
    for isa in compiled.instruction_sets():
        if isa == "avx512" and compiled.has_tiles():
            continue
        rnn.engine = Native(isa)  # type: ignore[assignment]
        wanted = trained(rnn, x)
        with precision():
            found = trained(rnn, x)
        assert all(map(torch.equal, found, wanted))


# --- what looks at cells ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["medium", "high"])
def test_a_cell_is_traced_whatever_the_precision(said: str) -> None:
    """PyTorch's own products then depend on the size of the batch, which a trace compares."""
    with precision(said):
        rnn, x = layer("gru", "auto")
        rnn(x)
        assert elman.verify(torch.nn.GRUCell(40, 48), x[0, :3]).ok
        assert torch.get_float32_matmul_precision() == said


def test_what_was_said_of_all_of_pytorch_is_said_again() -> None:
    from elman.precision import of_products, products_in

    get = of_products["mkldnn"]
    before = torch.backends.fp32_precision
    torch.set_float32_matmul_precision("highest")
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch.backends.fp32_precision = "bf16"
        assert get() == "bf16"
        with products_in("ieee"):
            assert get() == "ieee"
        assert get() == "bf16"
        torch.backends.fp32_precision = "ieee"
        assert get() != "bf16"  # nothing was pinned
    finally:
        torch.backends.fp32_precision = before
        torch.set_float32_matmul_precision("highest")
