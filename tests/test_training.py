"""Training, exact evaluation, and run folders."""

from __future__ import annotations

import json
import math
import os
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elman import data, training
from elman.errors import DataError, ElmanError, InputError
from elman.models import LanguageModel, evaluate, evaluate_cold
from tests.pairwise import with_more

TEXT = "the cat sat on the mat; the rat sat on the cat.\n" * 30


class Counted(nn.Module):
    """A model without recurrence that keeps what it was called with. Its state is the number of steps so far."""

    def __init__(self, vocabulary: int = 5) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(vocabulary))
        self.calls: list[tuple[Tensor, int | None, bool, bool]] = []

    def loss(self, x: Tensor, y: Tensor, state: int | None) -> tuple[Tensor, int]:
        self.calls.append((x, state, self.training, torch.is_grad_enabled()))
        return -torch.log_softmax(self.logits, 0)[y].mean(), (state or 0) + len(x)


def small(cell: str = "gru", seed: int = 0) -> tuple[LanguageModel, data.Tokenizer, Tensor]:
    torch.manual_seed(seed)
    tokenizer = data.Tokenizer.characters(TEXT)
    return LanguageModel(tokenizer.size, cell, hidden=16, embedding=8), tokenizer, tokenizer.encode(TEXT)


@pytest.mark.parametrize("cell", ["elman", "jordan", "gru", "lstm", "leaky"])
def test_every_cell_learns_with_the_settings_that_are_there(cell: str) -> None:
    model, _, tokens = small(cell)
    steps = list(training.fit(model, data.windows(tokens, 16, 8), steps=60, lr=1e-2))
    assert steps[0].loss > 2.5
    assert steps[-1].loss < 2.2  # the characters alone, without their order, have 2.27


def test_a_step_says_what_was_done() -> None:
    model, _, tokens = small()
    steps = list(training.fit(model, data.windows(tokens, 10, 4), steps=20, lr=1e-2))
    assert [step.step for step in steps] == list(range(1, 21))
    assert [step.count for step in steps] == [40 * k for k in range(1, 21)]
    assert steps[-1].done == 1
    assert all(a.seconds <= b.seconds for a, b in zip(steps, steps[1:], strict=False))


def test_the_learning_rate_rises_then_falls_on_a_cosine() -> None:
    rates = [
        s.lr for s in training.fit(Counted(), data.windows(torch.randint(5, (500,)), 5, 4), steps=100, lr=1.0)
    ]
    for k in range(100):  # a tenth of the run is warm-up
        expected = min(1, (k + 1) / 10) * 0.5 * (1 + math.cos(math.pi * k / 100))
        assert rates[k] == pytest.approx(expected)


def test_minutes_are_kept_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 3))  # every look at the clock finds it three seconds later
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    steps = list(training.fit(Counted(), data.windows(torch.randint(5, (500,)), 5, 4), minutes=2))
    assert len(steps) == 40
    assert steps[-1].done == 1
    assert steps[19].done == pytest.approx(0.5)
    assert steps[-1].lr < 0.01 * 4e-3


def test_the_state_is_carried_from_window_to_window_and_dropped_where_lanes_begin() -> None:
    model = Counted()
    tokens = torch.arange(4 * 25 + 3) % 5
    for _ in training.fit(model, data.windows(tokens, 7, 4), steps=7):
        pass
    states = [state for _, state, _, _ in model.calls]
    assert states[:4] == [None, 7, 14, None]
    assert all(training_ and grad for _, _, training_, grad in model.calls)


def test_gradients_do_not_flow_into_the_window_before() -> None:
    model, _, tokens = small()
    states = []
    loss = model.loss
    model.loss = lambda x, y, state: (states.append(state), loss(x, y, state))[1]
    for _ in training.fit(model, data.windows(tokens, 10, 4), steps=3):
        pass
    assert states[0] is None
    assert all(not part.requires_grad for state in states[1:] for part in state)


def test_detach_reaches_every_tensor_and_keeps_the_structure() -> None:
    pair = namedtuple("pair", "h c")
    tensor = torch.ones(2, requires_grad=True)
    state = {"a": (tensor * 1, [tensor * 2]), "b": pair(tensor * 3, None), "n": 7}
    bare = training.detach(state)
    assert type(bare["b"]) is pair
    assert isinstance(bare["a"][1], list)
    assert bare["b"].c is None
    assert bare["n"] == 7
    for before, after in ((state["a"][0], bare["a"][0]), (state["a"][1][0], bare["a"][1][0])):
        assert before.requires_grad
        assert not after.requires_grad
        assert torch.equal(before, after)


