"""A module as one recurrence: all that it does at a step, embedding and readout included, in one cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from elman.circuit.form import Kind
from elman.circuit.structure import NOTHING, fill, flatten, specs
from elman.errors import NotSupported
from elman.models import LanguageModel
from elman.models.autoencoding import AutoencoderNetwork
from elman.models.evaluating import evaluating
from elman.models.forecast_network import ForecastNetwork
from elman.models.frame_network import FrameNetwork
from elman.models.sequence_classifier import SequenceClassifier
from elman.models.tagging import TagNetwork
from elman.recurrent import Bidirectional, Compound, Recurrent, Stack, last
from elman.recurrent.programs import Binding, Programs, Shapes
from elman.recurrent.stacked import StackCell
from elman.trace.call import call_cell, understand
from elman.trace.initial import initial_state


@dataclass(frozen=True, eq=False)
class Single:
    """A step: a cell, an example x `[1, …]` of what it reads, the state `[1, …]` that it starts from, and what these
    are bound to. xs, states: their tensors."""

    name: str
    cell: nn.Module
    x: Any
    state: Any
    xs: list[Tensor]
    states: list[Tensor]
    binding: Binding

    @classmethod
    def of(cls, name: str, cell: nn.Module, x: Any, state: Any) -> Single:
        """name: the user's word for it."""
        (xs, of_x), (states, of_state) = flatten(x, "x"), flatten(state, "state")
        shapes = Shapes(False, of_x, of_state, NOTHING, NOTHING, (specs(xs, 1), specs(states, 1), ()))
        return cls(name, cell, x, state, xs, states, Programs().find(cell, shapes, xs, states, []))


def called(module: nn.Module) -> str:
    """A network in the words of its task."""
    words = {
        LanguageModel: "a language model", SequenceClassifier: "a classifier", TagNetwork: "a tagger",
        AutoencoderNetwork: "an auto-encoder", ForecastNetwork: "a forecaster of series",
        FrameNetwork: "a forecaster of vectors",
    }  # fmt: skip
    return next((name for kind, name in words.items() if isinstance(module, kind)), type(module).__name__)


def has_step(module: nn.Module) -> bool:
    """Whether `single` is of such modules."""
    return isinstance(module, (LanguageModel, SequenceClassifier, Recurrent, Stack, Compound, Bidirectional))


def single(module: nn.Module) -> Single:
    """The step of a module, in evaluation. Raises NotSupported for one that cannot run step by step, NotYet for a layer
    before any call, which says how wide its input is."""
    with evaluating(module), torch.no_grad():
        if isinstance(module, LanguageModel):
            return _language(module)
        if isinstance(module, SequenceClassifier):
            return _classifier(module)
        if isinstance(module, (Recurrent, Stack, Compound, Bidirectional)):
            return _layer(module)
    raise NotSupported(
        what=f"{called(module)} has no step that could be exported by itself", where="export(module)",
        expected="a language model, a classifier that reads forward, Recurrent, Stack, or a layer of elman.nn",
        mend="export it to .onnx or .pt2 (elman export RUN --to onnx), or to .html, where there is a page for it",
    )  # fmt: skip


# --- layers ----------------------------------------------------------------------------------------------------------


def _layer(layer: Any) -> Single:
    cell, x = cell_of(layer), _example(layer)
    name = type(_first(layer).cell).__name__ if isinstance(layer, Recurrent) else type(layer).__name__
    return Single.of(name, cell, x, _started(layer, x)[0])


def cell_of(layer: Any) -> nn.Module:
    """One step of a layer, whatever it is made of, with the weights of now."""
    layer = layer.as_layer() if isinstance(layer, Compound) else layer
    if isinstance(layer, Stack):
        cells = [cell_of(layer.part(i)) for i in range(len(layer))]
        return StackCell(cells, layer.residual, layer.norms_between()).eval()
    if isinstance(layer, Bidirectional) or layer.reverse:
        both = isinstance(layer, Bidirectional)
        raise NotSupported(
            what="a layer that reads in both directions cannot run step by step: one of them begins at the end" if both
            else "a reversed layer cannot run step by step: its first step is the sequence's last",
            where=type(layer).__name__,
            mend="train one that reads forward (--one-direction; in Python both=False)",
        )  # fmt: skip
    if layer.takes_context():
        raise NotSupported(
            what="a context is no part of what goes into a step", where=type(layer.cell).__name__,
            mend="let the cell take it as a part of x",
        )  # fmt: skip
    return layer.cell


