"""Bidirectional and Stack: what they are of their parts, and what torch.nn makes of the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

import elman
from elman import Bidirectional, Recurrent, Stack
from elman.errors import InputError, InputTypeError
from elman.recurrent.states import Directions, LayerStates
from elman.segments import Layout
from tests.cases import CASES
from tests.recurrent import compare, ragged
from tests.recurrent.small import random

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}
LENGTHS = torch.tensor([6, 2, 4, 0])


def cell(name: str, *sizes: int) -> torch.nn.Module:
    return CASES[name].make(*sizes).double()


@pytest.mark.parametrize("told", [{}, ragged.said(6, 4)], ids=["whole", "cut"])
def test_layers_are_the_sum_of_their_parts(told: dict[str, Tensor]) -> None:
    both = Bidirectional(cell("gru"), cell("elman", 5, 4))
    top = Recurrent(cell("lstm", 11, 6), reverse=True)
    deep, x = Stack(both, top), random(6, 4, 5, requires_grad=True)
    state = ((random(4, 7), random(4, 4)), (random(4, 6), random(4, 6)))
    outputs, final = deep(x, state, **told)
    one, first = Recurrent(both.forward_layer.cell)(x, state[0][0], **told)
    other, second = Recurrent(both.backward_layer.cell, reverse=True)(x, state[0][1], **told)
    expected, last = top(torch.cat([one, other], -1), state[1], **told)
    found = []
    for made in ((outputs, final), (expected, LayerStates((Directions(first, second), last)))):
        values = compare.flat(*made)
        found.append((values, compare.gradients(values, {"x": x, **dict(deep.named_parameters())})))
    for mine, right in zip(*found, strict=True):
        compare.assert_equal(mine, right)


@pytest.mark.parametrize("packed", [False, True], ids=["lengths", "packed"])
def test_as_torch_does_it(packed: bool) -> None:
    theirs = torch.nn.GRU(5, 7, num_layers=2, bidirectional=True).double()

    def own(layer: int, suffix: str) -> torch.nn.Module:
        made = torch.nn.GRUCell(5 if layer == 0 else 14, 7).double()
        made.load_state_dict(
            {
                n: getattr(theirs, f"{n}_l{layer}{suffix}")
                for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
        )
        return made

    ours = Stack(*[Bidirectional(own(layer, ""), own(layer, "_reverse")) for layer in range(2)])
    lengths = torch.tensor([6, 2, 4, 1])
    x, h = random(6, 4, 5), random(4, 4, 7)
    pack = pack_padded_sequence(x, lengths, enforce_sorted=False)
    right, last = theirs(pack, h)
    state = ((h[0], h[1]), (h[2], h[3]))
    if packed:
        mine, final = ours(pack, state)
        torch.testing.assert_close(mine.data, right.data, **EXACT)
    else:
        mine, final = ours(x, state, lengths=lengths)
        torch.testing.assert_close(mine, pad_packed_sequence(right)[0], **EXACT)
    torch.testing.assert_close(torch.stack(pytree.tree_leaves(final)), last, **EXACT)


def test_one_layout_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Layout] = []
    of = Layout.of
    monkeypatch.setattr(Layout, "of", lambda *args, **said: made.append(of(*args, **said)) or made[-1])
    deep = Stack(Bidirectional(cell("gru"), cell("gru")), Stack(Recurrent(cell("lstm", 14, 3))))
    deep(random(6, 4, 5), lengths=LENGTHS)
    assert len(made) == 1


def test_dropout_between_layers_in_training_alone() -> None:
    deep, x = Stack(Recurrent(cell("gru")), Recurrent(cell("elman", 7, 3)), dropout=1.0), random(6, 4, 5)
    for told in ({}, {"lengths": LENGTHS}):
        hidden = torch.zeros(6, 4, 7, dtype=torch.float64)
        torch.testing.assert_close(deep.train()(x, **told)[0], deep.layers[1](hidden, **told)[0], **EXACT)
        hidden, _ = deep.layers[0](x, **told)
        torch.testing.assert_close(deep.eval()(x, **told)[0], deep.layers[1](hidden, **told)[0], **EXACT)


@pytest.mark.parametrize("locked", [False, True])
def test_dropout_from_a_generator_of_ones_own(locked: bool) -> None:
    """Torch's own draws nothing then; the same state of it, the same units; all of them out is nothing, not NaN."""
    numbers = torch.Generator()
    layers = Recurrent(cell("gru")), Recurrent(cell("elman", 7, 3))
    deep, x = Stack(*layers, dropout=0.5, locked=locked, generator=numbers), random(6, 4, 5)
    before, found = torch.random.get_rng_state(), []
    for seed in (1, 1, 2):
        numbers.manual_seed(seed)
        found.append(deep(x)[0])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    kept = [deep._between(torch.ones(20, 30, 40), 1, None) for _ in range(2)]
    for mask in kept:
        assert {*mask.unique().tolist()} == {0.0, 2.0}
        assert mask.mean().item() == pytest.approx(1, abs=0.1)
        assert torch.equal(mask[0], mask[1]) == locked
    deep.dropout = 1.0
    assert torch.equal(deep(x)[0], Stack(*layers, dropout=1.0)(x)[0])


