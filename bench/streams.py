"""Streams: one step after another at B = 1, beside ONNX Runtime and PyTorch's cells; and tokens a second of many rows.

ONNX Runtime runs its own GRU and LSTM operators on a sequence of one step, with the same weights, its state fed back;
once by `run`, once with inputs and outputs bound beforehand. Where it is not installed, its columns are missing.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import elman
from elman.models import LanguageModel

WIDTHS = (64, 128, 256, 512, 1024)
KINDS: dict[str, Any] = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}
ROWS = (1, 8, 64, 512)
PAUSE = 0.1  # seconds
Ways = dict[str, Callable[[], Any]]


class Wrong(RuntimeError):
    """A contestant's result differs: nothing of it is timed."""


def best(ways: Ways, seconds: float, rounds: int = 12) -> dict[str, float]:
    """Microseconds of each way, in turns: the least of the rounds, since everything else on a machine only adds.

    Where there are several threads, each waits before its turn: those of ONNX Runtime go on spinning for milliseconds
    after its last call, and take a core from whoever comes next.
    """
    rest = PAUSE if torch.get_num_threads() > 1 else 0.0
    counts, found = {}, dict.fromkeys(ways, float("inf"))
    for name, way in ways.items():
        begun = time.perf_counter()
        for _ in range(20):
            way()
        counts[name] = max(int(seconds / rounds / len(ways) / ((time.perf_counter() - begun) / 20)), 3)
    for _ in range(rounds):
        for name, way in ways.items():
            time.sleep(rest)
            for _ in range(3):
                way()  # which may have to wake its threads
            begun = time.perf_counter()
            for _ in range(counts[name]):
                way()
            found[name] = min(found[name], 1e6 * (time.perf_counter() - begun) / counts[name])
    return found


def steps(kind: str, width: int, seconds: float) -> dict[str, float]:
    """Way -> microseconds of a step of one row, I = H; results are compared first."""
    torch.manual_seed(0)
    cell = KINDS[kind](width, width)
    rnn, x = elman.Recurrent(cell), torch.randn(1, width)
    array, state = x.numpy(), None
    streams = {"float32": rnn.stream(), **{w: rnn.stream(weights=w) for w in ("bfloat16", "int8")}}
    peers = _onnx(kind, cell, width) if importlib.util.find_spec("onnxruntime") else {}
    with torch.no_grad():
        for _ in range(3):
            o, state = rnn.step(x, state)
            made = {name: stream.step(array) for name, stream in streams.items()}
            made |= {name: way(array) for name, way in peers.items()}
            for name, value in made.items():
                expect(
                    value,
                    o.numpy(),
                    0.02 if name in ("bfloat16", "int8") else 1e-5,
                    f"{kind} {width}, {name}",
                )
        held = state if kind == "lstm" else o
        out = np.empty((1, width), np.float32)
        ways: Ways = {f"stream, {name}": lambda s=s: s.step(array, out=out) for name, s in streams.items()}
        ways["stream, tensors"] = lambda s=streams["float32"]: s.step(x)
        ways |= {name: lambda way=way: way(array) for name, way in peers.items()}
        ways["elman's step"] = lambda: rnn.step(x, state)
        ways["PyTorch's cell"] = lambda: cell(x, held)
        return best(ways, seconds)


def expect(got: Any, expected: np.ndarray, tolerance: float, what: str) -> None:
    if not np.allclose(got, expected, atol=tolerance):
        raise Wrong(f"{what}: a result differs by {np.abs(got - expected).max():.1e}")


def tokens(width: int, seconds: float, weights: str | None = None, vocabulary: int = 66) -> dict[str, float]:
    """Rows -> thousand tokens a second of a language model: embedding of 64, one GRU, logits of the characters."""
    model = LanguageModel(vocabulary, hidden=width).eval()
    found = {}
    for rows in ROWS:
        stream, x = model.stream(batch=rows, weights=weights), np.zeros(rows, np.int64)
        out = np.empty((rows, vocabulary), np.float32)
        found[str(rows)] = (
            1e3 * rows / best({"": lambda s=stream, x=x, out=out: s.step(x, out=out)}, seconds)[""]
        )
    return found


def _onnx(kind: str, cell: Any, width: int) -> Ways:
    """Name -> a function from x [1, I] to h [1, H], which keeps its state."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = ort.InferenceSession(_model(kind, cell, width), options, providers=["CPUExecutionProvider"])
    names = ["h", "c"] if kind == "lstm" else ["h"]
    zeros = np.zeros((1, 1, width), np.float32)
    states = [zeros.copy() for _ in names]

    def plainly(x: np.ndarray) -> np.ndarray:
        nonlocal states
        given = {"x": x[None], **dict(zip(names, states, strict=True))}
        states = session.run([f"{name} after" for name in names], given)
        return states[0][0]

    values = [[ort.OrtValue.ortvalue_from_numpy(zeros.copy()) for _ in names] for _ in range(2)]
    read = ort.OrtValue.ortvalue_from_numpy(zeros.copy())
    bound = []
    for before, after in (values, values[::-1]):
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", read)
        for name, a, b in zip(names, before, after, strict=True):
            binding.bind_ortvalue_input(name, a)
            binding.bind_ortvalue_output(f"{name} after", b)
        bound.append((binding, after[0]))

    def boundly(x: np.ndarray) -> np.ndarray:
        read.update_inplace(x[None])
        binding, made = bound[0]
        session.run_with_iobinding(binding)
        bound.reverse()
        return made.numpy()[0]

    return {"ONNX Runtime": plainly, "ONNX Runtime, bound": boundly}


def _model(kind: str, cell: Any, width: int) -> bytes:
    """An ONNX model of one step, with the weights of PyTorch's cell: only the order of the gates is another."""
    from onnx import TensorProto, helper, numpy_helper

    order = (1, 0, 2) if kind == "gru" else (0, 3, 1, 2)  # r z n -> z r n; i f g o -> i o f g

    def gates(weight: torch.Tensor) -> np.ndarray:
        parts = weight.detach().chunk(len(order))
        return torch.cat([parts[i] for i in order])[None].numpy()

    b = np.concatenate([gates(cell.bias_ih), gates(cell.bias_hh)], 1)
    names = ["h", "c"] if kind == "lstm" else ["h"]
    arrays = {"W": gates(cell.weight_ih), "R": gates(cell.weight_hh), "b": b}
    how = {"linear_before_reset": 1} if kind == "gru" else {}
    node = helper.make_node(
        kind.upper(), ["x", "W", "R", "b", "", *names], ["", *[f"{name} after" for name in names]],
        hidden_size=width, **how,
    )  # fmt: skip

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, width])

    graph = helper.make_graph(
        [node], "step", [info("x"), *map(info, names)], [info(f"{name} after") for name in names],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()
