"""What a cell's own step says when it fails: the user's exception, its line, and what met there.

The step runs once more, eagerly, on ordinary small tensors and with the tensors' names known. What it raises then is
what users would see in a loop of their own, and so it is what they are told, before anything that a tracer says.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from elman import noise
from elman.circuit.structure import flatten, paths
from elman.errors import ElmanError, InputError, InputTypeError, TraceError
from elman.trace import refuse
from elman.trace.call import places, shape_of, skeleton_of, store_of, swapped
from elman.trace.outside import readable

Tensor = torch.Tensor
# Rows to probe with: a number that no state has entries, since a tensor of two rows can be mistaken for a pair.
PROBED = 7
_ITSELF = "it is the cell's own code that fails, as it would in a plain loop over the steps"
_PRODUCTS = ("matmul", "mm", "bmm", "__matmul__", "__rmatmul__", "addmm", "baddbmm")


# --- what is no cell --------------------------------------------------------------------------------------------------


def check_cell(cell: Any, where: str) -> None:
    """Raise InputTypeError for what is no cell, and say what of it would be one."""
    what, mend = "a cell is a torch.nn.Module whose forward is one step", None
    if isinstance(cell, torch.nn.RNNBase):
        name = type(cell).__name__
        what = f"torch.nn.{name} is a layer over whole sequences, not one step"
        mend = (
            f"take torch.nn.{name}Cell for its step, or elman.nn.{name} for a layer that is called as it is"
        )
    elif isinstance(cell, torch.jit.ScriptModule):
        what, mend = "a scripted module has no step that can be traced", "pass the module that was scripted"
    elif type(cell).__name__ == "OptimizedModule":
        what = "a compiled module has no step that can be traced"
        mend = "pass the cell itself, and compile the layer: torch.compile(elman.Recurrent(cell))"
    elif type(cell).__module__.startswith("elman.recurrent.") and hasattr(cell, "step"):
        what = f"elman.{type(cell).__name__} is a layer over whole sequences already"
        mend = "call it as it is; elman.Stack(layer, layer) puts one on top of another"
    elif isinstance(cell, torch.nn.Module):
        if not any(map(torch.nn.parameter.is_lazy, cell.parameters())):
            return
        what = "the cell has lazy parameters, whose shapes are not known yet"
        mend = "run the cell once on an example before: cell(x, state)"
    elif isinstance(cell, type) and issubclass(cell, torch.nn.Module):
        mend = f"make one: {cell.__name__}(…)"
    raise InputTypeError(what, where=where, got=getattr(cell, "__name__", type(cell).__name__), mend=mend)


# --- a step that fails ------------------------------------------------------------------------------------------------


def find(
    cell: torch.nn.Module, x: Any, state: Any, context: Any = None, mend: str | None = None
) -> ElmanError | None:
    """The error that the cell's own step raises on tensors such as these, in elman's words; None if it runs.

    The tensors given are not written into, the cell is not changed. state: None for a run without one. mend: what to
    do, where nothing better is known. The error's cause is the user's exception.
    """
    given = [
        leaf.shape[0] for leaf in pytree.tree_leaves((x, context)) if isinstance(leaf, Tensor) and leaf.dim()
    ]
    failures = []
    for rows in dict.fromkeys((*given[:1], PROBED)):
        run = _Run(cell, *(_small(value, rows) for value in (x, state, context)))
        try:
            run()
        except Exception as error:
            failures.append((run, error))
    # At the batch size of the call, if the same goes wrong at another.
    if len(failures) == 2 and _same_place(failures[0][1], failures[1][1]):
        failures.pop()
    return failures[-1][0].told(failures[-1][1], mend) if failures else None


def of_step(cell: torch.nn.Module, x: Any, state: Any, context: Any, error: Exception) -> ElmanError:
    """What a step has raised that was run as it is."""
    return find(cell, x, state, context) or _Run(cell, x, state, context).told(error)


def numbers_of_its_own(cell: torch.nn.Module, x: Any, state: Any, context: Any = None) -> str | None:
    """The tensor of the cell itself out of which its step takes a number, if it takes none out of what is passed."""
    run = _Run(cell, *(_small(value, PROBED) for value in (x, state, context)))
    numbers = _Numbers(run)
    try:
        with numbers:
            run()
    except Exception:
        return None
    return None if numbers.of_data else numbers.own


class _Numbers(TorchDispatchMode):
    """Notes out of which tensors numbers are taken (.item(), float(tensor), if tensor:)."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.of_data, self.own = False, None
        # Where a tensor comes from, by id: "" for what is passed. All are kept, so that no id comes twice.
        self._from = {key: "" if key in run.passed else path for key, path in run.words.items()}
        self._kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = [
            self._from[id(leaf)] for leaf in pytree.tree_leaves((args, kwargs)) if id(leaf) in self._from
        ]
        if sources:
            source = "" if "" in sources else sources[0]
            if torch.Tag.data_dependent_output in func.tags:
                self.of_data, self.own = self.of_data or not source, self.own or source
            for leaf in pytree.tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._kept.append(leaf)
                    self._from.setdefault(id(leaf), source)
        return result