def test_noise_of_both_directions_from_a_generator() -> None:
    numbers = torch.Generator()
    noisy = [CASES["noisy_rnn"].make().double() for _ in range(2)]
    both, x = Bidirectional(*noisy, generator=numbers), CASES["noisy_rnn"].x(4, 3).double()
    before, found = torch.random.get_rng_state(), []
    for seed in (1, 1, 2):
        numbers.manual_seed(seed)
        found.append(both(x)[0])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_step_repeated_is_the_whole_call() -> None:
    deep, x = Stack(Recurrent(cell("gru")), Recurrent(cell("lstm", 7, 3))), random(5, 2, 5)
    outputs, final = deep(x)
    state: Any = None
    for t in range(5):
        output, state = deep.step(x[t], state)
        torch.testing.assert_close(output, outputs[t], **EXACT)
    torch.testing.assert_close(state, final, **EXACT)
    with pytest.raises(InputError, match="backward"):
        Stack(Bidirectional(cell("gru"), cell("gru"))).step(x[0])


def test_compiled() -> None:
    torch._dynamo.reset()
    deep, x = (
        Stack(Bidirectional(cell("elman"), cell("elman")), Recurrent(cell("lstm", 14, 3))),
        random(5, 2, 5),
    )

    def call(x: Tensor) -> Any:
        outputs, state = deep(x)
        return outputs, state, elman.last(state), elman.last(state[0])

    fast = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(x), call(x), **EXACT)
    torch._dynamo.reset()


def test_what_does_not_fit_is_refused() -> None:
    both, x = Bidirectional(cell("gru"), cell("gru")), random(6, 4, 5)
    deep = Stack(both)
    for told in ({}, {"lengths": LENGTHS}):
        with pytest.raises(InputTypeError, match="where: state"):
            both(x, random(4, 7), **told)
        with pytest.raises(InputTypeError, match="where: state"):
            deep(x, (None, None), **told)
    with pytest.raises(InputTypeError, match=r"elman.Recurrent\(cell\)"):
        Stack(cell("gru"))
    with pytest.raises(InputError, match="at least one"):
        Stack()
    with pytest.raises(InputError, match="probability"):
        Stack(both, dropout=2.0)
    with pytest.raises(InputTypeError, match="different structures"):
        Bidirectional(cell("dict_output_rnn"), cell("gru"))(x)
    with pytest.raises(InputError, match="side by side"):
        Bidirectional(cell("convolutional_rnn"), cell("gru"))(x, (random(4, 2, 7), None))
    with pytest.raises(elman.ElmanError, match="where: lengths"):
        deep(x, lengths=torch.tensor([1]))


def test_a_stack_is_a_sequence_of_layers() -> None:
    deep = Stack(
        Recurrent(cell("gru")), Recurrent(cell("gru", 7, 7)), Recurrent(cell("gru", 7, 7)), residual=True
    )
    assert len(deep) == 3
    assert list(deep) == [deep[0], deep[1], deep[-1]]
    x = random(5, 2, 5)
    hidden, _ = deep[0](x)
    upper = deep[1:]
    assert isinstance(upper, Stack)
    assert upper.residual == (True, True)
    deep[1].eval()
    assert [module.training for module in (deep[1:], *deep[1:])] == [True, False, True]
    torch.testing.assert_close(upper(hidden)[0], deep(x)[0], **EXACT)


@pytest.mark.parametrize("told", [{}, {"lengths": LENGTHS}], ids=["whole", "ragged"])
def test_what_a_residual_layer_reads_is_added(told: dict[str, Tensor]) -> None:
    deep = Stack(
        Recurrent(cell("gru")), Recurrent(cell("gru", 7, 7)), Recurrent(cell("elman", 7, 3)),
        residual=[False, True, False], dropout=1.0,
    )  # fmt: skip
    x = random(6, 4, 5)
    one, _ = deep[0](x, **told)
    two = one + deep[1](torch.zeros_like(one), **told)[0]  # what goes round the layer is not dropped
    torch.testing.assert_close(deep[:2](x, **told)[0], two, **EXACT)
    assert "residual" in repr(deep)
    step = deep.eval().step
    torch.testing.assert_close(step(x[0])[0], deep(x[:1])[0][0], **EXACT)
    with pytest.raises(InputError, match="as wide as"):
        Stack(Recurrent(cell("gru")), Recurrent(cell("elman", 7, 3)), residual=True)(x, **told)
    with pytest.raises(InputError, match="2 bools"):
        Stack(Recurrent(cell("gru")), Recurrent(cell("elman", 7, 3)), residual=[True])


