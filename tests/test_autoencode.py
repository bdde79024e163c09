"""Sequences that become vectors and sequences again."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elman import explain
from elman.data.invented import Invented, written
from elman.data.schema import Odd
from elman.data.sequences import LONGEST, Form
from elman.errors import DataError, InputError, StateError
from elman.models import Autoencoder
from elman.models.autoencoding import AutoencoderNetwork, together
from tests.pairwise import with_more
from tests.strangers import elman
from tests.typed import expect_answers

NAMES = Path(__file__).parents[2] / "shared" / "data" / "names"
WORDS = sorted({f"{a}{b}{c}"[:n] for a in "abc" for b in "abc" for c in "abc" for n in (1, 2, 3)})


def network(**how: Any) -> AutoencoderNetwork:
    torch.manual_seed(0)
    given = {"symbols": 9, **how} if "channels" not in how else how
    return AutoencoderNetwork(**{"cell": "elman", "hidden": 8, "embedding": 4, **given})


def batch(model: AutoencoderNetwork) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([5, 3, 1, 2])
    if model.symbols:
        return torch.randint(2, 9, (5, 4)), lengths
    x = torch.rand(5, 4, model.channels)
    return (x > 0.5).float() if model.binary else x, lengths


@pytest.fixture(scope="module")
def words() -> Autoencoder:
    """Has learnt a little of words of up to three of three letters."""
    return learnt(60)


def learnt(steps: int) -> Autoencoder:
    return Autoencoder(24, embedding=8, steps=steps, batch=16, lr=0.02, seed=1).fit(WORDS[1:])


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", with_more(
    [{"cell": torch.nn.GRUCell}],
    [{"channels": 3, "binary": True},
     {"cell": "lstm", "layers": 2}, {"cell": "gru"}, {"cell": "elman"}, {"cell": "jordan"}, {"cell": "leaky"},
     {"channels": 3}],
), ids=str)  # fmt: skip
def test_told_at_every_step_the_writer_does_what_it_does_on_the_shifted_sequence(how: dict[str, Any]) -> None:
    model = network(**how).double()
    x, lengths = batch(model)
    x = x if model.symbols else x.double()
    z = model.encode(x, lengths)
    shifted = model.outputs(z, x, lengths)
    model.teacher = 1 - 1e-12
    there = torch.arange(len(x) + 1)[:, None] <= lengths
    torch.testing.assert_close(model.outputs(z, x, lengths)[there], shifted[there])


@pytest.mark.parametrize("how", [{}, {"channels": 3, "binary": True}, {"channels": 3}], ids=str)
def test_it_writes_what_it_would_be_taught_where_it_makes_no_mistake(how: dict[str, Any]) -> None:
    """Free running on its own sequences is teacher forcing with them."""
    model = network(**how).double()
    written = 0
    for z in torch.randn(12, 8).double():
        (one,) = model.decode(z[None], 6)
        if len(one):
            o = model.outputs(z[None], one[:, None], torch.tensor([len(one)]))[:-1, 0]
            own = o.argmax(-1) if model.symbols else (o[:, :-1] > 0).double() if model.binary else o[:, :-1]
            torch.testing.assert_close(own, one)
        written += len(one)
    assert written > 6


def test_a_vector_does_not_depend_on_what_stands_beside_or_behind_its_sequence() -> None:
    model = network()
    x, lengths = batch(model)
    z = model.encode(x, lengths)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(model.encode(x[:n, i : i + 1], lengths[i : i + 1])[0], z[i])


def test_the_loss_is_a_mean_over_symbols_and_ends() -> None:
    model = network().double()
    x, lengths = batch(model)
    each = [
        model.loss(x[:n, i : i + 1], lengths[i : i + 1])[0] * (n + 1) for i, n in enumerate(lengths.tolist())
    ]
    torch.testing.assert_close(model.loss(x, lengths)[0], sum(each) / (lengths + 1).sum())


@pytest.mark.grid(1)
@pytest.mark.parametrize("teacher", [0.0, 0.5])
@pytest.mark.parametrize("how", [{}, {"channels": 3}, {"channels": 3, "binary": True}], ids=str)
def test_free_running_has_gradients_everywhere(teacher: float, how: dict[str, Any]) -> None:
    model = network(teacher=teacher, noise=0.2, **how)
    model.loss(*batch(model))[0].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


def test_noise_is_of_training_alone() -> None:
    model = network(noise=0.5)
    x, lengths = batch(model)
    assert not torch.equal(model.encode(x, lengths), model.encode(x, lengths))
    model.eval()
    assert torch.equal(model.encode(x, lengths), model.encode(x, lengths))


@pytest.mark.parametrize("how", [
    {"symbols": 0}, {"symbols": 3, "channels": 3}, {"noise": 2.0}, {"teacher": -0.1}, {"dropout": 1.0},
], ids=str)  # fmt: skip
def test_settings_that_cannot_be(how: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        AutoencoderNetwork(**{"symbols": 9, **how})


def test_long_sequences_are_read_a_few_at_a_time() -> None:
    lengths = [*range(1, 700), 10_000, 9_000]
    groups = together(lengths)
    assert sorted(i for rows in groups for i in rows) == list(range(len(lengths)))
    for rows in groups:
        assert lengths[rows[0]] == max(lengths[i] for i in rows)
        assert len(rows) == 1 or len(rows) * lengths[rows[0]] <= 2**18
    assert len(groups) <= 6


# --- what is invented -------------------------------------------------------------------------------------------------


def test_what_is_invented_is_the_same_at_the_same_place_and_shared_by_processes() -> None:
    x = [torch.randint(2, 9, (n,)) for n in (3, 4, 5, 6) * 5]
    whole, parts = Invented(x, 8, 3, (2, 8)), [Invented(x, 8, 3, (2, 8)) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.split(rank, 2)
    places = []
    for _ in range(20):
        places.append(whole.position)
        (both, lengths), *shares = next(whole).values, *map(next, parts)
        assert lengths.max() <= 6
        assert sum(share.part for share in shares) == pytest.approx(1)
        mine = sorted(both[:n, i].tolist() for i, n in enumerate(lengths.tolist()))
        theirs = sorted(
            share.values[0][:n, i].tolist()
            for share in shares
            for i, n in enumerate(share.values[1].tolist())
        )
        assert mine == theirs
    whole.position = places[7]
    assert torch.equal(next(whole).values[0], next(_at(Invented(x, 8, 3, (2, 8)), places[7])).values[0])
    assert not whole.holds((0, 100))


def _at(batches: Invented, place: tuple[int, ...]) -> Invented:
    batches.position = place
    return batches


def test_half_of_a_batch_is_real_and_none_is_changed() -> None:
    x = [torch.full((3,), 2.0 + k) for k in range(8)]
    found = next(Invented(x, 8, 0)).values[0].T.tolist()
    assert sum(one in [a.tolist() for a in x] for one in found[:4]) == 4
    assert all(torch.equal(a, torch.full((3,), 2.0 + k)) for k, a in enumerate(x))
    assert next(written(x, 4)).count == 16


# --- the estimator ----------------------------------------------------------------------------------------------------


@pytest.mark.conformance
def test_unseen_words_come_back() -> None:
    words = learnt(250)
    assert words.score(WORDS) >= 0.9
    assert words.encode(["ab", "abc"]).shape == (2, 24)
    found = words.evaluate([*WORDS, "ax"])
    assert found.exact < 1
    assert sum(count for _, count in found.by_length.values()) == len(WORDS) + 1
    assert found.by_length[2][0] < found.by_length[2][1]  # what it does not know does not come back


def test_a_decoded_vector_is_the_reconstruction(words: Autoencoder) -> None:
    assert words.decode(words.encode(WORDS)) == words.reconstruct(WORDS)
    assert words.decode(words.encode(["abc"]), longest=2)[0] == words.reconstruct(["abc"])[0][:2]
    line = words.interpolate("aaa", "ccc", 5)
    assert [line[0], line[-1]] == words.reconstruct(["aaa", "ccc"])


def test_it_is_kept(words: Autoencoder, tmp_path: Path) -> None:
    words.save_pretrained(tmp_path / "kept")
    again = Autoencoder.from_pretrained(tmp_path / "kept")
    assert again.reconstruct(WORDS) == words.reconstruct(WORDS)
    assert torch.equal(again.encode(WORDS), words.encode(WORDS))
    said = json.loads((tmp_path / "kept" / "sequences.json").read_text())
    (tmp_path / "kept" / "sequences.json").write_text(json.dumps({**said, "symbols": ["a"]}))
    with pytest.raises(DataError, match="not of one run"):
        Autoencoder.from_pretrained(tmp_path / "kept")
    (tmp_path / "kept" / "sequences.json").write_text("[]")
    with pytest.raises(DataError, match="what sequences are made of"):
        Autoencoder.from_pretrained(tmp_path / "kept")


@pytest.mark.conformance
def test_symbols_may_be_words() -> None:
    sequences = [["to", "be"], ["not", "to", "be"], ["or", "not"], ["be"]] * 3
    model = Autoencoder(16, embedding=8, steps=150, batch=8, lr=0.02, plain=True).fit(
        sequences, valid=sequences
    )
    assert model.reconstruct(sequences[:4]) == sequences[:4]


@pytest.mark.conformance
def test_rolls_come_back() -> None:
    draw = np.random.default_rng(0)
    rolls = [(draw.random((n, 4)) > 0.6).astype(np.float32) for n in (1, 2, 3) * 12]
    model = Autoencoder(24, embedding=8, steps=400, batch=16, lr=0.02, plain=True).fit(rolls, valid=rolls)
    assert model.form.binary
    assert model.score(rolls) >= 0.9
    assert isinstance(model.reconstruct(rolls[:1])[0], np.ndarray)
    with pytest.raises(InputError, match="of one kind") as error:
        model.encode([rolls[0], rolls[1] / 2])
    assert error.value.where == "sequences[1]"


@pytest.mark.conformance
def test_numbers_are_standardised_and_come_back_about() -> None:
    steps = torch.arange(8.0)
    waves = [torch.stack([1000 + 50 * torch.sin(steps[:n] + k), 0.01 * torch.cos(steps[:n] * k)], 1)
             for k in range(10) for n in (6, 8)]  # fmt: skip
    model = Autoencoder(24, embedding=8, steps=400, batch=16, lr=0.01, plain=True).fit(waves, valid=waves)
    assert not model.form.binary
    assert model.score(waves) >= 0.8
    found = model.evaluate(waves)
    assert found.measure.lower_is_better
    assert model.score(waves) == pytest.approx(1 - found.error**2)


def test_numbers_far_from_zero_are_told_apart_as_near_it() -> None:
    waves = [torch.randn(n, 2) for n in (6, 8, 7, 5) * 3]
    near, there = (
        Autoencoder(8, steps=10, seed=0).fit(some, valid=some)
        for some in (waves, [one.double() + 1e8 for one in waves])
    )
    far = [one.double().numpy() + 1e8 for one in waves]
    torch.testing.assert_close(there.encode(far), near.encode(waves), atol=1e-4, rtol=1e-3)
    back = [one - 1e8 for one in there.reconstruct(far)]
    np.testing.assert_allclose(back[0], near.reconstruct(waves)[0], atol=1e-3)
    assert there.score(far) == pytest.approx(near.score(waves), abs=1e-3)


def test_numbers_of_any_size_are_told_apart_and_what_is_constant_comes_back() -> None:
    waves = [torch.randn(n, 1).double() for n in (6, 8, 7, 5) * 3]
    plain = Autoencoder(8, steps=10, seed=0).fit(waves, valid=waves)
    small = Autoencoder(8, steps=10, seed=0).fit(
        [1e-8 * one for one in waves], valid=[1e-8 * one for one in waves]
    )
    torch.testing.assert_close(
        small.encode([1e-8 * one for one in waves]), plain.encode(waves), atol=1e-6, rtol=1e-5
    )
    back = small.reconstruct([1e-8 * one for one in waves])[0]
    np.testing.assert_allclose(back, 1e-8 * np.asarray(plain.reconstruct(waves)[0]), atol=1e-13)
    for level in (0.0, 1e-8, 1.0, 1e9):
        still = [torch.cat([one, torch.full_like(one, level)], 1) for one in waves]
        model = Autoencoder(8, steps=10, seed=0).fit(still, valid=still)
        np.testing.assert_allclose(
            model.reconstruct(still)[0][:, 1], level, rtol=1e-4, atol=1e-4 * (not level)
        )


def test_a_loss_of_ones_own() -> None:
    seen = []

    def loss(network: Any, batch: Any, state: None) -> tuple[torch.Tensor, None]:
        x, lengths = batch.values
        z = network.encode(x, lengths)
        seen.append(z.shape)
        return network.writing_loss(z + 0.1 * torch.randn_like(z), x, lengths), None

    before = torch.get_rng_state()
    Autoencoder(8, steps=3, batch=4).fit(WORDS, loss=loss)
    assert len(seen) == 3
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("given", "said"), [
    ([], "at least one"), (["a", ["b"]], "an array"), (["a", ""], "1 …"), ([["a"], "b"], "a list of symbols"),
    ([[[1.0]], [[1.0, 2.0]]], "1"), ([[[float("nan")]]], "numbers"), ([3], "[T, I]"), ([["a"], []], "1 …"),
    ([[[1, 2], [3]]], "an array"), ([[[10**400]]], "an array"), (["a" * (LONGEST + 1)], "1 …"),
])  # fmt: skip
def test_what_is_no_sequence_is_told(given: Any, said: str) -> None:
    with pytest.raises(InputError, match="sequences") as error:
        Autoencoder(8, steps=1).fit(given)
    assert said in str(error.value.expected)


def test_nothing_works_before_it_has_learnt(words: Autoencoder) -> None:
    for call in (lambda m: m.encode(["a"]), lambda m: m.save_pretrained("x"), lambda m: m.score(["a"])):
        with pytest.raises(StateError, match="learnt nothing"):
            call(Autoencoder())
    with pytest.raises(InputError, match="vectors"):
        words.decode(torch.zeros(2, 3))
    with pytest.raises(InputError, match="nothing to measure"):
        words.score([])
    with pytest.raises(InputError, match="both ends"):
        words.interpolate("a", "b", 1)


def test_a_form_is_written_and_read() -> None:
    for form in (
        Form.of(["ab", "c"]),
        Form.of([["x y", "z"]]),
        Form.of([[[0, 1]], [[1, 1]]]),
        Form.of([[[0.5]]]),
    ):
        assert Form.from_json(form.to_json()) == form
    for spoiled in (b"", b"{}", b'{"symbols": ["a", "a"], "joined": true, "channels": 0, "binary": false}',
                    b'{"symbols": [], "joined": true, "channels": 0, "binary": false}'):  # fmt: skip
        with pytest.raises(Odd):
            Form.from_json(spoiled)


# --- real names -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not NAMES.is_dir(), reason="the lists of names are not there")
@pytest.mark.conformance
def test_between_two_names_lie_names_from_the_one_to_the_other() -> None:
    names = sorted(set((NAMES / "Italian.txt").read_text("utf-8").split("\n")) - {""})
    names = random.Random(0).sample([name for name in names if len(name) <= 7], 60)
    model = Autoencoder(48, embedding=24, steps=500, batch=32, lr=0.01, plain=True).fit(names, valid=names)
    assert model.score(names) >= 0.9
    exact = [given for given, made in zip(names, model.reconstruct(names), strict=True) if given == made]
    for a, b in zip(exact[:10], exact[10:20], strict=True):
        line = model.interpolate(a, b, 9)
        assert (line[0], line[-1]) == (a, b)
        # The nearer to an end, the nearer to its name.
        to_a = [_distance(name, a) for name in line]
        to_b = [_distance(name, b) for name in line]
        assert sum(to_a[:3]) < sum(to_a[-3:])
        assert sum(to_b[:3]) > sum(to_b[-3:])


def _distance(a: str, b: str) -> int:
    """Letters to be put in, left out, or exchanged."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


