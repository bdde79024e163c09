"""The recurrent language model: predict the next symbol from all before it, then write."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elman.data import Tokenizer
from elman.data.schema import each, truth, whole
from elman.errors import DataError, InputError, InputTypeError, expect
from elman.models import pretrained
from elman.models.asked import expect_prompt, expect_seed, expect_ways, until
from elman.models.bounded import bounded_loss
from elman.models.evaluating import evaluating
from elman.models.language_network import LanguageNetwork, no_symbol
from elman.models.padded import Lengths, cleaned, happening
from elman.models.readout import GROUPS, loss
from elman.models.sampler import Sampler
from elman.models.streaming import reading
from elman.models.surprisal import Surprisal, Word, each_line, surprisal
from elman.recurrent import Recurrent, Stream
from elman.training import Run

_KNOWN = {
    "embedding": whole(1, pretrained.SIZE),
    "tie": truth,
    "condition": whole(0, pretrained.SIZE),
    "cutoffs": each(whole(1, pretrained.SIZE), GROUPS),
}
_BLOCK = 64  # symbols that are written before anybody sees them: at most some milliseconds


class LanguageModel(LanguageNetwork):
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
    tokenizer: Tokenizer | None = None

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
            self.check_condition(x, context)
            if (bounded := bounded_loss(self, x, y, state, context, lengths)) is not None:
                nats = bounded[0]
                return nats.mean() if there is None else nats.sum() / there.sum(), tuple(bounded[1])
        h, after = self.hidden_states(x, state, context, lengths)
        h, y = (h.flatten(0, 1), y.flatten()) if there is None else (h[there], y[there])
        try:
            return loss(self.readout, h, y), after
        except (RuntimeError, IndexError) as error:
            if y.numel() and (int(y.min()) < 0 or int(y.max()) >= self.settings["vocabulary"]):
                raise no_symbol("y", y, self.settings["vocabulary"]) from error
            raise

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
        if seed is not None:
            expect_seed(seed)
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
            _, states = self.hidden_states(prompt[:-1], None, context)
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
