"""What is told of a training run besides its steps: loggers, samples, stages, and how far back it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elman import data, training
from elman.errors import NotSupported
from elman.models import LanguageModel, estimate, reach
from elman.training import Measure, Run, Trainer, Training
from tests.pairwise import with_more

TEXT = "the cat sat on the mat; the rat sat on the cat.\n" * 40


class Notes:
    """A logger that remembers."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.finished = 0

    def log(self, values: dict[str, Any], step: int) -> None:
        self.lines.append({"step": step, **values})

    def finish(self) -> None:
        self.finished += 1


def keeper(folder: Path, **options: Any) -> Trainer:
    torch.manual_seed(0)
    tokenizer = data.Tokenizer.characters(TEXT)
    tokens = tokenizer.encode(TEXT)
    model = LanguageModel(tokenizer.size, hidden=16, embedding=8, dropout=0.1)
    run = Run(folder) if (folder / "config.json").exists() else Run.create(folder, {"task": "lm"}, {})
    measure = lambda: Measure(estimate(model, tokens[:400]), "cross entropy")  # noqa: E731
    return Trainer(Training(model, data.windows(tokens, 16, 8), steps=40), run, measure, **options)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def rounded(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(line), parse_float=lambda x: float(f"{float(x):.6g}")) for line in lines]


def test_loggers_are_told_what_is_logged(tmp_path: Path) -> None:
    notes = Notes()
    kept = keeper(tmp_path, loggers=[notes], sample=lambda: "a", closing={"plan": lambda: "b"})
    list(kept)
    assert notes.finished == 1
    lines = logged(tmp_path)
    assert lines == rounded(notes.lines)
    assert lines[0] == {"step": 0, "sample": "a"}
    assert lines[-1] == {"step": 40, "plan": "b"}
    assert set(lines[-2]["stages"]) >= {
        "data",
        "forward",
        "backward",
        "optimiser",
        "validation",
        "checkpoints",
    }


@pytest.mark.parametrize("how", ["left", "raised"])
def test_a_logger_is_finished_however_a_run_ends(tmp_path: Path, how: str) -> None:
    notes = Notes()
    events = iter(keeper(tmp_path, loggers=[notes]))
    next(events)
    if how == "left":
        events.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyError):
            events.throw(KeyError("no"))  # type: ignore[attr-defined]
    assert notes.finished == 1


def test_a_sample_does_not_change_the_training(tmp_path: Path) -> None:
    def draw() -> str:
        return str(torch.rand(3).tolist())

    for name, sample in (("plain", None), ("sampled", draw)):
        list(keeper(tmp_path / name, sample=sample))
    plain, sampled = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "sampled"))
    assert plain == sampled


def test_what_belongs_to_the_end_is_logged_once(tmp_path: Path) -> None:
    closing = {"plan": lambda: "b"}
    for event in keeper(tmp_path, checkpoint_every=10, closing=closing):
        if isinstance(event, training.Step) and event.step == 30:
            break
    assert not any("plan" in line for line in logged(tmp_path))
    list(keeper(tmp_path, resume=True, closing=closing))
    list(keeper(tmp_path, resume=True, closing=closing))
    lines = logged(tmp_path)
    assert sum("plan" in line for line in lines) == sum("stages" in line for line in lines) == 1
    # A process that was killed before it came to the end: the next one says it.
    (tmp_path / "log.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines if "plan" not in line)
    )
    list(keeper(tmp_path, resume=True, closing=closing))
    assert logged(tmp_path) == lines


def test_what_cannot_be_found_out_at_the_end_is_told(tmp_path: Path) -> None:
    def refuse() -> None:
        raise NotSupported("no derivative", where="a cell", mend="none")

    told: list[str] = []
    list(keeper(tmp_path, closing={"reach": refuse, "plan": lambda: "b"}, notify=told.append))
    assert told == ["reach is not known: no derivative"]
    assert logged(tmp_path)[-1] == {"step": 40, "plan": "b"}


def test_the_time_per_stage_goes_on_with_the_run(tmp_path: Path) -> None:
    for event in keeper(tmp_path, checkpoint_every=10):
        if isinstance(event, training.Step) and event.step == 30:
            break
    before = training.load_checkpoint(Run(tmp_path).checkpoints.paths()[0])[1]["stages"]
    again = keeper(tmp_path, resume=True)
    assert again.training.stages.seconds == before
    list(again)
    assert again.training.stages.seconds["forward"] > before["forward"]


