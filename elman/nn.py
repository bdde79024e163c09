"""Drop-ins for torch.nn's recurrent layers: the same names, parameters, calls and errors, run by elman.

    layer = elman.nn.GRU(8, 16, num_layers=2, bidirectional=True)     # instead of torch.nn.GRU(…)
    outputs, h = layer(x, lengths=n)                                  # ragged batches without packing, and reset=
    print(elman.nn.swap(model))                                       # all layers of a model, in place

They are subclasses of torch.nn's, whose constructors, checks and `state_dict` they inherit. What elman has nothing to
gain from, or says otherwise (other devices than the CPU, autocast, wrong arguments), goes to torch.nn's own forward; so
does every call that is exported, traced or scripted, so that what comes of it knows nothing of elman. torch.compile
refuses whatever is a torch.nn.RNN, unless `torch._dynamo.config.allow_rnn` is set; then these compile whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from elman.errors import InputError, NotSupported
from elman.plan import Explanation
from elman.recurrent import Bidirectional, Budget, Compound, Recurrent, Stack
from elman.recurrent.order import turned
from elman.segments.segment import Memory

Tensor = torch.Tensor


_NOBODY: Any = torch._C._disabled_torch_dispatch_impl  # what looks at the operations on an ordinary tensor
_NAMES = {"U": "weight_ih", "W": "weight_hh", "b": "bias_ih", "c": "bias_hh", "P": "weight_hr"}


class _Step(torch.nn.Module):
    """One layer's step in one direction, with the weights of torch.nn: U, W, biases b and c, and P, the projection.

    They are taken from the layer before every call, so they may be computed there (parametrizations, functional_call).
    """

    U: Tensor
    W: Tensor
    b: Tensor | None
    c: Tensor | None
    P: Tensor | None
    has_memory = False  # an LSTM's c beside h

    def __init__(self) -> None:
        super().__init__()
        for name in _NAMES:
            self.register_parameter(name, None)

    def take(self, layer: torch.nn.RNNBase, ending: str) -> None:
        for name, theirs in _NAMES.items():
            weight = getattr(layer, f"{theirs}_{ending}", None)
            if self._parameters[name] is not weight:
                self._parameters[name] = weight

    def initial_state(self, batch: int) -> Tensor | tuple[Tensor, Tensor]:
        """Zeros."""
        h = self.W.new_zeros(batch, self.W.shape[1])
        return (h, self.W.new_zeros(batch, self.W.shape[0] // 4)) if self.has_memory else h


class TanhStep(_Step):
    """A step of an RNN: h(t) = tanh(b + U x(t) + c + W h(t-1))."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.U, self.b) + F.linear(h, self.W, self.c))


class ReLUStep(_Step):
    """A step of an RNN: h(t) = max(0, b + U x(t) + c + W h(t-1))."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.relu(F.linear(x, self.U, self.b) + F.linear(h, self.W, self.c))


class GRUStep(_Step):
    """A step of a GRU, whose equations are those of `elman.cells.GRU`."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a_r, a_z, a_n = F.linear(x, self.U, self.b).chunk(3, -1)
        w_r, w_z, w_n = F.linear(h, self.W, self.c).chunk(3, -1)
        r, z = torch.sigmoid(a_r + w_r), torch.sigmoid(a_z + w_z)
        n = torch.tanh(a_n + r * w_n)
        return n + z * (h - n)


