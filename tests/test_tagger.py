"""A tagger from Python: its network, what it learns, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from elman.data.lexicon import Forms, Lexicon, read_vectors
from elman.data.tagged import Sentence
from elman.errors import DataError, InputError, InputTypeError, StateError
from elman.models import Tagger
from elman.models.tagger import Encoded, measure, split, tag
from elman.models.tagging import TagNetwork
from elman.tasks.tag import Tag
from tests.pairwise import with_more
from tests.sentences import SMALL, toy

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