def test_training_is_the_same_for_the_same_seed() -> None:
    losses = []
    for _ in range(2):
        model, _, tokens = small()
        losses.append([step.loss for step in training.fit(model, data.windows(tokens, 16, 8), steps=15)])
    assert losses[0] == losses[1]


def test_the_gradient_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []

    class Watched(torch.optim.AdamW):
        def step(self, closure: object = None) -> None:
            grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            norms.append(torch.stack([g.norm() for g in grads]).norm().item())
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    model, _, tokens = small()
    steps = list(training.fit(model, data.windows(tokens, 16, 8), steps=10, clip=1e-3))
    assert max(norms) < 1.001e-3
    assert min(step.norm for step in steps) > 1e-2


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    model, _, tokens = small()
    with torch.no_grad():
        model.readout.bias[0] = torch.nan
    with pytest.raises(ElmanError, match="diverged") as caught:
        list(training.fit(model, data.windows(tokens, 16, 8), steps=5))
    assert caught.value.where == "step 1, the output of readout.bias in the forward pass"
    assert not any(p.isnan().any() for name, p in model.named_parameters() if name != "readout.bias")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "not given"),
        ({"steps": 1, "minutes": 1}, "given twice"),
        ({"steps": 0}, "steps must be above 0"),
        ({"minutes": -1}, "minutes must be above 0"),
        ({"steps": 1, "lr": 0}, "lr must be above 0"),
        ({"steps": 1, "clip": math.nan}, "clip must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_the_call(settings: dict, complaint: str) -> None:
    model, _, tokens = small()
    with pytest.raises(InputError, match=complaint):
        training.fit(model, data.windows(tokens, 16, 8), **settings)


def test_a_text_too_short_for_a_window_is_refused() -> None:
    with pytest.raises(InputError, match="too short"):
        data.windows(small()[2], 64, 10_000)


def test_weight_decay_follows_the_length_of_the_text() -> None:
    model, _, tokens = small()

    def decay(tokens: Tensor, **settings: float) -> float:
        made = training.Training(model, data.windows(tokens, 16, 8), steps=1, **settings)
        matrices, others = made.optimizer.param_groups
        assert others["weight_decay"] == 0
        assert made.weight_decay == matrices["weight_decay"]
        return made.weight_decay

    long = tokens.repeat(100)
    # A weight is a mean over the last 1 / (lr · decay) steps: five passes over the text.
    assert 16 * 8 / (4e-3 * decay(long)) == pytest.approx(5 * len(long))
    assert decay(long, lr=1e-3) == pytest.approx(4 * decay(long))
    assert decay(tokens) == 0.3  # and no more for a short one
    assert decay(tokens, weight_decay=0.0) == 0
    with pytest.raises(InputError, match="weight_decay must not be below 0"):
        decay(tokens, weight_decay=-1)


def test_the_average_is_its_equation_and_what_a_trainer_saves(tmp_path: Path) -> None:
    model, tokens, decay = Counted(), torch.randint(5, (500,)), 0.5
    made = training.Training(model, data.windows(tokens, 5, 4), steps=32, lr=0.1, average=decay)
    expected, looks = model.logits.detach().clone(), []

    def measure() -> training.Measure:
        looks.append(model.logits.detach().clone())
        return training.Measure(-float(len(looks)), "minus looks")  # each better than the one before

    run = training.Run.create(tmp_path / "run", {})
    raw = []
    for event in training.Trainer(made, run, measure):
        if isinstance(event, training.Validation):
            raw.append(model.logits.detach().clone())
    weights: list[Tensor] = []
    again = Counted()
    for step in training.fit(again, data.windows(tokens, 5, 4), steps=32, lr=0.1):
        now = min(decay, (1 + step.step) / (10 + step.step))
        expected = now * expected + (1 - now) * again.logits.detach()
        weights.append(expected)
    assert len(looks) == 16
    assert torch.allclose(looks[-1], expected)
    assert torch.allclose(looks[3], weights[7])
    assert not torch.allclose(raw[3], looks[3])  # it goes on to be trained from where it was
    assert torch.equal(run.weights["logits"], looks[-1])
    assert torch.equal(model.logits.detach(), looks[-1])  # the model ends with its best weights
    with pytest.raises(InputError, match="decay of a mean"):
        training.Training(model, data.windows(tokens, 5, 4), steps=3, average=1.0)


def test_validations_leave_the_time_of_a_run_by_the_clock_to_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow(Counted):
        def loss(self, x: Tensor, y: Tensor, state: int | None) -> tuple[Tensor, int]:
            now[0] += 1.0
            return super().loss(x, y, state)

    def events(minutes: float | None, steps: int | None, look: float) -> list[Any]:
        def measure() -> training.Measure:
            now[0] += look
            return training.Measure(1.0, "one")

        windows = data.windows(torch.randint(5, (500,)), 5, 4)
        made = training.Training(Slow(), windows, steps=steps, minutes=minutes)
        run = training.Run.create(tmp_path / f"{minutes} {steps} {look}", {})
        return [isinstance(e, training.Validation) for e in training.Trainer(made, run, measure)]

    assert sum(events(8, None, 0.1)) == 16
    assert sum(events(None, 480, 30.0)) == 16  # where the same numbers are promised
    seen = events(8, None, 30.0)  # in which sixteen looks would take all of the time
    assert 3 <= sum(seen) <= 6
    assert seen[-1]


@pytest.mark.parametrize("cell", with_more(["lstm"], ["gru"]))
def test_evaluation_does_not_depend_on_the_window_and_is_one_long_pass(cell: str) -> None:
    model, _, tokens = small(cell)
    model.double()
    tokens = tokens[:601]
    with torch.no_grad():
        logits, _ = model(tokens[:-1, None])
        nats = -torch.log_softmax(logits[:, 0], -1)[torch.arange(600), tokens[1:]].sum().item()
    for window in (1, 7, 100, 599, 600, 5000):
        figure = evaluate(model, tokens, window=window)
        assert figure.symbols == 600
        assert figure.nats == pytest.approx(nats, rel=1e-9)
        assert figure.nats_per_symbol == pytest.approx(nats / 600, rel=1e-9)
        assert figure.bits_per_symbol == pytest.approx(nats / 600 / math.log(2), rel=1e-9)


def test_evaluation_in_single_precision_is_independent_of_the_window_too() -> None:
    model, _, tokens = small()
    figures = [evaluate(model, tokens, window=window).nats_per_symbol for window in (13, 1000)]
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)


