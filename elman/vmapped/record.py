"""A step for several examples, recorded while it runs: a graph again, in normal form."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from elman.circuit import graphs
from elman.circuit.form import ROWS
from elman.circuit.graphs import insert
from elman.circuit.rows import factor, rows_of
from elman.errors import NotSupported
from elman.trace.merged import batch_slow
from elman.trace.normal import normalise
from elman.trace.outside import outside

if TYPE_CHECKING:
    from elman.trace.fakes import Fakes

Tensor = torch.Tensor


def places_of(graph: fx.Graph) -> list[fx.Node]:
    """What goes into a step, in order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def example(fakes: Fakes, value: Any, size: int | None) -> Any:
    """What goes in for every example of `size`, on fake tensors of its own; None: for all of them."""
    if not isinstance(value, Tensor):
        return fakes.batch
    sizes: list[Any] = [factor(s) * fakes.batch if factor(s) else int(s) for s in value.shape]
    if size is not None:
        sizes.insert(0 if rows_of(value) is None else 1, size)
    with fakes.mode:
        return torch.empty(sizes, dtype=value.dtype, device=value.device)


def recorded(
    graph: fx.Graph, name: str, fakes: Fakes, values: Sequence[Any],
    step: Callable[[dict[fx.Node, Any]], dict[str, Tensor]],
) -> fx.Graph:  # fmt: skip
    """The graph of `step`, which runs `graph` on what its placeholders hold: `values`, while it is recorded."""
    from torch.fx.experimental.proxy_tensor import make_fx

    places = places_of(graph)

    def examples(*inputs: Any) -> dict[str, Tensor]:
        return step(dict(zip(places, inputs, strict=True)))

    with outside(), torch.no_grad(), _no_fallback(), fakes.mode, enable_python_dispatcher():
        try:
            module = make_fx(examples, tracing_mode="real")(*values)
        except (RuntimeError, NotImplementedError) as error:
            raise NotSupported(
                what="an operation of the step has no batching rule in torch.func.vmap", where=name,
                got=str(error).splitlines()[0], mend="map over the examples in a loop",
            ) from error  # fmt: skip
        if fakes.env.replacements:
            raise NotSupported(
                what="a batching rule of torch.func.vmap asks for the number of rows", where=name,
                mend="map over the examples in a loop",
            )  # fmt: skip
        new = _named(module.graph, [str(node.target) for node in places], fakes)
        normalise(new)
        if batch_slow(new):
            normalise(new)
    return graphs.renamed(new)


@contextlib.contextmanager
def _no_fallback() -> Iterator[None]:
    """Where torch.vmap has no batching rule it would write a loop over the examples into the step."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)


def _named(graph: fx.Graph, names: list[str], fakes: Fakes) -> fx.Graph:
    """A recorded graph with the names of the ports, and sizes as multiples of `rows`."""
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    places = [node for node in graph.nodes if node.op == "placeholder"]
    for node, name in zip(places, names, strict=True):
        copies[node] = graphs.add_placeholder(new, name, node.meta["val"])
    size = next((n for n in new.nodes if n.target == ROWS), None)
    if size is None:
        size = graphs.add_placeholder(new, ROWS, fakes.batch)
    for node in graph.nodes:
        if node.op == "output":
            new.output({name: copies[value] for name, value in node.args[0].items()})
        elif node.op == "call_function":
            value = node.meta.get("val")
            if isinstance(value, torch.SymInt) and (k := factor(value)):
                copies[node] = size if k == 1 else insert(new, operator.mul, size, k)
                continue
            copies[node] = new.node_copy(node, copies.__getitem__)
            copies[node].meta = {"val": value}
    if not size.users:
        new.erase_node(size)
    return new
