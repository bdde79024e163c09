"""How a module is called in a file: what goes in, under which words, which sizes stay open, and what comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from elman.circuit.structure import TENSOR, Structure, TensorSpec, fill, flatten, paths
from elman.errors import ElmanError, InputTypeError, NotSupported, NotYet
from elman.models import Autoencoder, Classifier, Forecaster, LanguageModel, Tagger
from elman.models.autoencoding import AutoencoderNetwork
from elman.models.forecast_network import ForecastNetwork
from elman.models.frame_network import FrameNetwork
from elman.models.sequence_classifier import SequenceClassifier
from elman.models.tagging import TagNetwork
from elman.nn import GRU, LSTM, RNN
from elman.recurrent import Bidirectional, Recurrent, Stack
from elman.recurrent.programs import Binding
from elman.recurrent.states import Directions

Tensor = torch.Tensor
T, B = 5, 3  # of examples

Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class Given:
    """One argument of a file.

    name: the user's word. structure: how its tensors are nested. tensors: an example of each. axes: what the leading
    dimensions of each are called; None for one whose size is fixed. default: what stands where it is left out, of one
    row; None if it may not be.
    """

    name: str
    structure: Structure
    tensors: tuple[Tensor, ...]
    axes: Axes
    default: tuple[Tensor, ...] | None = None

    def paths(self) -> list[str]:
        """What users call each of its tensors."""
        return paths(self.structure, self.name)


@dataclass(frozen=True)
class ModuleCall:
    """A call of a module: run(*arguments) -> results, a tuple. makes: the user's words for the results."""

    run: Callable[..., tuple[Any, ...]]
    given: tuple[Given, ...]
    makes: tuple[str, ...]


def network_of(thing: Any) -> torch.nn.Module:
    """The module of a model."""
    if isinstance(thing, (Tagger, Autoencoder, Forecaster)):
        return thing.network
    if isinstance(thing, Classifier):
        return thing._fitted()
    return thing


def call_of(module: torch.nn.Module, *, lengths: bool, state: bool) -> ModuleCall:
    """The call of a layer or a model, of evaluation. lengths, state: whether they are among its arguments."""
    for kind, make in _KINDS:
        if isinstance(module, kind):
            return make(module, lengths, state)
    raise InputTypeError(
        what="this cannot be exported", where="export(module)", got=type(module).__name__,
        expected="Recurrent, Bidirectional, Stack, a layer of elman.nn, or a model of elman.models",
        mend="export the layers of your model, or the whole of it by torch.export.export",
    )  # fmt: skip


# --- layers ----------------------------------------------------------------------------------------------------------


def _layer(layer: Recurrent | Bidirectional | Stack, lengths: bool, state: bool) -> ModuleCall:
    x, context = _read(layer)
    first = ("B", "T") if layer.batch_first else ("T", "B")
    # Of an autonomous system, a tensor [T] that says by its length alone how many steps there are.
    steps = Given("steps", TENSOR, (torch.ones(T, dtype=torch.bool),), ("T",))
    given = [steps if x is None else _example("x", x, first)]
    if lengths:
        given.append(_lengths())
    if context is not None:
        given.append(_example("context", context, ("B",)))

    def start(rows: int) -> Any:
        """The final state after no step, which is the initial one."""
        assert x is not None
        lead = (rows, 0) if layer.batch_first else (0, rows)
        told = {} if context is None else {"context": _filled(context, (rows,))}
        return layer(_filled(x, lead), **told)[1]

    if state or x is None:
        given.append(_state(_started(layer), None if x is None else start))
    names = [one.name for one in given]

    def run(*values: Any) -> tuple[Any, ...]:
        told = dict(zip(names, values, strict=True))
        if "steps" in told:
            told["steps"] = told["steps"].shape[0]
        return layer(told.pop("x", None), told.pop("state", None), **told)

    return ModuleCall(run, tuple(given), ("output", "final state"))


Widths = tuple[Structure, tuple[TensorSpec, ...]]


