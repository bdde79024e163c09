"""Texts that are written together are those that each would be alone: bits, random numbers, stops, limits."""

from __future__ import annotations

import queue
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from elman.data import Tokenizer
from elman.errors import InputError, StateError
from elman.models import LanguageModel
from elman.serve.asked import Ask, Job
from elman.serve.prefixes import Prefixes
from elman.serve.sampling import drawn, key, log_probabilities, uniform
from elman.serve.scheduler import Busy, Scheduler
from elman.serve.written import Spelling, Stops

WAIT = 30  # seconds, for what never takes one
LETTERS = "abcdefgh \n"


def language(**how: Any) -> LanguageModel:
    torch.manual_seed(0)
    tokenizer = Tokenizer.of("characters", LETTERS, None)
    model = LanguageModel(tokenizer.size, embedding=5, **{"hidden": 9, **how}).eval()
    model.tokenizer = tokenizer
    # A state that forgets would hide a wrong one: with such weights a difference in the last place grows.
    for name, p in model.named_parameters():
        nn.init.normal_(p, std=2.0 if p.dim() == 2 and name.startswith("layers") else 0.4)
    return model


def alone(model: LanguageModel, ask: Ask) -> list[int]:
    """What is to be written: step by step, in a stream of its own."""
    stream, written = model.stream(batch=1), []
    logits = np.zeros(0)
    for symbol in ask.prompt:
        logits = stream.step(np.array([symbol]))
    while len(written) < ask.most:
        logits[:, model.tokenizer.unknown] = -np.inf  # type: ignore[union-attr]
        keys, count = np.array([key(ask.seed or 0, ask.choice)], np.uint64), np.array([len(written)])
        u = uniform(keys, count)
        written.append(int(drawn(logits, np.array([ask.temperature]), np.array([ask.top_p]), u)[0]))
        logits = stream.step(np.array(written[-1:]))
    return written


@pytest.fixture
def scheduler(request: pytest.FixtureRequest) -> Iterator[Scheduler]:
    made = Scheduler(language(**getattr(request, "param", {})), rows=200)
    yield made
    made.close()
    made.join(WAIT)


def asks(count: int, vocabulary: int) -> list[Ask]:
    draw = np.random.default_rng(3)
    return [
        Ask(
            draw.integers(0, vocabulary, draw.integers(1, 200)), int(draw.integers(1, 60)), draw.choice([0, 0.5, 1.3]),
            draw.choice([0.4, 1.0]), seed=int(draw.integers(9)), choice=int(draw.integers(3)),
            logprobs=3 if draw.random() < 0.2 else None, of_prompt=bool(draw.random() < 0.3),
        )
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scheduler", "exact"),
    [({"cell": "lstm", "layers": 2}, True), ({"layers": 2, "norm": True, "residual": True}, None)],
    indirect=["scheduler"],
)
def test_a_text_is_what_it_is_alone(scheduler: Scheduler, exact: bool | None) -> None:
    """Among others, read in blocks or by steps, and going on from a state that was kept."""
    model, some = scheduler.model, asks(36, scheduler.model.settings["vocabulary"])
    assert exact in (None, scheduler.exact)
    jobs = scheduler.submit(some[:24])
    jobs[7].result(WAIT)
    jobs += scheduler.submit(some[24:])
    for job, ask in zip(jobs, some, strict=True):
        job.result(WAIT)
        assert (job.symbols, job.reason) == (alone(model, ask), "length")
    assert (scheduler.counts.blocks > 0) == scheduler.exact
    assert scheduler.counts.written == sum(ask.most for ask in some)
    longer = [np.concatenate([some[k].prompt, jobs[k].symbols, [1, 2]]) for k in (1, 18, 35)]
    for again in scheduler.submit([Ask(prompt, 9, seed=4) for prompt in longer]):
        again.result(WAIT)
        assert (
            again.known == len(again.ask.prompt) - 3
        )  # all but the last of what was written, and what is new
        assert again.symbols == alone(model, again.ask)
    assert scheduler.open == 0


@pytest.mark.conformance
def test_a_text_is_what_it_is_alone_among_500_others() -> None:
    scheduler = Scheduler(model := language(layers=2), rows=501)
    some = asks(501, model.settings["vocabulary"])
    jobs = scheduler.submit(some)
    for job, ask in zip(jobs, some, strict=True):
        assert job.result(WAIT).symbols == alone(model, ask)
    scheduler.close()
    scheduler.join(WAIT)


def test_log_probabilities_are_those_of_the_model(scheduler: Scheduler) -> None:
    model = scheduler.model
    job = scheduler.submit([Ask(np.array([3, 1, 4]), 5, seed=1, logprobs=2, of_prompt=True)])[0].result(WAIT)
    symbols = [3, 1, 4, *job.symbols]
    logits, _ = model(torch.tensor(symbols)[:, None])
    right = logits[:, 0].log_softmax(-1)
    assert [one.symbol for one in job.scored] == symbols
    assert job.scored[0].logprob is None
    for k, one in list(enumerate(job.scored))[1:]:
        assert one.logprob == pytest.approx(right[k - 1, symbols[k]].item(), abs=1e-5)
        assert list(one.top) == right[k - 1].topk(2).indices.tolist()