def test_evaluation_reads_every_symbol_once_without_gradients_and_leaves_the_mode() -> None:
    model, told = Counted().train(), []
    tokens = torch.randint(5, (26,))
    evaluate(model, tokens, window=10, progress=lambda done, total: told.append((done, total)))
    assert torch.equal(torch.cat([x for x, *_ in model.calls]), tokens[:-1, None])
    assert [state for _, state, _, _ in model.calls] == [None, 10, 20]
    assert not any(mode or grad for _, _, mode, grad in model.calls)
    assert told == [(10, 25), (20, 25), (25, 25)]
    assert model.training


def test_cold_blocks_are_each_by_itself() -> None:
    """Every symbol but the first is counted once, in a block that begins at the initial state."""
    model, _, tokens = small()
    model.double()
    for total, length, lanes, window in (
        (600, 50, 64, 1000),
        (600, 70, 3, 1000),
        (601, 90, 2, 20),
        (40, 100, 8, 9),
    ):
        text, told = tokens[: total + 1], []
        alone = [evaluate(model, text[at : at + length + 1]) for at in range(0, total, length)]
        found = evaluate_cold(
            model,
            text,
            length,
            lanes=lanes,
            window=window,
            progress=lambda *done, told=told: told.append(done),
        )
        assert found.symbols == total == sum(one.symbols for one in alone)
        assert found.nats == pytest.approx(sum(one.nats for one in alone), rel=1e-9)
        assert told[-1] == (total, total)
    assert evaluate_cold(model, tokens, len(tokens)).nats == pytest.approx(
        evaluate(model, tokens).nats, rel=1e-9
    )