# --- the command line -------------------------------------------------------------------------------------------------


def trained(folder: Path, *given: object) -> Path:
    said = elman("train", "autoencode", *given, "--hidden", 8, "--embedding", 4, "--steps", 4, "--quiet", "--out",
                 folder / "run")  # fmt: skip
    assert said.status == 0, said.err
    return folder / "run"


def test_words_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.txt").write_text("\r\n".join([*WORDS, *WORDS, "", "é"]) + "\r\n", "utf-8")
    run = trained(tmp_path, tmp_path / "words.txt")
    said = elman("evaluate", run).out
    assert said.startswith("exact reconstruction ")
    assert said.split("%")[0].count(".") == 1
    assert f"over {(len(WORDS) + 1) // 10} sequences" in said
    page = (run / "report.html").read_text("utf-8")
    for title in ("Exactness against length", "Reconstructions of what was held out", "From one to another"):
        assert title in page
    (tmp_path / "two.txt").write_text("ab\nabc")
    answers = expect_answers(run, [b"ab\n", b"abc\n"], monkeypatch)
    assert elman("predict", run, tmp_path / "two.txt").out.splitlines() == answers
    said = elman("predict", run, "-", text="ab\naßb\nßa\n".encode())
    assert (len(said.out.splitlines()), said.err.count("does not know 'ß' (U+00DF)")) == (3, 1)
    (tmp_path / "gaps.txt").write_text("\nab\n \nabc\n\n")  # an answer to every line
    assert elman("predict", run, tmp_path / "gaps.txt").out.split("\n") == [
        "",
        answers[0],
        "",
        answers[1],
        "",
        "",
    ]
    (tmp_path / "words.txt").write_text("\n".join(WORDS[3:]))
    assert "not what it was in training" in elman("evaluate", run).err
    assert elman("evaluate", run, tmp_path / "two.txt").status == 0


