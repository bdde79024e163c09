"""Random draws as noise ports: what each random operation is in terms of one standard draw, and the draws themselves.

Every draw in a cell is lifted to a port that holds uniform numbers in [0, 1) or standard normal ones; the
operation itself becomes plain arithmetic on them (dropout is z·(u < 1 - p)/(1 - p)). The numbers of a port depend on a
seed that the call draws once and on their time step, so neither on the engine nor on where a sequence is cut, and can
be drawn again instead of being stored. On CPUs, where elman's compiled part is there, they are its own
(native/draws.hpp); elsewhere they are torch's, drawn in fixed blocks of time steps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from elman.circuit.form import InPort, Kind
from elman.circuit.graphs import add_placeholder, insert
from elman.circuit.rows import rows_of
from elman.errors import TraceError

try:
    from elman import _native
except ImportError:  # no compiler was there when elman was installed
    _native: Any = None

aten = torch.ops.aten
_REAL = (torch.float32, torch.float64)
BLOCK = 16  # time steps that are drawn together
ROW_BLOCK = 512  # rows that are drawn together, where steps have different numbers of them
_FEW = 1 << 12  # whole numbers that 24 bits draw alike, to a part in 4,000
DRAWABLE = "use rand, randn, bernoulli, dropout, uniform, normal, exponential or randint"
Emit = Callable[..., Any]  # makes one operation: a node of a graph, or its value at once


@dataclass(frozen=True)
class Lifting:
    """A random operation as arithmetic on a standard draw: formula(emit, noise, result description, *args).

    values: of whole numbers, from the arguments behind the result description: how many there are.
    """

    draw: str
    formula: Callable[..., Any]
    values: Callable[..., int] | None = None

    def dtype(self, out: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.dtype:
        """Of the draw: the result's; of whole numbers a float has enough bits for those of which there are few."""
        if self.values is not None and self.values(*args, **kwargs) > _FEW:
            return torch.float64
        return out.dtype if out.dtype.is_floating_point else torch.float32


def _cast(emit: Emit, value: Any, like: torch.Tensor) -> Any:
    return emit(aten._to_copy.default, value, dtype=like.dtype)


def _affine(emit: Emit, z: Any, scale: Any, shift: Any) -> Any:
    return emit(aten.add.Tensor, emit(aten.mul.Tensor, z, scale), shift)


def _dropout(emit: Emit, u: Any, out: Any, x: Any, p: float, train: bool | None = True) -> Any:
    keep = emit(aten.lt.Scalar, u, 1 - p)
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return emit(aten.mul.Tensor, emit(aten.mul.Tensor, x, keep), scale), keep


def _randint(emit: Emit, u: Any, out: Any, low: int, high: int) -> Any:
    # u is below 1 by half a unit of its last place or more, so the product, rounded, stays below high - low. A sum with
    # low would not stay below high.
    counted = _cast(emit, emit(aten.floor.default, emit(aten.mul.Tensor, u, high - low)), out)
    return counted if low == 0 else emit(aten.add.Tensor, counted, low)


def _exponential(emit: Emit, u: Any, out: Any, x: Any, rate: float = 1.0, **_: Any) -> Any:
    # 0 comes up once in 2^24 numbers; in the middle of what it stands for the logarithm of the result is finite, as of
    # PyTorch's own.
    above = emit(aten.clamp.default, u, torch.finfo(out.dtype).eps / 4)
    return emit(
        aten.div.Tensor, emit(aten.neg.default, emit(aten.log1p.default, emit(aten.neg.default, above))), rate
    )


_SAME = Lifting("uniform", lambda emit, z, out, *args, **kwargs: z)
_NORMAL = Lifting("normal", lambda emit, z, out, *args, **kwargs: z)


def _below(emit: Emit, u: Any, out: Any, p: Any) -> Any:
    compare = aten.lt.Tensor if not isinstance(p, (int, float)) else aten.lt.Scalar
    return _cast(emit, emit(compare, u, p), out)


