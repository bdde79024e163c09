"""The readout and its loss in one piece: what the two pieces give, and their gradients."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from elman.data import Tokenizer, windows
from elman.errors import ElmanError, InputError
from elman.models import LanguageModel, NGram, evaluate, evaluate_mixture, readout
from elman.models.readout import Adaptive, choose_cutoffs, cross_entropy
from elman.training import Training
from tests.pairwise import with_more


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
    """A tensor of all logits would be 16 times the limit."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                largest = max(largest, made.numel())
            return made

    h, V, c, y = (
        torch.randn(1024, 8),
        torch.randn(20_000, 8),
        torch.zeros(20_000),
        torch.randint(20_000, (1024,)),
    )
    with Watch(), torch.no_grad():
        cross_entropy(h, V.requires_grad_(), c, y)
        with torch.enable_grad():
            cross_entropy(h, V, c, y)
    assert largest <= 64 * 20_000


def test_a_tied_model_has_one_matrix() -> None:
    model = LanguageModel(11, "gru", hidden=8, embedding=8, tie=True, dropout=0.3)
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
    with pytest.raises(InputError, match="embedding=6"):
        LanguageModel(11, hidden=6, embedding=5, tie=True)


@pytest.mark.parametrize("numbers", [1, 2**20], ids=["many parts", "one part"])
@pytest.mark.parametrize("frozen", [(), (0,), (1, 3), (2, 4), (0, 1, 2)])
@pytest.mark.parametrize("rows", [1, 2, 90])
def test_loss_and_gradients_of_two_levels(
    rows: int, frozen: tuple, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against autograd through its own log-probabilities; of one row most groups are empty."""
    monkeypatch.setattr(readout, "_NUMBERS", numbers)
    layer = Adaptive(5, 23, (4, 9, 22)).double()
    *parts, h, y = [*layer.parameters(), torch.randn(rows, 5).double(), torch.randint(23, (rows,))]
    given = [h.requires_grad_(), *parts]
    for i in frozen:
        given[i].requires_grad_(False)
    wanted = [t for t in given if t.requires_grad]
    found = [
        [loss, *torch.autograd.grad(3 * loss, wanted)]
        for loss in (readout.loss(layer, h, y), F.nll_loss(layer(h), y))
    ]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(readout.loss(layer, h, y), found[1][0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("numbers", [1, 2**20], ids=["many parts", "one part"])
@pytest.mark.parametrize(
    "layer", [torch.nn.Linear(5, 23), Adaptive(5, 23, (4, 9, 22))], ids=["one", "two levels"]
)
def test_in_bfloat16_gradients_are_as_wide_as_the_weights(
    layer: torch.nn.Linear, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readout, "_NUMBERS", numbers)
    h, y = torch.randn(200, 5, requires_grad=True), torch.randint(23, (200,))
    wanted, found = [h, *layer.parameters()], []
    for on in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            loss = readout.loss(layer, h, y)
        found.append([loss, *torch.autograd.grad(loss, wanted)])
    torch.testing.assert_close(*found, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("cutoffs", [(1,), (4, 9, 22), (22,), tuple(range(1, 23))])
def test_two_levels_are_one_distribution(cutoffs: tuple[int, ...]) -> None:
    layer = Adaptive(5, 23, cutoffs).double()
    log_p = layer(torch.randn(7, 3, 5).double())
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(7, 3).double(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.log_softmax(log_p, -1), log_p, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tie", with_more([True], [False]))
def test_a_model_with_a_readout_of_two_levels(tie: bool, tmp_path: Path) -> None:
    """Everything that a model does is that of one whose logits are these log-probabilities."""
    torch.manual_seed(0)
    made = LanguageModel(23, "gru", hidden=8, embedding=8, tie=tie, cutoffs=(4, 9, 22)).double()
    x = torch.randint(23, (12, 3))
    torch.testing.assert_close(  # untrained
        made.loss(x[:-1], x[1:])[0], torch.tensor(23.0).double().log(), rtol=0.05, atol=0
    )
    for value in made.readout.parameters():
        torch.nn.init.normal_(value)
    loss, _ = made.loss(x[:-1], x[1:])
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())
    log_p, _ = made(x)
    torch.testing.assert_close(loss, F.nll_loss(log_p[:-1].flatten(0, 1), x[1:].flatten()))
    torch.testing.assert_close(made.step(x[-1], made(x[:-1])[1])[0], log_p[-1])
    tokens = torch.randint(23, (40,))
    nats = evaluate(made, tokens, window=7).nats
    counts = NGram(tokens, 23, 2)
    assert evaluate_mixture(made, counts, tokens, 0.0, window=9).nats == pytest.approx(nats)
    text = [1, 2]
    for _ in range(20):
        o, _ = made(torch.tensor(text)[:, None])
        text.append(int(o[-1, 0].argmax()))
    assert made.generate([1, 2], 20, temperature=0) == text[2:]
    drawn = torch.bincount(
        torch.tensor(next(made.generate_iter([1, 2], 1, samples=5000, seed=1))), minlength=23
    )
    p = made(torch.tensor([[1], [2]]))[0][-1, 0].exp()
    assert ((drawn / 5000 - p).abs() <= 4.5 * (p * (1 - p) / 5000).sqrt() + 1e-9).all()
    made.save_pretrained(tmp_path)
    again = LanguageModel.from_pretrained(tmp_path).double()
    assert again.settings == made.settings
    torch.testing.assert_close(again(x)[0], log_p, rtol=1e-5, atol=1e-5)
    config = tmp_path / "config.json"
    for cutoffs in ([4, 9], [4, 9, 50], [9, 4, 22], ["4", 9, 22], "4", [], [4] * 2000):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"cutoffs": cutoffs}))
        with pytest.raises(ElmanError):
            LanguageModel.from_pretrained(tmp_path)


def test_training_goes_on_to_the_same_bits() -> None:
    def started() -> tuple[LanguageModel, Training]:
        torch.manual_seed(0)
        made = LanguageModel(23, "gru", hidden=8, cutoffs=(4, 9, 22))
        return made, Training(made, windows(torch.arange(400) % 23, 8, 4, 0), steps=6)

    whole, training = started()
    for step in training:
        if step.step == 3:
            kept = training.state()
    again, training = started()
    training.restore(*kept)
    assert len(list(training)) == 3
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_words_are_numbered_by_how_often_they_come() -> None:
    """Which groups of rarer ones rest on."""
    tokenizer = Tokenizer.words(text := "a a a a\nb b b c c c c c d\n" * 3, 10)
    counts = torch.bincount(tokenizer.encode(text), minlength=tokenizer.size)
    assert counts[1:].tolist() == sorted(counts[1:].tolist(), reverse=True)


def test_cutoffs_are_chosen_by_what_they_cost() -> None:
    counts = (1e6 / np.arange(1, 8001)).astype(np.int64)
    shares = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])

    def cost(cutoffs: tuple[int, ...]) -> float:
        ends = [*cutoffs, 8000]
        parts = ((shares[b] - shares[a]) * (b - a) + 1 + readout._MORE for a, b in pairwise(ends))
        return ends[0] + sum(parts)

    found = choose_cutoffs(counts)
    assert 1 <= len(found) <= readout._MOST
    draw = np.random.default_rng(0)
    for _ in range(2000):
        some = draw.integers(readout._FIRST, 8000, draw.integers(1, readout._MOST + 1))
        assert cost(found) < 1.02 * cost(tuple(sorted({int(one) for one in some})))
    assert cost(found) < 8000 / 3
    for few in (np.ones(1), np.ones(65), np.zeros(0)):
        assert choose_cutoffs(few) == ()


@pytest.mark.parametrize("cutoffs", [(0,), (11,), (4, 4), (5, 4), (4.0,), (True,), range(1, 2000)])
def test_what_are_no_cutoffs_is_refused(cutoffs: tuple) -> None:
    with pytest.raises(InputError, match="rising"):
        LanguageModel(11, cutoffs=cutoffs)
