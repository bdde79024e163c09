"""Other tasks as they are served: classifiers, taggers, forecasters, and what of them is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import elman
from elman.data.schema import Odd
from elman.data.series import panel_of
from elman.data.series_tables import Columns, table_of
from elman.data.tagged import Sentence
from elman.errors import InputError
from elman.models import forecasting, tagger
from elman.models.coding import Coding
from elman.models.frame_network import FrameNetwork
from elman.models.sequence_classifier import SequenceClassifier
from elman.recurrent import Recurrent
from elman.serve import others
from elman.serve.others import service
from elman.serve.settings import Serving
from elman.tasks.autoencode import Autoencode
from elman.tasks.classify import Classify
from elman.tasks.forecast import Forecast
from elman.tasks.frames import ForecastFrames
from elman.tasks.tag import Tag


def test_other_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "_PATHS", 20)
    limits, small = Serving(tokens=100), {"cell": "elman", "hidden": 4, "layers": 1}
    coding = Coding.of(["ab", "ba"], ["a", "b"])
    network = SequenceClassifier(coding.inputs, 2, True, embedding=3, **small).eval()
    classify = service(Classify(coding), network, limits)
    said = classify.answer({"sequences": ["ab", "abba", "☃"]})
    for k, one in enumerate(["ab", "abba", "☃"]):
        x = coding.sequence(one)
        right = network(x[:, None], torch.tensor([len(x)])).softmax(1)[0].tolist()
        assert list(said["probabilities"][k].values()) == pytest.approx(right, abs=1e-6)
        assert said["labels"][k] == coding.labels[right.index(max(right))]
    assert classify.answer({"sequences": []}) == {"labels": [], "probabilities": []}
    words, tags = ["a", "rat", "sat"], ("D", "N", "V")
    how = {**small, "embedding": 3, "spelling": 3}
    lexicon, reads = tagger.new([Sentence(tuple(words), tags, "here", (0, 1, 2))], 0, None, how)
    tag, one = service(Tag(lexicon), reads, limits), elman.models.Tagger()
    one._learnt = reads.eval(), lexicon
    assert tag.answer({"sentences": [words, words[:1]]}) == {"tags": one.predict([words, words[:1]])}
    columns = Columns()
    frame = {"ds": list(range(60)), "y": [float(k % 5) for k in range(60)]}
    panel = panel_of([table_of(frame, columns)], columns)
    form = forecasting.form_of(panel, "gaussian", 5, None, 4)
    forecast = service(Forecast(form, panel), forecasting.begun(form, panel, "gaussian", **small)[0], limits)
    later = forecast.answer({"columns": {**frame, "ds": list(range(3, 63))}, "horizon": 3})["columns"]
    assert later["ds"] == ["63", "64", "65"]
    assert later["mean"] == pytest.approx([0, 1, 2], abs=0.5)
    assert forecast.answer({})["columns"]["ds"] == ["60", "61", "62", "63"]
    for one, asked in (
        (forecast, {"horizon": 101}),
        (forecast, {"columns": {"unique_id": [*range(200)], "ds": [1] * 200, "y": [1.0] * 200}}),
        (classify, {"sequences": ["a" * 99, *["b"] * 2000]}), (tag, {"sentences": [["a"] * 400, *[["b"]] * 400]}),
        (tag, {"sentences": [["a" * 1000, *["b"] * 2000]]}),
    ):  # fmt: skip
        with pytest.raises(Odd, match="at most"):
            one.answer(asked)
    for each, field in ((classify, "sequences"), (tag, "sentences"), (forecast, "horizon")):
        for value in (7.5, [7], [[""]], None, "x"):
            with pytest.raises(Odd, match="expected"):
                each.fields[field](value, field)
    with pytest.raises(InputError, match="not served"):
        service(Autoencode.__new__(Autoencode), network, limits)


def test_frames_are_drawn_a_stretch_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are asked for, what is drawn at once has a limit: a thousand paths of each."""
    torch.manual_seed(0)
    network, tail = FrameNetwork(88, hidden=2, layers=1).eval(), torch.ones(2, 88)
    forecast, at_once = service(ForecastFrames(tail, 4), network, Serving()), []
    whole = Recurrent.forward

    def watched(self: Any, *given: Any, **how: Any) -> Any:
        found = whole(self, *given, **how)
        at_once.append(found[0].numel())
        return found

    few = forecast.answer({"horizon": 30})["frames"]
    monkeypatch.setattr(Recurrent, "forward", watched)
    many = forecast.answer({"horizon": 130})["frames"]
    assert max(at_once) <= 2**22
    assert (len(many), len(many[0]), many[:30]) == (130, 88, few)
    assert torch.tensor(many).mean(1).sub(0.5).abs().max() < 0.1
