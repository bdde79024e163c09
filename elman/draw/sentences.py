"""What an operation does, in signs: what is written in its box, and the shape of a value, on its line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx
from torch.fx.node import map_arg

from elman.circuit.form import op_name
from elman.circuit.rows import rows_of
from elman.draw.variables import SIGNS

_SIGNS = SIGNS | {
    "add": "+", "sub": "−", "rsub": "−", "mul": "×", "div": "÷", "mm": "·", "bmm": "·", "neg": "−", "sum": "Σ",
    "cat": "‖", "pow": "^", "_to_copy": "copy", "times": "Σ over time", "total": "Σ over time", "shift": "delay",
    "spread": "at every step", "last": "last step", "rsqrt": "1/√", "sqrt": "√", "native_layer_norm": "layer norm",
}  # fmt: skip


def operands_of(node: fx.Node) -> list[fx.Node]:
    """The operands in order, as often as they occur, without sizes and the timeline."""
    nodes: list[fx.Node] = []
    map_arg((node.args, node.kwargs), nodes.append)
    return [one for one in nodes if isinstance(one.meta.get("val"), (torch.Tensor, tuple, list))]


def sentence(node: fx.Node, words: Sequence[str | None]) -> str:
    """What an operation does: its sign, with the parameters among its operands; ∘ stands for what a line brings."""
    name = op_name(node)
    sign = _SIGNS.get(name, name.strip("_").replace("_", " "))
    if name in ("addmm", "baddbmm") and len(words) == 3:
        start, a, b = words
        product = f"{a or '∘'} · {b or '∘'}"
        return f"{product} + {start or '∘'}"
    numbers = [arg for arg in node.args if isinstance(arg, (int, float)) and not isinstance(arg, bool)]
    if len(words) == 2 and sign in "+−×÷·":
        if not any(words):
            return sign
        return f"{words[0] or '∘'} {sign} {words[1] or '∘'}"
    if len(words) == 1 and numbers and sign in "+−×÷^":
        return f"∘ {sign} {numbers[0]:g}" if name != "rsub" else f"{numbers[0]:g} − ∘"
    named = [one for one in words if one]
    return f"{sign} {', '.join(named)}".strip() if named else sign


def cut(node: fx.Node) -> str:
    """What part of a parameter a slice is, `[0:4]`; nothing for other operations."""
    if op_name(node) == "slice" and len(node.args) >= 4 and all(isinstance(a, int) for a in node.args[2:4]):
        start, end = node.args[2:4]
        return f"[{start}:{end if isinstance(end, int) and end < 2**40 else ''}]"
    return ""


def shape_of(node: fx.Node, rows: str) -> str:
    """`[B, 4]`, where rows says how many rows there are."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return ""
    where = rows_of(value)
    sizes = [str(int(size)) if isinstance(size, int) else "" for size in value.shape]
    if where is not None:
        sizes[where.dim] = rows if where.factor == 1 else f"{where.factor}{rows}"
    return f"[{', '.join(size or rows for size in sizes)}]"


__all__ = ["cut", "operands_of", "sentence", "shape_of"]