LIFTINGS: dict[Any, Lifting] = {
    aten.rand.default: _SAME,
    aten.rand_like.default: _SAME,
    aten.randn.default: _NORMAL,
    aten.randn_like.default: _NORMAL,
    aten.native_dropout.default: Lifting("uniform", _dropout),
    aten.bernoulli.p: Lifting("uniform", lambda emit, u, out, x, p=0.5, **kw: _below(emit, u, out, p)),
    aten.bernoulli.default: Lifting("uniform", lambda emit, u, out, p, **kw: _below(emit, u, out, p)),
    aten.bernoulli.Tensor: Lifting("uniform", lambda emit, u, out, x, p, **kw: _below(emit, u, out, p)),
    aten.uniform.default: Lifting(
        "uniform", lambda emit, u, out, x, low=0.0, high=1.0, **kw: _affine(emit, u, high - low, low)
    ),
    aten.normal_functional.default: Lifting(
        "normal", lambda emit, z, out, x, mean=0.0, std=1.0, **kw: _affine(emit, z, std, mean)
    ),
    aten.normal.Tensor_float: Lifting(
        "normal", lambda emit, z, out, mean, std=1.0, **kw: _affine(emit, z, std, mean)
    ),
    aten.normal.float_Tensor: Lifting("normal", lambda emit, z, out, mean, std, **kw: _affine(emit, z, std, mean)),
    aten.normal.Tensor_Tensor: Lifting("normal", lambda emit, z, out, mean, std, **kw: _affine(emit, z, std, mean)),
    aten.exponential.default: Lifting("uniform", _exponential),
    aten.randint.default: Lifting(
        "uniform", lambda emit, u, out, high, size, **kw: _randint(emit, u, out, 0, high), lambda high, *_, **kw: high
    ),
    aten.randint.low: Lifting(
        "uniform", lambda emit, u, out, low, high, size, **kw: _randint(emit, u, out, low, high),
        lambda low, high, *_, **kw: high - low,
    ),
    aten.randint_like.default: Lifting(
        "uniform", lambda emit, u, out, x, high, **kw: _randint(emit, u, out, 0, high), lambda x, high, **kw: high
    ),
    aten.randint_like.low_dtype: Lifting(
        "uniform", lambda emit, u, out, x, low, high, **kw: _randint(emit, u, out, low, high),
        lambda x, low, high, **kw: high - low,
    ),
}  # fmt: skip


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers."""
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
    )


def lift(graph: fx.Graph, where: Callable[[fx.Node], str]) -> list[InPort]:
    """Turn every random operation of a joint graph, in order, into arithmetic on a noise port; return the ports.

    where: the words for a node's place, for errors. Raises TraceError for a random operation that has no lifting.
    """
    ports: list[InPort] = []
    after_inputs = next(node for node in graph.nodes if node.op != "placeholder")
    draws = [node for node in graph.nodes if node.op == "call_function" and is_random(node)]
    # A draw that nothing reads has a port too, so that a draw has one number in the step and in all its adjoints.
    for index, node in enumerate(draws):
        train = node.args[2] if node.target is aten.native_dropout.default else True
        lifting = LIFTINGS.get(node.target)
        if lifting is None or not train:
            raise TraceError(
                what=f"the random operation {node.target} cannot be drawn ahead of the loop",
                where=where(node),
                mend=DRAWABLE,
            )
        value = node.meta["val"]
        out = value[0] if isinstance(value, (tuple, list)) else value
        dtype = lifting.dtype(out, node.args, _plain(node.kwargs))
        port, noise = _port(graph, after_inputs, out, dtype, lifting.draw, index)
        ports.append(port)
        with graph.inserting_before(node):

            def emit(target: Any, *args: Any, at: fx.Node = node, **kwargs: Any) -> fx.Node:
                return insert(graph, target, *args, like=at, **kwargs)

            noise = _shaped(emit, noise, out)
            result = lifting.formula(emit, noise, out, *node.args, **_plain(node.kwargs))
        if isinstance(result, tuple):
            for read in list(node.users):
                read.replace_all_uses_with(result[int(read.args[1])])  # type: ignore[call-overload]
                graph.erase_node(read)
        else:
            node.replace_all_uses_with(result)
        graph.erase_node(node)
    return ports


def _plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without what only says where the numbers live."""
    drop = {"dtype", "layout", "device", "pin_memory", "memory_format", "generator"}
    return {name: value for name, value in kwargs.items() if name not in drop}


