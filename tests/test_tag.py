"""Tagging: files of sentences, the conditional random field, the tagger from Python and on the command line."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elman import explain
from elman.app.options import command
from elman.data.lexicon import Forms, Lexicon, read_vectors
from elman.data.tagged import Sentence, digest, read_tagged
from elman.errors import DataError, InputError, InputTypeError, StateError
from elman.models import Tagger
from elman.models.crf import CRF
from elman.models.tagger import Encoded, measure, split, tag
from elman.models.tagging import TagNetwork
from elman.tasks import task_of
from elman.tasks.tag import Tag
from tests.pairwise import with_more
from tests.strangers import elman
from tests.typed import expect_answers

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "ud_ewt"
real = pytest.mark.skipif(
    not REAL.is_dir(), reason="English Web Treebank, beside the project, is not part of it"
)

CONLLU = """\
# text = Don't go
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVBP\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
2.1\tever\t_\t_\t_\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_

1\tGo\tgo\tVERB\tVB\t_\t0\troot\t_\t_
"""
SMALL: dict[str, Any] = {
    "cell": "elman",
    "hidden": 12,
    "layers": 1,
    "embedding": 8,
    "spelling": 6,
    "dropout": 0.0,
    "word_dropout": 0.0,
    "lr": 0.02,
}


def toy(count: int = 60) -> tuple[list[list[str]], list[list[str]]]:
    """What ends in -s is a verb, but behind "the" a noun: neither a word nor its ending alone is enough."""
    stems = ["run", "walk", "jump", "talk", "look"]
    words, tags = [], []
    for k in range(count):
        one = stems[k % 5] + "s"
        words.append(["the", one, stems[(k + 2) % 5] + "s"] if k % 3 else ["it", one, "the", one])
        tags.append(["DET", "NOUN", "VERB"] if k % 3 else ["PRON", "VERB", "DET", "NOUN"])
    return words, tags


def two_columns(folder: Path, words: list[list[str]], tags: list[list[str]], name: str = "train.txt") -> Path:
    path = folder / name
    pairs = (
        "".join(f"{w}\t{t}\n" for w, t in zip(*one, strict=True)) for one in zip(words, tags, strict=True)
    )
    path.write_text("\n".join(pairs))
    return path


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_same_sentences_from_three_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_text(CONLLU)
    (tmp_path / "b.txt").write_text("\ufeffDo AUX\r\nn't\tPART\r\ngo VERB\r\n\r\n\r\nGo VERB\r\n", newline="")
    lines = [
        {"words": ["Do", "n't", "go"], "tags": ["AUX", "PART", "VERB"]},
        {"words": ["Go"], "tags": ["VERB"]},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, places in (("a.conllu", (3, 4, 6)), ("b.txt", (1, 2, 3)), ("c.jsonl", (1, 1, 1))):
        first, second = read_tagged([tmp_path / name])
        assert (first.words, first.tags) == (("Do", "n't", "go"), ("AUX", "PART", "VERB"))
        assert (second.words, second.tags) == (("Go",), ("VERB",))
        assert first.lines == places
        assert first.where(2) == f"{tmp_path / name}:{places[2]}"
    assert read_tagged([tmp_path / "a.conllu"], "xpos")[0].tags == ("VBP", "RB", "VB")
    assert read_tagged([tmp_path / "a.conllu"])[0].also[0] == ("VBP", "RB", "VB")
    assert read_tagged([tmp_path / "a.conllu"], "xpos")[0].also[0] == ("AUX", "PART", "VERB")
    assert read_tagged([tmp_path / "b.txt"])[0].also == ()
    (tmp_path / "d.conllu").write_text(CONLLU.replace("\tVBP\t", "\tVBZ\t"))
    one, other = (read_tagged([tmp_path / name]) for name in ("a.conllu", "d.conllu"))
    assert digest(one) == digest(other)
    assert digest(one, others=True) != digest(other, others=True)


@pytest.mark.parametrize(
    ("name", "content", "line", "complaint"),
    [
        ("a.conllu", CONLLU.replace("\tVERB\tVB", "\t_\tVB", 1).encode(), 6, "got: _"),
        ("a.conllu", CONLLU.encode() + b"2\tnow\n", 9, "2 columns"),
        ("a.conllu", b"one" + CONLLU.encode()[len("# text = Don't go\n1-2"):], 1, "the number of a word"),
        ("a.txt", b"the DET\ncat\n", 2, "1 columns"),
        ("a.txt", b"the DET\nc\xe4t NOUN\n", 2, "byte 0xe4 at byte 1"),
        ("a.txt", b"the DET\n" + b"x" * 1_100_000, 2, "a line is too long"),
        ("a.txt", b"the DET\n" + b"x" * 2000 + b" NOUN", 2, "2,000 characters"),
        ("a.txt", b"the DET\nx\t\n", 2, "an empty word or tag"),
        ("a.jsonl", b'{"words": ["a"], "tags": ["X"]}\n{"words": ["a"]}', 2, "no tags"),
        ("a.jsonl", b'{"words": ["a", "b"], "tags": ["X"]}', 1, "1 tags"),
        ("a.jsonl", b'{"words": "a"}', 1, "words: a list"),
        ("a.jsonl", b"[1]", 1, "an object"),
        ("a.txt", b"\n\n", None, "there are no sentences"),
    ],
)  # fmt: skip
def test_what_is_no_sentence_is_told_with_its_line(
    tmp_path: Path, name: str, content: bytes, line: int | None, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_tagged([tmp_path / name])
    assert complaint in str(caught.value)
    assert str(caught.value.where) == (f"{tmp_path / name}" if line is None else f"{tmp_path / name}:{line}")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_tagged([tmp_path / "none.conllu"])


def test_a_lexicon_knows_words_tags_and_guesses_and_comes_back_from_its_file() -> None:
    sentences = [
        Sentence(("The", "dog", "barks", "a"), ("DET", "NOUN", "VERB", "DET")),
        Sentence(("the", "barks", "barks"), ("DET", "NOUN", "NOUN"), "f", (7, 8, 9)),
    ]
    made = Lexicon.learn(sentences)
    assert made.tags == ["DET", "NOUN", "VERB"]
    assert made.words == ["barks", "the", "a", "dog"]
    assert made.frequent == 2
    assert [made.tags[made.guess(word)] for word in ("barks", "The", "cat")] == ["NOUN", "DET", "DET"]
    again = Lexicon.from_json(made.to_json(), "lexicon.json")
    assert vars(again) == vars(made)
    with pytest.raises(DataError, match="not there in training") as caught:
        Lexicon.learn(sentences[:1]).ids(Sentence(("a", "b"), ("NOUN", "ADJ"), "test.txt", (3, 4)))
    assert caught.value.where == "test.txt:4"
    for broken in (made.to_json()[:-9], made.to_json().replace(b'"frequent": 2', b'"frequent": 20'), b"{}"):
        with pytest.raises(DataError):
            Lexicon.from_json(broken, "lexicon.json")


def test_a_form_is_spelled_once_in_a_batch() -> None:
    lexicon = Lexicon.learn([Sentence(("aa", "b", "aa"), ("X", "Y", "X")), Sentence(("b",), ("Y",))])
    forms = Forms(lexicon)
    words, vectors, spelled, sizes, of = forms.batch([forms.rows(["aa", "b", "aa"]), forms.rows(["Zb"])])
    assert spelled.shape == (2, 3)
    assert sizes.tolist() == [2, 1, 2]
    assert of[:, 0].tolist() == [0, 1, 0]
    assert words.tolist() == [[1, 0], [2, 0], [1, 0]]
    assert vectors.eq(0).all()
    assert spelled[:, of[0, 1]].tolist() == [0, 2]  # Z is unknown


# --- the conditional random field -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["--one-direction", "--one-way"])
def test_one_direction_is_called_as_it_is_elsewhere_and_its_old_name_is_taken(name: str) -> None:
    made: dict[str, Any] = {}
    own = command("tag", {"own": task_of("tag").Settings}, made.update, "")
    own.main(["train.conllu", name], standalone_mode=False)
    assert made["own"].model["both"] is False
    shown = [parameter.opts for parameter in own.params if not getattr(parameter, "hidden", False)]
    assert ["--one-direction"] in shown
    assert ["--one-way"] not in shown


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


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crf", [False, True])
def test_a_sentence_does_not_depend_on_its_batch(crf: bool) -> None:
    words, tags = toy(10)
    sentences = [Sentence(tuple(w), tuple(t)) for w, t in zip(words, tags, strict=True)]
    lexicon = Lexicon.learn(sentences)
    network = TagNetwork(
        4, len(lexicon.words), len(lexicon.characters), "elman", 6, 1, embedding=4, spelling=3, crf=crf
    )
    if network.crf is not None:
        torch.nn.init.normal_(network.crf.transitions)
    forms = Forms(lexicon)
    rows = [forms.rows(one.words) for one in sentences]
    together, alone = tag(network, forms, rows), [tag(network, forms, [row])[0] for row in rows]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert network.training
    network.eval()
    read, lengths = forms.batch(rows[:2]), torch.tensor([len(row) for row in rows[:2]])
    y = [lexicon.ids(one) for one in sentences[:2]]
    loss, _ = network.loss(*read, torch.nn.utils.rnn.pad_sequence(y), lengths)
    each = [network.loss(*forms.batch([rows[k]]), y[k][:, None], lengths[k : k + 1])[0] for k in (0, 1)]
    torch.testing.assert_close(loss, (each[0] * lengths[0] + each[1] * lengths[1]) / lengths.sum())


@pytest.mark.parametrize("crf", with_more([True], [False]))
def test_other_labels_are_learnt_beside_the_tags(crf: bool, tmp_path: Path) -> None:
    words, tags = toy(40)
    long = [["long" if len(word) > 3 else "short" for word in one] for one in words]
    same = [["same"] * len(one) for one in words]
    tagger = Tagger(cell="elman", hidden=6, layers=1, embedding=4, spelling=3, steps=6, crf=crf).fit(
        words, tags, also=[same, long]
    )
    network = tagger.network
    assert network.settings["also"] == [2]  # from labels that are all alike there is nothing to learn
    tagger.save_pretrained(tmp_path / "tagger")
    assert Tagger.from_pretrained(tmp_path / "tagger").predict(words) == tagger.predict(words)

    forms, y = Forms(tagger.lexicon), torch.tensor([[0], [1]])
    read, lengths = forms.batch([forms.rows(words[0][:2])]), torch.tensor([2])
    labels = torch.tensor([[[1]], [[0]]])
    scores = network.beside[0](network._hidden(*read, lengths))[:, 0]
    more = torch.nn.functional.cross_entropy(scores, labels[:, 0, 0])
    torch.testing.assert_close(
        network.loss(*read, y, lengths, labels)[0], network.loss(*read, y, lengths)[0] + more / 2
    )
    with pytest.raises(InputError, match="a tag for each word"):
        Tagger().fit(words, tags, also=[[one[:-1] for one in long]])


def test_words_seen_once_are_unknown_now_and_then_while_it_learns() -> None:
    network = TagNetwork(2, 5, 3, "elman", 6, 1, embedding=4, spelling=3, frequent=2, word_dropout=0.1)
    seen = []
    network.words.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    words, zero = torch.tensor([1, 2, 3, 4, 5]).repeat(200)[:, None], torch.zeros(1000, 1, dtype=torch.int64)
    given = (words, zero, torch.ones(2, 1, dtype=torch.int64), torch.tensor([2]), zero, torch.tensor([1000]))
    network(*given)
    network.eval()(*given)
    trained, tested = seen
    assert torch.equal(tested, words)
    assert 0.05 < float((trained[words < 3] == 0).float().mean()) < 0.15
    assert 0.4 < float((trained[words > 2] == 0).float().mean()) < 0.6
    assert torch.equal(trained[trained > 0], words[trained > 0])


def test_figures_tell_words_that_were_seen_from_others() -> None:
    lexicon = Lexicon.learn([Sentence(("a", "a", "b", "c"), ("X", "X", "Y", "Y"))])
    network = TagNetwork(2, 3, 3, "elman", 6, 1, embedding=4, spelling=3)
    with torch.no_grad():
        network.readout.weight.zero_()
        network.readout.bias.copy_(torch.tensor([0.0, 1.0]))  # always Y
    held_out = [Sentence(("a", "b", "new"), ("X", "Y", "Y")), Sentence(("other",), ("X",))]
    found = measure(network, Encoded.of(held_out, lexicon))
    assert found.value == 0.5
    assert not found.lower_is_better
    assert found.details["words"] == 4
    assert found.details["unseen_words"] == 2
    assert found.details["seen"] == 0.5
    assert found.details["unseen"] == 0.5
    assert found.details["baseline"] == 0.75  # two forms are Y
    assert found.details["tags"] == {"X": [0.0, 0.0, 0.0, 2], "Y": [0.5, 1.0, 2 / 3, 2]}
    assert found.details["mistakes"] == {"X → Y": 2}
    said = Tag(lexicon).said(found, Encoded.of(held_out, lexicon))[1]
    assert said == "  words seen in training 50.0 %, the 2 others 50.0 %; by each word's commonest tag 75.0 %"
    unheard = Encoded.of([Sentence(("new",), ("Y",))], lexicon)
    said = Tag(lexicon).said(measure(network, unheard), unheard)[1]
    assert said == "  words not seen in training 100.0 %; by each word's commonest tag 100.0 %"


# --- from Python ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    with_more(
        [{"both": False}], [{"crf": True, "cell": "gru"}, {"cell": "lstm"}, {"both": False, "crf": True}]
    ),
)
def test_a_tagger_learns_is_saved_and_found_again(tmp_path: Path, how: dict[str, Any]) -> None:
    words, tags = toy()
    tagger = Tagger(**{**SMALL, **how}, steps=60, average=0.9, patience=None).fit(words, tags)
    assert tagger.score(words, tags) > (0.99 if how.get("both", True) else 0.95)
    assert tagger.predict([["the", "hops"], []]) == [["DET", "NOUN"], []]  # a word that it never saw
    tagger.save_pretrained(tmp_path / "saved")
    again = Tagger.from_pretrained(tmp_path / "saved")
    assert again.predict(words) == tagger.predict(words)
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "config.json", "lexicon.json", "model.safetensors",
    ]  # fmt: skip
    if how.get("both", True):
        with pytest.raises(InputError, match="has to see a sentence to its end"):
            again.step("the")
        return
    for sentence in words[:4]:
        state: Any = None
        found = []
        for word in sentence:
            name, state = again.step(word, state)
            found.append(name)
        whole = again.predict([sentence])[0]
        if (crf := again.network.crf) is None:
            assert found == whole
        else:  # the best way so far, which may end otherwise once it is known that it ends
            assert again.lexicon.tags[int((state[1] + crf.end).argmax())] == whole[-1]
    with pytest.raises(InputTypeError, match="sequence of words"):
        again.step("")


def test_a_tagger_is_the_same_for_the_same_seed() -> None:
    words, tags = toy(20)
    made = [Tagger(**SMALL, steps=5, seed=seed).fit(words, tags).network.state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["readout.weight"], made[2]["readout.weight"])


def test_a_tag_that_stands_in_one_sentence_is_learnt() -> None:
    words, tags = toy(30)
    words[10], tags[10] = ["oh"], ["INTJ"]
    sentences = [Sentence(tuple(w), tuple(t)) for w, t in zip(words, tags, strict=True)]
    learnt, held_out = split(sentences)
    assert sentences[10] in learnt
    assert held_out == [sentences[0], sentences[20]]
    assert len(learnt) + len(held_out) == 30


def test_a_gap_is_no_tag() -> None:
    with pytest.raises(InputError, match=r"(?s)a tag is missing.*where: tags\[1\]\[0\].*got: None"):
        Tagger().fit([["a", "b"], ["c"]], [["X", "Y"], [None]])  # type: ignore[list-item]


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    tagger = Tagger(**SMALL, steps=2)
    with pytest.raises(StateError, match="call fit first"):
        tagger.predict([["a"]])
    for words, tags, complaint in (
        ([["a"]], [], "tags for each sentence"), ([["a", "b"]], [["X"]], "a tag for each word"), ([], [], "each sent"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=complaint):
            tagger.fit(words, tags)
    with pytest.raises(InputTypeError, match="a sequence of words"):
        tagger.fit(["cat"], [["X", "Y", "Z"]])
    words, tags = toy(20)
    tagger.fit(words, tags)
    with pytest.raises(DataError, match="not there in training") as caught:
        tagger.score([["the", "cat"]], [["DET", "ODD"]])
    assert caught.value.where == "sentences[0], word:1"
    tagger.save_pretrained(tmp_path / "a")
    lexicon = json.loads((tmp_path / "a" / "lexicon.json").read_text())
    (tmp_path / "a" / "lexicon.json").write_text(
        json.dumps({**lexicon, "words": lexicon["words"][:-1], "frequent": 1})
    )
    with pytest.raises(DataError, match="not of one run"):
        Tagger.from_pretrained(tmp_path / "a")


def test_vectors_from_elsewhere_are_kept_and_not_trained(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("3 2\nthe 1 2\nhops 3 4\nit -1 0.5\n")
    assert read_vectors(path)[0] == ["the", "hops", "it"]
    words, tags = toy(20)
    tagger = Tagger(**SMALL, steps=3, vectors=path).fit(words, tags)
    assert tagger.network.vectors.tolist() == [[0, 0], [1, 2], [3, 4], [-1, 0.5]]
    forms = Forms(tagger.lexicon)
    assert forms.batch([forms.rows(["The", "cat", "hops"])])[1].tolist() == [[1], [0], [2]]
    tagger.save_pretrained(tmp_path / "saved")
    assert Tagger.from_pretrained(tmp_path / "saved").predict(words) == tagger.predict(words)
    for content, line in (("the 1 2\ncat 1\n", 2), ("the 1 x\n", 1), ("the 1 nan\n", 1), ("the\n", 1)):
        path.write_text(content)
        with pytest.raises(DataError) as caught:
            read_vectors(path)
        assert caught.value.where == f"{path}:{line}"


# --- the command line -------------------------------------------------------------------------------------------------

OPTIONS = (
    "--cell=elman", "--hidden=12", "--layers=1", "--embedding=8", "--spelling=6", "--dropout=0", "--lr=0.02",
    "--average=0.9",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagged")
    valid = two_columns(folder, *toy(10), "valid.txt")
    said = elman(
        "train", "tag", two_columns(folder, *toy()), "--valid", valid, *OPTIONS, "--steps", "80", "--quiet", "--out",
        folder / "run",
    )  # fmt: skip
    assert said.status == 0, said.err
    assert "accuracy 100.0 %, 34 of 34 words" in said.out
    return folder / "run"


def test_a_run_is_evaluated_on_what_was_held_out_or_on_files(run: Path, tmp_path: Path) -> None:
    said = elman("evaluate", run)
    assert said.status == 0, said.err
    first, second, third = said.out.splitlines()
    assert first == "accuracy 100.0 %, 34 of 34 words"
    assert second.startswith("  words seen in training 100.0 %; by each word's commonest tag ")
    assert third.startswith("  F1: ")
    words, tags = toy(2)
    tags[1][2] = "ODD"
    said = elman("evaluate", run, two_columns(tmp_path, words, tags))
    assert said.status == 2
    assert "a tag that was not there in training" in said.err
    assert f"{tmp_path / 'train.txt'}:8" in said.err
    assert "%" not in said.out + said.err


def test_held_out_sentences_that_were_changed_are_not_taken_for_the_same(run: Path) -> None:
    valid = run.parent / "valid.txt"
    kept = valid.read_text()
    valid.write_text(kept.replace("looks", "lurks"))
    assert "are others now" in elman("evaluate", run).err
    valid.write_text(kept)


def test_a_line_is_tagged_before_the_next_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"it walks\n", b"\n", b"the runs"]
    assert expect_answers(run, lines, monkeypatch) == ["PRON VERB", "", "DET NOUN"]


def test_plain_lines_conllu_and_json_are_tagged(run: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the walks\n\nit jumps\n")
    assert elman("predict", run, text).out == "DET NOUN\n\nPRON VERB\n"
    rows = CONLLU.replace("Do\t", "it\t").replace("n't\tnot", "walks\tnot")
    (tmp_path / "a.conllu").write_text(rows)
    wanted = rows.replace("do\tAUX", "do\tPRON").replace("not\tPART", "not\tVERB")
    found = elman("predict", run, tmp_path / "a.conllu").out
    assert found.splitlines()[:5] == wanted.splitlines()[:5]
    assert len(found.splitlines()) == len(rows.splitlines())
    (tmp_path / "a.jsonl").write_text('{"words": ["the", "walks"]}\n')
    assert json.loads(elman("predict", run, tmp_path / "a.jsonl").out)["tags"] == ["DET", "NOUN"]
    assert elman("predict", run, "-", text=b"it walks\nthe runs\n").out == "PRON VERB\nDET NOUN\n"
    said = elman("predict", run, "-", text="it walks\nthe rüns\nthe rüns\n".encode())
    assert said.err.count("does not know 'ü' (U+00FC)") == len(said.err.splitlines()) == 1


def test_the_report_tells_of_each_tag(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert re.search(r"held out [\d.]+ % accuracy", page), "shares are told in per cent, as on the screen"
    assert "% accuracy</text>" in page
    for words in (
        "Each tag",
        "F1 of each tag",
        "of words seen in training",
        "by each word&#x27;s most frequent tag",
    ):
        assert words in page
    assert "it/PRON" in page


def test_columns_are_named(run: Path) -> None:
    said = elman("train", "tag", run.parent / "train.txt", "--column", "feats", "--out", run.parent / "none")
    assert "there is no such column" in said.err


@real
@pytest.mark.conformance
def test_it_learns_real_sentences() -> None:
    """A minute of one core: better than the most frequent tag of each word, on words that were not seen above all."""
    train = read_tagged([REAL / "en_ewt-ud-train.conllu"])[::6]
    dev = read_tagged([REAL / "en_ewt-ud-dev.conllu"])[::4]
    parts = [([list(one.words) for one in some], [list(one.tags) for one in some]) for some in (train, dev)]
    tagger = Tagger(hidden=48, layers=1, embedding=48, spelling=32, steps=260, dropout=0.2, average=0.98)
    found = tagger.fit(*parts[0], valid=parts[1]).evaluate(*parts[1])
    assert found.value > found.details["baseline"] + 0.03
    assert found.details["unseen"] > 0.5


def test_it_explains_itself(run: Path) -> None:
    tagger = Tagger.from_pretrained(run)
    tagger.predict([["some", "words"]])
    said = str(explain(tagger))
    assert "characters" in said
    assert "words" in said