def _read(layer: Any) -> tuple[Widths | None, Widths | None]:
    """(x, context) of the latest call of a layer: what one step of each is like, None for what it does not take."""
    if isinstance(layer, Stack):
        parts = [_read(layer.part(i)) for i in range(len(layer))]
        return parts[0][0], next((context for _, context in parts if context is not None), None)
    if isinstance(layer, Bidirectional):
        (x, one), (_, other) = _read(layer.forward_layer), _read(layer.backward_layer)
        return x, one or other
    binding = _latest(layer)
    signature, x, context = (
        binding.program.circuit.signature,
        _specs(binding, "x"),
        _specs(binding, "context"),
    )
    assert signature is not None
    return (signature.x, x) if x else None, (signature.context, context) if context else None


def _started(layer: Any) -> Widths:
    """(structure, specs) of the state of a layer's latest call."""
    if isinstance(layer, (Stack, Bidirectional)):
        each = [layer.part(i) for i in range(len(layer))] if isinstance(layer, Stack) else _directions(layer)
        parts = [_started(part) for part in each]
        kind = ("tuple",) if isinstance(layer, Stack) else ("named", Directions)
        return (*kind, *(part for part, _ in parts)), tuple(spec for _, specs in parts for spec in specs)
    binding = _latest(layer)
    return binding.state, _specs(binding, "state")


def _directions(layer: Bidirectional) -> list[Recurrent]:
    return [layer.forward_layer, layer.backward_layer]


def _latest(layer: Recurrent) -> Binding:
    if (binding := layer._calls.latest) is None:
        raise NotYet(
            what="the shapes are not known yet",
            where="export(module)",
            mend="call the module once on an example",
        )
    return binding


def _specs(binding: Binding, name: str) -> tuple[TensorSpec, ...]:
    ports = [binding.program.inputs[place] for place in binding.slots(name)]
    return tuple(TensorSpec(port.shape, port.dtype, port.device) for port in ports)


def _drop_in(layer: Any, lengths: bool, state: bool) -> ModuleCall:
    like = layer.weight_ih_l0
    x = TENSOR, (TensorSpec((layer.input_size,), like.dtype, like.device),)
    given = [_example("input", x, ("B", "T") if layer.batch_first else ("T", "B"))]
    if lengths:
        given.append(_lengths())
    if state:
        count = layer.num_layers * layer._ways
        zeros = [like.new_zeros(count, B, width) for width in layer._widths()]
        structure = ("tuple", TENSOR, TENSOR) if len(zeros) == 2 else TENSOR
        start = tuple(value[:, :1].detach() for value in zeros)
        given.append(Given("hx", structure, tuple(zeros), (None, "B"), start))
    names = [one.name for one in given]

    def run(*values: Any) -> tuple[Any, ...]:
        told = dict(zip(names, values, strict=True))
        return layer.recur(told.pop("input"), told.pop("hx", None), told)

    return ModuleCall(run, tuple(given), ("output", "final hx"))


# --- models ----------------------------------------------------------------------------------------------------------


def _language(model: LanguageModel, lengths: bool, state: bool) -> ModuleCall:
    _no_lengths(lengths, "a language model", "the logits of padding are there, and nobody has to read them")
    given = [Given("x", TENSOR, (torch.zeros(T, B, dtype=torch.int64),), ("T", "B"))]
    width, like = model.settings["condition"], model.embedding.weight
    if width:
        given.append(Given("context", TENSOR, (like.new_zeros(B, width).detach(),), ("B",)))

    def call(x: Tensor, *more: Any) -> tuple[Any, ...]:
        rest = list(more)
        told = {"context": rest.pop(0)} if width else {}
        return model(x, *rest, **told)

    if state:
        given.append(_known_state(model.stack, lambda rows: call(
            torch.zeros(0, rows, dtype=torch.int64), *([like.new_zeros(rows, width)] if width else [])
        )[1]))  # fmt: skip
    return ModuleCall(call, tuple(given), ("logits", "final state"))


def _classifier(model: SequenceClassifier, lengths: bool, state: bool) -> ModuleCall:
    # Numbers in float64, in which they are standardised.
    x = torch.zeros(T, B, dtype=torch.int64) if model.symbols else _numbers(model.settings["inputs"])
    given = [Given("x", TENSOR, (x,), ("T", "B")), *([_lengths()] if lengths else [])]
    return ModuleCall(lambda *values: (model(*values),), tuple(given), ("logits",))


def _numbers(width: int) -> Tensor:
    return torch.zeros(T, B, width, dtype=torch.float64)


