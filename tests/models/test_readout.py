"""The readout and its loss in one piece: what the two pieces give, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from elman.models import readout
from elman.models.readout import cross_entropy


def example(rows: int = 37, width: int = 5, vocabulary: int = 11) -> list[torch.Tensor]:
    wanted = [
        torch.randn(size, dtype=torch.float64) for size in ((rows, width), (vocabulary, width), (vocabulary,))
    ]
    return [*(t.requires_grad_() for t in wanted), torch.randint(vocabulary, (rows,))]


@pytest.mark.parametrize("numbers", [1, 11 * 64, 2**20], ids=["many parts", "one part", "one part with room"])
@pytest.mark.parametrize("frozen", [(), (0,), (1, 2), (0, 1)])
@pytest.mark.parametrize("rows", [1, 37, 200])
def test_loss_and_gradients(rows: int, frozen: tuple, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "_NUMBERS", numbers)
    h, V, c, y = example(rows)
    for i in frozen:
        (h, V, c)[i].requires_grad_(False)
    wanted = [t for t in (h, V, c) if t.requires_grad]
    found = []
    for loss in (cross_entropy(h, V, c, y), F.cross_entropy(F.linear(h, V, c), y)):
        found.append([loss, *torch.autograd.grad(3 * loss, wanted)])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(h, V, c, y), found[1][0], rtol=1e-12, atol=1e-12)


def test_gradients_by_differences() -> None:
    *wanted, y = example(4)
    torch.autograd.gradcheck(lambda h, V, c: cross_entropy(h, V, c, y), wanted)


def test_the_logits_of_a_window_are_never_there_at_once() -> None:
    """A tensor of all logits would be 80 times the limit."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                largest = max(largest, made.numel())
            return made

    h, V, c, y = (
        torch.randn(4096, 8),
        torch.randn(20_000, 8),
        torch.zeros(20_000),
        torch.randint(20_000, (4096,)),
    )
    with Watch(), torch.no_grad():
        cross_entropy(h, V.requires_grad_(), c, y)
        with torch.enable_grad():
            cross_entropy(h, V, c, y)
    assert largest <= 64 * 20_000


def test_a_tied_model_has_one_matrix() -> None:
    from elman.models import LanguageModel

    model = LanguageModel(11, "gru", hidden=6, embedding=6, tie=True, dropout=0.3)
    assert model.readout.weight is model.embedding.weight
    x = torch.randint(11, (5, 3))
    model.eval()
    loss, _ = model.loss(x[:-1], x[1:])
    loss.backward()
    logits, _ = model(x[:-1])
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), x[1:].flatten()))
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])


def test_a_tied_model_of_two_widths_is_refused() -> None:
    from elman.errors import InputError
    from elman.models import LanguageModel

    with pytest.raises(InputError, match="embedding=6"):
        LanguageModel(11, hidden=6, embedding=5, tie=True)
