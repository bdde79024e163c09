"""Why a cell cannot be a circuit, in the user's words: what happened, at which line, and the mend."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from elman.circuit.form import InPort
from elman.circuit.rows import Mixed
from elman.circuit.verdict import Does, verdict
from elman.errors import ElmanError, TraceError
from elman.noise import DRAWABLE
from elman.trace.changes import Changes
from elman.trace.complaints import Complaint, complaint, draws_gamma
from elman.trace.names import is_library

if TYPE_CHECKING:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

_OURS = tuple(
    os.path.join(folder, "")
    for folder in (
        os.path.dirname(torch.__file__),
        os.path.dirname(os.path.dirname(__file__)),
        os.path.dirname(contextlib.__file__),
    )
)
# Our own steps are read as users' are.
_STEPS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "cells.py")
_TYPED = ("<stdin>", "<ipython")
_LONG = 600  # letters of a message that are too many
_ANY_BATCH = "the step must run at any batch size B on x [B, …] and state [B, …]"
_OWN_SEQUENCE = "every row of a batch is a sequence of its own: compute along the features (dim=-1) only"
_AHEAD = "what it draws is drawn before the call: give it in as x, or as context"
_NUMBERS = "compute with tensors instead: torch.where for a choice, masks for a condition"


def _is_users(filename: str) -> bool:
    if filename == _STEPS or filename.startswith(_TYPED):
        return True
    return not filename.startswith((*_OURS, "<"))


def _line(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno}" + (f" `{frame.line}`" if frame.line else "")


def place_of(cell: str) -> Callable[[fx.Node], str]:
    """A function from a node to the words for its place: the cell and, where known, the user's line."""

    def where(node: fx.Node) -> str:
        frames = re.findall(
            r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', node.meta.get("stack_trace") or ""
        )
        mine = [entry for entry in frames if _is_users(entry[0])]
        return f"{cell}, {mine[-1][0]}:{mine[-1][1]} `{mine[-1][2]}`" if mine else cell

    return where


def message(error: BaseException) -> str:
    """What an exception says, in a line or a few: its class and its text."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text if len(text) < _LONG else text.splitlines()[0]}"


def raised_at(cell: str, error: BaseException) -> str:
    """The words for the place where an exception came from: the cell and, where known, the user's line."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f"{cell}, {_line(frames[-1])}" if frames else cell


@contextlib.contextmanager
def while_tracing(cell: str) -> Iterator[None]:
    """Turn what the tracer raises into a TraceError that names the cell, the line and the mend."""
    try:
        with _told_once():
            yield
    except ElmanError:
        raise
    except Exception as error:
        raise _translated(cell, error) from error


