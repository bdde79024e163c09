"""What a cell's own code calls the parts of its state: `h` and `c` of `h, c = state`."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Container, Sequence

import torch


def state_words(cell: torch.nn.Module, paths: Sequence[str], taken: Container[str]) -> list[str]:
    """A word for each tensor of the state, in the order of its paths: `state` is h, `state[1]` what the code calls it.

    Only a tuple that `forward` takes apart at once, `h, c = state`, says it; any other part is `h[1]`, or `h['m']`.
    taken: names of other inputs; a bias is called c as well.
    """
    called = ("h", "c") if isinstance(cell, torch.nn.LSTMCell) else _taken_apart(cell)
    if called and list(paths) == [f"state[{i}]" for i in range(len(called))]:
        return [f"{word}_state" if word in taken else word for word in called]
    return [path.replace("state", "h", 1) for path in paths]


def _taken_apart(cell: torch.nn.Module) -> tuple[str, ...]:
    """The names that `forward(self, x, state)` gives to the parts of its state; none where it does not say."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(type(cell).forward)))
        function = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, ValueError):  # code without a file, or whose file was changed
        return ()
    if not isinstance(function, ast.FunctionDef) or len(function.args.args) < 3:
        return ()
    state = function.args.args[2].arg
    for line in function.body:
        match line:
            case ast.Assign(targets=[ast.Tuple(elts=parts) | ast.List(elts=parts)], value=ast.Name(id=name)):
                names = [part.id for part in parts if isinstance(part, ast.Name)]
                if name == state and len(set(names)) == len(parts):
                    return tuple(names)
    return ()