def _tagger(model: TagNetwork, lengths: bool, state: bool) -> ModuleCall:
    words = torch.zeros(T, B, dtype=torch.int64)
    spelled = torch.zeros(T + 2, T + 4, dtype=torch.int64)
    given = (
        Given("words", TENSOR, (words,), ("T", "B")),
        Given("vectors", TENSOR, (words,), ("T", "B")),
        Given("spelled", TENSOR, (spelled,), ("letters", "spellings")),
        Given("sizes", TENSOR, (torch.full((T + 4,), T + 2),), ("spellings",)),
        Given("of", TENSOR, (words,), ("T", "B")),
        _lengths(),
    )
    return ModuleCall(lambda *values: (model(*values),), given, ("scores",))


def _reader(model: AutoencoderNetwork, lengths: bool, state: bool) -> ModuleCall:
    x = torch.zeros(T, B, dtype=torch.int64) if model.symbols else _numbers(model.channels)
    x = x.float() if model.binary else x
    return ModuleCall(
        lambda *values: (model.encode(*values),), (Given("x", TENSOR, (x,), ("T", "B")), _lengths()), ("z",)
    )


def _forecast(model: ForecastNetwork, lengths: bool, state: bool) -> ModuleCall:
    _no_lengths(lengths, "a forecaster", "give each series a call of its own")
    sizes = {"lags": 2 * len(model.lags), "features": model.settings["features"]}
    given = [Given(name, TENSOR, (torch.zeros(T, B, size),), ("T", "B")) for name, size in sizes.items()]
    if state:
        given.append(_known_state(model.stack, lambda rows: model(
            *(torch.zeros(0, rows, size) for size in sizes.values())
        )[1]))  # fmt: skip
    return ModuleCall(lambda *values: model(*values), tuple(given), ("raw", "final state"))


def _frames(model: FrameNetwork, lengths: bool, state: bool) -> ModuleCall:
    width = model.settings["channels"]
    given = [Given("x", TENSOR, (torch.zeros(T, B, width),), ("T", "B")), *([_lengths()] if lengths else [])]
    if state:
        given.append(_known_state(model.stack, lambda rows: model(torch.zeros(0, rows, width))[1]))

    def call(x: Tensor, *more: Any) -> tuple[Any, ...]:
        return model(x, more[0] if lengths else None, more[lengths] if state else None)

    return ModuleCall(call, tuple(given), ("logits", "final state"))


def _no_lengths(lengths: bool, what: str, mend: str) -> None:
    if lengths:
        raise NotSupported(what=f"{what} takes no lengths", where="export(lengths=True)", mend=mend)


# --- arguments -------------------------------------------------------------------------------------------------------

_SIZES = {"T": T, "B": B}


def _example(name: str, like: Widths, axes: Axes) -> Given:
    lead = tuple(_SIZES[axis] for axis in axes if axis is not None)
    return Given(name, like[0], tuple(spec.zeros(*lead) for spec in like[1]), axes)


def _filled(like: Widths, lead: tuple[int, ...]) -> Any:
    return fill(like[0], [spec.zeros(*lead) for spec in like[1]])


def _lengths() -> Given:
    return Given("lengths", TENSOR, (torch.full((B,), T),), ("B",))


def _known_state(stack: Stack, start: Callable[[int], Any]) -> Given:
    """The state of a model, which knows what it reads: a call finds what its states are like."""
    start(1)
    return _state(_started(stack), start)


def _state(like: Widths, start: Callable[[int], Any] | None) -> Given:
    """The state; where all rows start alike, it may be left out."""
    default = None
    if start is not None:
        with contextlib.suppress(ElmanError), torch.no_grad():
            states = flatten(start(2), "state")[0]
            if all(torch.equal(value[0], value[1]) for value in states):
                default = tuple(value[:1].detach().clone() for value in states)
    return Given("state", like[0], tuple(spec.zeros(B) for spec in like[1]), ("B",), default)


_KINDS: tuple[tuple[Any, Callable[[Any, bool, bool], ModuleCall]], ...] = (
    ((RNN, GRU, LSTM), _drop_in),
    ((Recurrent, Bidirectional, Stack), _layer),
    (LanguageModel, _language),
    (SequenceClassifier, _classifier),
    (TagNetwork, _tagger),
    (AutoencoderNetwork, _reader),
    (ForecastNetwork, _forecast),
    (FrameNetwork, _frames),
)
