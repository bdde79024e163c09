"""Why a step may not write into what it was given: seen by versions of tensors, by a run without gradients, and in the
graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import fx

from elman.circuit.form import InPort, Kind, StepFunction
from elman.errors import TraceError
from elman.trace.refuse import raised_at


def writes(
    leaves: Mapping[str, torch.Tensor], versions: Mapping[str, int], ports: Sequence[InPort], cell: str
) -> None:
    """Refuse a step that has written into a tensor that was given to it."""
    for port in ports:
        if leaves[port.name]._version == versions[port.name]:
            continue
        if port.kind is Kind.CONSTANT and port.path.endswith(("_u", "_v")):
            raise TraceError(
                what=f"the step mutates {port.path}: in training, a spectral norm iterates whenever its weight is read",
                where=cell, mend="call .eval() on the module that is normalised",
            )  # fmt: skip
        if port.kind is Kind.CONSTANT:
            raise TraceError(
                what=f"the step mutates {port.path}, a parameter or buffer",
                where=cell,
                mend="keep what changes from step to step in the state (BatchNorm in training updates its running "
                "statistics and mixes the batch: call .eval(), or use LayerNorm)",
            )
        raise TraceError(
            what=f"the step mutates its input {port.path} (an in-place operation)",
            where=cell,
            mend="use the operation without the trailing underscore",
        )


@contextlib.contextmanager
def writes_while_running(
    step: StepFunction, example: Mapping[str, torch.Tensor], ports: Sequence[InPort], cell: str
) -> Iterator[None]:
    """Autograd forbids most writes into what wants a gradient: say which tensor it was, by a run without gradients."""
    try:
        yield
    except RuntimeError as error:
        inputs = {name: value.detach() for name, value in example.items()}
        versions = {name: value._version for name, value in inputs.items()}
        with contextlib.suppress(Exception), torch.no_grad():
            step(inputs)
        try:
            writes(inputs, versions, ports, raised_at(cell, error))
        except TraceError as told:
            raise told from error
        raise


def writes_in_graph(
    graph: fx.Graph, names: Sequence[str], ports: Sequence[InPort], where: Callable[[fx.Node], str]
) -> None:
    """Refuse a step that writes into what it was given or has found, by ways that autograd does not see (`.data`)."""
    paths = {port.name: port.path for port in ports}
    given = iter(names)
    of: dict[fx.Node, str] = {}  # node -> whose memory it is
    for node in graph.nodes:
        if node.op == "placeholder":
            if (path := paths.get(next(given, ""))) is not None:
                of[node] = path
        elif node.op == "get_attr":
            of[node] = "a tensor that does not belong to it"
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            for argument, value in zip(node.target._schema.arguments, node.args):  # noqa: B905
                if argument.alias_info is None:
                    continue
                for source in value if isinstance(value, (list, tuple)) else [value]:
                    if not isinstance(source, fx.Node) or source not in of:
                        continue
                    if argument.alias_info.is_write:
                        raise TraceError(
                            what=f"the step writes into {of[source]} (through .data or .detach())",
                            where=where(node),
                            mend="write after optimizer.step(), or compute with a changed copy, W.clamp(min=0), or use "
                            "torch.nn.utils.parametrize",
                        )
                    of[node] = of[source]
