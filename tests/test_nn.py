"""Drop-ins for torch.nn: the same numbers, parameters and errors for all options; models swapped in place."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import elman
from elman.errors import InputError, InputTypeError, NotSupported
from elman.nn import swap
from tests import pairwise
from tests.pairwise import with_more

Tensor = torch.Tensor
KINDS = ("RNN", "GRU", "LSTM")
T, B, I, H = 6, 3, 4, 5


# What one of the three constructors takes and the others do not.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tanh": ("RNN", {"nonlinearity": "tanh"}),
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "GRU": ("GRU", {}),
    "LSTM": ("LSTM", {}),
    "projected": ("LSTM", {"proj_size": 3}),
}


def pair(kind: str, **said: Any) -> tuple[nn.RNNBase, nn.RNNBase]:
    """torch.nn's layer and ours, of the same weights, taken through `state_dict`."""
    said = {"dtype": torch.float64} | said
    theirs, ours = getattr(nn, kind)(I, H, **said), getattr(elman.nn, kind)(I, H, **said)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


def state(layer: nn.RNNBase, *batch: int) -> Any:
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    h = torch.randn(rows, *batch, layer.proj_size or H, dtype=torch.float64, requires_grad=True)
    if layer.mode != "LSTM":
        return h
    return h, torch.randn(rows, *batch, H, dtype=torch.float64, requires_grad=True)


def results(layer: nn.RNNBase, x: Any, hx: Any, leaves: list[Tensor]) -> list[Tensor]:
    """Outputs, final states, and the gradients of the leaves and of all weights."""
    outputs, final = layer(x, hx)
    made = [outputs.data if isinstance(outputs, PackedSequence) else outputs]
    made += list(final) if isinstance(final, tuple) else [final]
    loss = torch.stack([(t * torch.linspace(-1, 2, t.numel()).view(t.shape)).sum() for t in made]).sum()
    return [*made, *torch.autograd.grad(loss, [*leaves, *layer.parameters()], retain_graph=True)]


