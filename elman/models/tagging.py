"""The network of a tagger: words by how they are spelled and by what they are, read in their sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elman.data.lexicon import Lexicon
from elman.data.schema import Check, each, number, truth, whole
from elman.models.crf import CRF
from elman.models.pretrained import SIZE
from elman.models.stack import Cells, stack_of
from elman.plan import Explanation
from elman.recurrent import Flow, LockedDropout, Piece, last

_count = whole(0, SIZE)
NEEDED: dict[str, Check] = {"tags": whole(1, SIZE), "words": _count, "characters": _count}
KNOWN: dict[str, Check] = {
    "frequent": _count, "embedding": whole(1, SIZE), "spelling": whole(1, SIZE), "word_dropout": number(0, 1),
    "crf": truth, "vectors": _count, "width": _count, "also": each(_count, 100),
}  # fmt: skip
_LETTER = 32  # width of a character's vector
_BESIDE = 0.5  # weight of what is learnt beside the tags, each
_ONCE = 0.5  # share of the words seen once that become the unknown word in training


class TagNetwork(Flow, nn.Module):
    """A score for each tag of each word.

        s(w) = last state of recurrences over the characters of w, forward and backward
        e(t) = [E[w(t)], s(w(t))],  h = layers of recurrences over e, in both directions
        o(t) = c + V h(t),  p(t) = softmax(o(t));  with crf: see `elman.models.crf`

    The characters of a word that stands in a batch more than once are read once. In training, words become the unknown
    word now and then, and are known by their characters alone: those that were seen once half of the time, so that
    there is something to learn that one from, others with probability `word_dropout`.

    tags: K. words, characters: how many are known; 0 stands for any other. frequent: how many words, from the first,
    were seen more than once. cell, layers, dropout, residual, norm: see `elman.models.stack`; what goes into the lowest
    layer and what comes from the highest is dropped out too, locked. hidden: H, for each direction. embedding: width of
    E. spelling: units over characters, for each direction. both: read sentences in both directions; without it, from
    left to right, so that they can be tagged as they come. vectors, width: how many words have a vector from elsewhere,
    and of what width; these are not trained. also: how many there are of other labels of a word, for each kind of them:
    they are learnt beside the tags, each half as much, and help with what the tags have in common with them.

    Source: Plank, Søgaard and Goldberg, Multilingual part-of-speech tagging with bidirectional long short-term memory
    models and auxiliary loss, 2016; Lample et al., Neural architectures for named entity recognition, 2016.
    """

    vectors: Tensor
    lexicon: Lexicon | None = None  # of its words and tags, where they are known

    def __init__(
        self, tags: int, words: int, characters: int, cell: Cells = "lstm", hidden: int = 200,
        layers: int | None = 2, embedding: int = 128, spelling: int = 64, dropout: float = 0.33, residual: bool = False,
        norm: bool = False, both: bool = True, frequent: int = 0, word_dropout: float = 0.0, crf: bool = False,
        vectors: int = 0, width: int = 0, also: Sequence[int] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.frequent, self.word_dropout = frequent, word_dropout
        self.words = nn.Embedding(words + 1, embedding)
        nn.init.normal_(self.words.weight, std=embedding**-0.5)  # one seen seldom is moved little
        self.characters = nn.Embedding(characters + 1, _LETTER)
        self.spelling, _ = stack_of(cell, _LETTER, spelling, 1, both=True)
        self.register_buffer("vectors", torch.zeros(vectors + 1, width))
        into = embedding + 2 * spelling + width
        self.stack, settings = stack_of(
            cell, into, hidden, layers, dropout=dropout, residual=residual, norm=norm, both=both
        )
        self.dropout = LockedDropout(dropout)
        self.readout = nn.Linear((1 + both) * hidden, tags)
        self.beside = nn.ModuleList(nn.Linear((1 + both) * hidden, labels) for labels in also)
        self.crf = CRF(tags) if crf else None
        self.settings: dict[str, Any] = {
            "tags": tags, "words": words, "characters": characters, "frequent": frequent, "cell": settings.pop("cell"),
            "hidden": hidden, "layers": len(self.stack), "embedding": embedding, "spelling": spelling,
            "dropout": dropout, "word_dropout": word_dropout, "crf": crf, "vectors": vectors, "width": width,
            **settings, "both": both, "also": list(also),
        }  # fmt: skip

    def read(self, words: Tensor, vectors: Tensor, spelled: Tensor, sizes: Tensor, of: Tensor) -> Tensor:
        """e, `[T, B, I]`. Arguments: see `elman.data.lexicon.Forms`."""
        if self.training:
            share = torch.where(words > self.frequent, _ONCE, self.word_dropout)
            words = words.masked_fill(torch.rand_like(share) < share, 0)
        _, state = self.spelling(self.characters(spelled), lengths=sizes)
        parts = [self.words(words), last(state, self.spelling)[of]]
        if self.settings["width"]:
            parts.append(self.vectors[vectors])
        return torch.cat(parts, -1)

    def forward(
        self, words: Tensor, vectors: Tensor, spelled: Tensor, sizes: Tensor, of: Tensor, lengths: Tensor
    ) -> Tensor:
        """o, `[T, B, K]`. Arguments: see `elman.data.lexicon.Forms`; lengths `[B]`, of the sentences."""
        return self.readout(self._hidden(words, vectors, spelled, sizes, of, lengths))

    def _hidden(
        self, words: Tensor, vectors: Tensor, spelled: Tensor, sizes: Tensor, of: Tensor, lengths: Tensor
    ) -> Tensor:
        x = self.dropout(self.read(words, vectors, spelled, sizes, of))
        h, _ = self.stack(x, lengths=lengths)
        return self.dropout(h)

    def loss(
        self, words: Tensor, vectors: Tensor, spelled: Tensor, sizes: Tensor, of: Tensor, y: Tensor, lengths: Tensor,
        also: Tensor | None = None, state: None = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """(mean nats per word, None), those of other labels counted by half.

        y: int64 `[T, B]`, the tags. also: int64 `[T, B, A]`, the other labels.
        """
        h = self._hidden(words, vectors, spelled, sizes, of, lengths)
        there = torch.arange(len(y), device=y.device)[:, None] < lengths
        o = self.readout(h)
        if self.crf is not None:
            nats = self.crf(o.float(), y, lengths).sum() / lengths.sum()
        else:
            nats = nn.functional.cross_entropy(o[there], y[there])
        if also is not None:
            for readout, labels in zip(self.beside, also[there].unbind(1), strict=True):
                nats = nats + _BESIDE * nn.functional.cross_entropy(readout(h[there]), labels)
        return nats, None

    def decode(self, o: Tensor, lengths: Tensor) -> Tensor:
        """The tags of scores o, int64 `[T, B]`."""
        return o.argmax(2) if self.crf is None else self.crf.decode(o, lengths)

    def flow(self) -> list[Piece]:
        """For its picture."""
        pieces = [
            Piece("w", "word(t)"), Piece("c", "its characters"), Piece("E", self.words, ("w",)),
            Piece("letters", self.characters, ("c",)), Piece("spelling", self.spelling, ("letters",)),
            Piece("s", "last states", ("spelling",)),
        ]  # fmt: skip
        parts = ["E", "s"]
        if width := self.settings["width"]:
            pieces.append(Piece("vectors", f"vector from elsewhere, {width} wide", ("w",)))
            parts.append("vectors")
        pieces += [
            Piece("e", "side by side", tuple(parts)), Piece("h", self.stack, ("e",)), Piece("o", self.readout, ("h",))
        ]  # fmt: skip
        if self.crf is not None:
            pieces.append(Piece("crf", "conditional random field", ("o",)))
        pieces.append(Piece("tag", "tag(t)", (pieces[-1].name,)))
        for k, readout in enumerate(self.beside):  # learnt with the tags, and not asked afterwards
            pieces += [
                Piece(f"beside {k}", readout, ("h",)),
                Piece(f"label {k}", f"label {k + 1}", (f"beside {k}",)),
            ]
        return pieces

    def explain(self) -> Explanation:
        parts = {"characters": self.spelling.explain(), "words": self.stack.explain()}
        return Explanation.of(parts | ({} if self.crf is None else {"tags": self.crf.best.explain()}))


def shapes(settings: dict[str, Any], there: dict[str, list[int]]) -> dict[str, list[int] | None]:
    """The weights whose sizes the settings say: see `elman.models.pretrained.load`."""
    both = 2 if settings["both"] else 1
    return {
        "words.weight": [settings["words"] + 1, settings["embedding"]],
        "characters.weight": [settings["characters"] + 1, _LETTER],
        "vectors": [settings["vectors"] + 1, settings["width"]],
        "readout.weight": [settings["tags"], both * settings["hidden"]],
        **{f"beside.{k}.weight": [n, both * settings["hidden"]] for k, n in enumerate(settings["also"])},
    }