class _Run:
    """One eager run of a cell's step, with names for the tensors that meet in it.

    state: None for a run without one.
    """

    def __init__(self, cell: torch.nn.Module, x: Any, state: Any, context: Any) -> None:
        self.cell, self.x, self.state, self.context = cell, x, state, context
        self.weights = {
            entry: readable(store_of(cell, entry[0])[entry[0].key]).clone() for entry in places(cell)
        }
        self.words = {
            id(tensor): entry[0].path.removeprefix("cell.") for entry, tensor in self.weights.items()
        }
        self.passed: set[int] = set()
        for word, value in (("x", x), ("state", state), ("context", context)):
            tensors, structure = flatten(value, word)
            self.words |= dict(zip(map(id, tensors), paths(structure, word), strict=True))
            self.passed.update(map(id, tensors))
        self.calls = _Calls()

    @property
    def arguments(self) -> tuple[Any, ...]:
        if self.context is not None:
            return self.x, self.state, self.context
        return (self.x,) if self.state is None else (self.x, self.state)

    def __call__(self) -> Any:
        skeleton = skeleton_of(self.cell)
        draws = noise.Replay(torch.Generator().manual_seed(0))
        with draws, swapped(skeleton, self.weights), torch.no_grad(), self.calls:
            return skeleton(*self.arguments)

    def told(self, error: Exception, mend: str | None = None) -> ElmanError:
        """What the step has raised, in elman's words. mend: what to do if nothing better is known."""
        name = type(self.cell).__name__
        wrong = _wrong_call(self.cell, self.context is not None, name)
        if wrong is None:
            got, expected, better = self._met(error)
            mend = (
                better or self._no_batch(error) or self._of_layers() or self._hint(error) or mend or _ITSELF
            )
            wrong = TraceError(
                what=f"the step fails: {refuse.message(error)}", where=refuse.raised_at(name, error), got=got,
                expected=expected, mend=mend,
            )  # fmt: skip
        wrong.__cause__ = error
        return wrong

    def _met(self, error: Exception) -> tuple[str | None, str | None, str | None]:
        """(what met in the call of torch that failed, what would have been right, mend), as far as it is known."""
        failed = self.calls.failed
        if failed is None or failed[0] is not error:
            # Nothing of torch was reached: a structure where a tensor is due, or the other way round.
            nested = [
                f"{word} {shape_of(value)}"
                for word, value in (("x", self.x), ("state", self.state), ("context", self.context))
                if not isinstance(value, Tensor) and value is not None and not _of_names(error)
            ]
            return ", ".join(nested) or None, None, None
        _, function, arguments = failed
        tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
        kinds = {tensor.dtype for tensor in tensors}
        shown = [
            self._word(t, f"{list(t.shape)}" + (f" {t.dtype}" if len(kinds) > 1 else "")) for t in tensors
        ]
        got = f"{getattr(function, '__name__', function)} of {', '.join(shown)}" if shown else None
        expected, mend = self._expected(getattr(function, "__name__", ""), tensors)
        return got, expected, mend

    def _word(self, tensor: Tensor, form: str) -> str:
        word = self.words.get(id(tensor))
        if word is None and tensor._base is not None and id(tensor._base) in self.words:
            word = f"a view of {self.words[id(tensor._base)]}"
        return f"{word or 'a tensor'} {form}"

    def _expected(self, function: str, tensors: list[Tensor]) -> tuple[str | None, str | None]:
        def word(tensor: Tensor) -> str:
            return self._word(tensor, "").rstrip()

        if function == "embedding" and len(tensors) > 1:
            index, table = tensors[:2] if tensors[1].is_floating_point() else tensors[1::-1]
            if index.is_floating_point():
                return (
                    f"{word(index)} is {index.dtype}, and numbers of rows are whole",
                    f"use {word(index)}.long()",
                )
            if index.numel():
                low, high = int(index.min()), int(index.max())
                return (
                    f"{word(index)} lies in {low} … {high}, {word(table)} has rows 0 … {len(table) - 1}",
                    None,
                )
        if len({tensor.dtype for tensor in tensors}) > 1:
            own = [t for t in tensors if id(t) in {id(w) for w in self.weights.values()}]
            other = next((t for t in tensors if own and t.dtype != own[0].dtype), None)
            if other is not None:
                right = own[0].dtype
                mend = f"pass {word(other).split('[')[0]} as {right}, or call .to({other.dtype}) on the layer"
                if not other.is_floating_point():
                    mend = "give whole numbers to an embedding or to one_hot, or pass floats: x.float()"
                return f"{word(other)} is {other.dtype}, {word(own[0])} is {right}", mend
        if function == "linear" and len(tensors) > 1 and tensors[1].dim() == 2:
            return self._width(tensors[0], tensors[1], tensors[1].shape[1])
        if function in _PRODUCTS and len(tensors) > 1 and min(t.dim() for t in tensors[-2:]) > 1:
            left, right = tensors[-2:]
            return self._width(left, right, right.shape[-2])
        return None, None

    def _width(self, value: Tensor, weight: Tensor, wants: int) -> tuple[str | None, str | None]:
        if value.dim() < 2 or value.shape[-1] == wants:
            return None, None
        right = self._word(weight, str(list(weight.shape)))
        word, width = self._word(value, "").rstrip(), value.shape[-1]
        mend = None
        if id(value) in self.passed:
            mend = f"pass {word} of width {wants}, or make the cell for width {width}"
        return f"{word} has width {width}, {right} wants {wants}", mend

    def _no_batch(self, error: Exception) -> str | None:
        tensors, structure = flatten(self.x, "x")
        for tensor, path in zip(tensors, paths(structure, "x"), strict=True):
            if tensor.dim() < 2 and tensor.is_floating_point() and not _of_names(error):
                return (
                    f"at one step {path} is [B], a batch of numbers without a width; if it is one sequence [T, I], it "
                    f"has no batch dimension: pass {path}.unsqueeze(1), [T, 1, I]"
                )
        return None

    def _of_layers(self) -> str | None:
        """Whether the state looks like one of torch.nn's, which begin with a dimension of layers."""
        width = getattr(self.cell, "hidden_size", None)
        if isinstance(self.state, Tensor) and self.state.dim() == 3 and self.state.shape[-1] == width:
            return f"a state is [B, {width}]; if it is [layers, B, {width}] as of torch.nn, use h_0[i], or elman.nn"
        return None

    def _hint(self, error: Exception) -> str | None:
        """What is likely to be wrong, where the call that failed does not show it."""
        if _of_names(error):
            return _ITSELF
        if "does not require grad" in str(error):
            return (
                "a step takes a gradient of its own where nothing records one, too (torch.no_grad): "
                "torch.func.grad(energy)(h), in place of autograd.grad or backward()"
            )
        third = _third(self.cell) if self.context is None else None
        return (
            f"forward takes a third argument, '{third}', and none is given: pass context=" if third else None
        )


