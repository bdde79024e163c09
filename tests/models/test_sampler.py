"""Writing: the recurrence that feeds itself draws what the model says, for any cell and any choice of symbols."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from elman.errors import InputError
from elman.models import LanguageModel, sampler
from elman.models.sampler import Sampler
from tests.pairwise import with_more

V = 9


def model(cell: str = "gru", **options: int) -> LanguageModel:
    torch.manual_seed(0)
    made = LanguageModel(V, cell, hidden=8, embedding=8, layers=2, **options)
    torch.nn.init.normal_(made.readout.weight)
    return made


def stepped(made: LanguageModel, prompt: list[int], length: int, context: Tensor | None = None) -> list[int]:
    """The likeliest symbols, one step of the model after another."""
    made.eval()
    with torch.no_grad():
        logits, state = made(torch.tensor(prompt)[:, None], context=context)
        logits, found = logits[-1], []
        for _ in range(length):
            symbol = logits.argmax(-1)
            found.append(int(symbol))
            logits, state = made.step(symbol, state, context=context)
    return found


@pytest.mark.grid(1)
@pytest.mark.parametrize("prompt", [[3], [1, 4, 2, 2]])
@pytest.mark.parametrize("cell", with_more(["jordan"], ["elman", "gru", "leaky", "lstm"]))
def test_the_likeliest_symbols_are_those_of_the_steps(cell: str, prompt: list[int]) -> None:
    made = model(cell).double()
    assert made.generate(prompt, 150, temperature=0) == stepped(made, prompt, 150)


def test_a_context_enters_every_step() -> None:
    made = model(condition=3).double()
    texts = []
    for context in (torch.zeros(1, 3), 3 * torch.ones(1, 3)):
        context = context.double()
        texts.append(made.generate([1], 40, temperature=0, context=context[0]))
        assert texts[-1] == stepped(made, [1], 40, context)
    assert texts[0] != texts[1]
    both = torch.stack([torch.zeros(3), 3 * torch.ones(3)]).double()
    assert made.generate([1], 40, temperature=0, samples=2, context=both) == texts
    x, context = torch.randint(V, (6, 2)), both.clone().requires_grad_()
    made.loss(x[:-1], x[1:], context=context)[0].backward()
    assert context.grad is not None
    assert (context.grad != 0).all()


@pytest.mark.parametrize("context", [None, torch.zeros(2, 4), torch.zeros(3, 3)])
def test_a_context_that_does_not_fit_is_refused(context: Tensor | None) -> None:
    with pytest.raises(InputError, match=r"expected: \[2, 3\]"):
        model(condition=3)(torch.zeros(5, 2, dtype=torch.int64), context=context)
    with pytest.raises(InputError, match="takes no context"):
        model()(torch.zeros(5, 2, dtype=torch.int64), context=torch.zeros(2, 3))


def allowed(p: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """The probabilities that are left, by sorting."""
    if top_k is not None:
        p = p * (p >= p.sort(descending=True).values[top_k - 1])
        p = p / p.sum()
    if top_p is not None:
        values, order = p.sort(descending=True)
        keep = torch.zeros_like(p, dtype=torch.bool)
        keep[order[values.cumsum(0) - values < top_p]] = True
        p = p * keep
    return p / p.sum()


@pytest.mark.grid(1)
@pytest.mark.parametrize("compared", [0, 512], ids=["sorted", "compared"])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    with_more(
        [(1.0, None, None), (1.5, 5, 0.8)],
        [(0.5, None, None), (1.0, 3, None), (2.0, None, 0.7)],
        together=True,
    ),
)
def test_symbols_are_drawn_as_often_as_the_model_says(
    temperature: float, top_k: int | None, top_p: float | None, compared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_COMPARED", compared)
    made, count = model(), 20_000
    with torch.no_grad():
        logits = made(torch.tensor([[2], [5]]))[0][-1, 0]
    logits[[0, 4]] = -torch.inf
    expected = allowed(torch.softmax(logits / temperature, 0), top_k, top_p)
    drawn = next(
        made.generate_iter(
            [2, 5],
            1,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            exclude=[0, 4],
            samples=count,
            seed=1,
        )
    )
    found = torch.bincount(torch.tensor(drawn), minlength=V) / count
    assert not found[expected == 0].any()
    deviation = (expected * (1 - expected) / count).sqrt()
    assert ((found - expected).abs() <= 4.5 * deviation + 1e-9).all()


def test_a_seed_makes_the_text_and_leaves_torchs_generator() -> None:
    made = model()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = made.generate([1], 100, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert made.generate([1], 100, seed=5) == one
    assert made.generate([1], 30, seed=5) == one[:30]
    assert made.generate([1], 100, seed=6) != one
    torch.manual_seed(3)
    two = made.generate([1], 100)
    assert made.generate([1], 100) != two


def test_a_generator_is_drawn_from() -> None:
    made = model()
    one, two = (made.generate([1], 60, generator=g) for g in [torch.Generator().manual_seed(5)] * 2)
    assert one != two
    assert (
        made.generate([1], 60, generator=torch.Generator().manual_seed(5))
        == one
        == made.generate([1], 60, seed=5)
    )
    with pytest.raises(InputError, match="from one place"):
        made.generate([1], 60, seed=5, generator=torch.Generator())


def test_samples_are_texts_of_their_own() -> None:
    made = model()
    written = list(made.generate_iter([1], 60, samples=3, seed=0))
    texts = [[step[i] for step in written] for i in range(3)]
    assert len(set(map(tuple, texts))) == 3
    assert all(len(text) == 60 for text in texts)
    assert made.generate([1], 60, samples=3, seed=0) == texts
    assert made.generate([1], 0, samples=3) == [[], [], []]


def test_a_symbol_to_stop_at() -> None:
    made = model()
    whole = made.generate([1], 200, seed=2)
    end = whole.index(whole[20])
    assert made.generate([1], 200, seed=2, stop=[whole[20]]) == whole[: end + 1]
    several = list(made.generate_iter([1], 2000, seed=2, samples=4, stop=[whole[20]]))
    met = [next(t for t, step in enumerate(several) if step[i] == whole[20]) for i in range(4)]
    assert max(met) == len(several) - 1
    texts = made.generate([1], 2000, seed=2, samples=4, stop=[whole[20], 10**6])
    assert texts == [[step[i] for step in several[: met[i] + 1]] for i in range(4)]


def test_writing_runs_on_the_engine_whole() -> None:
    """Drawing is in the loop, and nothing of it is left to the reference engine where there is another one."""
    import elman
    from elman.engines.native import isa

    if isa() is None:
        pytest.skip("the compiled part is not there")
    made = model()
    for options in ({"temperature": 1.5, "top_k": 5, "top_p": 0.8}, {"temperature": 0.0}):
        rnn = elman.Recurrent(
            Sampler(made.embedding, made.stack.as_cell(), made.readout, None, **options), engine="native"
        )
        state = (torch.zeros(2, dtype=torch.int64), tuple(torch.zeros(2, 8) for _ in made.layers))
        with torch.no_grad():
            symbols, _ = rnn(None, state, steps=5)
        assert symbols.shape == (5, 2)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"temperature": -1}, "temperature"), ({"top_k": 0}, "top_k"), ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"),
     ({"samples": 0}, "samples")],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_the_call(options: dict, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} cannot be that"):
        model().generate_iter([1], 5, **options)
