"""A step may attend: over slots in its state, over its past, over its context; and weights that hooks compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune

import elman
from tests.pairwise import with_more

T, B, S, D = 4, 2, 3, 8


class Heads(nn.Module):
    """[B, S, D] -> itself, attending over its slots with two heads."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.U, self.how = nn.Linear(4, D), how

    def forward(self, x: Any, m: Any) -> Any:
        def heads(z: Any) -> Any:
            return z.view(z.shape[0], S, 2, D // 2).transpose(1, 2)

        q, k, v = heads(m), heads(torch.sin(m) + self.U(x)[:, None] * m), heads(m)
        if self.how.get("enable_gqa"):
            k, v = k[:, :1], v[:, :1]
        got = F.scaled_dot_product_attention(q, k, v, **self.how)
        return torch.tanh(m + got.transpose(1, 2).reshape(m.shape[0], S, D))


class Multihead(nn.Module):
    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.U, self.attention, self.how = nn.Linear(4, D), nn.MultiheadAttention(D, 2, batch_first=True), how

    def forward(self, x: Any, m: Any) -> Any:
        places = torch.cat([m, self.U(x)[:, None]], 1)
        return torch.tanh(m + self.attention(m, places, places, **self.how)[0])


class Encoder(nn.Module):
    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.U = nn.Linear(4, D)
        self.layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True, **how)

    def forward(self, x: Any, m: Any) -> Any:
        return self.layer(torch.cat([m[:, 1:], self.U(x)[:, None]], 1))


class OverContext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.attention = nn.GRUCell(4 + D, D), nn.MultiheadAttention(D, 2, batch_first=True)

    def forward(self, x: Any, h: Any, context: Any) -> Any:
        places, hidden = context
        seen, _ = self.attention(h[:, None], places, places, key_padding_mask=hidden, need_weights=False)
        return self.cell(torch.cat([x, seen[:, 0]], 1), h)


MASK = torch.tensor([[True, False, True], [True, True, True], [True, True, False]])
NOTHING = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
CELLS: dict[str, Callable[[], nn.Module]] = {
    "attention": Heads,
    "scaled": lambda: Heads(scale=0.3),
    "mask": lambda: Heads(attn_mask=MASK),
    "nothing to see": lambda: Heads(attn_mask=NOTHING),
    "added mask": lambda: Heads(attn_mask=MASK.double()),
    "groups": lambda: Heads(enable_gqa=True),
    "groups, causal": lambda: Heads(enable_gqa=True, is_causal=True),
    "multihead": lambda: Multihead(need_weights=False),
    "encoder layer": Encoder,
    "encoder layer, norm first": lambda: Encoder(norm_first=True, activation="gelu"),
    "encoder layer, eval": lambda: Encoder().eval(),
    "context": OverContext,
}


@pytest.fixture(autouse=True)
def _wide() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def loop(cell: nn.Module, x: Any, state: Any, context: Any) -> Any:
    outputs = []
    for t in range(len(x)):
        state = cell(x[t], state) if context is None else cell(x[t], state, context)
        outputs.append(state)
    return torch.stack(outputs)


def arguments(name: str) -> tuple[Any, Any, Any]:
    x = torch.randn(T, B, 4, requires_grad=True)
    if name != "context":
        return x, torch.randn(B, S, D, requires_grad=True), None
    hidden = torch.tensor([[False] * 5, [False, False, True, True, True]])
    return x, torch.randn(B, D, requires_grad=True), (torch.randn(B, 5, D), hidden)


def derivatives(outputs: Any, wants: list[Any], twice: bool) -> list[Any]:
    """Gradients along a direction; with `twice`, of the sum of their squares."""
    direction = torch.linspace(-1, 1, outputs.numel()).view_as(outputs)
    first = torch.autograd.grad(
        (outputs * direction).sum(), wants, create_graph=twice, materialize_grads=True
    )
    if not twice:
        return list(first)
    return list(torch.autograd.grad(sum(g.square().sum() for g in first), wants, materialize_grads=True))