def _port(
    graph: fx.Graph, before: fx.Node, out: torch.Tensor, dtype: torch.dtype, draw: str, index: int
) -> tuple[InPort, fx.Node]:
    name = f"noise_{index}"
    rows = rows_of(out)
    if rows is None:
        shape = tuple(int(size) for size in out.shape)
        full: list[Any] = list(shape)
    else:
        rest = [int(size) for dim, size in enumerate(out.shape) if dim != rows.dim]
        shape = (*([rows.factor] if rows.factor > 1 else []), *rest)
        batch = out.shape[rows.dim] // rows.factor
        full = [batch, *shape]
    with out.fake_mode:  # type: ignore[attr-defined]
        val = torch.empty(full, dtype=dtype, device=out.device)
    with graph.inserting_before(before):
        node = add_placeholder(graph, name, val)
    port = InPort(name, Kind.NOISE, shape, dtype, out.device, rows is not None, name, draw=draw, number=index)
    return port, node


def _shaped(emit: Emit, noise: fx.Node, out: torch.Tensor) -> fx.Node:
    """From the port's [B, …] to wherever the draw carries the batch."""
    rows = rows_of(out)
    if rows is None or (rows.dim == 0 and rows.factor == 1):
        return noise
    if rows.factor > 1:
        rest = [int(size) for dim, size in enumerate(out.shape) if dim != rows.dim]
        noise = emit(aten.reshape.default, noise, [-1, *rest])
    if rows.dim:
        order = list(range(1, out.dim()))
        order.insert(rows.dim, 0)
        noise = emit(aten.permute.default, noise, order)
    return noise


def draw(port: InPort, index: int, seed: int, start: int, stop: int, batch: int) -> torch.Tensor:
    """The numbers of noise port number `index` for steps start to stop: [stop - start, B, …], no B without rows."""
    return _drawn(port, index, seed, start, stop, ((batch,) if port.rows else ()) + port.shape, BLOCK)


def draw_rows(port: InPort, index: int, seed: int, start: int, stop: int) -> torch.Tensor:
    """The numbers of a noise port for packed rows start to stop: [stop - start, …]."""
    return _drawn(port, index, seed, start, stop, port.shape, ROW_BLOCK)


def _drawn(
    port: InPort, index: int, seed: int, start: int, stop: int, size: tuple[int, ...], length: int
) -> torch.Tensor:
    """[stop - start, *size], drawn in blocks of `length`."""
    if _is_ours(port.device, port.dtype):
        # torch draws a number in 3.5 ns and cannot share the work out; this takes a fifth of it on one core.
        drawn = torch.empty((stop - start, *size), dtype=port.dtype)
        wide, threads = port.dtype is torch.float64, torch.get_num_threads()
        key, count = _mix(seed, index, 0), math.prod(size)
        _native.draw(port.draw, drawn, wide, key, start, stop - start, count, threads)
        return drawn
    first, last = start // length, -(-stop // length)
    drawn = torch.empty(((last - first) * length, *size), dtype=port.dtype, device=port.device)
    fill = torch.rand if port.draw == "uniform" else torch.randn

    def fill_block(block: int) -> None:
        generator = torch.Generator(device=port.device)
        generator.manual_seed(_mix(seed, index, block))
        begin = (block - first) * length
        fill((length, *size), generator=generator, out=drawn[begin : begin + length])

    workers = torch.get_num_threads()
    if port.device.type == "cpu" and workers > 1 and last - first > 1 and drawn.numel() >= _WORTH_SHARING:
        # torch draws with one thread, but gives up Python's lock meanwhile.
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(fill_block, range(first, last)))
    else:
        for block in range(first, last):
            fill_block(block)
    return drawn[start - first * length : stop - first * length]


_WORTH_SHARING = 1 << 17  # numbers: starting threads takes about 0.1 ms


