"""What is served of the runs that do not write: sequences in, tags, labels or forecasts out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elman.data.schema import Check, Odd, each, number, plain, text, whole
from elman.data.series import panel_of
from elman.data.series_tables import table_of
from elman.errors import InputError
from elman.models.forecasting import ahead, table
from elman.models.sequence_classifier import logits_of
from elman.serve.settings import Serving
from elman.tasks.classify import Classify
from elman.tasks.forecast import Forecast
from elman.tasks.frames import ForecastFrames
from elman.tasks.tag import Tag
from elman.tasks.task import Task

_MANY = 2**20  # no body holds more
_LONGEST = 100_000  # characters of a sequence, or of a word
_SERIES = 100  # of a request: each may be some hundred thousand steps of gaps
_SPELLED = 10  # characters of words, of which each is as long as the longest, for a step of a sequence
_PATHS = 1000  # drawn of a forecast
_number = number(-1e30, 1e30)


@dataclass(frozen=True)
class Service:
    """path: behind /v1/. fields: of a request; needed: which cannot be left out. answer: of what was asked, in the
    thread that owns the model; it raises Odd, InputError and DataError for what cannot be answered."""

    path: str
    fields: Mapping[str, Check]
    needed: tuple[str, ...]
    answer: Callable[[dict[str, Any]], dict[str, Any]]


def service(task: Task, model: Any, limits: Serving) -> Service:
    """Of a run. Raises InputError for a task that is not served."""
    model.eval()
    if isinstance(task, Tag):
        return _tag(task, model, limits)
    if isinstance(task, Classify):
        return _classify(task, model, limits)
    if isinstance(task, Forecast):
        return _forecast(task, model, limits)
    if isinstance(task, ForecastFrames):
        return _frames(task, model, limits)
    raise InputError(
        what="a run of this task is not served", where="elman serve", got=f"a run of {task.name}",
        expected="lm, tag, classify or forecast", mend="elman predict RUN - answers line by line",
    )  # fmt: skip


def _some(value: Any, place: str) -> None:
    text(_LONGEST)(value, place)
    if not value:
        raise Odd(place, "an empty text", "at least a character")


def _tag(task: Tag, model: Any, limits: Serving) -> Service:
    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        words = [word for words in asked["sentences"] for word in words]
        _fit(asked["sentences"], limits.prompt, "sentences")
        _fit(words, _SPELLED * limits.prompt, "words")
        return {"tags": task.tags(model, asked["sentences"])}

    return Service("tag", {"sentences": each(each(_some, _MANY), _MANY)}, ("sentences",), answer)


def _classify(task: Classify, model: Any, limits: Serving) -> Service:
    symbols = task.coding.characters is not None
    inputs = model.settings["inputs"]
    steps = each(each(_number, inputs), _MANY)

    def numbers(value: Any, place: str) -> None:
        steps(value, place)
        if not value or any(len(step) != inputs for step in value):
            raise Odd(place, "other steps", f"steps of {inputs} numbers each, at least one")

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        _fit(asked["sequences"], limits.prompt, "sequences")
        given = [one if symbols else torch.tensor(one, dtype=torch.float64) for one in asked["sequences"]]
        if not given:
            return {"labels": [], "probabilities": []}
        x = task.coding.sequences(given, inputs, "sequences")
        shares = (logits_of(model, x) / model.temperature.cpu()).softmax(1)
        names = [str(label) for label in task.coding.labels]
        return {
            "labels": [names[k] for k in shares.argmax(1).tolist()],
            "probabilities": [dict(zip(names, row, strict=True)) for row in shares.tolist()],
        }

    return Service(
        "classify", {"sequences": each(_some if symbols else numbers, _MANY)}, ("sequences",), answer
    )


def _forecast(task: Forecast, model: Any, limits: Serving) -> Service:
    form = task.form

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        columns, horizon = asked.get("columns"), asked.get("horizon", form.horizon)
        panel = task.panel
        if columns is not None:
            if (count := len(set(map(str, columns.get(form.columns.id, ()))))) > _SERIES:
                raise Odd(f"columns.{form.columns.id}", f"{count:,} series", f"at most {_SERIES}")
            panel = panel_of([table_of(columns, form.columns)], form.columns, form.grid)
        _few(len(panel.series) * horizon, limits)
        forecast = ahead(model, form, panel, horizon, _PATHS, asked.get("seed", 0))
        starts = [(one.name, one.start + len(one.y)) for one in panel.series]
        return {"columns": table(panel.grid, starts, forecast, panel.columns)}

    fields = {
        "columns": each(each(plain, _MANY), 1000, named=True), "horizon": whole(1, limits.tokens),
        "seed": whole(0, 2**63 - 1),
    }  # fmt: skip
    return Service("forecast", fields, (), answer)


def _frames(task: ForecastFrames, model: Any, limits: Serving) -> Service:
    width = task.tail.shape[1]
    frames = each(each(whole(0, 1), width), _MANY)

    def rolls(value: Any, place: str) -> None:
        frames(value, place)
        if not value or any(len(frame) != width for frame in value):
            raise Odd(place, "other frames", f"frames of {width} numbers each, at least one")

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        horizon = asked.get("horizon", task.horizon)
        _few(horizon, limits)
        x = torch.tensor(asked["frames"], dtype=task.tail.dtype) if "frames" in asked else task.tail
        return {"frames": model.mean_path(x, _PATHS, horizon, asked.get("seed", 0)).tolist()}

    fields = {"frames": rolls, "horizon": whole(1, limits.tokens), "seed": whole(0, 2**63 - 1)}
    return Service("forecast", fields, (), answer)


def _fit(parts: Sequence[Any], most: int, place: str) -> None:
    """Raise Odd for more than so many steps, each part having as many as the longest one: it takes their memory."""
    longest = max(map(len, parts), default=0)
    if len(parts) * longest > most:
        raise Odd(
            place,
            f"{len(parts):,}, the longest of {longest:,}",
            f"at most {most:,}, each being as long as that",
        )


def _few(count: int, limits: Serving) -> None:
    if count > limits.tokens:
        raise Odd("horizon", f"{count:,} steps of all series together", f"at most {limits.tokens:,}")
