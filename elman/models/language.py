"""The recurrent language model: predict the next symbol from all before it, then write."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from elman.data import Tokenizer
from elman.data.schema import each, truth, whole
from elman.errors import DataError, InputError, InputTypeError, expect
from elman.models import pretrained
from elman.models.asked import expect_prompt, expect_ways, until
from elman.models.bounded import bounded_loss
from elman.models.evaluating import evaluating
from elman.models.padded import Lengths, cleaned, happening
from elman.models.readout import GROUPS, Adaptive, expect_cutoffs, loss
from elman.models.sampler import Sampler
from elman.models.stack import Cells, learning_rate, stack_of
from elman.models.streaming import reading
from elman.models.surprisal import Surprisal, Word, each_line, surprisal
from elman.plan import Explanation
from elman.recurrent import Budget, Flow, LockedDropout, Piece, Recurrent, Stack, Stream
from elman.training import Run

_KNOWN = {
    "embedding": whole(1, pretrained.SIZE),
    "tie": truth,
    "condition": whole(0, pretrained.SIZE),
    "cutoffs": each(whole(1, pretrained.SIZE), GROUPS),
}
_BLOCK = 64  # symbols that are written before anybody sees them: at most some milliseconds


class LanguageModel(Budget, Flow, nn.Module):
    """p(x(t+1) | x(1), …, x(t)) by a stack of recurrences.

        e(t) = E[x(t)]
        h_1(t) = f(h_1(t-1), e(t)),  h_2(t) = f(h_2(t-1), h_1(t)),  …          # any cell f, `layers` of them
        o(t) = c + V h(t),  p = softmax(o(t)),  L = -Σ_t log p(y(t) | x(1), …, x(t)),  y(t) = x(t+1)

        model = LanguageModel(tokenizer.size, cell="gru", hidden=256)
        logits, state = model(x)                     # x int64 [T, B] -> logits [T, B, V]
        loss, state = model.loss(x, y, state)        # mean nats per symbol; of a ragged batch with lengths=
        tokens = model.generate(prompt, 200)         # prompt int64 [P]
        for token in model.generate_iter(prompt, 200):
            …                                        # one at a time, as they are written
        model.score("The cat sat.").words            # how surprising each word is, in bits

    Source: Goodfellow, Bengio and Courville, Deep Learning, 2016, section 10.2, equations 10.8 to 10.14.

    vocabulary: V.
    cell: a name as `elman.models.find_cell` reads it, a class, a factory (n_in, n_hidden) -> cell, or a cell; or a list
        with one of these for each layer. A factory, a cell, or a class that no module has under its name, cannot be
        saved.
    hidden: H, units per layer. layers: how many; by default one, or as many as cells. embedding: width of E.
    dropout: the share of each layer's output that is left out in training (see `elman.recurrent.dropout`). tie: E is
    V's matrix too. residual, norm: see `elman.models.stack`. condition: width of a vector that describes a whole
    sequence (`context`), and is added to the embedding of every symbol through a matrix. The state is a tuple with one
    entry for each layer. tokenizer: that of its symbols, where it is known: of a model from a folder with one.

    memory: an attribute, as of `elman.Recurrent`: a budget for `loss` and its backward pass. With a softmax readout a
    segment of time goes through all of a step, so logits never exist for all of a window.
    """

    _version = 1  # of its state_dict, which PyTorch keeps in `_metadata`
    stack: Stack
    tokenizer: Tokenizer | None = None

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

    @classmethod
    def load(
        cls,
        run: Run,
        *,
        trust: bool = False,
        cell: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> LanguageModel:
        """The model of a run folder, ready for use. Further arguments: see `from_pretrained`."""
        return cls._opened(run.config, run.folder, trust, cell, notify)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, trust: bool = False, cell: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> LanguageModel:  # fmt: skip
        """The model of a folder by `save_pretrained`, of a run folder, or of the Hugging Face Hub, ready for use.

        trust: let it run the code of a cell that is not elman's own, after a line that names the file and its digest.
        cell: where that cell is now, in place of what the folder says. notify: is given that line; None: the logger
        "elman". Raises DataError if the files are spoiled or do not fit together, InputError for a cell that is not
        trusted.
        """
        folder = pretrained.find(name)
        return cls._opened(pretrained.settings_in(folder, "lm"), folder, trust, cell, notify)

    @classmethod
    def _opened(
        cls, config: dict[str, Any], folder: Path, trust: bool, cell: str | None,
        notify: Callable[[str], None] | None,
    ) -> LanguageModel:  # fmt: skip
        model = pretrained.load(
            cls, "a language model", {"vocabulary": whole(1, pretrained.SIZE)}, _shapes, config, folder, trust=trust,
            cell=cell, notify=notify, known=_KNOWN,
        )  # fmt: skip
        if (path := folder / pretrained.TOKENIZER).is_file():
            model.tokenizer = Tokenizer.load(path)
            model._expect(model.tokenizer, path)
        return model

    def save_pretrained(self, folder: str | Path, *, tokenizer: Tokenizer | None = None) -> None:
        """Write the model as a folder that `huggingface_hub.PyTorchModelHubMixin` reads too: see `pretrained`.

        tokenizer: by default the model's own, if it has one. Raises InputError where a cell has no name by which it
        would be found again.
        """
        files = {}
        if (tokenizer := tokenizer or self.tokenizer) is not None:
            self._expect(tokenizer, "tokenizer")
            files[pretrained.TOKENIZER] = tokenizer.to_json().encode()
        pretrained.save(folder, self.settings, self, files)

    def _expect(self, tokenizer: Tokenizer, where: object) -> None:
        """Raise DataError where these are not the symbols of the model."""
        if tokenizer.size != self.settings["vocabulary"]:
            raise DataError(
                what="the tokenizer and the model are not of one run", where=where, got=f"{tokenizer.size} symbols",
                expected=f"{self.settings['vocabulary']}", mend="take the tokenizer that the model learnt with",
            )  # fmt: skip

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
        h, after = self._hidden(cleaned(x, there), state, context, lengths)
        o = self.readout(h)
        return o if there is None else o.masked_fill(~there[..., None], 0.0), after

    def step(
        self, x: Tensor, state: tuple | None = None, *, context: Tensor | None = None
    ) -> tuple[Tensor, tuple]:
        """One step of streaming: x int64 [B] -> (logits [B, V], state). The same numbers as `forward`'s."""
        self.stack.training = self.training
        h, after = self.stack.step(self._embedded(x, context), state)
        return self.readout(self._checked(self.dropout(h))), tuple(after)

    def read(self, x: Tensor, state: tuple | None = None, *, context: Tensor | None = None) -> tuple:
        """The state of `forward` alone, without any logits. x int64 [T, B]."""
        self.stack.training = self.training
        return tuple(self.stack(self._embedded(x, context), state)[1])

    def stream(
        self, batch: int | None = None, state: tuple | None = None, weights: str | None = None
    ) -> Stream:
        """A stream, whose step takes symbols int64 [B] to logits [B, V]: see `elman.Recurrent.stream`.

        One call of an engine for embedding, layers and readout, whose weight `weights` makes narrow, too.
        """
        return Stream(reading(self), batch, state, weights)

    def loss(
        self, x: Tensor, y: Tensor, state: tuple | None = None, *, lengths: Lengths | None = None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, tuple]:  # fmt: skip
        """The mean of -log p(y(t) | x(1), …, x(t)) in nats, and the final state. x, y: int64 [T, B].

        lengths: [B], as of `forward`; the mean is over the steps that happen, each counted once, and what stands behind
        the end of a sequence, in x or y, may be any whole number.
        """
        if x.shape != y.shape:
            raise InputError(
                what="there is one target for each symbol", where="y", got=f"shape {list(y.shape)}",
                expected=f"{list(x.shape)}, as x", mend="y(t) is x(t + 1): loss(text[:-1], text[1:])",
            )  # fmt: skip
        there = None if lengths is None else happening(x, lengths)
        x, y = cleaned(x, there), cleaned(y, there)
        if self.memory is not None:
            self._check_condition(x, context)
            if (bounded := bounded_loss(self, x, y, state, context, lengths)) is not None:
                nats = bounded[0]
                return nats.mean() if there is None else nats.sum() / there.sum(), tuple(bounded[1])
        h, after = self._hidden(x, state, context, lengths)
        h, y = (h.flatten(0, 1), y.flatten()) if there is None else (h[there], y[there])
        try:
            return loss(self.readout, h, y), after
        except (RuntimeError, IndexError) as error:
            if y.numel() and (int(y.min()) < 0 or int(y.max()) >= self.settings["vocabulary"]):
                raise _no_symbol("y", y, self.settings["vocabulary"]) from error
            raise

    def _hidden(
        self, x: Tensor, state: tuple | None, context: Tensor | None, lengths: Lengths | None = None
    ) -> tuple[Tensor, tuple]:
        """What the readout sees, [T, B, H], and the final state."""
        self.stack.training, self.stack.memory = self.training, self.memory
        h, after = self.stack(self._embedded(x, context), state, lengths=lengths)
        return self._checked(self.dropout(h)), tuple(after)

    def _check_condition(self, x: Tensor, context: Tensor | None) -> None:
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

    def _embedded(self, x: Tensor, context: Tensor | None) -> Tensor:
        self._check_condition(x, context)
        try:
            e = self.embedding(x)
        except IndexError as error:
            raise _no_symbol("x", x, self.settings["vocabulary"]) from error
        return e if self.condition is None else e + self.condition(context)

    def score(
        self, text: str, *, tokenizer: Tokenizer | None = None, begin: str = "\n", anew: bool = False,
        context: Tensor | None = None,
    ) -> Surprisal:  # fmt: skip
        """How surprising a text is: -log2 p of each symbol and each word, in bits; exact, with the state carried.

            score = model.score("The cat sat on the mat.")
            pandas.DataFrame(score.words)            # line, offset, word, surprisal, end, unknown

        text: of any length. tokenizer: of its symbols, where the model has none of its own. begin: what is read before;
        "": nothing, so that the first symbol is only read, as `evaluate` does it. anew: every line begins so, and
        nothing is remembered of the line before. context: [1, condition]. What counts to a word, and what is nan: see
        `elman.models.surprisal`. A text that comes in pieces, or is too long for its table: `surprisal` there.
        """
        expect(text, str, "a text is scored", "text")
        if (tokenizer := tokenizer or self.tokenizer) is None:
            raise InputError(
                what="the model does not know which text its symbols stand for", where="tokenizer",
                mend="pass tokenizer=, as Tokenizer.load(RUN / 'tokenizer.json') gives it",
            )  # fmt: skip
        self._expect(tokenizer, "tokenizer")
        parts, score = each_line([text]) if anew else tokenizer.parts([text]), Surprisal()
        for one in surprisal(self, tokenizer, parts, begin=begin, anew=anew, context=context):
            (score.words if isinstance(one, Word) else score.symbols).append(one)  # type: ignore[arg-type]
        return score

    def generate(
        self, prompt: Tensor | Sequence[int], length: int, *, samples: int | None = None, stop: Sequence[int] = (),
        **how: Any,
    ) -> list[Any]:  # fmt: skip
        """Symbols that go on from a prompt: at most `length`, of `samples` texts a list each.

        A text ends with its first symbol of `stop`. Further arguments as of `generate_iter`.
        """
        known = inspect.signature(self.generate_iter).parameters
        for name in set(how) - set(known):
            raise InputTypeError(
                what="there is no such option", where=f"generate({name}=)",
                expected=" or ".join(difflib.get_close_matches(name, known, 1)) or ", ".join(known),
            )  # fmt: skip
        written = list(self.generate_iter(prompt, length, samples=samples, stop=stop, **how))
        if samples is None:
            return written
        texts = [list(text) for text in zip(*written, strict=True)] or [[] for _ in range(samples)]
        ends = [
            min((text.index(symbol) + 1 for symbol in stop if symbol in text), default=None) for text in texts
        ]
        return [text[:end] for text, end in zip(texts, ends, strict=True)]

    def generate_iter(
        self,
        prompt: Tensor | Sequence[int],
        length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        stop: Sequence[int] = (),
        exclude: Sequence[int] = (),
        samples: int | None = None,
        context: Tensor | None = None,
        weights: str | None = None,
    ) -> Iterator[Any]:
        """Symbols that go on from a prompt, one at a time: x(t+1) ~ softmax(o(t) / temperature).

        The prompt is read in one call; then writing is a recurrence of its own (see `elman.models.sampler`), which runs
        many symbols at a time, at first few, so that the first ones come at once.

        prompt: int64 [P], P >= 1. length: how many symbols. temperature: 0 takes the likeliest symbol every time.
        top_k: draw from the k likeliest only. top_p: from the likeliest that together have this probability.
        seed, generator: where the draws come from; without either, torch's default generator.
        stop: symbols after which nothing more is written. exclude: symbols that are never written (`<unk>`).
        samples: so many texts side by side; each step is then a list with a symbol of each, which goes on until all
        have met a `stop`. context: [condition], or [samples, condition]. weights: "bfloat16" or "int8": written with
        weights in fewer bits (`stream`), other draws, and the prompt still read with the weights as they are.
        """
        prompt = expect_prompt(prompt, self.tokenizer is not None)
        expect_ways(temperature, length, top_k, top_p, samples)
        sampler = Recurrent(
            Sampler(
                self.embedding, self.stack.as_cell(), self.readout, self.condition, temperature=temperature,
                top_k=top_k, top_p=top_p, exclude=tuple(exclude),
            )
        )  # fmt: skip
        if seed is not None and generator is not None:
            raise InputError(
                what="the draws come from one place", where="seed=, generator=", mend="give one of the two"
            )
        sampler.generator = generator if seed is None else torch.Generator().manual_seed(seed)
        if context is not None:
            context = context.expand(samples or 1, -1)
        written = self._written(sampler, prompt, length, samples or 1, context, weights)
        return until(written, set(stop), one=samples is None)

    def _written(
        self, sampler: Recurrent, prompt: Tensor, length: int, samples: int, context: Tensor | None,
        weights: str | None,
    ) -> Iterator[list[int]]:  # fmt: skip
        """Steps of writing, each a symbol per sample."""
        device = self.readout.weight.device
        prompt = prompt.to(device)[:, None].expand(-1, samples)
        with evaluating(self), torch.no_grad():
            _, states = self._hidden(prompt[:-1], None, context)
        state, left, block = (prompt[-1].contiguous(), tuple(states)), length, 1
        if weights is not None:
            stream = sampler.stream(state=state, weights=weights)
            for _ in range(length):
                with evaluating(self):
                    symbol = stream.step(context=context)
                yield symbol.tolist()
            return
        while left > 0:
            with evaluating(self), torch.no_grad():
                symbols, state = sampler(None, state, steps=min(block, left), context=context)
            yield from symbols.tolist()  # as the caller had it: the model may be trained before the next symbol
            left -= block
            block = min(2 * block, _BLOCK)

    def _checked(self, h: Tensor) -> Tensor:
        if h.shape[-1] != self.readout.in_features:
            raise InputError(
                what="the cell's output has another width than it was constructed with",
                where=type(cast(Recurrent, self.layers[-1]).cell).__name__,
                got=h.shape[-1],
                expected=f"hidden = {self.readout.in_features}",
                mend="let the step return an output as wide as its second constructor argument",
            )
        return h


def _shapes(settings: dict[str, Any], there: dict[str, list[int]]) -> dict[str, list[int] | None]:
    """Of a model by these settings."""
    shapes: dict[str, list[int] | None] = {
        "embedding.weight": [settings["vocabulary"], settings["embedding"]],
        "readout.weight": [settings["vocabulary"], settings["hidden"]],
    }
    if settings["tie"] and there.keys() & shapes.keys():  # one of them is both
        shapes |= {name: None for name in shapes if name not in there}
    if settings["cutoffs"]:
        shapes["readout.groups.weight"] = [len(settings["cutoffs"]), settings["hidden"]]
    if settings["condition"]:
        shapes["condition.weight"] = [settings["embedding"], settings["condition"]]
    return shapes


def _no_symbol(name: str, given: Tensor, vocabulary: int) -> InputError:
    low, high = int(given.min()), int(given.max())
    ignored = low < 0 and name == "y"
    return InputError(
        what="this is no symbol of the model", where=name, got=low if low < 0 else high,
        expected=f"0 … {vocabulary - 1}",
        mend="what is only padding is left out by lengths=" if ignored else "take the tokenizer of the model",
    )  # fmt: skip