def _of_names(error: Exception) -> bool:
    """Whether code names what is not there: no argument is to blame."""
    return isinstance(error, NameError) or (
        isinstance(error, AttributeError) and isinstance(error.obj, torch.nn.Module)
    )


def _same_place(a: Exception, b: Exception) -> bool:
    return type(a) is type(b) and refuse.raised_at("", a) == refuse.raised_at("", b)


class _Calls(TorchFunctionMode):
    """Remembers the first call of torch that an exception came from: (exception, function, arguments)."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: tuple[Exception, Any, Any] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:
            if self.failed is None or self.failed[0] is not error:
                self.failed = error, func, (args, kwargs)
            raise


def _wrong_call(cell: torch.nn.Module, with_context: bool, name: str) -> ElmanError | None:
    """That forward cannot be called as cells are: with x, a state, and a context if there is one."""
    try:
        signature = inspect.signature(cell.forward)
    except (TypeError, ValueError):
        return None

    def takes(count: int) -> bool:
        try:
            signature.bind(*[None] * count)
        except TypeError:
            return False
        return True

    if takes(3 if with_context else 2):
        return None
    if not with_context and takes(3):
        return InputError(
            what=f"the cell takes a third argument at every step, '{_third(cell)}', and none is given",
            where=f"{name}, context=", got=f"forward{signature}", mend="pass context=, tensors [B, …]",
        )  # fmt: skip
    if with_context and takes(2):
        return InputError(
            what="the cell takes no context, and one is given", where=f"{name}, context=", got=f"forward{signature}",
            mend="leave context= away, or write forward(self, x, state, context)",
        )  # fmt: skip
    return InputTypeError(
        what="a cell is called with x and its state, and with a context if there is one", where=name,
        got=f"forward{signature}", expected="forward(x, state) or forward(x, state, context)",
    )  # fmt: skip


def starts_alone(cell: torch.nn.Module) -> bool:
    """Whether forward says what it does without a state: that it has a default."""
    try:
        parameters = list(inspect.signature(cell.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    return len(parameters) < 2 or parameters[1].default is not inspect.Parameter.empty


def _third(cell: torch.nn.Module) -> str | None:
    """The name of the third argument that a cell's forward takes by position."""
    try:
        parameters = inspect.signature(cell.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names[2] if len(names) > 2 else None


def _small(value: Any, rows: int) -> Any:
    """So many rows that look like the user's: copies of their own."""

    def leaf(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        some = readable(tensor).clone()
        if not some.dim():
            return some
        if not len(some):
            return some.new_zeros((rows, *some.shape[1:]))
        return some[torch.arange(rows, device=some.device) % len(some)]

    return pytree.tree_map(leaf, value)