def test_what_is_learnt_from_is_not_measured_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(WORDS))
    (tmp_path / "b.txt").write_text("\n".join([*WORDS[:5], "abca", "bbbb"]))
    run = trained(tmp_path, tmp_path / "a.txt", "--valid", tmp_path / "b.txt")
    assert "over 2 sequences" in elman("evaluate", run).out
    said = elman(
        "train", "autoencode", tmp_path / "a.txt", "--valid", tmp_path / "a.txt", "--out", tmp_path / "c"
    )
    assert "stands in what is learnt from" in said.err


def test_rolls_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    rolls = [(draw.random((n, 3)) > 0.5).astype(int).tolist() for n in (2, 3, 4, 5) * 10]
    (tmp_path / "rolls.jsonl").write_text("\n".join(map(json.dumps, rolls)))
    run = trained(tmp_path, tmp_path / "rolls.jsonl")
    assert "% of frames" in elman("evaluate", run).out
    assert "given (above) and made" in (run / "report.html").read_text("utf-8")
    found = elman("predict", run, tmp_path / "rolls.jsonl").out.splitlines()
    assert all(np.array(json.loads(line)).size % 3 == 0 for line in found)
    lines = [f"{json.dumps(roll)}\n".encode() for roll in rolls[:2]]
    assert expect_answers(run, lines, monkeypatch) == found[:2]


