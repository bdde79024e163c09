"""The conditional random field: its equation, its best way, and what it does for real sentences."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from torch import Tensor

from elman.data.lexicon import Lexicon
from elman.data.tagged import read_tagged
from elman.models.crf import CRF
from tests.sentences import REAL, real


def paths(crf: CRF, x: Tensor, T: int) -> dict[tuple[int, ...], Tensor]:
    """Of every way through a sentence its score, by the equation. x: `[T, K]`."""
    found = {}
    for way in itertools.product(range(x.shape[1]), repeat=T):
        steps = sum(crf.transitions[i, j] for i, j in itertools.pairwise(way))
        found[way] = crf.begin[way[0]] + crf.end[way[-1]] + sum(x[t, k] for t, k in enumerate(way)) + steps
    return found


def test_the_field_is_its_equation_and_its_best_way_the_best_of_all() -> None:
    crf = CRF(3).double()
    for p in crf.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    y, lengths = torch.randint(3, (5, 4)), torch.tensor([5, 1, 3, 2])
    nats, best = crf(x, y, lengths), crf.decode(x, lengths)
    wanted = []
    for b, T in enumerate(lengths.tolist()):
        ways = paths(crf, x[:, b], T)
        wanted.append(torch.stack(list(ways.values())).logsumexp(0) - ways[tuple(y[:T, b].tolist())])
        assert tuple(best[:T, b].tolist()) == max(ways, key=lambda way: ways[way].item())
        assert best[T:, b].eq(0).all()
    torch.testing.assert_close(nats, torch.stack(wanted), rtol=1e-10, atol=1e-10)
    mine = torch.autograd.grad(nats.sum(), [x, *crf.parameters()])
    theirs = torch.autograd.grad(torch.stack(wanted).sum(), [x, *crf.parameters()])
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert "native" in str(crf.all.explain())


def test_of_ties_one_way_is_taken_whole() -> None:
    crf = CRF(2)
    with torch.no_grad():
        crf.transitions.copy_(torch.tensor([[-1e4, 0.0], [0.0, -1e4]]))  # tags have to alternate
    best = crf.decode(torch.zeros(6, 2, 2), torch.tensor([6, 3]))
    for b, T in enumerate((6, 3)):
        assert all(i != j for i, j in itertools.pairwise(best[:T, b].tolist()))


@real
def test_on_real_sentences_it_is_the_algorithm_of_viterbi_and_better_than_each_word_by_itself() -> None:
    """Scores as of a hidden Markov model: log shares of the tags of each word, and of each pair of tags."""
    sentences = read_tagged([REAL / "en_ewt-ud-dev.conllu"])
    learnt = [one for k, one in enumerate(sentences) if k % 5]
    test = [one for one in sentences[::5] if len(one.words) < 40][:150]
    lexicon = Lexicon.learn(sentences)
    K, of = len(lexicon.tags), Counter()
    pairs = torch.ones(K, K)
    for one in learnt:
        y = lexicon.ids(one).tolist()
        of.update(zip(one.words, y, strict=True))
        for i, j in itertools.pairwise(y):
            pairs[i, j] += 1
    crf, share = CRF(K), pairs.sum(0) / pairs.sum()
    with torch.no_grad():
        crf.transitions.copy_((pairs / pairs.sum(1, keepdim=True)).log() - share.log())
    rows = [torch.tensor([[float(of[word, k]) for k in range(K)] for word in one.words]) for one in test]
    rows = [((row + share) / (row + share).sum(1, keepdim=True)).log() for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    x = torch.nn.utils.rnn.pad_sequence(rows)
    best, right, alone = crf.decode(x, lengths), 0, 0
    for b, (row, one) in enumerate(zip(rows, test, strict=True)):
        a, back = row[0], []
        for t in range(1, len(row)):
            a, pointers = (a[:, None] + crf.transitions.detach()).max(0)
            a, back = a + row[t], [*back, pointers]
        way = [int(a.argmax())]
        for pointers in reversed(back):
            way.append(int(pointers[way[-1]]))
        mine, y = best[: len(row), b], lexicon.ids(one)
        score = [
            crf.score(row[:, None], z[:, None], lengths[b : b + 1]) for z in (mine, torch.tensor(way[::-1]))
        ]
        torch.testing.assert_close(*score)
        right, alone = right + int((mine == y).sum()), alone + int((row.argmax(1) == y).sum())
    words = int(lengths.sum())
    assert right / words > alone / words + 0.01
    assert right / words > 0.85