@pytest.mark.parametrize("told", [{}, {"lengths": LENGTHS}], ids=["whole", "ragged"])
def test_a_teacher_is_the_top_layers(told: dict[str, Tensor]) -> None:
    top = cell("jordan", 7, 5)
    deep, x = Stack(Recurrent(cell("gru")), Stack(Recurrent(top))), random(6, 4, 5)
    teacher = random(6, 4, top.initial_state(1).shape[-1])
    half = torch.full((6, 4), 0.5, dtype=torch.float64)
    hidden, _ = deep[0](x, **told)
    for weight in (None, half):
        found = deep(x, teacher=teacher, teacher_weight=weight, **told)
        expected = Recurrent(top)(hidden, teacher=teacher, teacher_weight=weight, **told)
        torch.testing.assert_close(found[0], expected[0], **EXACT)
        torch.testing.assert_close(found[1][1][0], expected[1], **EXACT)
    with pytest.raises(InputError, match="both directions"):
        Stack(Bidirectional(cell("gru"), cell("gru")))(x, teacher=teacher, **told)


class Conditioned(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.W = 7, torch.nn.Linear(7, 7)

    def forward(self, x: Tensor, h: Tensor, context: Tensor) -> Tensor:
        return torch.tanh(self.W(h) + context)


def test_a_context_goes_to_those_who_take_one() -> None:
    own = Conditioned().double()
    deep = Stack(Recurrent(cell("gru")), Bidirectional(own, cell("gru", 7, 7)), Recurrent(cell("gru", 14, 7)))
    x, context = random(6, 4, 5), random(4, 7)
    expected, _ = Recurrent(own)(deep[0](x)[0], context=context)
    torch.testing.assert_close(deep[:2](x, context=context)[0][..., :7], expected, **EXACT)
    assert deep(x, context=context, lengths=LENGTHS)[0].shape == (6, 4, 7)
    two = Stack(deep[0], Recurrent(own))
    torch.testing.assert_close(two.step(x[0], context=context)[0], two(x[:1], context=context)[0][0], **EXACT)
    with pytest.raises(InputTypeError, match="no cell takes a context"):
        deep[0:1](x, context=context)


def test_weights_written_under_the_old_names_are_read() -> None:
    deep = Stack(Bidirectional(cell("gru"), cell("gru")))
    new = deep.state_dict()
    assert "layers.0.forward_layer.cell.U" in new
    old = {
        name.replace("forward_layer", "ahead").replace("backward_layer", "back"): torch.randn_like(value)
        for name, value in new.items()
    }
    deep.load_state_dict(old)
    assert "layers.0.ahead.cell.U" in old  # nothing is taken from the caller
    torch.testing.assert_close(list(deep.state_dict().values()), list(old.values()), rtol=0, atol=0)
    pickled = deep[0].__getstate__()
    modules = {"ahead": deep[0].forward_layer, "back": deep[0].backward_layer}
    again = Bidirectional.__new__(Bidirectional)
    again.__setstate__({**pickled, "_modules": modules})
    assert list(again.state_dict()) == list(deep[0].state_dict())


def test_layers_explain_themselves() -> None:
    deep = Stack(Bidirectional(cell("gru"), cell("gru")), Recurrent(cell("lstm", 14, 3)))
    with pytest.raises(elman.errors.StateError):
        deep.explain()
    deep(random(5, 2, 5))
    said = elman.explain(deep)
    assert len(said.plans) == 6
    heads = [line for line in str(said).splitlines() if line.startswith("layer")]
    assert heads == ["layer 0, forward", "layer 0, backward", "layer 1"]
    assert str(deep[1].explain()) in str(said)
    assert said._repr_html_().count("<h4>") == 3
    assert str(elman.explain(deep[1].explain().plans[0])) in str(deep[1].explain())
    with pytest.raises(InputTypeError, match="what is explained"):
        elman.explain(3)


@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize("layers", [2, 3])
def test_a_state_of_torchs_form_names_the_way_out(name: str, layers: int) -> None:
    """h_0 `[L, B, H]`, of an LSTM with c_0 beside it, where a stack takes a state for each layer."""
    deep, x = Stack(*(Recurrent(cell(name, 4, 4)) for _ in range(layers))), random(5, 3, 4)
    h_0, c_0 = random(layers, 3, 4), random(layers, 3, 4)
    given, mend, right = h_0, "h_0.unbind(0)", [*h_0]
    if name == "lstm":
        given, mend = (h_0, c_0), "list(zip(h_0.unbind(0), c_0.unbind(0)))"
        right = [*zip(h_0, c_0, strict=True)]
    with pytest.raises(elman.ElmanError) as told:
        deep(x, given)
    assert f"pass {mend}" in str(told.value)
    compare.assert_equal(*(compare.flat(*deep(x, state)) for state in (eval(mend), right)))


def test_a_state_of_torchs_form_for_both_directions() -> None:
    both, x, h_0 = Bidirectional(cell("gru", 4, 4), cell("gru", 4, 4)), random(5, 3, 4), random(2, 3, 4)
    with pytest.raises(InputTypeError, match=r"h_0\.unbind\(0\)"):
        both(x, h_0)
    both(x, h_0.unbind(0))