def _first(layer: Any) -> Recurrent:
    while not isinstance(layer, Recurrent):
        layer = layer.as_layer() if isinstance(layer, Compound) else layer.part(0)
    return layer


def _example(layer: Any) -> Any:
    """A step of the latest call's x."""
    circuit = _first(layer).circuit
    assert circuit.signature is not None
    ports = [
        port for port in circuit.inputs_of(Kind.SEQUENCE) if port.teaches is None and port.path[:1] == "x"
    ]
    return fill(
        circuit.signature.x, [torch.zeros(1, *p.shape, dtype=p.dtype, device=p.device) for p in ports]
    )


def _started(layer: Any, x: Any) -> tuple[Any, Any]:
    """The state that a layer starts from, and what it hands on of x."""
    layer = layer.as_layer() if isinstance(layer, Compound) else layer
    if not isinstance(layer, Stack):
        state = initial_state(layer.cell, x)
        returned = call_cell(layer.cell, x, state, None, False)
        return state, understand(returned, flatten(state, "state")[1], type(layer.cell).__name__)[0]
    states = []
    for i in range(len(layer)):
        given = layer.norms_between()[i - 1](x) if i and len(layer.norms_between()) else x
        state, output = _started(layer.part(i), given)
        x = pytree.tree_map(torch.add, x, output) if layer.residual and layer.residual[i] else output
        states.append(state)
    return tuple(states), x


# --- models ----------------------------------------------------------------------------------------------------------


class LanguageStep(nn.Module):
    """A language model: (symbol `[B]`, states of the layers) -> (logits `[B, V]`, new states)."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.embedding, self.cell, self.readout = model.embedding, cell_of(model.stack), model.readout

    def forward(self, x: Tensor, state: tuple) -> tuple[Tensor, tuple]:
        h, after = self.cell(self.embedding(x), state)
        return self.readout(h), after


def _language(model: LanguageModel) -> Single:
    if model.condition is not None:
        raise NotSupported(
            what="a model that is told something about each sequence is not exported", where="condition",
            mend="train one without condition=",
        )  # fmt: skip
    x = torch.zeros(1, dtype=torch.int64, device=model.readout.weight.device)
    return Single.of(
        "LanguageModel", LanguageStep(model).eval(), x, _started(model.stack, model.embedding(x))[0]
    )


class Following(nn.Module):
    """A classifier: (symbol `[B]` or numbers `[B, I]`, state) -> (logits `[B, K]` of what was read so far, new state).

    state: those of the layers, and for each pooling that adds something up, what `SequenceClassifier.step` keeps.
    """

    far: Tensor
    near: Tensor
    deviation: Tensor

    def __init__(self, model: SequenceClassifier) -> None:
        super().__init__()
        self.model, self.cell = model, cell_of(model.stack)
        if not model.symbols:
            # A step has float32 only. What is near the mean is taken from its nearest float32 without an error.
            far = model.mean.float()
            self.register_buffer("far", far, persistent=False)
            self.register_buffer("near", (model.mean - far).float(), persistent=False)
            self.register_buffer("deviation", model.deviation.float(), persistent=False)

    def _read(self, x: Tensor) -> Tensor:
        return self.model._read(x) if self.model.symbols else (x - self.far - self.near) / self.deviation

    def forward(self, x: Tensor, state: tuple) -> tuple[Tensor, tuple]:
        y, after = self.cell(self._read(x), state[0])
        parts, kept = [], {}
        for how in self.model.pools:
            if how == "last":
                parts.append(last(after, self.model.stack))
                continue
            top, *rest = self.model._running(how, y, (*state[1][how], None, None)[:3])
            parts.append(top if how == "max" else top / cast(Tensor, rest[0]))
            kept[how] = (top,) if how == "max" else (top, *rest)
        return self.model.readout(torch.cat(parts, -1)), (after, kept)


def _classifier(model: SequenceClassifier) -> Single:
    like = model.readout.weight
    inputs = model.settings["inputs"]
    x = torch.zeros(1, dtype=torch.int64) if model.symbols else torch.zeros(1, inputs, dtype=like.dtype)
    cell = Following(model).eval()
    states, y = _started(model.stack, model._read(x.to(like.device)))
    nothing, one = torch.zeros_like(y), torch.zeros_like(y[..., :1])
    lowest = {"max": (torch.full_like(y, -torch.inf),)}
    kept = {
        how: lowest.get(how, (nothing, one, torch.full_like(one, -torch.inf)))
        for how in model.pools
        if how != "last"
    }
    return Single.of("SequenceClassifier", cell, x.to(like.device), (states, kept))