def _mix(seed: int, index: int, block: int) -> int:
    """A seed for one block: splitmix64 of the three numbers, so that neighbours share nothing."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + block * 0x8CB92BA72F3D8DD7 + 1) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) & ((1 << 63) - 1)


def _is_ours(device: torch.device, dtype: torch.dtype) -> bool:
    return _native is not None and device.type == "cpu" and dtype in _REAL


def written(x: torch.Tensor) -> torch.Tensor:
    """The same numbers as they stand in memory: of another sign there (the negative bit), or nowhere, as zeros that
    autograd has not written down, they are for PyTorch alone."""
    return x.clone() if x._is_zerotensor() else x.resolve_neg()


def drops(x: torch.Tensor) -> bool:
    """Whether `drop` is there for tensors like x."""
    return _is_ours(x.device, x.dtype)


def drop(x: torch.Tensor, p: float, seed: int) -> torch.Tensor:
    """x m / (1 - p), each m for itself 0 with probability p, else 1; zeros where p is 1. The same m for every tensor of
    that many numbers and that seed, which torch.nn.functional.dropout draws in 12 ns each; here it takes 1."""
    x = written(x.contiguous())
    into = torch.empty_like(x)
    _native.drop(x, into, x.dtype is torch.float64, _mix(seed, 0, 0), x.numel(), p, torch.get_num_threads())
    return into


def normal(
    size: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> torch.Tensor:
    """Standard normal numbers of a generator that lives on the CPU, on any device."""
    return torch.randn(tuple(size), dtype=dtype, generator=generator).to(device)


class Replay(TorchDispatchMode):
    """Run eager code with other numbers than those of PyTorch's own generators, which stay as they are.

    noises: each random operation takes the next tensor, shaped as the noise ports are (at one step, `[B, …]`); or a
        generator, of which it takes as many numbers as it needs.
    """

    def __init__(self, noises: Sequence[torch.Tensor] | torch.Generator):
        super().__init__()
        self.noises = noises if isinstance(noises, torch.Generator) else iter(noises)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nobody compiles what runs in here, and to see to that takes time at every operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        functional = _TWINS.get(func, func)
        lifting = LIFTINGS.get(functional)
        if torch.Tag.nondeterministic_seeded not in func.tags or (
            functional is aten.native_dropout.default and not args[2]
        ):
            return func(*args, **kwargs)
        if lifting is None:  # a cell that draws so is refused
            with _untouched():
                return func(*args, **kwargs)
        with FakeTensorMode():  # its shape and dtype, without drawing
            out = func(*pytree.tree_map_only(torch.Tensor, _fake, args), **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        if isinstance(self.noises, torch.Generator):
            dtype = lifting.dtype(first, args, _plain(kwargs))
            fill = torch.rand if lifting.draw == "uniform" else torch.randn
            noise = fill(first.shape, dtype=dtype, generator=self.noises).to(first.device)
        else:
            noise = next(self.noises).reshape(first.shape)
        result = lifting.formula(lambda op, *a, **k: op(*a, **k), noise, first, *args, **_plain(kwargs))
        if isinstance(result, tuple):
            return result
        into = args[0] if func in _TWINS else torch.empty(first.shape, dtype=first.dtype, device=first.device)
        return into.copy_(result)


def _fake(value: torch.Tensor) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device=value.device)


@contextlib.contextmanager
def _untouched() -> Iterator[None]:
    """Inside, random operations draw from PyTorch's default generators, which then are as before."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    before, others = torch.default_generator.get_state(), [torch.cuda.get_rng_state(i) for i in devices]
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
        for i, state in zip(devices, others, strict=True):
            torch.cuda.set_rng_state(state, i)


# In-place random operations and the functional ones that they become in a graph.
_TWINS: dict[Any, Any] = {
    aten.bernoulli_.float: aten.bernoulli.p,
    aten.bernoulli_.Tensor: aten.bernoulli.Tensor,
    aten.uniform_.default: aten.uniform.default,
    aten.normal_.default: aten.normal_functional.default,
    aten.exponential_.default: aten.exponential.default,
}  # fmt: skip