# Where the tracer writes a hundred lines about what it then raises.
_LOGS = tuple(
    map(logging.getLogger, ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes"))
)


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """Inside, the tracer raises and does not log, in this thread."""
    mine = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING or threading.get_ident() != mine

    for log in _LOGS:
        log.addFilter(others)
    try:
        yield
    finally:
        for log in _LOGS:
            log.removeFilter(others)


def _translated(cell: str, error: Exception) -> TraceError:
    """A tracer's exception in the user's words."""
    from elman.trace.fakes import PRETENDED_BATCH  # with what is slow to import

    where = raised_at(cell, error)
    text = re.sub(r"\bs\d+\b", "B", message(error))  # the tracer's symbol for the batch size
    what, mend = f"the step failed while it was traced: {text}", _ANY_BATCH
    if isinstance(error, Mixed):
        text = text.removeprefix(f"{Mixed.__name__}: ")
        return TraceError(
            what=f"the step mixes the rows of the batch: {text}", where=where, mend=_OWN_SEQUENCE
        )
    match complaint(error):
        case Complaint.DATA:
            what = "the step takes a number or a decision out of the data (data-dependent control flow)"
            mend = _NUMBERS
        case Complaint.SHAPE:
            what = "the step makes a tensor whose shape depends on the data"
            mend = (
                "keep shapes fixed: choose by a mask with torch.where(mask, a, b); read and write columns by their "
                "numbers, v[:, columns], where columns = mask.nonzero().flatten() is a buffer of the cell"
            )
        case Complaint.OPERATOR:
            what = f"the step uses an operator that PyTorch cannot trace ({error})"
            mend = "register a fake implementation for it (torch.library.register_fake), or write the step without it"
        case Complaint.BATCH_SIZE:
            return _asks(where, None, "")
        case Complaint.DISTRIBUTION:
            what = "torch.distributions takes numbers out of tensors to check its arguments"
            mend = "pass validate_args=False"
            if draws_gamma(error):
                mend += f"; {_AHEAD}"
            else:
                mend += ", or where one is made inside (RelaxedBernoulli), which it does not reach, call "
                mend += "torch.distributions.Distribution.set_default_validate_args(False)"
        case Complaint.GAMMA:
            what = f"PyTorch cannot trace how numbers of a gamma distribution, or made of them, are drawn ({error})"
            mend = _AHEAD
        case Complaint.FROM:
            what, mend = "the random operation random_(from, to) cannot be drawn ahead of the loop", DRAWABLE
        case Complaint.DERIVATIVE:
            mend = "PyTorch has no such derivative: say the same with operations that have one"
            mend += " (clamp(x / 6 + 0.5, 0, 1))"
        case Complaint.ASSERTION:
            mend = "it is a fault of PyTorch's: say the same with other operations, of torch in place of torch.ops"
        case Complaint.RESIZE:
            what = f"autograd refuses to give a tensor another size in its place: {text}"
            mend = "make another tensor of that size: reshape, slices along the features, or torch.cat"
        case Complaint.WRITE:
            text = re.sub(rf"\b{PRETENDED_BATCH}\b", "B", text.partition(" Hint: ")[0])
            what = f"autograd refuses a write of the step's, as in a plain loop over the steps: {text}"
            mend = "use the operation without the trailing underscore (v = v * 2), or write into a copy: v = v.clone()"
        case Complaint.OTHER:
            pass
    return TraceError(what=what, where=where, mend=mend)


def takes_number(error: TraceError) -> bool:
    """Whether a step was refused because a number is taken out of a tensor."""
    return error.__cause__ is not None and complaint(error.__cause__) is Complaint.DATA


def own_number(error: TraceError, path: str) -> TraceError:
    """The refusal of a step that takes a number out of a tensor of the cell's own."""
    return TraceError(
        what=f"the step takes a number out of the cell's own tensor {path}, which a trace could not take again",
        where=error.where,
        mend="compute with the tensor itself, or keep the number beside it as an attribute (an attribute is looked at "
        "at every call)",
    )


def guards(
    env: ShapeEnv, cell: str, pretended: int, asked: tuple[str, traceback.StackSummary] | None
) -> None:
    """Refuse a step that decided something by the batch size.

    pretended: the batch size that the tracer tells where somebody wants a number. asked: the first call of torch that
    has asked for it, and where that came from.
    """
    import sympy  # takes a tenth of a second, so not when elman is imported

    for guard in env.guards:
        place = getattr(guard.sloc, "framework_loc", None)
        mine = place if isinstance(place, traceback.FrameSummary) and _is_users(place.filename) else None
        where = f"{cell}, {_line(mine)}" if mine is not None else _called_at(cell, asked)
        numbered = sympy.Integer(pretended) in guard.expr.atoms(sympy.Integer)
        if mine is None and (numbered or not isinstance(guard.expr, (sympy.Eq, sympy.Ne))):
            raise _asks(where, asked, "" if numbered else f", and decides by it: {_with_b(guard.expr)}")
        if numbered:
            raise TraceError(
                what="the step takes the batch size as a number", where=where,
                mend="write the step for any batch size: x.new_zeros(x.shape[0], …), not len(x) or int(x.shape[0])",
            )  # fmt: skip
        if any(
            term.is_negative for sum in guard.expr.atoms(sympy.Add) for term in sum.args if term.is_Number
        ):
            raise TraceError(
                what="the step cuts the batch, and treats some of its rows apart from the others", where=where,
                got=f"a tensor of fewer rows: {_with_b(guard.expr)} was asked, where B is the batch size",
                mend="every row of a batch is a sequence of its own: slice and write along the features only, v[:, …]",
            )  # fmt: skip
        raise TraceError(
            what="the step branches on the batch size, or fixes it",
            where=where,
            got=f"a decision by {_with_b(guard.expr)}, where B is the batch size",
            mend="write the step for any batch size; -1 in a reshape must stand for a width or for the batch alone",
        )


def _called_at(cell: str, asked: tuple[str, traceback.StackSummary] | None) -> str:
    """The user's line that a call of torch came from."""
    mine = [frame for frame in (asked[1] if asked is not None else ()) if _is_users(frame.filename)]
    return f"{cell}, {_line(mine[-1])}" if mine else cell


def _asks(where: str, asked: tuple[str, traceback.StackSummary] | None, more: str) -> TraceError:
    name = "an operation of PyTorch's, or its derivative," if asked is None else f"PyTorch's {asked[0]}"
    return TraceError(
        what=f"{name} asks how large the batch is, which is not known while a step is traced{more}", where=where,
        mend=_ASKING.get(asked[0] if asked is not None else "", "say the same with other operations"),
    )  # fmt: skip


# Operations that ask, and what says the same.
_ASKING = {
    "take_along_dim": "use torch.gather",
    "grad": "within torch.func.vmap, take a derivative of a derivative forward, jacfwd(jacrev(f)) or hessian(f) in "
    "place of jacrev(jacrev(f)); else say the same with other operations",
    "cdist": "write the distance as a sum: (a.unsqueeze(1) - b).square().sum(-1).sqrt()",
    "layer_norm": "its derivative forward (torch.func.jvp) does: write it out, (x - x.mean(-1, True)) * "
    "(x.var(-1, correction=0, keepdim=True) + eps).rsqrt(), with weight and bias behind it",
    "": "if it is a function made by torch.jit.script, call the plain one; else say the same with other operations",
}


def _with_b(expression: Any) -> str:
    """A condition on the tracer's symbol for the batch size, with the letter that people know."""
    text = str(expression)
    for symbol in getattr(expression, "free_symbols", ()):
        text = text.replace(str(symbol), "B")
    return text


def captured_gradient(where: str, value: torch.Tensor) -> TraceError:
    return TraceError(
        what=f"the step uses a tensor {list(value.shape)} that requires a gradient and does not belong to the cell",
        where=where,
        mend="make it a torch.nn.Parameter of the cell, or pass it through `context`",
    )


def operation(node: fx.Node, where: Callable[[fx.Node], str]) -> None:
    """Refuse operations that take a number out of a tensor."""
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.data_dependent_output in node.target.tags:
        raise TraceError(
            what="the step takes a number out of the data (.item(), float(tensor), int(tensor))",
            where=where(node),
            mend=_NUMBERS,
        )


def mixing(graph: fx.Graph, where: Callable[[fx.Node], str]) -> None:
    """Refuse a step whose forward pass mixes the rows of the batch or computes with the batch size."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        row_verdict = verdict(node)
        if row_verdict.does in (Does.ROWWISE, Does.UNKNOWN):
            continue
        if row_verdict.does is Does.BATCH_SIZE:
            what = f"in the step, {row_verdict.reason}"
        else:
            reason = row_verdict.reason or f"{node.target} adds up the rows of the batch"
            what = f"the step mixes the rows of the batch: {reason}"
        raise TraceError(
            what=what,
            where=where(node),
            mend="to pick entries of each row: h.gather(-1, index)"
            if "arange" in str(node.target)
            else _OWN_SEQUENCE,
        )


def strides(graph: fx.Graph, where: Callable[[fx.Node], str]) -> None:
    """Refuse a step that reads or writes memory by strides, which in a circuit are others than where it was traced."""
    for node in graph.nodes:
        if node.op == "call_function" and str(node.target).startswith("aten.as_strided"):
            raise TraceError(
                what="the step goes by how a tensor lies in memory (torch.as_strided)", where=where(node),
                mend="take parts of it by indices, slices or unfold",
            )  # fmt: skip


def mixing_unseen(cell: str, what: str, operations: Sequence[str]) -> TraceError:
    """The refusal of a step whose rows meet in one of the operations that have no rule; seen in its numbers."""
    return TraceError(
        what=f"the step mixes the rows of the batch: {what} is another one alone than among three, by one of the "
        f"operations {', '.join(operations)}",
        where=cell,
        mend=_OWN_SEQUENCE,
    )


def attribute(cell: str, name: str) -> TraceError:
    if name.endswith("_flat_weights"):
        return TraceError(
            what="the step calls a layer of torch.nn's that is a recurrence itself, and keeps its weights in lists",
            where=f"{cell}, {name.rpartition('.')[0] or cell}",
            mend="call its cell in a loop (torch.nn.GRUCell, LSTMCell, RNNCell), or run the layer outside of the step",
        )  # fmt: skip
    return TraceError(
        what=f"the step keeps something in the attribute '{name}' (state kept in attributes is lost between steps)",
        where=cell,
        mend="return it as a part of the state",
    )


# --- what a trace cannot do again ---------------------------------------------------------------------------------


def changes(before: Changes, cell: str) -> None:
    """Refuse a step that has drawn numbers PyTorch knows nothing of, or changed something that outlives it."""
    drawn, changed = before.look()
    if drawn is not None:
        raise TraceError(
            what=f"the step draws from {drawn}, which would be decided once and for all steps",
            where=cell,
            mend="draw with torch.rand, torch.bernoulli, torch.randn, …: these are drawn anew for every step and row",
        )
    if changed is not None:
        raise TraceError(
            what=f"the step, or a hook in it, changes {changed}, which outlives the step",
            where=cell,
            mend="return what is to be kept from each step as a part of its output (or of the state)",
        )


_ASKED = {
    torch.is_grad_enabled: "torch.is_grad_enabled()",
    torch.is_inference_mode_enabled: "torch.is_inference_mode_enabled()",
    time.time: "time.time()", time.perf_counter: "time.perf_counter()", time.monotonic: "time.monotonic()",
}  # fmt: skip


@contextlib.contextmanager
def asking(cell: str) -> Iterator[None]:
    """Refuse a step that asks what may have another answer at another call, and no key can say: seen while it runs."""
    refusals: list[TraceError] = []

    def look(frame: Any, event: str, called: Any) -> None:
        # Not what is installed: some of it asks on its own account, in the middle of anything (garbage collection).
        if (
            event == "c_call"
            and not refusals
            and _is_asked(called)
            and not is_library(frame.f_globals.get("__name__"))
        ):
            refusals.append(
                TraceError(
                    what=f"the step asks {_ASKED[called]}, which is answered once, when it is traced",
                    where=f"{cell}, {frame.f_code.co_filename}:{frame.f_lineno}",
                    mend="let an attribute of the cell say it (self.training is one): attributes are honoured",
                )
            )

    if sys.getprofile() is not None:  # somebody measures: cProfile cannot be put back from here
        yield
        return
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)
    if refusals:
        raise refusals[0]


def _is_asked(called: Any) -> bool:
    try:
        return called in _ASKED
    except TypeError:
        return False


def hooks(leaves: Mapping[str, torch.Tensor], ports: Sequence[InPort], cell: str) -> None:
    """Refuse a gradient hook on a tensor that is given to the step: it would see what flows through all steps."""
    for port in ports:
        leaf = leaves[port.name]
        if leaf._backward_hooks or getattr(leaf, "_post_accumulate_grad_hooks", None):
            raise TraceError(
                what=f"the step registers a gradient hook on {port.path}, which comes from outside the step",
                where=cell,
                mend="register it on a value of the step: after h = h.clone(), it sees what flows through this step",
            )