@pytest.mark.parametrize(("name", "content", "where", "said"), [
    ("a.txt", b"", "a.txt", "too few"),
    ("a.txt", b"ab\n" * 50, "a.txt", "too few"),
    ("a.txt", b"ab\n\xff\n", "a.txt:2", "UTF-8"),
    ("a.txt", b"ab\n" + b"a" * 10**6, "a.txt:2", "too long"),
    ("a.jsonl", b'"ab"\n{"txt": 1}', "a.jsonl:2", "no sequence"),
    ("a.jsonl", b'"ab"\n[', "a.jsonl:2", "no sequence"),
    ("a.jsonl", b"[[NaN]]\n" + b"\n".join(b"[[%d]]" % k for k in range(30)), "a.jsonl:1", "as the others"),
    ("a.jsonl", b"[[1%s]]\n" % (b"0" * 400) + b"\n".join(b"[[%d]]" % k for k in range(30)), "a.jsonl:1", "the others"),
    ("a.jsonl", b"[[1, 2]]\n" + b"\n".join(b"[[%d]]" % k for k in range(30)), "a.jsonl", "as the others"),
    ("none.txt", None, "none.txt", "cannot be read"),
])  # fmt: skip
def test_files_that_are_no_sequences(
    tmp_path: Path, name: str, content: bytes | None, where: str, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    told = elman("train", "autoencode", tmp_path / name, "--steps", 1, "--out", tmp_path / "run")
    assert told.status == 2
    assert said in told.err
    assert f"{tmp_path / where}" in told.err
    assert "mend" in told.err
    assert not (tmp_path / "run").exists()


def test_it_explains_itself(words: Autoencoder) -> None:
    words.reconstruct(WORDS[:1])
    said = str(explain(words))
    assert "reader" in said
    assert "writer" in said
