"""The network of a language model: from symbols to logits, with the state carried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from elman.errors import InputError, InputTypeError, expect
from elman.models.padded import Lengths, cleaned, happening
from elman.models.readout import Adaptive, expect_cutoffs
from elman.models.stack import Cells, learning_rate, stack_of
from elman.plan import Explanation
from elman.recurrent import Budget, Flow, LockedDropout, Piece, Recurrent, Stack


class LanguageNetwork(Budget, Flow, nn.Module):
    """Embedding, layers and readout of a `LanguageModel`, where its arguments are told of.

    e(t) = E[x(t)],  h_1(t) = f(h_1(t-1), e(t)),  …,  o(t) = c + V h(t)
    """

    stack: Stack

    def __init__(
        self,
        vocabulary: int,
        cell: Cells = "gru",
        hidden: int = 256,
        layers: int | None = None,
        embedding: int = 64,
        dropout: float = 0.0,
        tie: bool = False,
        condition: int = 0,
        residual: bool = False,
        norm: bool = False,
        cutoffs: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if layers is None:
            layers = len(cell) if isinstance(cell, (list, tuple, nn.ModuleList)) else 1
        sizes = {"vocabulary": vocabulary, "hidden": hidden, "layers": layers, "embedding": embedding}
        for name, value in sizes.items():
            expect(value, int, f"{name} is a whole number", name)
            if value < 1:
                raise InputError(
                    what=f"{name} must be at least 1", where=name, got=value, mend="give a positive number"
                )
        expect(dropout, (int, float), "dropout is a probability", "dropout")
        expect(condition, int, "condition is a width", "condition")
        if not 0 <= dropout < 1:
            raise InputError(
                what="dropout is a probability below 1", where="dropout", got=dropout, mend="take 0 … 0.5"
            )
        if tie and embedding != hidden:
            raise InputError(
                what="a tied model has one matrix for symbols going in and coming out", where="tie, embedding",
                got=f"embedding {embedding}, hidden {hidden}", expected="the same width",
                mend=f"take embedding={hidden}",
            )  # fmt: skip
        cutoffs = expect_cutoffs(cutoffs, vocabulary) if cutoffs else ()
        self.dropout = LockedDropout(dropout)
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.condition = nn.Linear(condition, embedding, bias=False) if condition else None
        stack, settings = stack_of(
            cell, embedding, hidden, layers, dropout=dropout, residual=residual, norm=norm
        )
        self.settings = {
            "cell": settings.pop("cell"),
            **sizes,
            "dropout": dropout,
            "tie": tie,
            "condition": condition,
            **settings,
            **({"cutoffs": list(cutoffs)} if cutoffs else {}),
        }
        # Its parts are registered here, and not the stack: so were the weights named from the beginning.
        self.__dict__["stack"] = stack
        self.layers = stack.layers
        if norm:
            self.norms = stack.norms
        self.readout = Adaptive(hidden, vocabulary, cutoffs) if cutoffs else nn.Linear(hidden, vocabulary)
        # Small weights, no bias: the untrained model holds every symbol equally likely, L = log V.
        nn.init.normal_(self.readout.weight, std=0.1 * hidden**-0.5)
        nn.init.zeros_(self.readout.bias)
        if isinstance(self.readout, Adaptive):
            self.readout.begin()
        if tie:
            nn.init.normal_(self.embedding.weight, std=hidden**-0.5)
            self.readout.weight = self.embedding.weight

    @property
    def learning_rate(self) -> float:
        """For AdamW: see `elman.models.stack.learning_rate`."""
        return learning_rate(self.layers, self.settings["hidden"])

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def flow(self) -> list[Piece]:
        """For its picture."""
        pieces = [Piece("x", "x(t)"), Piece("e", self.embedding, ("x",))]
        if self.condition is not None:
            pieces += [
                Piece("context", "context"), Piece("told", self.condition, ("context",)),
                Piece("both", "+", ("e", "told")),
            ]  # fmt: skip
        read = pieces[-1].name
        return [
            *pieces, Piece("h", self.stack, (read,)), Piece("readout", self.readout, ("h",)),
            Piece("o", "o(t)", ("readout",)),
        ]  # fmt: skip

    def explain(self) -> Explanation:
        """What of each layer runs once, before, in and after the loop; after a call. See `elman.explain`."""
        if self.memory is not None and "_loss" in self.__dict__:
            return self.__dict__["_loss"].explain()
        return self.stack.explain()

    def forward(
        self, x: Tensor, state: tuple | None = None, *, lengths: Lengths | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, tuple]:  # fmt: skip
        """x int64 [T, B] -> (logits [T, B, V], final state). Without `state`: the cells' initial one.

        lengths: [B], where sequences are of different lengths; what stands behind the end of one is not read, its
        logits there are 0, its final state is that of its end. context: [B, condition], what every step of a sequence
        is told besides its symbol.
        """
        there = None if lengths is None else happening(x, lengths)
        h, after = self.hidden_states(cleaned(x, there), state, context, lengths)
        o = self.readout(h)
        return o if there is None else o.masked_fill(~there[..., None], 0.0), after

    def step(
        self, x: Tensor, state: tuple | None = None, *, context: Tensor | None = None
    ) -> tuple[Tensor, tuple]:
        """One step of streaming: x int64 [B] -> (logits [B, V], state). The same numbers as `forward`'s."""
        self.stack.training = self.training
        h, after = self.stack.step(self.embedded(x, context), state)
        return self.readout(self.checked(self.dropout(h))), tuple(after)

    def read(self, x: Tensor, state: tuple | None = None, *, context: Tensor | None = None) -> tuple:
        """The state of `forward` alone, without any logits. x int64 [T, B]."""
        self.stack.training = self.training
        return tuple(self.stack(self.embedded(x, context), state)[1])

    def hidden_states(
        self, x: Tensor, state: tuple | None, context: Tensor | None, lengths: Lengths | None = None
    ) -> tuple[Tensor, tuple]:
        """What the readout sees, [T, B, H], and the final state."""
        self.stack.training, self.stack.memory = self.training, self.memory
        h, after = self.stack(self.embedded(x, context), state, lengths=lengths)
        return self.checked(self.dropout(h)), tuple(after)

    def check_condition(self, x: Tensor, context: Tensor | None) -> None:
        """Raise InputError where a context is missing or too much, InputTypeError where x is no symbols."""
        width = self.settings["condition"]
        if (context is None) != (self.condition is None) or (
            context is not None and context.shape != (x.shape[-1], width)
        ):
            raise InputError(
                what="the model is told something about each sequence" if width else "the model takes no context",
                where="context", got=None if context is None else f"shape {tuple(context.shape)}",
                expected=f"[{x.shape[-1]}, {width}]" if width else "none",
                mend=f"pass context [B, {width}]" if width else "construct it with condition=the width of the context",
            )  # fmt: skip
        if not isinstance(x, Tensor) or x.dtype not in (torch.int64, torch.int32):
            raise InputTypeError(
                what="a language model reads numbers of symbols", where="x", expected="a tensor of int64",
                got=str(x.dtype) if isinstance(x, Tensor) else type(x).__name__, mend="tokenizer.encode gives them",
            )  # fmt: skip

    def embedded(self, x: Tensor, context: Tensor | None) -> Tensor:
        """What the first layer reads. Raises InputError for symbols or a context that the model does not know."""
        self.check_condition(x, context)
        try:
            e = self.embedding(x)
        except IndexError as error:
            raise no_symbol("x", x, self.settings["vocabulary"]) from error
        return e if self.condition is None else e + self.condition(context)

    def checked(self, h: Tensor) -> Tensor:
        """h, where the readout can read it; else InputError."""
        if h.shape[-1] != self.readout.in_features:
            raise InputError(
                what="the cell's output has another width than it was constructed with",
                where=type(cast(Recurrent, self.layers[-1]).cell).__name__,
                got=h.shape[-1],
                expected=f"hidden = {self.readout.in_features}",
                mend="let the step return an output as wide as its second constructor argument",
            )
        return h


def no_symbol(name: str, given: Tensor, vocabulary: int) -> InputError:
    """What is raised where x or y holds a number that is no symbol."""
    low, high = int(given.min()), int(given.max())
    ignored = low < 0 and name == "y"
    return InputError(
        what="this is no symbol of the model", where=name, got=low if low < 0 else high,
        expected=f"0 … {vocabulary - 1}",
        mend="what is only padding is left out by lengths=" if ignored else "take the tokenizer of the model",
    )  # fmt: skip
