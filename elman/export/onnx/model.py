"""From an exported program to an ONNX model: its inputs, weights, results, and what it is called."""

from __future__ import annotations

import warnings
from typing import Any

import onnx
import torch
from onnx import helper
from torch.export.graph_signature import InputKind
from torch.fx import Node

from elman.errors import NotSupported
from elman.export.lines import line_of
from elman.export.onnx.graph import NoRule, described, results_of, translate
from elman.export.onnx.nodes import Nodes
from elman.export.program import Exported


def model_of(exported: Exported, opset: int, ir: int) -> onnx.ModelProto:
    """The model. What ONNX has no form for is tried again as PyTorch takes it apart, and then refused."""
    try:
        graph = _graph(exported, exported.program)
    except NoRule as whole:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                # PyTorch's own.
                warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
                program = exported.program.run_decompositions()
        except RuntimeError as error:
            # Of a loop whose results show parts of each other PyTorch takes nothing apart.
            raise _refused(exported, whole) from error
        try:
            graph = _graph(exported, program)
        except NoRule as error:
            raise _refused(exported, error) from error
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, producer_name="elman"
    )
    model.doc_string = f"{type(exported.module).__name__}, exported by elman"
    return model


def _graph(exported: Exported, program: torch.export.ExportedProgram) -> onnx.GraphProto:
    w = Nodes()
    for given in exported.inputs:
        w.taken.update(given.paths())
    w.taken.update(exported.outputs)
    places = {str(n.name): n for n in program.graph.nodes if n.op == "placeholder"}
    module, users = program.graph_module, []
    for spec in program.graph_signature.input_specs:
        node = places[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            users.append(node)
        elif isinstance(node.meta["val"], torch.Tensor) and node.users:
            target = str(spec.target)
            w.names[node] = w.weight(w.name(target.removeprefix("module.")), _tensor(program, target))
    takes = _inputs(exported, users, w)
    outputs = translate(module, w)
    words = _sizes(exported, users)
    gives = []
    for name, result, wish in zip(outputs, results_of(module), exported.outputs, strict=True):
        w.nodes.append(helper.make_node("Identity", [name], [wish], name=wish))
        sizes = [words.get(str(size)) for size in result.meta["val"].shape]
        gives.append(described(wish, result, sizes))
    return helper.make_graph(
        w.nodes, type(exported.module).__name__, takes, gives, initializer=list(w.weights.values())
    )


def _tensor(program: torch.export.ExportedProgram, target: str) -> torch.Tensor:
    weight: Any = program.state_dict.get(target)
    constant: Any = program.constants.get(target)
    return constant if weight is None else weight


def _inputs(exported: Exported, users: list[Node], w: Nodes) -> list[onnx.ValueInfoProto]:
    """Describe the arguments' tensors, and give each placeholder its name."""
    takes, left = [], list(users)
    rows: tuple[Node, int] | None = None
    for given in exported.inputs:
        for i, path in enumerate(given.paths()):
            node = left.pop(0)
            w.names[node] = path
            if given.default is None:
                takes.append(described(path, node, given.axes))
                if rows is None and "B" in given.axes:
                    rows = node, given.axes.index("B")
                continue
            # What may be left out is there for one row, and spread over all of them.
            assert rows is not None
            w.taken.discard(path)
            w.weight(path, given.default[i])
            takes.append(described(path, node, ["" for _ in given.axes]))
            place = given.axes.index("B")
            shape = [
                size if dim != place else rows_of(w, *rows) for dim, size in enumerate(node.meta["val"].shape)
            ]
            pieces = [w.ints(size) if isinstance(size, int) else size for size in shape]
            whole = pieces[0] if len(pieces) == 1 else w.add("Concat", *pieces, axis=0)
            w.names[node] = w.add("Expand", path, whole)
    return takes


def rows_of(w: Nodes, node: Node, dim: int) -> str:
    """B, `[1]`."""
    return w.size(node, dim)


def _sizes(exported: Exported, users: list[Node]) -> dict[str, str]:
    """What an open size is called."""
    words: dict[str, str] = {}
    left = list(users)
    for given in exported.inputs:
        for _ in given.tensors:
            shape = left.pop(0).meta["val"].shape
            for size, axis in zip(shape, given.axes, strict=False):
                if axis is not None:
                    words.setdefault(str(size), axis)
    return words


def _refused(exported: Exported, error: NoRule) -> NotSupported:
    name = str(error.node.target)
    what = f"{name} has no form in ONNX" if error.why is None else error.why.what
    return NotSupported(
        what=what, where=line_of(exported.module, error.node.target),
        mend=(error.why and error.why.mend) or "write it with other operations, or export to .pt2",
    )  # fmt: skip
