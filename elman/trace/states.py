"""What a cell's own code calls its state, or the parts of it: `h` and `c` of `h, c = state`."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Container, Sequence

import torch

_OLD = re.compile(r"^(prev|old|last)_|_(prev|previous|old|last)$")  # of h_prev, which is h of the step before


def state_words(cell: torch.nn.Module, paths: Sequence[str], taken: Container[str]) -> list[str]:
    """A word for each tensor of the state, in the order of its paths: what the code calls it, else h, `h[1]`, `h['m']`.

    One tensor is called as the argument of `forward` is, or as in `s = state`; of several, only a tuple that is taken
    apart at once, `h, c = state`, has words. taken: names of other inputs; a bias is called c as well.
    """
    if isinstance(cell, torch.nn.LSTMCell):
        called: Sequence[str] = ("h", "c")
    else:
        called = _whole(cell) if list(paths) == ["state"] else _taken_apart(cell)
    if len(called) == len(paths) and list(paths) in (["state"], [f"state[{i}]" for i in range(len(called))]):
        return [f"{word}_state" if word in taken else word for word in called]
    return [path.replace("state", "h", 1) for path in paths]


def _whole(cell: torch.nn.Module) -> tuple[str, ...]:
    """The name that `forward(self, x, s)` has for its state; none where that says no more than that it is one."""
    function, state = _forward(cell)
    if function is None or cell.forward.__module__.startswith("torch."):  # hx, of torch.nn's own
        return ()
    if state != "state":
        return (_OLD.sub("", state) or state,)
    for line in function.body:
        match line:
            case ast.Assign(targets=[ast.Name(id=word)], value=ast.Name(id=name)) if name == state:
                return (word,)
    return ()


def _taken_apart(cell: torch.nn.Module) -> tuple[str, ...]:
    """The names that `forward(self, x, state)` gives to the parts of its state; none where it does not say."""
    function, state = _forward(cell)
    for line in [] if function is None else function.body:
        match line:
            case ast.Assign(targets=[ast.Tuple(elts=parts) | ast.List(elts=parts)], value=ast.Name(id=name)):
                names = [part.id for part in parts if isinstance(part, ast.Name)]
                if name == state and len(set(names)) == len(parts):
                    return tuple(names)
    return ()


def _forward(cell: torch.nn.Module) -> tuple[ast.FunctionDef | None, str]:
    """The code of `forward`, and what its state is called there; None where there is none to read."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(type(cell).forward)))
        function = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, ValueError):  # code without a file, or whose file was changed
        return None, ""
    if not isinstance(function, ast.FunctionDef) or len(function.args.args) < 3:
        return None, ""
    return function, function.args.args[2].arg
