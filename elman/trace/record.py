"""A step on fake tensors, written down operation by operation.

`torch.fx.experimental.proxy_tensor.make_fx` does this for any function whatsoever. A step that can become a circuit is
made of ordinary operations on tensors whose sizes are numbers or multiples of the batch, and to write down no more than
these takes two thirds of the time. Whatever else is met is `Unusual`: then `make_fx` records the step, and what is
wrong with it is said from there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.traceback import preserve_node_meta
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from elman.circuit import rows
from elman.trace.values import known

aten = torch.ops.aten
Tensor = torch.Tensor

# What an argument may be beside tensors, sizes, and lists of these.
_PLAIN = (
    type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format
)  # fmt: skip


class Unusual(Exception):
    """The step does something that only `make_fx` can write down."""


@dataclass(frozen=True)
class Recorded:
    """A recorded graph, and the tensors that the step found for itself: what `get_attr` nodes stand for."""

    graph: fx.Graph
    found: Mapping[str, Tensor]


class Recorder(TorchDispatchMode):
    """Inside, on top of fake tensors, every operation becomes a node of `graph`, its value in meta["val"].

    apart: operations that are written down as what they are made of.
    """

    def __init__(self, apart: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.found: dict[str, Tensor] = {}
        self._apart = apart
        # The tensor beside its node: it lives as long as this, so that no other can have its id.
        self._nodes: dict[int, tuple[Tensor, fx.Node]] = {}
        self._batch: tuple[fx.Node, int] | None = (
            None  # an input, and the dimension in which it has the batch
        )
        self._pauses = False
        self.unusual: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nobody compiles a trace, and to see to that takes time at every operation

    def given(self, name: str, value: Tensor) -> None:
        """A further input of the graph."""
        node = self.graph.placeholder(name)
        self._pauses = True
        try:
            self._is(value, node)
        finally:
            self._pauses = False
        if self._batch is None and (where := rows.rows_of(value)) is not None and where.factor == 1:
            self._batch = node, where.dim

    def like(self, name: str, value: Tensor) -> Tensor:
        """A further input of the graph, of the shape of a value that has just been met."""
        self._pauses = True
        try:
            made = torch.empty_like(value.detach())
        finally:
            self._pauses = False
        self.given(name, made)
        return made

    def node_of(self, value: Tensor) -> fx.Node | None:
        """The node that stands for a tensor of the step."""
        if (entry := self._nodes.get(id(value))) is not None:
            return entry[1]
        if type(value) not in (Tensor, torch.nn.Parameter):
            return self._met(f"a tensor of unknown origin, {type(value)}")
        name = next((name for name, old in self.found.items() if old is value), f"found_{len(self.found)}")
        self.found[name] = value
        return self.graph.create_node("get_attr", name, (), {})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._pauses or self.unusual is not None or func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if not isinstance(func, torch._ops.OpOverload) or torch.Tag.data_dependent_output in func.tags:
            self._met(str(func))
            return func(*args, **kwargs)
        if func in self._apart:
            with self:
                return self._apart[func](*args, **kwargs)
        if _is_made_of_others(func, args, kwargs):
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        # Looked up before the call, which may write.
        operands = tuple(map(self._operand, args))
        named = {name: self._operand(value) for name, value in kwargs.items()}
        result = known(func, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        parts = result if isinstance(result, (tuple, list)) else (result,)
        if not any(isinstance(part, Tensor) for part in parts):
            if func._schema.is_mutable:
                self._met(f"{func} writes and gives nothing")
            return result  # what a tensor is like, of which no number is taken
        # Numbers in the code come as fresh tensors, into which the step may write.
        target = aten.lift_fresh_copy.default if func is aten.lift_fresh.default else func
        node = self.graph.create_node("call_function", target, operands, named)
        if isinstance(result, Tensor):
            self._is(result, node)
            return result
        node.meta["val"] = type(parts)(part.detach() if isinstance(part, Tensor) else part for part in parts)
        for position, part in enumerate(parts):
            if isinstance(part, Tensor):
                self._is(part, self.graph.call_function(operator.getitem, (node, position)))
            elif part is not None:
                self._met(f"{func} gives {type(part)}")
        return result

    def _met(self, what: str) -> None:
        """Note what cannot be written down. To raise here would end the process: PyTorch asks from where no error may
        come out."""
        self.unusual = self.unusual or what

    def _is(self, value: Tensor, node: fx.Node) -> None:
        node.meta["val"] = value.detach()
        self._nodes[id(value)] = value, node

    def _operand(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, Tensor):
            return self.node_of(value)
        if isinstance(value, torch.SymInt):
            return self._size(value)
        if isinstance(value, (tuple, list)):
            operands = map(self._operand, value)
            return [*operands] if isinstance(value, list) else tuple(operands)
        return self._met(f"an argument of {type(value)}")

    def _size(self, size: torch.SymInt) -> Any:
        """A size as a number, or as a multiple of the batch, which is read off an input."""
        number = size.node.maybe_as_int()
        if number is not None:
            return number
        try:
            multiple = rows.factor(size)
        except rows.Mixed as mixed:
            return self._met(str(mixed))
        if self._batch is None:
            return self._met("a batch size that comes from no input")
        source, dim = self._batch
        node = self.graph.call_function(aten.sym_size.int, (source, dim))
        node.meta["val"] = source.meta["val"].shape[dim]
        if multiple != 1:
            node = self.graph.call_function(operator.mul, (node, multiple))
            node.meta["val"] = size
        return node


def _is_made_of_others(func: torch._ops.OpOverload, args: Any, kwargs: Any) -> bool:
    """Whether autograd would have taken an operation apart, had it come by there."""
    composite: Any = torch._C._dispatch_has_kernel_for_dispatch_key
    if not composite(func.name(), "CompositeImplicitAutograd"):
        return False
    first = next((leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
    return first is None or not composite(func.name(), torch._C._dispatch_key_for_device(first.device.type))


def recorder() -> Recorder | None:
    """What records in this thread, if anything does."""
    return next((mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, Recorder)), None)


def record(
    function: Callable[[list[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor],
    apart: Mapping[Any, Callable[..., Any]],
) -> Recorded:  # fmt: skip
    """The graph of a function of fake tensors, inside of their mode; raises Unusual, or what the function raises."""
    mode = Recorder(apart)
    for position, value in enumerate(inputs):
        mode.given(f"in_{position}", value)
    with mode:
        results = function(list(inputs))
    mode.graph.output([mode.node_of(value) for value in results])
    if mode.unusual is not None:
        raise Unusual(mode.unusual)
    return Recorded(mode.graph, mode.found)


def record_anything(
    function: Callable[[list[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor],
    apart: Mapping[Any, Callable[..., Any]],
) -> Recorded:  # fmt: skip
    """The same by `make_fx`, with the lines that the operations come from."""
    from torch.fx.experimental.proxy_tensor import make_fx

    return _of_module(
        make_fx(function, decomposition_table=dict(apart), tracing_mode="real", record_stack_traces=True)(
            list(inputs)
        )
    )


def without_writes(recorded: Recorded, inputs: Sequence[Tensor]) -> Recorded:
    """The same graph without in-place operations, source lines kept."""
    from torch.fx.experimental.proxy_tensor import make_fx

    module = fx.GraphModule(dict(recorded.found), recorded.graph)

    def run(*values: Tensor) -> Any:
        with preserve_node_meta():
            return fx.Interpreter(module).run(*values)

    return _of_module(
        make_fx(torch.func.functionalize(run, remove="mutations"), tracing_mode="real")(*inputs)
    )


def _of_module(module: fx.GraphModule) -> Recorded:
    names = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    return Recorded(module.graph, {name: getattr(module, name) for name in names})


def further_input(name: str, like: Tensor) -> Tensor:
    """A further input of the graph that is being recorded, of the shape of a value that has just been met."""
    if (mode := recorder()) is not None:
        return mode.like(name, like)
    from torch.fx.experimental.proxy_tensor import (
        disable_proxy_modes_tracing,
        get_proxy_mode,
        track_tensor_tree,
    )

    proxies = get_proxy_mode()
    assert proxies is not None
    with disable_proxy_modes_tracing():
        value = torch.empty_like(like.detach())
    tracer: Any = proxies.tracer
    track_tensor_tree(value, tracer.create_proxy("placeholder", name, (), {}), constant=None, tracer=tracer)
    return value


def recorded_as(value: Tensor) -> fx.Node | None:
    """The node that stands for a tensor while somebody records."""
    if (mode := recorder()) is not None:
        return mode.node_of(value)
    from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot

    proxies = get_proxy_mode()
    if proxies is None:
        return None
    return get_proxy_slot(value, proxies.tracer).proxy.node  # type: ignore[attr-defined]