class LSTMStep(_Step):
    """A step of an LSTM, whose equations are those of `elman.cells.LSTM`, and of its projection, P h(t)."""

    has_memory = True

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, q = (F.linear(x, self.U, self.b) + F.linear(h, self.W, self.c)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(q) * torch.tanh(c)
        return (h if self.P is None else F.linear(h, self.P)), c


_STEPS = {"RNN_TANH": TanhStep, "RNN_RELU": ReLUStep, "GRU": GRUStep, "LSTM": LSTMStep}


class _AsTorchs(type):
    """The class of drop-ins: equal to torch's, so that whatever looks layers up by class finds them.

    Dynamic quantization does, and what sets up or counts the layers of a model.
    """

    def __eq__(cls, other: object) -> bool:
        return isinstance(other, type) and _torchs(cls) is _torchs(other)

    def __hash__(cls) -> int:
        return type.__hash__(_torchs(cls))


def _torchs(kind: type) -> type:
    """What a drop-in stands for; any other class is its own."""
    return kind.__dict__.get("_torchs", kind)


class _Layers(Budget, torch.nn.RNNBase, Compound, metaclass=_AsTorchs):
    """What the three have in common."""

    _elman: Any  # (a Stack, every step of it with the ending of its weights' names)
    engine: str = "auto"

    def __init__(self, *args: Any, engine: str = "auto", memory: str | Memory = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.memory = memory
        if engine != "auto":
            self.engine = engine
        self._build()

    def forward(  # type: ignore[override]
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """As the forward of the torch.nn class: the same arguments, results and errors; and for batches of sequences
        `lengths` `[B]`, `mask` and `reset`, in the order of the input, as of `elman.Recurrent.forward`.

        Which steps happen is elman's to say: with one of these, or with an engine that was named, no call goes to
        torch's own forward.
        """
        given = {
            name: value
            for name, value in (("lengths", lengths), ("mask", mask), ("reset", reset))
            if value is not None
        }
        if isinstance(input, torch.fx.Proxy):  # a leaf of torch.fx, as torch's own layers are
            path = input.tracer.path_of_module(self)  # type: ignore[attr-defined]
            return input.tracer.create_proxy("call_module", path, (input, hx), given)  # type: ignore[return-value]
        if not given and not self._fits(input, hx):
            data = input.data if isinstance(input, PackedSequence) else input
            recorded = torch.compiler.is_compiling() or not isinstance(data, Tensor) or _watched(data)
            if (self.engine == "auto" and not self.memory_number) or recorded:
                return super().forward(input, hx)
        return self.recur(input, hx, given)

    def recur(self, input: Any, hx: Any, given: dict[str, Any]) -> tuple[Any, Any]:
        """The same by elman, whatever is going on. given: lengths, mask, reset."""
        x, first, alone = input, False, False
        if not isinstance(x, PackedSequence):
            first, alone = self.batch_first, x.dim() == 2
            if alone and given:
                raise InputError(
                    what="one sequence without a batch has all of its steps", where=f"{next(iter(given))}=",
                    mend="give it a batch of one, input.unsqueeze(0 or 1)",
                )  # fmt: skip
            x = x.unsqueeze(1) if alone else x.transpose(0, 1) if first else x
            if first:
                given = {name: turned(value) for name, value in given.items()}
        parts = [] if hx is None else list(hx) if self.mode == "LSTM" else [hx]
        if alone:
            parts = [part.unsqueeze(1) for part in parts]
        batch = _batch_of(x)
        parts = parts or [self._zeros(batch, width) for width in self._widths()]
        outputs, finals = self._stack()(x, self._nested([part.unbind(0) for part in parts]), **given)
        ends = [torch.stack(list(end)) for end in zip(*self._flat(finals), strict=True)]
        if alone:
            outputs, ends = outputs.squeeze(1), [end.squeeze(1) for end in ends]
        elif first:
            outputs = outputs.transpose(0, 1)
        return outputs, (tuple(ends) if self.mode == "LSTM" else ends[0])

    def _fits(self, given: Any, hx: Any) -> bool:
        """Whether elman runs this call: everything that torch would refuse is left to torch, which says why."""
        packed = isinstance(given, PackedSequence)
        data = given.data if packed else given
        if not isinstance(data, Tensor) or data.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return False
        if torch.compiler.is_compiling():
            if packed or torch.compiler.is_exporting():
                return False
        elif _watched(data):
            return False
        weight = self.weight_ih_l0
        if (
            data.dim() not in ((2,) if packed else (2, 3))
            or 0 in data.shape
            or data.shape[-1] != self.input_size
        ):
            return False
        if data.dtype != weight.dtype or data.device != weight.device:
            return False
        if hx is None:
            return True
        parts = hx if self.mode == "LSTM" else (hx,)
        if not isinstance(parts, tuple) or len(parts) != len(self._widths()):
            return False
        alone = not packed and data.dim() == 2
        batch = (
            () if alone else (_batch_of(given.transpose(0, 1) if self.batch_first and not packed else given),)
        )
        return all(
            isinstance(part, Tensor) and part.dtype == data.dtype and part.device == data.device
            and tuple(part.shape) == (self.num_layers * self._ways, *batch, width)
            for part, width in zip(parts, self._widths(), strict=True)
        )  # fmt: skip

    @property
    def _ways(self) -> int:
        return 2 if self.bidirectional else 1

    def _widths(self) -> tuple[int, ...]:
        """Of h, and of an LSTM's c."""
        h = self.proj_size or self.hidden_size
        return (h, self.hidden_size) if self.mode == "LSTM" else (h,)

    def _zeros(self, batch: int, width: int) -> Tensor:
        weight: Any = self.weight_ih_l0
        return weight.new_zeros(self.num_layers * self._ways, batch, width)

    def _nested(self, parts: list[tuple[Tensor, ...]]) -> tuple[Any, ...]:
        """States as `Stack` has them, from those of all layers and directions one after the other."""
        each = [state if self.mode == "LSTM" else state[0] for state in zip(*parts, strict=True)]
        return tuple(each[i : i + 2] for i in range(0, len(each), 2)) if self.bidirectional else tuple(each)

    def _flat(self, finals: tuple[Any, ...]) -> list[tuple[Tensor, ...]]:
        """The other way round."""
        each = [state for layer in finals for state in layer] if self.bidirectional else list(finals)
        return each if self.mode == "LSTM" else [(state,) for state in each]

    def _stack(self) -> Stack:
        """The layers as elman runs them, with the weights of now."""
        stack, steps = self._elman
        for step, ending in steps:
            step.take(self, ending)
        stack.training, stack.dropout = self.training, self.dropout
        stack._memory, stack.memory_number = self._memory, self.memory_number
        return stack

    def as_layer(self) -> Stack:
        """The layers as a part of an `elman.Stack`. Raises NotSupported where hooks would not be called."""
        if self._forward_pre_hooks or self._forward_hooks:
            raise NotSupported(
                what=f"hooks of elman.nn.{type(self).__name__} are not called inside of an elman.Stack",
                where="forward hooks", mend="use torch.nn.utils.parametrizations, or remove the hooks",
            )  # fmt: skip
        return self._stack()

    def explain(self) -> Explanation:
        """What runs once, before, in and after the loop of each layer; after a call."""
        return self._elman[0].explain()

    def extra_repr(self) -> str:
        text = super().extra_repr() + ("" if self.memory is None else f", memory={self.memory!r}")
        return text if self.engine == "auto" else f"{text}, engine={self.engine!r}"

    def _build(self) -> None:
        """Make them. They are no submodules: the weights belong to this one."""
        kind, layers = _STEPS[self.mode], range(self.num_layers)
        if self.bidirectional:
            each: Any = [Bidirectional(kind(), kind(), engine=self.engine) for _ in layers]
        else:
            each = [Recurrent(kind(), engine=self.engine) for _ in layers]
        stack = Stack(*each, dropout=self.dropout, batch_first=False)
        steps = [step for step in stack.modules() if isinstance(step, _Step)]
        ends = [f"l{i}{way}" for i in layers for way in ("", "_reverse")[: self._ways]]
        object.__setattr__(self, "_elman", (stack, list(zip(steps, ends, strict=True))))
        for step, ending in self._elman[1]:
            step.take(self, ending)

    def __setstate__(self, d: dict[str, Any]) -> None:
        names: list[Any] = [name for weights in d.get("_all_weights", ()) for name in weights]
        if (
            "_flat_weights" not in d and names and isinstance(names[0], str)
        ):  # as old versions of PyTorch pickled it
            d = {"_flat_weights_names": names, **d, "_flat_weights": [d["_parameters"].get(n) for n in names]}
        super().__setstate__(d)
        self._build()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_elman", None)
        return state

    def _replicate_for_data_parallel(self) -> _Layers:
        replica = super()._replicate_for_data_parallel()
        replica._build()
        return replica

    def __prepare_scriptable__(self) -> _Layers:
        """What torch.jit.script compiles: torch's own layer. It puts it into the model, for good."""
        warnings.warn(
            "torch.jit.script makes this model's elman.nn layers torch.nn's; elman.nn.swap(model) swaps them again",
            stacklevel=2,
        )
        unswap(self)
        return self


class RNN(_Layers, torch.nn.RNN):
    """torch.nn.RNN, run by elman."""

    _torchs = torch.nn.RNN


class GRU(_Layers, torch.nn.GRU):
    """torch.nn.GRU, run by elman."""

    _torchs = torch.nn.GRU


class LSTM(_Layers, torch.nn.LSTM):
    """torch.nn.LSTM, run by elman."""

    _torchs = torch.nn.LSTM


_DROP_INS = ((torch.nn.RNN, RNN), (torch.nn.GRU, GRU), (torch.nn.LSTM, LSTM))


@dataclass(frozen=True)
class Swapped:
    """What `swap` or `unswap` did: path in the model -> the layer's new class, and -> why another one was left."""

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{path or 'the model'}: {name}" for path, name in self.swapped.items()]
        lines += [f"{path or 'the model'}: left, {reason}" for path, reason in self.left.items()]
        return "\n".join(lines) or "no recurrent layer of torch.nn in this model"


def swap(model: torch.nn.Module) -> Swapped:
    """Let elman run every torch.nn.RNN, GRU and LSTM of a model, in place.

    The layers stay the objects that they are, with their weights, hooks and names; only their class changes. A layer of
    somebody's own subclass is left as it is, because elman cannot know what its forward adds; so is what is swapped
    already.
    """
    return _exchange(model, _DROP_INS)


def unswap(model: torch.nn.Module) -> Swapped:
    """The other way round: every elman.nn.RNN, GRU and LSTM of a model becomes torch.nn's, in place."""
    return _exchange(model, tuple((ours, theirs) for theirs, ours in _DROP_INS))


def _exchange(model: torch.nn.Module, pairs: tuple[tuple[type, type], ...]) -> Swapped:
    """Give layers whose class stands first in a pair the second."""
    report = Swapped()
    for path, module in model.named_modules():
        if not isinstance(module, torch.nn.RNNBase):
            continue
        kind = type(module)
        new = next((new for old, new in pairs if kind is old), None)
        if new is not None:
            module.__dict__.pop("_elman", None)
            module.__class__ = new
            if isinstance(module, _Layers):
                module._build()
            report.swapped[path] = _name(new)
        elif any(kind is new for _, new in pairs):
            report.left[path] = f"it is {_name(kind)} already"
        elif hasattr(module, "parametrizations"):
            report.left[path] = "it is parametrized: swap first"
        else:
            report.left[path] = f"{kind.__name__} has a forward of its own"
    return report


def _name(kind: type) -> str:
    return f"{'elman' if issubclass(kind, _Layers) else 'torch'}.nn.{kind.__name__}"


def _watched(data: Tensor) -> bool:
    """Whether somebody looks at every operation, as torch.jit.trace, make_fx and fake tensors do: they must see
    PyTorch's."""
    return (
        torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or getattr(type(data), "__torch_dispatch__", _NOBODY) is not _NOBODY
    )


def _batch_of(x: Any) -> int:
    return int(x.batch_sizes[0]) if isinstance(x, PackedSequence) else x.shape[1]
