"""What a call under torch.compile stands in, and which way it takes for that.

A registered operator knows gradients, and nothing else of what PyTorch can do to a function. Inside a transform of
torch.func, or a level of dual numbers, that a compiled function opens, a call is therefore one node of the graph that
Dynamo does not look into (`elman.execute.inside`). Where that is not enough the graph is broken, and the call is made
as it is without torch.compile; where no break is allowed, it is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from elman.errors import NotSupported
from elman.execute.inside import transformed

PLAIN, TRANSFORMED, NOT_COMPILED = "plain", "transformed", "not compiled"


def constant(function: Any) -> Any:
    """torch.compiler.assume_constant_result, without importing the compiler: a constant of the graph comes out."""
    function._dynamo_marked_constant = True
    return function


@constant
def way(autocast: bool, bounded: bool, ragged: bool) -> str:
    """Which way a call takes. bounded: whether it has a budget. ragged: whether it has lengths, a mask or resets.

    Raises NotSupported where it cannot be compiled, and may not be left out of the graph.
    """
    if autocast:
        return without_graph("a recurrence under autocast")
    if peek_interpreter_stack() is None and forward_ad._current_level < 0:
        return PLAIN
    if forward_ad._current_level >= 0 and not _opened_inside():
        return without_graph("a compiled recurrence called with dual numbers, or within torch.func.jvp,")
    if bounded:
        return without_graph("memory= inside a transform of torch.func, or a level of dual numbers,")
    if ragged:
        return without_graph(
            "lengths=, mask= or reset= inside a transform of torch.func, or a level of dual numbers,"
        )
    torch.compiler.allow_in_graph(transformed)
    return TRANSFORMED


@constant
def without_graph(what: str) -> str:
    """Have a call made outside of the graph. Raises NotSupported where `fullgraph=True` forbids it."""
    if in_one_graph():
        raise NotSupported(
            what=f"{what} is not available under torch.compile(fullgraph=True)", where="Recurrent(…)",
            mend="leave fullgraph=True away: the call is then made outside of the graph",
        )  # fmt: skip
    return NOT_COMPILED


def in_one_graph() -> bool:
    """Whether what is being compiled has to be one graph (`fullgraph=True`)."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    tx = InstructionTranslator.current_tx()
    return bool(tx.one_graph or tx.error_on_graph_break)


def _opened_inside() -> bool:
    """Whether the level of dual numbers was opened by what is being compiled, rather than around it."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    names = [
        getattr(node.target, "__name__", "")
        for tracer in InstructionTranslator.current_tx().output.tracers
        for node in tracer.graph.nodes
    ]
    return names.count("_enter_dual_level") > names.count("_exit_dual_level")


# Whether Dynamo looks at frames, one of which is being run rather than compiled: it has given up on what called it, as
# where a transform is around a compiled function, or one was compiled too often. It would compile the library then.
watched = get_eval_frame_callback


@torch._disable_dynamo
def not_compiled(function: Any, *args: Any, **more: Any) -> Any:
    """A call as it is without torch.compile."""
    return function(*args, **more)
