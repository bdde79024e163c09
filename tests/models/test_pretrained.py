"""A model as a folder: ours back, a run folder too, and what huggingface_hub's mixin makes of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from elman.data import Tokenizer
from elman.errors import DataError, InputError
from elman.models import LanguageModel

OPTIONS = {"plain": {}, "tied": {"tie": True, "embedding": 8}, "conditional": {"condition": 2}}


def model(**options: object) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(7, **{"cell": "lstm", "hidden": 8, "layers": 2, "embedding": 5, **options})


def same(one: nn.Module, other: nn.Module) -> None:
    mine, right = one.state_dict(), other.state_dict()
    assert mine.keys() == right.keys()
    assert all(torch.equal(mine[name], right[name]) for name in mine)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_model_comes_back(options: dict, tmp_path: Path) -> None:
    made = model(**options)
    made.save_pretrained(tmp_path / "m", tokenizer=Tokenizer.characters("abcdef"))
    again = LanguageModel.from_pretrained(tmp_path / "m")
    same(again, made)
    assert again.settings == made.settings
    assert not again.training
    assert (again.readout.weight is again.embedding.weight) == bool(options.get("tie"))
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_mixin_of_huggingface_reads_it_and_writes_what_we_read(options: dict, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Mixed(hub.PyTorchModelHubMixin, LanguageModel):
        """Theirs before ours: its two methods hide ours."""

    made = model(**options)
    made.save_pretrained(tmp_path / "ours")
    same(Mixed.from_pretrained(tmp_path / "ours"), made)
    theirs = Mixed(7, **{"cell": "lstm", "hidden": 8, "layers": 2, "embedding": 5, **options})
    theirs.save_pretrained(tmp_path / "theirs")
    same(LanguageModel.from_pretrained(tmp_path / "theirs"), theirs)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["hidden"] == 8


def test_a_tokenizer_of_other_symbols_is_refused(tmp_path: Path) -> None:
    six, seven = Tokenizer.characters("abcde"), Tokenizer.characters("abcdef")
    with pytest.raises(DataError, match="not of one run"):
        model().save_pretrained(tmp_path, tokenizer=six)
    model().save_pretrained(tmp_path, tokenizer=seven)
    again = LanguageModel.from_pretrained(tmp_path)
    assert again.tokenizer is not None
    assert again.tokenizer.to_json() == seven.to_json()
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").is_file()
    (tmp_path / "tokenizer.json").write_text(six.to_json())
    with pytest.raises(DataError, match="not of one run"):
        LanguageModel.from_pretrained(tmp_path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        LanguageModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(DataError, match="configuration cannot be read"):
        LanguageModel.from_pretrained(tmp_path)
    model().save_pretrained(tmp_path)
    other = json.loads((tmp_path / "config.json").read_text()) | {"layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(DataError, match="another model"):
        LanguageModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(other | {"layers": 2, "hidden": 9}))
    with pytest.raises(DataError, match="do not fit together"):
        LanguageModel.from_pretrained(tmp_path)


def test_a_run_of_another_task_says_who_opens_it(tmp_path: Path) -> None:
    from elman.models import Autoencoder, Classifier, Forecaster, Tagger

    kinds = {
        "tag": Tagger,
        "classify": Classifier,
        "autoencode": Autoencoder,
        "forecast": Forecaster,
        "lm": LanguageModel,
    }
    for task, right in kinds.items():
        folder = tmp_path / task
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"format": 2, "task": task}))
        for kind in set(kinds.values()) - {right}:
            with pytest.raises(DataError, match=rf"'s run(?s:.*){right.__name__}\.from_pretrained"):
                kind.from_pretrained(folder)
    LanguageModel(7, hidden=4).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "lexicon.json").write_text("{}")  # what save_pretrained writes names no task
    with pytest.raises(DataError, match=r"this is a tagger's run"):
        LanguageModel.from_pretrained(tmp_path / "model")


def test_a_name_that_is_no_folder_is_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("runs/bok", "./bok"):
        with pytest.raises(InputError, match="there is no such folder"):
            LanguageModel.from_pretrained(name)
