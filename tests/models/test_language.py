"""The language model against its definition, generation against the model, cells by name, n-grams by brute force."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import elman
from elman import Segments, cells
from elman.errors import DataError, ElmanError, InputError, InputTypeError
from elman.models import LanguageModel, NGram, find_cell
from tests.pairwise import with_more

CELLS = ["elman", "jordan", "gru", "lstm", "leaky"]
OWN_CELL = """
import torch

class Mine(torch.nn.Module):
    def __init__(self, n_in, n_hidden, gain=0.5):
        super().__init__()
        self.hidden_size = n_hidden
        self.U = torch.nn.Linear(n_in, n_hidden)
        self.W = torch.nn.Linear(n_hidden, n_hidden)
    def forward(self, x, h):
        return torch.tanh(self.U(x) + self.W(h))

class NotACell:
    pass

class Needy(torch.nn.Module):
    def __init__(self, n_in, n_hidden, more):
        super().__init__()
"""

_NARROW = """h = torch.tanh(self.U(x) + self.W(h))
        return h[:, :2], h
"""


@pytest.fixture
def own_cell(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN_CELL)
    return path


def model_of(cell: str = "gru", layers: int = 1, vocabulary: int = 11, embedding: int = 9) -> LanguageModel:
    """Layers of the same widths are traced once."""
    return LanguageModel(vocabulary, cell, hidden=9, layers=layers, embedding=embedding).double()


@pytest.mark.grid(1)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_loss_is_its_definition_by_hand(cell: str, layers: int) -> None:
    model = model_of(cell, layers, embedding=5 if layers == 1 else 9)
    x, y = torch.randint(11, (6, 3)), torch.randint(11, (6, 3))
    loss, _ = model.loss(x, y)
    nats = torch.zeros((), dtype=torch.float64)
    state = None
    for t in range(6):  # L = -Σ_t log softmax(c + V h(t))[y(t)], one step at a time
        o, state = model.step(x[t], state)
        for b in range(3):
            nats = nats - (o[b, y[t, b]] - torch.log(torch.exp(o[b]).sum()))
    torch.testing.assert_close(loss, nats / 18, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_split_in_two_with_the_state_carried_is_the_whole(cell: str) -> None:
    model = model_of(cell, layers=2)
    x = torch.randint(11, (7, 2))
    whole, _ = model(x)
    first, state = model(x[:3])
    second, _ = model(x[3:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-10, atol=1e-10)


RAGGED = [5, 1, 7, 0, 3]


@pytest.mark.parametrize(
    ("options", "memory"),
    with_more(
        [({}, None), ({"layers": 2, "norm": True}, Segments(3)), ({"cutoffs": [3, 6]}, Segments(3))],
        [({"layers": 2}, "200 kB"), ({"condition": 2}, None)],
        together=True,
    ),
    ids=str,
)
def test_of_a_ragged_batch_it_is_the_sum_over_each_sequence_by_itself(options: dict, memory: Any) -> None:
    model = LanguageModel(11, "gru", hidden=8, embedding=5, **options).double()
    model.memory = memory
    context = torch.randn(5, 2, dtype=torch.float64) if "condition" in options else None
    x, y = torch.randint(11, (2, 7, 5))
    state = tuple(torch.randn(5, 8, dtype=torch.float64) for _ in model.layers)
    there = torch.arange(7)[:, None] < torch.tensor(RAGGED)
    padded_x, padded_y = x.masked_fill(~there, 99), y.masked_fill(~there, -100)
    loss, after = model.loss(padded_x, padded_y, state, lengths=torch.tensor(RAGGED), context=context)
    logits, final = model(padded_x, state, lengths=RAGGED, context=context)
    gradients = torch.autograd.grad(loss, [*model.parameters()])

    nats, model.memory = torch.zeros((), dtype=torch.float64), None
    for b, n in enumerate(RAGGED):
        own, told = tuple(s[b : b + 1] for s in state), None if context is None else context[b : b + 1]
        if n:
            one, ends = model.loss(x[:n, b : b + 1], y[:n, b : b + 1], own, context=told)
            nats = nats + n * one
            alone, own = model(x[:n, b : b + 1], own, context=told)
            torch.testing.assert_close(logits[:n, b], alone[:, 0], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(ends, own, rtol=1e-10, atol=1e-10)
        assert not logits[n:, b].any()
        for found in (after, final):
            torch.testing.assert_close(
                torch.stack([s[b] for s in found]), torch.stack([s[0] for s in own]), rtol=1e-10, atol=1e-10
            )
    nats = nats / sum(RAGGED)
    torch.testing.assert_close(loss, nats, rtol=1e-10, atol=1e-10)
    expected = torch.autograd.grad(nats, [*model.parameters()])
    torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-10)


def test_lengths_that_are_none_are_refused() -> None:
    model, x = model_of(), torch.zeros(4, 2, dtype=torch.int64)
    for lengths, said in (
        ([5, 1], "between none and all"),
        ([1], "one length for each"),
        ([0, 0], "no step"),
    ):
        with pytest.raises(InputError, match=said):
            model.loss(x, x, lengths=lengths)
    with pytest.raises(InputError, match="left out by lengths="):
        model.loss(x, x - 100)


def test_every_parameter_has_a_gradient() -> None:
    model = model_of("lstm", layers=2)
    loss, _ = model.loss(torch.randint(11, (6, 3)), torch.randint(11, (6, 3)))
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_the_untrained_model_holds_every_symbol_equally_likely() -> None:
    model = LanguageModel(50, hidden=64)
    loss, _ = model.loss(torch.randint(50, (20, 8)), torch.randint(50, (20, 8)))
    assert loss.item() == pytest.approx(math.log(50), abs=0.05)


@pytest.mark.parametrize("cell", with_more(["lstm"], [c for c in CELLS if c != "lstm"]))
def test_temperature_zero_is_argmax_step_by_step(cell: str) -> None:
    model = model_of(cell, layers=2)
    torch.nn.init.normal_(model.readout.weight)  # so that it does not say the same thing for ever
    prompt = [3, 1, 4]
    text = list(prompt)
    for _ in range(12):  # the whole text anew for every symbol: no state, no step
        logits, _ = model(torch.tensor(text)[:, None])
        text.append(int(logits[-1, 0].argmax()))
    assert model.generate(prompt, 12, temperature=0) == text[3:]


def test_low_temperature_is_argmax() -> None:
    model = model_of()
    torch.nn.init.normal_(model.readout.weight)
    greedy = model.generate([1], 20, temperature=0)
    assert model.generate([1], 20, temperature=1e-4, seed=1) == greedy


@pytest.mark.conformance  # of many samples at once: test_sampler.py
def test_symbols_are_drawn_from_the_softmax() -> None:
    model = model_of(vocabulary=4)
    torch.nn.init.normal_(model.readout.bias)
    logits, _ = model(torch.tensor([[2]]))
    expected = torch.softmax(logits[0, 0] / 0.8, 0)
    drawn = torch.zeros(4, dtype=torch.float64)
    draws = 1500
    for seed in range(draws):
        drawn[model.generate([2], 1, temperature=0.8, seed=seed)[0]] += 1 / draws
    assert (drawn - expected).abs().max() < 4 * math.sqrt(0.25 / draws)


def test_a_seed_makes_a_text_repeatable_and_leaves_the_default_generator_alone() -> None:
    model = model_of()
    before = torch.get_rng_state()
    one, two = (model.generate([1], 40, seed=7) for _ in range(2))
    assert one == two
    assert one != model.generate([1], 40, seed=8)
    assert torch.equal(torch.get_rng_state(), before)


def test_excluded_symbols_are_never_written() -> None:
    model = model_of()
    others = [symbol for symbol in range(11) if symbol not in (1, 4)]
    assert set(model.generate([1], 60, seed=0, exclude=others)) == {1, 4}
    assert set(model.generate([1], 60, seed=0, temperature=0, exclude=[*others, 4])) == {1}


def test_symbols_come_one_at_a_time_and_the_callers_modes_stay() -> None:
    model = model_of().train()
    symbols = model.generate_iter([1], 1_000_000_000, seed=0)
    next(symbols)
    assert torch.is_grad_enabled()
    symbols.close()
    assert model.training


@pytest.mark.parametrize(
    ("prompt", "keywords", "complaint"),
    [
        ([], {}, "prompt"),
        ([[1, 2]], {}, "prompt"),
        ([1], {"temperature": -1}, "temperature"),
        ([1], {"temperature": math.nan}, "temperature"),
        ([1], {"length": -1}, "length"),
    ],
)
def test_generation_that_cannot_be_is_refused_at_the_call(
    prompt: list, keywords: dict, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        model_of().generate_iter(prompt, **{"length": 5, **keywords})


@pytest.mark.parametrize("name", ["vocabulary", "hidden", "layers", "embedding"])
def test_a_size_below_one_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1"):
        LanguageModel(**{"vocabulary": 5, "hidden": 4, "layers": 1, "embedding": 3, name: 0})


def test_a_cell_of_a_file_is_found_and_works(own_cell: Path) -> None:
    model = LanguageModel(5, f"{own_cell}:Mine", hidden=4)
    loss, _ = model.loss(torch.randint(5, (3, 2)), torch.randint(5, (3, 2)))
    loss.backward()
    assert len(model.generate([1], 5)) == 5


def test_cells_are_told_by_name_class_factory_or_themselves() -> None:

    def twice(n_in: int, n_hidden: int) -> torch.nn.Module:
        return cells.GRU(n_in, n_hidden)

    for cell, name in (
        ("gru", "gru"), (cells.GRU, "gru"), (twice, None), (torch.nn.GRUCell, "torch.nn.modules.rnn:GRUCell"),
        ([cells.GRU, "gru"], ["gru", "gru"]), ([cells.GRU(9, 9), twice], [None, None]),
    ):  # fmt: skip
        model = LanguageModel(11, cell, hidden=9, embedding=9, layers=None if isinstance(cell, list) else 2)
        assert model.settings["cell"] == name
        assert model.settings["layers"] == len(model.layers) == 2
        kinds = {type(layer.cell) for layer in model.layers}
        assert kinds == {torch.nn.GRUCell if cell is torch.nn.GRUCell else cells.GRU}
    own = cells.Jordan(9, 9, 9)
    model = LanguageModel(11, own, hidden=9, embedding=9)
    assert model.layers[0].cell is own
    assert LanguageModel(11, cells.Jordan, hidden=9).settings["cell"] == "jordan"
    assert len(model.generate([1], 5)) == 5


@pytest.mark.parametrize(
    ("cell", "layers", "complaint"),
    [
        (cells.GRU(9, 9), 2, "one and the same cell"),
        ([cells.GRU(9, 9)], 2, "one cell for each layer"),
        ([], None, "layers must be at least 1"),
        (3, None, "nothing that makes one"),
        (dict, None, "nothing that makes one"),
        (lambda n_in, n_hidden: None, None, "a factory makes cells"),
    ],
)
def test_what_makes_no_cell_is_refused(cell: Any, layers: int | None, complaint: str) -> None:
    with pytest.raises(ElmanError, match=complaint):
        LanguageModel(11, cell, hidden=9, embedding=9, layers=layers)


def test_what_has_no_name_is_not_saved(tmp_path: Path) -> None:
    class Local(cells.GRU):
        pass

    for cell in (cells.GRU(9, 9), Local, ["gru", Local]):
        with pytest.raises(InputError, match="cannot be saved") as caught:
            LanguageModel(11, cell, hidden=9, embedding=9).save_pretrained(tmp_path)
        assert "path.py:Class" in str(caught.value.mend)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="of a list of cells"):
        LanguageModel(11, [cells.GRU, torch.nn.GRUCell], hidden=9, embedding=9).save_pretrained(tmp_path)
    model, x = LanguageModel(11, [cells.GRU, "gru"], hidden=9, embedding=9), torch.randint(11, (4, 2))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(LanguageModel.from_pretrained(tmp_path)(x), model(x), rtol=0, atol=0)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"gru"', '"os:system"', 1))
    with pytest.raises(DataError, match="of several cells, each one of"):
        LanguageModel.from_pretrained(tmp_path, trust=True)


def test_a_model_explains_its_layers() -> None:
    model = model_of("gru", layers=2)
    model(torch.randint(11, (4, 2)))
    said = str(elman.explain(model))
    assert said == str(model.explain())
    assert [line for line in said.splitlines() if line.startswith("layer")] == ["layer 0", "layer 1"]


def test_a_cell_of_a_package_is_found(own_cell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = find_cell("torch.nn:GRUCell")(3, 4)
    assert isinstance(cell, torch.nn.GRUCell)
    monkeypatch.chdir(own_cell.parent)
    assert type(find_cell("mine:Mine")(3, 4)).__name__ == "Mine"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("grue", "no cell of that name"),
        ("", "no cell of that name"),
        ("nowhere.py:Cell", "no such file"),
        ("{}", "no cell of that name"),
        ("{}:Missing", "classes there: Mine, NotACell, Needy"),
        ("{}:NotACell", "no torch.nn.Module"),
        ("{}:Needy", r"Needy\(n_in, n_hidden\)"),
        ("{}/../broken.py:Cell", "failed while it was imported: ZeroDivisionError"),
        ("no_such_package_at_all:Cell", "no module no_such_package_at_all"),
        ("torch.nn:NoCell", "no class NoCell"),
    ],
)
def test_a_cell_that_is_not_there_is_refused(own_cell: Path, name: str, complaint: str) -> None:
    (own_cell.parent / "broken.py").write_text("1 / 0")
    name = name.replace("{}/..", str(own_cell.parent)).format(own_cell)
    with pytest.raises(ElmanError, match=complaint) as caught:
        LanguageModel(5, name)
    assert caught.value.mend


def test_an_output_of_another_width_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "narrow.py"
    path.write_text(OWN_CELL.replace("return torch.tanh(self.U(x) + self.W(h))", _NARROW))
    model = LanguageModel(5, f"{path}:Mine", hidden=4)
    with pytest.raises(InputError, match="another width"):
        model(torch.ones(2, 1, dtype=torch.int64))


@pytest.mark.parametrize("order", [1, 2, 5])
def test_ngram_probabilities_sum_to_one(order: int) -> None:
    tokens = torch.randint(1, 6, (300,))
    model = NGram(tokens, vocabulary=7, order=order)  # 0 and 6 were never seen
    for context in ([], [1], [3, 2], [0, 4], [2, 2, 5, 1], [1, 2, 3, 4, 5], [6, 6, 6, 6, 6]):
        total = sum(
            math.exp(-float(model.nats(torch.tensor([1, *context, symbol]))[-1])) for symbol in range(7)
        )
        assert total == pytest.approx(1, abs=1e-12)


def test_a_bigram_is_kneser_ney_by_hand() -> None:
    text = "the cat sat on the mat, the rat ate that"
    symbols = sorted(set(text))
    tokens = torch.tensor([symbols.index(char) for char in text])
    v = len(symbols)

    def discount(counts: Counter, gram: object) -> float:
        n = [max(sum(c == k for c in counts.values()), 1) for k in (1, 2, 3, 4)]
        y = n[0] / (n[0] + 2 * n[1])
        k = min(counts[gram], 3)
        return min(max(k - (k + 1) * y * n[k] / n[k - 1], 0.05), [0.95, 1.9, 2.85][k - 1])

    pairs = Counter(zip(text, text[1:], strict=False))
    kinds = Counter(after for _, after in pairs)
    kinds.update(dict.fromkeys(text, 0))
    kinds[text[0]] = max(kinds[text[0]], 1)

    def lower(char: str) -> float:
        total = sum(kinds.values())
        rest = sum(discount(kinds, c) for c in kinds) / total
        return (kinds[char] - discount(kinds, char)) / total + rest / v

    def p(before: str, char: str) -> float:
        followers = {pair: count for pair, count in pairs.items() if pair[0] == before}
        total = sum(followers.values())
        seen = (
            (pairs[before, char] - discount(pairs, (before, char))) / total if (before, char) in pairs else 0
        )
        return seen + sum(discount(pairs, pair) for pair in followers) / total * lower(char)

    model = NGram(tokens, v, order=2)
    query = "that mat ate the cat"
    nats = model.nats(torch.tensor([symbols.index(char) for char in query]))
    expected = [-math.log(p(before, char)) for before, char in zip(query, query[1:], strict=False)]
    torch.testing.assert_close(nats, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_more_context_predicts_real_text_better() -> None:
    from elman.data import Tokenizer, built_in_text

    text = built_in_text()[:60_000]
    tokenizer = Tokenizer.characters(text)
    tokens = tokenizer.encode(text)
    bits = [NGram(tokens[:50_000], tokenizer.size, n).bits_per_symbol(tokens[50_000:]) for n in (1, 2, 3, 5)]
    assert bits == sorted(bits, reverse=True)
    assert 4 < bits[0] < 5
    assert bits[-1] < 2.6


@pytest.mark.parametrize("length", [1, 2, 3])
def test_an_ngram_of_a_text_shorter_than_itself_still_predicts(length: int) -> None:
    model = NGram(torch.ones(length, dtype=torch.int64), vocabulary=3, order=5)
    assert model.nats(torch.tensor([0, 1, 2, 1])).isfinite().all()


def test_wide_layers_and_those_without_gates_learn_more_slowly() -> None:
    def rate(cell: str, hidden: int) -> float:
        return LanguageModel(5, cell, hidden).learning_rate

    assert rate("gru", 256) == rate("lstm", 64) == rate("elman", 64) == 4e-3
    assert rate("elman", 256) == 0.5 / 256
    assert rate("gru", 1024) == 2 / 1024
    assert rate("elman", 1024) == 0.5 / 1024


def test_mistakes_with_symbols_prompts_and_options_are_said() -> None:
    model = LanguageModel(5, hidden=4, embedding=3)
    x = torch.zeros(3, 2, dtype=torch.long)
    for call in (lambda: model(x + 5), lambda: model.loss(x - 1, x), lambda: model.step(x[0] + 9)):
        with pytest.raises(InputError, match=r"no symbol of the model(?s:.*)0 … 4"):
            call()
    for y in (x - 100, x + 5):
        with pytest.raises(InputError, match=r"no symbol of the model(?s:.*)y"):
            model.loss(x, y)
    with pytest.raises(InputTypeError, match=r"encode"):
        model.generate("the ", 3)
    with pytest.raises(InputTypeError, match=r"generate\(temprature=\)(?s:.*)temperature"):
        model.generate([0], 3, temprature=0.5)