class Fading(nn.Module):
    """h(t) = a h(t-1) + x(t), L = Σ h: the gradient with respect to h(t-k) is aᵏ in each of four parts."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def loss(self, x: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = torch.zeros(x.shape[1], 4) if state is None else state["h"]
        total = torch.zeros(())
        for x_t in x:
            h = self.a * h + x_t[:, None]
            total = total + h.sum()
        return total, {"h": h, "count": 0 if state is None else state["count"] + len(x)}


def test_the_reach_of_a_known_recurrence() -> None:
    model = Fading(0.7).train()
    found = reach(model, torch.randint(5, (500,)), back=20)
    assert found == pytest.approx([2 * 0.7**k for k in range(1, 21)], rel=1e-4)
    assert model.training
    assert model.a.grad is None


@pytest.mark.parametrize("cell", with_more(["lstm"], ["gru"]))
def test_the_reach_of_a_model_is_the_derivative_of_its_loss(cell: str) -> None:
    torch.manual_seed(1)
    model = LanguageModel(9, cell, hidden=5, layers=2).double()
    tokens = torch.randint(9, (9,))
    found = reach(model, tokens, back=3, lanes=1)
    x, y = tokens[:-1, None], tokens[1:, None]
    warm = len(x) - 3
    with torch.no_grad():
        _, state = model.loss(x[:warm], y[:warm])
    leaves = [leaf for layer in state for leaf in (layer if isinstance(layer, tuple) else (layer,))]

    def last(moved: list[Tensor]) -> Tensor:
        parts = iter(moved)
        begin = tuple(
            tuple(next(parts) for _ in layer) if isinstance(layer, tuple) else next(parts) for layer in state
        )
        _, near = model.loss(x[warm:-1], y[warm:-1], begin)
        return model.loss(x[-1:], y[-1:], near)[0]

    squares = 0.0
    for k, leaf in enumerate(leaves):
        for place in range(leaf.numel()):
            nudge = torch.zeros_like(leaf).flatten()
            nudge[place] = 1e-6
            with torch.no_grad():
                up = last([h + nudge.view_as(h) if i == k else h for i, h in enumerate(leaves)])
                down = last([h - nudge.view_as(h) if i == k else h for i, h in enumerate(leaves)])
            squares += float((up - down) / 2e-6) ** 2
    assert found[2] == pytest.approx(squares**0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("symbols", "steps"), [(1, 0), (2, 0), (3, 1), (10, 8), (66, 64), (67, 64), (131, 64)]
)
def test_a_short_text_reaches_as_far_as_it_goes(symbols: int, steps: int) -> None:
    assert len(reach(Fading(0.5), torch.ones(symbols, dtype=torch.int64))) == steps


def test_tensorboard_gets_everything(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = training.TensorBoard(tmp_path / "board")
    list(
        keeper(
            tmp_path / "run",
            loggers=[board],
            sample=lambda: "<b>a</b>",
            closing={"reach": lambda: [2.0, 1.0]},
        )
    )
    read = EventAccumulator(str(tmp_path / "board"))
    read.Reload()
    tags = read.Tags()
    assert {"loss", "lr", "norm", "valid", "reach", "stages/forward"} <= set(tags["scalars"])
    assert [event.step for event in read.Scalars("loss")] == [10, 20, 30, 40]
    assert [event.value for event in read.Scalars("reach")] == [2.0, 1.0]


def test_without_tensorboard_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(NotSupported, match=r"elman\[tensorboard\]"):
        training.TensorBoard(tmp_path)


def test_a_logger_without_room_does_not_end_a_run(tmp_path: Path) -> None:
    class Full:
        def log(self, values: dict[str, Any], step: int) -> None:
            raise OSError(28, "No space left on device")

        def finish(self) -> None:
            pytest.fail("it is asked nothing more")

    told: list[str] = []
    kept = keeper(tmp_path / "run", loggers=[Full()], notify=told.append)
    list(kept)
    assert kept.finished
    assert told == ["Full writes no more: No space left on device; training goes on"]