@pytest.mark.grid(1)
@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize(
    "name",
    with_more(
        ["nothing to see", "groups, causal", "context"],
        ["encoder layer", "attention", "multihead", "scaled", "mask", "added mask", "groups",
         "encoder layer, norm first", "encoder layer, eval"],
    ),
)  # fmt: skip
def test_it_is_the_loop(name: str, engine: str) -> None:
    cell = CELLS[name]()
    x, state, context = arguments(name)
    made, _ = elman.Recurrent(cell, engine=engine)(x, state, context=context)
    expected = loop(cell, x, state, context)
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)
    wants = [x, state, *cell.parameters()]
    for a, b in zip(derivatives(made, wants, False), derivatives(expected, wants, False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "name", with_more(["nothing to see"], ["context", "mask", "attention", "multihead", "encoder layer"])
)
def test_second_derivatives_are_the_loops(name: str) -> None:
    cell = CELLS[name]()
    x, state, context = arguments(name)
    made, _ = elman.Recurrent(cell)(x, state, context=context)
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's other kernels have none
        expected = loop(cell, x, state, context)
        wants = [x, state, *cell.parameters()]
        right = derivatives(expected, wants, True)
    for a, b in zip(derivatives(made, wants, True), right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", with_more(["context"], ["attention"]))
def test_rows_have_lengths_and_resets(name: str) -> None:
    cell = CELLS[name]()
    cell.initial_state = lambda batch: torch.zeros(batch, *state.shape[1:])  # type: ignore[assignment]
    x, state, context = arguments(name)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2, 1] = True
    made, _ = elman.Recurrent(cell)(x, state, context=context, lengths=[2, T], reset=reset)
    start = torch.cat([state[:1], torch.zeros_like(state[1:])])
    first, second = loop(cell, x[:2], state, context), loop(cell, x[2:], start, context)
    torch.testing.assert_close(made[:2], first)
    torch.testing.assert_close(made[2:, 1], second[:, 1])
    assert not made[2:, 0].any()


def test_a_step_with_dropout_runs() -> None:
    x, state, _ = arguments("attention")
    noisy = elman.Recurrent(Heads(dropout_p=0.5))
    torch.manual_seed(1)
    one, _ = noisy(x, state)
    torch.manual_seed(1)
    torch.testing.assert_close(noisy(x, state)[0], one)
    assert not torch.equal(noisy(x, state)[0], one)


# --- weights that hooks compute before each step, and derivatives of derivatives --------------------------------------


class Cell(nn.Module):
    hidden_size = 4

    def __init__(self, change: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.W, self.U = nn.Linear(4, 4), nn.Linear(3, 4)
        change(self.W)

    def forward(self, x: Any, h: Any) -> Any:
        return torch.tanh(self.W(h) + self.U(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.grid(1)
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize(
    "change",
    [
        nn.utils.weight_norm,
        lambda layer: nn.utils.spectral_norm(layer).eval(),
        lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
        lambda layer: (
            prune.l1_unstructured(layer, "weight", 0.3),
            prune.random_unstructured(layer, "weight", 0.3),
        ),
    ],
    ids=["weight_norm", "spectral_norm", "prune", "prune twice"],
)
def test_weights_that_hooks_compute(change: Any, warm: bool) -> None:
    cell, x, state = Cell(change), torch.randn(5, 2, 3), torch.zeros(2, 4)
    if warm:
        cell(x[0], state)
    layer, kept = elman.Recurrent(cell), cell.W.weight
    wants = list(cell.parameters())
    for _ in range(2):
        made, _ = layer(x)
        assert cell.W.weight is kept, "the cell stays as it was"
        expected = loop(cell, x, state, None)
        kept = cell.W.weight
        torch.testing.assert_close(made, expected)
        for a, b in zip(derivatives(made, wants, False), derivatives(expected, wants, False), strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            for parameter in wants:
                parameter.mul_(1.3)  # another value counts at the next call


def test_a_spectral_norm_that_iterates_is_refused() -> None:
    with pytest.raises(elman.ElmanError, match=r"eval\(\)"):
        elman.Recurrent(Cell(nn.utils.spectral_norm))(torch.randn(5, 2, 3))


class Turned(nn.Module):
    def __init__(self, turn: Callable[[Any], Any]) -> None:
        super().__init__()
        self.W, self.U, self.turn = nn.Linear(4, 4), nn.Linear(3, 4), turn

    def forward(self, x: Any, h: Any) -> Any:
        return torch.tanh(self.turn(self.W(h)) + self.U(x))


class Looked(nn.Module):
    def __init__(self, turn: Any) -> None:
        super().__init__()
        self.W, self.E = nn.Linear(4, 4), nn.Embedding(5, 4, padding_idx=2)

    def forward(self, x: Any, h: Any) -> Any:
        return torch.tanh(self.W(h) + self.E(x[..., 0].detach().abs().mul(3).long() % 5))


ONE = torch.ones(4)
TURNS: dict[str, Callable[[Any], Any]] = {
    "abs": torch.abs,
    "Tensor.abs": lambda z: z.abs() * z,
    "softsign": F.softsign,
    "glu": lambda z: F.glu(torch.cat([z, z.sin()], 1)),
    "sgn": lambda z: z * torch.sgn(z),
    "multi_dot": lambda z: torch.linalg.multi_dot([z, torch.eye(4), torch.eye(4)]),
    "batch_norm": lambda z: F.batch_norm(z, 0.1 * ONE.to(z), 2 * ONE.to(z), ONE.to(z)),
    "embedding": None,  # type: ignore[dict-item]
}


@pytest.mark.parametrize(
    "name", with_more(["all", "embedding"], [name for name in TURNS if name != "embedding"])
)
def test_second_derivatives_of_operations_that_ask_for_the_batch_size(name: str) -> None:
    if name == "all":
        # tests/test_second_derivatives.py has the others
        turns = [TURNS[name] for name in ("Tensor.abs", "sgn", "multi_dot", "batch_norm")]
        cell: nn.Module = Turned(lambda z: sum(turn(z) for turn in turns))
    else:
        cell = (Looked if name == "embedding" else Turned)(TURNS[name])
    x, state = torch.randn(T, B, 3, requires_grad=True), torch.randn(B, 4, requires_grad=True)
    wants = [x, state, *cell.parameters()]
    made, _ = elman.Recurrent(cell)(x, state)
    right = derivatives(loop(cell, x, state, None), wants, True)
    for a, b in zip(derivatives(made, wants, True), right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (
            lambda z: torch.take_along_dim(z, z.argsort(1), 1),
            ("take_along_dim", "torch.gather", "test_attention.py"),
        ),
        (lambda z: torch.cdist(z, torch.eye(4).to(z)), ("cdist", "test_attention.py")),
        (lambda z: z * int(z.shape[0]), ("the batch size as a number", "test_attention.py")),
        (lambda z: z if z.shape[0] > 16 else -z, ("branches on the batch size", "test_attention.py")),
        (lambda z: z.view(2, 4), ("branches on the batch size, or fixes it", "test_attention.py")),
    ],
    ids=["take_along_dim", "cdist", "int", "branch", "view"],
)
def test_who_asks_for_the_batch_size(turn: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(elman.ElmanError) as caught:
        elman.Recurrent(Turned(turn))(torch.randn(T, 2, 3), torch.randn(2, 4))
    assert "1187" not in str(caught.value), "a number of our own, that nobody else knows"
    for word in words:
        assert word in str(caught.value), str(caught.value)