def test_limits(scheduler: Scheduler) -> None:
    forever = Ask(np.array([1]), 10**9, temperature=0.0)
    jobs = scheduler.submit([forever] * 199)
    with pytest.raises(Busy, match="as many texts"):
        scheduler.submit([forever] * 2)
    jobs[0].cancel()
    assert jobs[0].result(WAIT).reason == "cancelled"
    scheduler.submit([Ask(np.array([1]), 2)] * 2)[1].result(WAIT)
    scheduler.seconds = 0.05
    late = scheduler.submit([Ask(np.array([1] * 10**5), 10**9)])[0]
    assert late.result(WAIT).reason == "timeout"
    scheduler.close(0.1)
    with pytest.raises(StateError, match="ending"):
        scheduler.submit([forever])
    assert {job.result(WAIT).reason for job in jobs[1:]} == {"closed"}
    scheduler.join(WAIT)
    assert not scheduler.alive
    assert not scheduler.open


def test_a_failure_ends_what_runs_and_nothing_else(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    ask = Ask(np.array([1, 2]), 5, seed=1)
    right = scheduler.submit([ask])[0].result(WAIT).symbols
    monkeypatch.setattr(scheduler, "_write", lambda *_: 1 / 0)
    assert scheduler.submit([ask])[0].result(WAIT).reason == "error"
    monkeypatch.undo()
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert scheduler.submit([ask])[0].result(WAIT).symbols == right


def test_who_asks_while_others_fail_is_answered(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    ask, late = Ask(np.array([1, 2]), 5, seed=1), list[Job]()

    def turn(*_: Any) -> None:
        monkeypatch.undo()
        late.extend(scheduler.submit([ask]))
        raise ZeroDivisionError

    monkeypatch.setattr(scheduler, "_turn", turn)
    assert scheduler.submit([ask])[0].result(WAIT).reason == "error"
    assert late[0].result(WAIT).reason == "length"
    assert late[0].symbols == alone(scheduler.model, ask)
    assert scheduler.counts.written == 5
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_where_no_other_stream_can_be_begun_it_is_said_and_tried_again(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    ask, told = Ask(np.array([1, 2]), 5, seed=1), queue.Queue[Any]()
    scheduler.notify = told.put
    monkeypatch.setattr(scheduler, "_turn", lambda *_: 1 / 0)
    monkeypatch.setattr(scheduler, "_begin", lambda: int("no memory"))
    for owner in ("first", "second"):
        assert scheduler.submit([ask], owner)[0].result(WAIT).reason == "error"
        assert told.get(timeout=WAIT) == {owner}
    monkeypatch.undo()
    assert scheduler.submit([ask])[0].result(WAIT).symbols == alone(scheduler.model, ask)
    assert "no memory" in capfd.readouterr().err


def test_a_job_that_nobody_waits_for_frees_its_row(scheduler: Scheduler) -> None:
    reading, writing = scheduler.submit([Ask(np.ones(10**6, np.int64), 1), Ask(np.array([1]), 10**9)])
    for job in (reading, writing):
        job.cancel()
        job.cancel()
        assert job.result(WAIT).reason == "cancelled"
    assert scheduler.open == 0


def test_a_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        Scheduler(LanguageModel(5, hidden=4))


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([[0.1, 0.5, 0.15, 0.25, 0.0]], np.float32).clip(1e-30))
    logits[0, 4] = -np.inf
    u = (np.arange(1000) + 0.5) / 1000

    def shares(temperature: float, top_p: float) -> list[float]:
        found = drawn(logits.repeat(1000, 0), np.full(1000, temperature), np.full(1000, top_p), u)
        return (np.bincount(found, minlength=5) / 1000).tolist()

    assert shares(1.0, 1.0) == [0.1, 0.5, 0.15, 0.25, 0.0]
    assert shares(1.0, 0.75) == pytest.approx([0, 2 / 3, 0, 1 / 3, 0], abs=1e-3)
    assert shares(1.0, 0.0) == [0, 1, 0, 0, 0]
    assert shares(0.0, 1.0) == [0, 1, 0, 0, 0]
    squares = np.array([0.01, 0.25, 0.0225, 0.0625, 0])
    assert shares(0.5, 1.0) == pytest.approx((squares / squares.sum()).tolist(), abs=1e-3)
    assert drawn(np.full((1, 3), np.nan, np.float32), np.ones(1), np.ones(1), np.zeros(1)).tolist() == [-1]


@pytest.mark.parametrize("width", [3, 17, 64, 1001])
def test_a_row_draws_the_same_in_every_batch(width: int) -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(37, width)).astype(np.float32)
    heat, share = draw.choice([0, 0.7, 1.0], 37), draw.choice([0.3, 0.9, 1.0], 37)
    keys = np.array([key(seed, 0) for seed in range(37)], np.uint64)
    u = uniform(keys, np.arange(37))
    together = drawn(logits, heat, share, u)
    for n in (1, 2, 7):
        for k in range(0, 37 - n, n):
            part = slice(k, k + n)
            assert (drawn(logits[part], heat[part], share[part], u[part]) == together[part]).all()
            assert (uniform(keys[part], np.arange(37)[part]) == u[part]).all()
            assert (log_probabilities(logits[part]) == log_probabilities(logits)[part]).all()


def test_random_numbers_are_uniform_and_apart() -> None:
    keys = np.array([key(seed, choice) for seed in range(50) for choice in range(2)], np.uint64)
    found = np.array([uniform(keys, np.full(100, count)) for count in range(200)])
    assert ((found >= 0) & (found < 1)).all()
    assert len(np.unique(found)) == found.size
    counts = np.histogram(found, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # χ² of 19 degrees, p = 0.0007
    assert abs(np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1]) < 0.03


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_stops_are_found_where_they_first_end(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    search, told, stopped = Stops(stops), "", False
    for piece in pieces:
        if stopped:
            break
        more, stopped = search.add(piece)
        told += more
        assert text.startswith(told)
    assert stopped == bool(ends)
    if stopped:
        assert told == text[: min(ends)[1]]
    else:
        assert told + search.rest() == text


@pytest.mark.parametrize(
    ("kind", "size"), [("characters", None), ("bytes", None), ("bpe", 270), ("words", 12)]
)
def test_symbols_are_spelled_as_they_are_decoded(kind: str, size: int | None) -> None:
    text = "It isn't so,\n\nis it? naïve ☃ cats' 3.5."
    tokenizer = Tokenizer.of(kind, text, size)
    symbols = tokenizer.encode(text).tolist()
    for k in (0, 3):
        pen, rest = Spelling(tokenizer).begun(symbols[k - 1] if k else None)
        said = "".join(map(pen, symbols[k:])) + rest()
        assert said == tokenizer.decode(symbols).removeprefix(tokenizer.decode(symbols[:k]))
    pen, rest = Spelling(tokenizer).begun(None)
    if kind == "bytes":
        assert pen("☃".encode()[0]) == ""
        assert rest() == "\ufffd"


def test_states_are_kept_up_to_so_many_bytes() -> None:
    states = Prefixes(3 * (400 + 40))
    text = np.arange(50)
    for length in (10, 20, 30):
        states.keep(text[:length], [torch.full((1, 10), float(length))])
    assert states.longest(text, 49)[0] == 30
    assert states.longest(text, 29)[0] == 20
    assert states.longest(text, 9) == (0, None)
    assert states.longest(np.append(text[:25], 7), 26)[0] == 20
    assert states.longest(text[1:], 49)[0] == 0
    states.longest(text, 10)
    seen = states.seen(text[:30])
    for before, length in ((30, 40), (40, 45)):
        states.keep_on(seen, length, text[before:length], [torch.zeros(1, 10)])
    assert [length for length, _ in states._states] == [10, 40, 45]  # the others were used before that
    assert (len(states), states.bytes) == (3, 3 * 440)
    states.keep(text, [torch.zeros(1, 10**4)])
    assert len(states) == 3


def test_states_of_long_prompts_take_no_more_than_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = 400 + 2 * 64 * 4  # bytes, of which the state has two tensors
    scheduler = Scheduler(language(cell="lstm", hidden=64), kept=8 * entry)
    block, alive, most = scheduler._reader.block, weakref.WeakSet[torch.Tensor](), 0

    def counted(*given: Any) -> Any:
        nonlocal most
        alive.update(state := block(*given))
        most = max(most, len(alive))
        return state

    monkeypatch.setattr(scheduler._reader, "block", counted)
    prompts = [np.random.default_rng(k).integers(1, 8, 40 * 64 + 1) for k in range(4)]
    for job in scheduler.submit([Ask(prompt, 1) for prompt in prompts]):
        job.result(WAIT)
    assert scheduler.counts.blocks == 4 * 40 * 64
    assert most <= 2 * (8 + 4 + 1)  # those that are kept, one of each text, and the one being made
    assert len(scheduler.prefixes) == 8
    again = scheduler.submit([Ask(np.append(prompts[3], 1), 1)])[0].result(WAIT)
    assert again.known == 40 * 64 + 1
    scheduler.close()
    scheduler.join(WAIT)


def test_units_are_shown_to_who_watches(scheduler: Scheduler) -> None:
    seen: list[Job] = scheduler.submit([Ask(np.array([1]), 3, watched=True), Ask(np.array([1]), 3)])
    watched, other = (job.result(WAIT) for job in seen)
    assert other.units is None
    assert watched.units is not None
    assert {name: len(values) for name, values in watched.units.items()} == {"layer 1": 9}
    assert time.monotonic() > watched.begun