def test_a_text_of_one_symbol_cannot_be_evaluated() -> None:
    with pytest.raises(InputError, match="too short"):
        evaluate(Counted(), torch.ones(1, dtype=torch.int64))
    with pytest.raises(InputError, match="at least a symbol"):
        evaluate_cold(Counted(), torch.ones(1, dtype=torch.int64), 5)


def kept(tokenizer: data.Tokenizer) -> dict[str, bytes]:
    return {"tokenizer.json": tokenizer.to_json().encode()}


def saved(folder: Path, cell: str = "gru") -> LanguageModel:
    model, tokenizer, _ = small(cell)
    config = {"task": "lm", **model.settings, "training": {}, "data": {}}
    run = training.Run.create(folder, config, kept(tokenizer))
    run.save(model)
    return model


@pytest.mark.parametrize("cell", ["gru", "lstm", "jordan"])
def test_a_run_loads_back_with_equal_logits(tmp_path: Path, cell: str) -> None:
    model = saved(tmp_path / "run", cell)
    run = training.Run.open(tmp_path / "run")
    tokens = tokenizer_of(run).encode(TEXT[:50])[:, None]
    again = LanguageModel.load(run)
    assert torch.equal(again(tokens)[0], model.eval()(tokens)[0])
    assert not again.training


def test_a_run_holds_json_and_safetensors_and_nothing_beside(tmp_path: Path) -> None:
    saved(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {*training.Run.FILES, "tokenizer.json"}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["cell"] == "gru"
    assert config["format"] == training.FORMAT


def test_the_log_is_a_line_for_every_record(tmp_path: Path) -> None:
    model, tokenizer, tokens = small()
    run = training.Run.create(tmp_path / "run", {}, kept(tokenizer))
    steps = list(training.fit(model, data.windows(tokens, 16, 8), steps=3))
    for step in steps:
        run.log(vars(step))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[1]["loss"] == pytest.approx(steps[1].loss, rel=1e-5)


def test_a_folder_that_is_not_empty_is_kept_unless_told(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    _, tokenizer, _ = small()
    with pytest.raises(InputError, match="--overwrite"):
        training.Run.create(tmp_path, {}, kept(tokenizer))
    training.Run.create(tmp_path, {}, kept(tokenizer), overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (
        tmp_path / "model.safetensors"
    ).exists()  # old weights beside a new configuration would mislead


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    training.write_atomically(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        training.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_is_readable_as_the_users_other_files_are(tmp_path: Path) -> None:
    training.write_atomically(tmp_path / "ours", b"")
    (tmp_path / "theirs").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_a_run_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _, tokenizer, _ = small()
    with pytest.raises(DataError, match="cannot be made"):
        training.Run.create(tmp_path / "file" / "run", {}, kept(tokenizer))


def tokenizer_of(run: training.Run) -> data.Tokenizer:
    return data.Tokenizer.load(run.folder / "tokenizer.json")


def _open_all(folder: Path) -> None:
    run = training.Run.open(folder)
    LanguageModel.load(run)
    tokenizer_of(run)


def _break(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("model.safetensors", None, "no model.safetensors"),
        ("config.json", None, "no config.json"),
        ("config.json", b"{", "no configuration of a run"),
        ("config.json", b"[]", "no configuration of a run"),
        ("config.json", b'{"format": 99}', "another version of elman"),
        ("config.json", b'{"format": 2, "cell": "gru"}', "no configuration of a language model"),
        ("tokenizer.json", b"{}", "no tokenizer"),
        ("model.safetensors", b"\x00" * 9, "weights cannot be read"),
    ],
)
def test_a_broken_run_is_refused(tmp_path: Path, name: str, content: bytes | None, complaint: str) -> None:
    saved(tmp_path)
    _break(tmp_path, name, content)
    with pytest.raises(DataError, match=complaint) as caught:
        _open_all(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.mend


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "gru")
    saved(tmp_path / "lstm", "lstm")
    os.replace(tmp_path / "lstm" / "model.safetensors", tmp_path / "gru" / "model.safetensors")
    with pytest.raises(DataError, match="do not fit together"):
        LanguageModel.load(training.Run.open(tmp_path / "gru"))


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="weights cannot be read"):
        LanguageModel.load(training.Run.open(tmp_path))