def same(theirs: nn.RNNBase, ours: nn.RNNBase, x: Any, hx: Any, leaves: list[Tensor]) -> None:
    for expected, got in zip(results(theirs, x, hx, leaves), results(ours, x, hx, leaves), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.grid
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("variant", with_more([name for name in VARIANTS if name != "tanh"], ["tanh"]))
def test_equal_to_torch(variant: str, layers: int, both_ways: bool, first: bool, bias: bool) -> None:
    kind, more = VARIANTS[variant]
    said = {"num_layers": layers, "bidirectional": both_ways, "batch_first": first, "bias": bias} | more
    theirs, ours = pair(kind, **said)
    assert isinstance(ours, getattr(nn, kind))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    assert [len(weights) for weights in ours.all_weights] == [len(weights) for weights in theirs.all_weights]
    size = (B, T, I) if said["batch_first"] else (T, B, I)
    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    alone = torch.randn(T, I, dtype=torch.float64, requires_grad=True)
    packed = pack_padded_sequence(x, [2, T, 3], batch_first=said["batch_first"], enforce_sorted=False)
    hx, single = state(ours, B), state(ours)
    for given, start, leaf in (
        (x, None, x),
        (x, hx, x),
        (alone, single, alone),
        (packed, None, x),
        (packed, hx, x),
    ):
        states = [] if start is None else list(start) if isinstance(start, tuple) else [start]
        same(theirs, ours, given, start, [leaf, *states])


@pytest.mark.parametrize("kind", KINDS)
def test_initialisation_is_torchs(kind: str) -> None:
    torch.manual_seed(3)
    theirs = getattr(nn, kind)(I, H, num_layers=2)
    torch.manual_seed(3)
    ours = getattr(elman.nn, kind)(I, H, num_layers=2)
    for expected, got in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(got, expected)
    ours.flatten_parameters()


@pytest.mark.parametrize("kind", with_more(["LSTM"], ["RNN", "GRU"]))
def test_dropout_between_layers(kind: str) -> None:
    theirs, ours = pair(kind, num_layers=2, dropout=1.0)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    same(theirs, ours, x, None, [x])  # all of it is dropped: the same numbers
    same(theirs.eval(), ours.eval(), x, None, [x])
    some = getattr(elman.nn, kind)(I, H, num_layers=2, dropout=0.5)
    one, other = some(torch.ones(T, B, I))[0], some(torch.ones(T, B, I))[0]
    assert not torch.equal(one, other)


def wrong(kind: str) -> dict[str, tuple[Any, ...]]:
    x = torch.randn(T, B, I)
    h = torch.randn(1, B, H)
    good: Any = (h, h) if kind == "LSTM" else h
    bad: Any = (torch.randn(1, B, H + 1), h) if kind == "LSTM" else torch.randn(1, B, H + 1)
    return {
        "1-D": (x[0, 0],), "4-D": (x[None],), "width": (torch.randn(T, B, I + 1),), "dtype": (x.double(),),
        "no steps": (x[:0],), "batch of the state": (x[:, :2], good), "width of the state": (x, bad),
        "2-D state": (x, (h[0], h[0]) if kind == "LSTM" else h[0]), "state of a row": (x[:, 0], good),
        "whole numbers": (x.long(),),
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mistake", wrong("RNN"))
def test_the_same_errors(kind: str, mistake: str) -> None:
    theirs, ours = pair(kind, dtype=torch.float32)
    arguments = wrong(kind)[mistake]
    with pytest.raises(Exception) as expected:
        theirs(*arguments)
    with pytest.raises(type(expected.value)) as got:
        ours(*arguments)
    assert str(got.value) == str(expected.value)


def test_torch_raises_for_wrong_constructors() -> None:
    with pytest.raises(ValueError, match="hidden_size"):
        elman.nn.GRU(3, 0)
    with pytest.raises(ValueError, match="proj_size"):
        elman.nn.GRU(3, 4, proj_size=2)


# --- around the layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", with_more(["LSTM"], ["RNN", "GRU"]))
def test_copies_files_and_dtypes(kind: str) -> None:
    theirs, ours = pair(kind, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    expected = theirs(x)[0]
    torch.testing.assert_close(ours(x)[0], expected)
    twin = copy.deepcopy(ours)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(x)[0], expected)
    ours.load_state_dict(torch.load(file))
    torch.testing.assert_close(ours(x)[0], expected)
    ours.float()
    torch.testing.assert_close(ours(x.float())[0], expected.float(), rtol=1e-5, atol=1e-5)


def test_weights_that_are_computed() -> None:
    """functional_call, and parametrizations: weight norm, orthogonal, and Dale's law."""

    class Dale(nn.Module):
        def forward(self, W: Tensor) -> Tensor:
            sign = torch.ones(W.shape[1], dtype=W.dtype)
            sign[::3] = -1
            return W.abs() * sign

    theirs, ours = pair("RNN")
    x = torch.randn(T, B, I, dtype=torch.float64)
    doubled = {name: 2 * weight.detach() for name, weight in ours.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(ours, doubled, (x,))[0],
        torch.func.functional_call(theirs, doubled, (x,))[0],
    )
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    for apply in (
        lambda layer: parametrizations.weight_norm(layer, "weight_hh_l0"),
        lambda layer: parametrizations.orthogonal(layer, "weight_hh_l0"),
        lambda layer: parametrize.register_parametrization(layer, "weight_hh_l0", Dale()),
    ):
        theirs, ours = pair("RNN")
        apply(theirs)
        apply(ours)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
        same(theirs, ours, x, None, [x])


def test_hooks_clipping_and_compile() -> None:
    theirs, ours = pair("GRU", num_layers=2)
    seen: list[torch.Size] = []
    ours.register_forward_hook(lambda module, args, out: seen.append(out[0].shape))
    x = torch.randn(T, B, I, dtype=torch.float64)
    norms = []
    for layer in (theirs, ours):
        layer(x)[0].square().sum().backward()
        norms.append(nn.utils.clip_grad_norm_(layer.parameters(), 0.1))
    torch.testing.assert_close(norms[1], norms[0])
    assert seen == [(T, B, H)]
    with torch._dynamo.config.patch(allow_rnn=True):
        theirs, ours = pair("LSTM", num_layers=2 if pairwise.exhaustive else 1)
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        outputs, right = compiled(x)[0], theirs(x)[0]
        torch.testing.assert_close(outputs, right)
        made = torch.autograd.grad(outputs.square().sum(), list(ours.parameters()))
        torch.testing.assert_close(made, torch.autograd.grad(right.square().sum(), list(theirs.parameters())))


class Tagger(nn.Module):
    """A model as people write it for torch.nn."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.encode = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.smooth = nn.GRU(12, 7, batch_first=True)
        self.own = Own(7, 7)
        self.tags = nn.Linear(7, 5)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(words), lengths, batch_first=True, enforce_sorted=False)
        encoded, _ = nn.utils.rnn.pad_packed_sequence(self.encode(packed)[0], batch_first=True)
        smooth, _ = self.smooth(encoded)
        return self.tags(self.own(smooth.transpose(0, 1))[0].transpose(0, 1))


class Own(nn.RNN):
    def forward(self, input: Any, hx: Any = None) -> Any:
        outputs, final = super().forward(input, hx)
        return 2 * outputs, final


def test_a_model_is_swapped_in_place() -> None:
    model = Tagger().double().eval()
    words, lengths = torch.randint(30, (4, 9)), torch.tensor([9, 3, 5, 1])
    before = model(words, lengths)
    gradients = torch.autograd.grad(before.square().sum(), list(model.parameters()))
    parameters, names = list(model.parameters()), list(model.state_dict())
    report = swap(model)
    assert report.swapped == {"encode": "elman.nn.LSTM", "smooth": "elman.nn.GRU"}
    assert list(report.left) == ["own"]
    assert "Own has a forward of its own" in str(report)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == names
    after = model(words, lengths)
    torch.testing.assert_close(after, before)
    found = torch.autograd.grad(after.square().sum(), list(model.parameters()))
    torch.testing.assert_close(found, gradients)
    assert swap(model) == swap(model)
    assert swap(model).swapped == {}
    assert "no recurrent layer" in str(swap(nn.Linear(2, 2)))
    layer = nn.GRU(2, 3)
    assert swap(layer).swapped == {"": "elman.nn.GRU"}
    assert type(layer) is elman.nn.GRU


@pytest.mark.parametrize(("kind", "first"), [("GRU", True), ("LSTM", False)])
def test_lengths_are_what_packing_says(kind: str, first: bool) -> None:
    theirs, ours = pair(kind, num_layers=2 if first else 1, bidirectional=first, batch_first=first)
    x = torch.randn(*((B, T) if first else (T, B)), I, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([2, T, 3])
    packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
    expected, last = theirs(packed)
    expected, _ = pad_packed_sequence(expected, batch_first=first, total_length=T)
    outputs, final = ours(x, lengths=lengths)
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(final, last, rtol=1e-10, atol=1e-10)
    for one, two in zip(
        torch.autograd.grad(outputs.square().sum(), [x, *ours.parameters()]),
        torch.autograd.grad(expected.square().sum(), [x, *theirs.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    mask, cut = torch.arange(T)[:, None] < lengths, torch.zeros(T, B, dtype=torch.bool)
    cut[2] = True

    def timed(value: Tensor) -> Tensor:
        """In the order of the layer, or out of it."""
        return value.transpose(0, 1) if first else value

    torch.testing.assert_close(ours(x, mask=timed(mask))[0], outputs, rtol=0, atol=0)
    rest = ours(timed(timed(x)[2:]))[0]
    torch.testing.assert_close(timed(ours(x, reset=timed(cut))[0])[2:], timed(rest))
    with pytest.raises(InputError, match="has all of its steps"):
        ours(timed(x)[:, 0], lengths=[T])
    with pytest.raises(InputError, match="lengths="):
        ours(x, lengths=[T])


def test_the_usual_network_in_one_call() -> None:
    layer = elman.nn.GRU(
        I, H, num_layers=2, bidirectional=True, dropout=0.4, engine="reference", dtype=torch.float64
    )
    assert "engine='reference'" in repr(layer)
    x, reset = torch.randn(T, B, I, dtype=torch.float64), torch.rand(T, B) < 0.2
    outputs, h = layer(x, lengths=[T] * B, reset=reset)
    assert outputs.shape == (T, B, 2 * H)
    assert h.shape == (4, B, H)
    assert "reference" in str(layer.explain())
    assert copy.deepcopy(layer).engine == "reference"
    with pytest.raises(InputError, match="no such engine"):
        elman.nn.GRU(I, H, engine="nothing", dtype=torch.float64)(x)


def test_it_goes_into_a_stack() -> None:
    lower, upper = elman.nn.GRU(I, H, num_layers=2, bidirectional=True), elman.nn.GRU(2 * H, H)
    deep, lengths = elman.Stack(lower, upper).double(), [T, 2, 3]
    x = torch.randn(T, B, I, dtype=torch.float64)
    for told in ({}, {"lengths": lengths}):
        outputs, state = deep(x, **told)
        expected, h = upper(lower(x, **told)[0], **told)
        torch.testing.assert_close(outputs, expected, rtol=0, atol=0)
        torch.testing.assert_close(elman.last(state), h[0], rtol=0, atol=0)
    torch.testing.assert_close(elman.last(state[0]), elman.last(lower(x, **told)[1], lower), rtol=0, atol=0)
    assert "layers.0.weight_ih_l0" in deep.state_dict()
    two = elman.Stack(elman.nn.GRU(I, H), elman.nn.GRU(H, H)).double()
    _, state = two.step(x[0])
    torch.testing.assert_close(two.step(x[1], state)[0], two(x[:2])[0][1])
    assert "layer 1, layer 0" in str(two.explain())
    with pytest.raises(InputTypeError, match=r"elman.nn.GRU\(…\), or elman.nn.swap"):
        elman.Stack(nn.GRU(I, H))
    with pytest.raises(InputError, match="said of the stack"):
        elman.Stack(elman.nn.GRU(I, H, batch_first=True))
    lower.register_forward_hook(lambda *_: None)
    with pytest.raises(NotSupported, match="hooks"):
        deep(x)
