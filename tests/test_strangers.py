"""Files from others: every command ends with status 0 or 2 and a line, runs nothing of theirs, overwrites nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import py_compile
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elman.app import cli, jobs
from elman.data import Tokenizer, windows
from elman.data.cache import trim
from elman.data.schema import Odd, each, number, parsed, plain, record, text, whole
from elman.errors import DataError, InputError
from elman.models import LanguageModel
from elman.tasks import lm
from elman.tasks.settings import KeepingSettings, StackSettings, TrainingSettings
from elman.training import FORMAT, Measure, Run, Trainer, Training, locked
from tests import pairwise
from tests.strangers import (
    CELL,
    COMMANDS,
    KEPT,
    TEXT,
    Spoil,
    content,
    copy,
    elman,
    facts,
    fields,
    instead,
    link,
    logged,
    on,
    pipe,
    tensors,
    weights,
)  # fmt: skip

CONFIG, WEIGHTS, TOKENIZER, LOG = "config.json", "model.safetensors", "tokenizer.json", "log.jsonl"
DEEP = b"[" * 100_000
VOCABULARY = json.loads((KEPT / "run" / TOKENIZER).read_bytes())["model"]["vocab"]
BIG = 10**400

# What it is: (how, what the commands that must refuse it say). The others may take it or refuse it.
SPOILED: dict[str, tuple[Spoil, dict[str, str]]] = {
    "config: brackets": (content(CONFIG, DEEP), dict.fromkeys(COMMANDS, "no configuration")),
    "config: no UTF-8": (content(CONFIG, b"\xff\xfe{"), dict.fromkeys(COMMANDS, "no configuration")),
    "config: a pipe": (instead(CONFIG, pipe), {}),
    "config: a folder": (instead(CONFIG, Path.mkdir), {}),
    "config: a device": (instead(CONFIG, link("/dev/zero")), {}),
    "config: format": (fields(CONFIG, format=FORMAT + 1), dict.fromkeys(COMMANDS, "another version")),
    "config: cell 5": (fields(CONFIG, cell=5), {"generate": "cell", "evaluate": "cell"}),
    "config: cell null": (fields(CONFIG, cell=None), {"generate": "cell"}),
    "config: cell NUL": (fields(CONFIG, cell="a\0.py:C"), {"generate": "cell"}),
    "config: cell unknown": (fields(CONFIG, cell="\x1b[2Jgrue"), {"generate": "no cell of that name"}),
    "config: vocabulary": (fields(CONFIG, vocabulary=14), {"generate": "do not fit", "evaluate": "do not fit"}),
    "config: hidden": (fields(CONFIG, hidden=20_000), {"generate": "do not fit"}),
    "config: hidden huge": (fields(CONFIG, hidden=BIG), {"generate": "whole number"}),
    "config: hidden real": (fields(CONFIG, hidden=4.0), {"generate": "whole number"}),
    "config: layers": (fields(CONFIG, layers=2), {"generate": "do not fit"}),
    "config: many layers": (fields(CONFIG, layers=50_000), {"generate": "do not fit"}),
    "config: tied": (fields(CONFIG, tie=True), {"generate": "do not fit"}),
    "config: condition": (fields(CONFIG, condition=2**20), {"generate": "do not fit"}),
    "config: dropout": (fields(CONFIG, dropout="x"), {"generate": "number"}),
    "config: data null": (fields(CONFIG, data=None), {"held out": "data"}),
    "config: data empty": (fields(CONFIG, data={}), {"held out": "what text was held out"}),
    "config: files 5": (fields(CONFIG, data__files=5), {"held out": "list"}),
    "config: a name with NUL": (fields(CONFIG, data__files=["a\0b"]), {"held out": "name of a file"}),
    "config: digest null": (fields(CONFIG, data__digest=None), {"held out": "text"}),
    "config: training nested": (fields(CONFIG, training={"a": [[]]}), dict.fromkeys(COMMANDS, "plain value")),
    "weights: empty": (content(WEIGHTS, b""), {"generate": "weights cannot be read"}),
    "weights: a pipe": (instead(WEIGHTS, pipe), {"generate": "no model"}),
    "weights: NaN": (weights(lambda w: {k: v * torch.nan for k, v in w.items()}), {"generate": "no numbers"}),
    "weights: infinite": (weights(lambda w: {k: v / 0 for k, v in w.items()}), {"evaluate": "no numbers"}),
    "weights: huge": (weights(lambda w: {k: v * 1e38 for k, v in w.items()}), {"evaluate": "no number"}),
    "weights: int": (weights(lambda w: {k: v.long() for k, v in w.items()}), {"generate": "int64"}),
    "weights: bool": (weights(lambda w: {k: v > 0 for k, v in w.items()}), {"generate": "bool"}),
    "weights: complex": (weights(lambda w: {k: v + 0j for k, v in w.items()}), {"generate": "complex"}),
    "weights: none": (weights(lambda w: {}), {"generate": "do not fit"}),
    "weights: too many": (weights(lambda w: {**w, "x": torch.ones(2)}), {"generate": "do not fit"}),
    "tokenizer: no UTF-8": (content(TOKENIZER, b"\xff"), {"generate": "no tokenizer"}),
    "tokenizer: brackets": (content(TOKENIZER, DEEP), {"generate": "no tokenizer"}),
    "tokenizer: a device": (instead(TOKENIZER, link("/dev/zero")), {}),
    "tokenizer: an id": (fields(TOKENIZER, model__vocab__a=4 * 10**8), {"generate": "numbered 0, 1"}),
    "tokenizer: ids equal": (fields(TOKENIZER, model__vocab=dict.fromkeys("abc", 1)), {"evaluate": "numbered 0, 1"}),
    "tokenizer: no symbols": (fields(TOKENIZER, model__vocab={}), {"generate": "numbered 0, 1"}),
    "tokenizer: one more": (fields(TOKENIZER, model__vocab__z=15), {"evaluate": "not of one run"}),
    "tokenizer: long symbol": (
        fields(TOKENIZER, model__vocab={("th" if k == "t" else k): v for k, v in VOCABULARY.items()}),
        {"generate": "more than a character"},
    ),
    "tokenizer: truncation": (
        fields(TOKENIZER, truncation={"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}),
        {"evaluate": "truncation"},
    ),
    "tokenizer: padding": (fields(TOKENIZER, padding={"strategy": {"Fixed": 2**40}}), {"evaluate": "padding"}),
    "tokenizer: normalizer": (fields(TOKENIZER, normalizer={"type": "Lowercase"}), {"evaluate": "normalizer"}),
    "tokenizer: pattern": (
        fields(TOKENIZER, pre_tokenizer__pattern={"Regex": "(a+)+$"}), {"evaluate": "pre_tokenizer"}
    ),
    "tokenizer: unigram": (
        fields(TOKENIZER, model={"type": "Unigram", "vocab": {"a": 0}}), {"generate": "no tokenizer"}
    ),
    "log: a number": (logged("5\n"), {}),
    "log: no step": (logged('{"loss": 1}\n'), {}),
    "log: step a text": (logged('{"step": "x"}\n'), {}),
    "log: step huge": (logged(f'{{"step": {BIG}, "sample": "x"}}\n'), {}),
    "log: step real": (logged('{"step": 1e308, "loss": 1e308}\n'), {}),
    "log: no UTF-8": (logged(b"\xff\n"), {}),
    "log: cut": (logged(b'{"step": 3, "sample": "\xc3'), {}),
    "log: brackets": (logged(DEEP + b"\n"), {}),
    "log: loss huge": (logged(f'{{"step": 21, "loss": {BIG}}}\n'), {}),
    "log: tiny": (logged('{"step": 21, "loss": 1e-320, "norm": 5e-324}\n'), {}),
    "log: symbols a text": (logged('{"step": 90, "loss": 1, "symbols": "many", "seconds": 5}\n'), {}),
    "log: done null": (logged('{"step": 90, "loss": 1, "done": null}\n'), {}),
    "log: reach": (logged('{"step": 90, "reach": [1, 1e308, "x"]}\n'), {}),
    "log: stages": (logged('{"step": 90, "stages": {"data": -1, "x": 1e300}}\n'), {}),
    "log: a long line": (logged('{"step": 91, "sample": "' + "x" * 3_000_000 + '"}\n'), {}),
    "log: a pipe": (instead(LOG, pipe), {"report": "it is a pipe"}),
    "log: a device": (instead(LOG, link("/dev/zero")), {"report": "it is a device"}),
    "lock: a folder": (instead(".lock", Path.mkdir), {"resume": "it is a folder"}),
    "lock: a pipe": (instead(".lock", pipe), {"resume": "it is a pipe"}),
    "report: a folder": (instead("report.html", Path.mkdir), {"report": "cannot be written"}),
}  # fmt: skip
# A checkpoint that cannot be gone on from is passed over, and the run begins anew.
FORGED: dict[str, Spoil] = {
    "cut": lambda run: os.truncate(next((run / "checkpoints").iterdir()), 100),
    "a pipe": instead("checkpoints/step-0000000010.safetensors", pipe),
    "nested": facts(carried=[[[]]]),
    "threads": facts(threads=10**6),
    "no threads": facts(threads=-1),
    "position": facts(position=[0, -5]),
    "far position": facts(position=[0, 10**12]),
    "position a text": facts(position="ab"),
    "step": facts(step="x"),
    "seconds": facts(seconds=float("nan")),
    "losses": facts(losses="abc"),
    "best": facts(best="abc"),
    "carried": facts(carried=[None, None]),
    "worse": facts(worse=BIG),
    "moments": tensors(lambda t: {k: v[:1] if k.endswith("exp_avg") else v for k, v in t.items()}),
    "moments of ints": tensors(lambda t: {k: v.int() if "exp_avg" in k else v for k, v in t.items()}),
    "no moments": tensors(lambda t: {k: v for k, v in t.items() if not k.endswith("exp_avg_sq")}),
    "weights of ints": tensors(lambda t: {k: v.int() if k.startswith("model.") else v for k, v in t.items()}),
    "state": tensors(lambda t: {**t, "carried.0": torch.ones(1, 1)}),
    "random": tensors(lambda t: {**t, "random": torch.zeros(5056, dtype=torch.uint8)}),
    "short random": tensors(lambda t: {**t, "random": torch.zeros(7, dtype=torch.uint8)}),
}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run folder of a stranger's; when a command is through, what lies beside it is as it was."""
    (tmp_path / "beside").write_text("beside\n")
    yield copy(tmp_path / "run")
    assert (tmp_path / "beside").read_text() == "beside\n"
    assert {path.name for path in tmp_path.iterdir()} <= {"beside", "run", "mine.py", "RAN"}


def fair(said: Any) -> None:
    """What every command owes its user."""
    assert said.status in (0, 2), said.err
    assert "Traceback" not in said.err
    assert "defect of elman" not in said.err, said.err
    assert said.status == 0 or said.err.startswith("error: ")
    assert not {"\x1b", "\0"} & set(said.err)


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_file_is_told_in_words(name: str, run: Path) -> None:
    spoil, refused = SPOILED[name]
    spoil(run)
    for command in ("report", "evaluate", "held out", "generate"):
        if name.partition(":")[0] in ("log", "report", "lock") and command != "report":
            continue  # what they do not open
        if refused and command not in (*refused, "report") and not pairwise.exhaustive:
            continue  # they open it by the same door as one of those that refuse it
        said = on(run, command)
        fair(said)
        if command in refused:
            assert said.status == 2, said.out
            assert refused[command] in said.err
            assert str(run) in said.err


@pytest.mark.parametrize("name", [name for name, (_, refused) in SPOILED.items() if "resume" in refused])
def test_a_run_that_cannot_be_gone_on_with_says_why(name: str, run: Path) -> None:
    spoil, refused = SPOILED[name]
    spoil(run)
    said = on(run, "resume")
    fair(said)
    assert said.status == 2
    assert refused["resume"] in said.err


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_checkpoint_is_passed_over(name: str, run: Path) -> None:
    FORGED[name](run)
    told: list[str] = []
    keeper = resumed(run, told)
    assert not keeper.resumed
    assert keeper.training.step == 0
    assert "passed over" in told[0]
    assert "step-0000000010" in told[0]


def resumed(run: Path, told: list[str]) -> Any:
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(run / TOKENIZER)
    tokens = tokenizer.encode(TEXT.read_text())
    model = LanguageModel(tokenizer.size, hidden=4, embedding=4)
    before = [p.clone() for p in model.parameters()]
    drawn = torch.get_rng_state()
    keeper = Trainer(
        Training(model, windows(tokens[:1728], 8, 4), steps=20), Run(run), lambda: Measure(1.0, "figure"),
        resume=True, notify=told.append,
    )  # fmt: skip
    if not keeper.resumed:
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert torch.equal(drawn, torch.get_rng_state())
    return keeper


def test_odd_lines_of_a_log_stop_no_run(run: Path) -> None:
    whole_lines = (run / LOG).read_bytes().splitlines(keepends=True)
    odd = [
        b"5\n",
        b"[1]\n",
        b'{"loss": 1}\n',
        b'{"step": "x"}\n',
        b"\xff\n",
        DEEP + b"\n",
        b"x" * 3_000_000 + b"\n",
    ]
    (run / LOG).write_bytes(b"".join(odd[:4] + whole_lines + odd[4:] + [b'{"step": 1']))
    said = on(run, "resume")
    assert said.status == 0, said.err
    assert "going on from step 10" in said.out
    lines = [json.loads(line) for line in (run / LOG).read_bytes().splitlines()]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert sum("loss" in line for line in lines) == 2


# --- bytes and fields, spoiled at random ------------------------------------------------------------------------------

ODD = [None, True, -1, 0, 3, 2**31, 2**64, BIG, 0.5, 1e308, float("nan"), float("inf"), "", "x", "\0", "../x", "\ud800",
       "x" * 5000, [], {}, [[]], [None] * 20, {"": {}}, "/dev/zero", "/**/*"]  # fmt: skip


@pairwise.examples(6, 15)
@given(
    st.sampled_from([CONFIG, TOKENIZER, LOG, WEIGHTS]),
    st.sampled_from(["flip", "cut", "insert"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=4),
)
def test_any_byte_may_be_another(name: str, how: str, place: float, other: bytes) -> None:
    def spoil(run: Path) -> None:
        raw = (run / name).read_bytes()
        at = int(place * len(raw))
        if how == "cut":
            raw = raw[:at]
        elif how == "insert":
            raw = raw[:at] + other + raw[at:]
        else:
            raw = raw[:at] + other + raw[at + len(other) :]
        (run / name).write_bytes(raw)

    all_fair(spoil, name)


@pairwise.examples(10, 25)
@given(st.sampled_from([CONFIG, TOKENIZER, LOG]), st.integers(0, 200), st.sampled_from(ODD))
def test_any_field_may_be_of_any_type(name: str, place: int, other: Any) -> None:
    def spoil(run: Path) -> None:
        lines = (run / name).read_text().splitlines() if name == LOG else [(run / name).read_text()]
        number = place % len(lines)
        value = json.loads(lines[number])
        places = list(inner(value))
        container, key = places[place % len(places)]
        container[key] = other
        lines[number] = json.dumps(value)
        (run / name).write_text("\n".join(lines) + "\n")

    all_fair(spoil, name)


def inner(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from inner(value[key])


def all_fair(spoil: Spoil, name: str) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        run = copy(folder / "run")
        spoil(run)
        fair(on(run, "report"))
        if name != LOG:
            fair(on(run, "evaluate"))
            fair(on(run, "generate"))
    finally:
        shutil.rmtree(folder)


# --- code of others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell", ["evil.py:Cell", "./evil.py:Cell", "/proc/self/cwd/evil.py:Cell", "evil:Cell"]
)
def test_no_code_of_a_stranger_runs(cell: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "evil.py").write_text(CELL)
    fields(CONFIG, cell=cell)(run)
    monkeypatch.chdir(run)
    for command in ("report", "generate", "evaluate", "held out"):
        said = on(Path("."), command)
        fair(said)
        assert said.status == (0 if command == "report" else 2)
        assert command == "report" or "--trust" in said.err
    for load in (LanguageModel.from_pretrained, lambda folder: LanguageModel.load(Run.open(folder))):
        with pytest.raises(InputError, match=r"evil.*SHA-256 [0-9a-f]{64}"):
            load(".")
    assert not (run / "RAN").exists()


def test_a_module_of_a_package_is_found_without_running_the_package(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = run / "strange"
    package.mkdir()
    (package / "__init__.py").write_text(CELL)
    (package / "inner.py").write_text(CELL)
    fields(CONFIG, cell="strange.inner:Cell")(run)
    monkeypatch.chdir(run)
    said = on(Path("."), "generate")
    assert str(package / "inner.py") in said.err.replace("\n", "")
    assert not (package / "RAN").exists()


def test_a_cell_of_ones_own_is_trusted_by_its_digest(run: Path, tmp_path: Path, caplog: Any) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(CELL)
    model = LanguageModel(15, f"{mine}:Cell", hidden=4, embedding=4)
    model.save_pretrained(run)
    config = json.loads((run / CONFIG).read_text())
    assert len(config["cell_digest"]) == 64
    refused = on(run, "generate")
    assert refused.status == 2
    assert config["cell_digest"] in refused.err
    # What lies compiled beside it, of the same size and time, is not what the digest is of.
    other = tmp_path / "run" / "other.py"
    other.write_text(CELL.replace("RAN", "PWN"))
    os.utime(other, ns=(mine.stat().st_mtime_ns,) * 2)
    cached = Path(importlib.util.cache_from_source(str(mine)))
    py_compile.compile(str(other), str(cached), dfile=str(mine), doraise=True)
    (tmp_path / "RAN").unlink()
    lines: list[str] = []
    again = LanguageModel.from_pretrained(run, trust=True, notify=lines.append)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert (tmp_path / "RAN").exists()
    shutil.rmtree(cached.parent)
    assert str(mine) in lines[0]
    assert config["cell_digest"] in lines[0]
    assert "edited" not in lines[0]
    mine.write_text(CELL + "# edited\n")
    with caplog.at_level(logging.WARNING, "elman"):
        LanguageModel.from_pretrained(run, trust=True)
    assert "it was edited since training" in caplog.messages[0]
    mine.rename(tmp_path / "run" / "moved.py")
    with pytest.raises(InputError, match=r"no such file(.|\n)*--cell"):
        LanguageModel.from_pretrained(run, trust=True)
    moved = f"{run / 'moved.py'}:Cell"
    with pytest.raises(InputError, match="trust"):
        LanguageModel.from_pretrained(run, cell=moved)
    LanguageModel.from_pretrained(run, cell=moved, trust=True, notify=lines.append)


def test_a_run_says_what_its_cell_was(tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.py", tmp_path / "new"

    def begun(resume: str = "never") -> jobs.TrainingJob:
        stack = StackSettings(f"{mine}:Cell", hidden=4)
        how = lm.Settings([TEXT], cache=tmp_path / "cache", stack=stack, embedding=4, window=8)
        training = TrainingSettings(steps=2, batch=4)
        return jobs.prepare(lm.Language, how, training, KeepingSettings(out, resume=resume))

    mine.write_text(CELL)
    job = begun()
    Run.create(out, job.config, job.task.kept()).save(job.model)
    digest = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert json.loads((out / CONFIG).read_text())["cell_digest"] == digest
    assert on(out, "generate").status == 2
    said = on(out, "generate", "--trust", "--length", "0")
    assert said.status == 0
    assert f"running the code of the cell {mine}:Cell: {mine}, SHA-256 {digest}\n" in said.err
    mine.write_text(CELL + "# edited\n")
    assert Run.unfinished(out, begun("auto").config) is not None
    assert "it was edited since training" in on(out, "generate", "--trust", "--length", "0").err


# --- nothing is overwritten -------------------------------------------------------------------------------------------


def test_no_link_is_followed_on_writing(run: Path, tmp_path: Path) -> None:
    for name in (".lock", "report.html", LOG):
        instead(name, link(tmp_path / "beside"))(run)
    assert on(run, "report").status == 0
    assert not (run / "report.html").is_symlink()
    said = on(run, "resume")
    fair(said)
    assert "it is a link" in said.err
    with pytest.raises(DataError, match="it is a link"), locked(run):
        pass
    Run(run).log({"step": 1})
    (run / ".lock").unlink()
    os.link(tmp_path / "beside", run / ".lock")
    with pytest.raises(DataError, match="it holds something else"), locked(run):
        pass


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_folder_elsewhere_is_left_alone(name: str, run: Path, tmp_path: Path) -> None:
    elsewhere = run / "elsewhere"
    shutil.copytree(run / "checkpoints", elsewhere)
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(elsewhere)
    for more in ([], ["--overwrite"]):
        said = on(run, "resume", *more)
        assert said.status == 2
        assert "holds a link" in said.err
    assert len(list(elsewhere.iterdir())) == 1


def test_the_oldest_of_a_cache_goes_first(tmp_path: Path) -> None:
    names = [f"{k:040x}.tokens" for k in range(4)]
    for age, name in enumerate([*names, "somebody's.txt", f".{0:040x}.tokens.abc"]):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    trim(tmp_path, 300, keep=[tmp_path / names[0]])
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {names[0], names[3], "somebody's.txt", f".{0:040x}.tokens.abc"}


# --- options ----------------------------------------------------------------------------------------------------------

TRAIN = ["train", "lm", str(TEXT), "--out", "new", "--steps", "2"]
OPTIONS = {
    "seed": [*TRAIN, "--seed", 2**64],
    "hidden": [*TRAIN, "--hidden", 10**6],
    "hidden huge": [*TRAIN, "--hidden", BIG],
    "layers": [*TRAIN, "--layers", 10**6],
    "embedding": [*TRAIN, "--embedding", 2**24, "--hidden", 2**20],
    "window": [*TRAIN, "--window", 10**18],
    "lr": [*TRAIN, "--lr", "inf"],
    "clip": [*TRAIN, "--clip", "nan"],
    "decay": [*TRAIN, "--weight-decay", "inf"],
    "minutes": [*TRAIN[:-2], "--minutes", "inf"],
    "long name": [*TRAIN[:3], "--out", "x" * 300],
    "long text": ["train", "lm", "x" * 300],
    "long cell": [*TRAIN, "--cell", "x" * 300 + ".py:C"],
    "report long": ["report", "x" * 300],
    "evaluate long": ["evaluate", "x" * 300],
    "generate long": ["generate", "x" * 300],
    "no UTF-8": ["generate", "\udcff"],
    "report no UTF-8": ["report", "\udcff"],
    "cell no UTF-8": [*TRAIN, "--cell", "\udcff.py:C"],
    "temperature": ["generate", KEPT / "run", "--temperature", "inf"],
    "temperature tiny": ["generate", KEPT / "run", "--temperature", "1e-300"],
    "top k": ["generate", KEPT / "run", "--top-k", 2**70],
    "samples": ["generate", KEPT / "run", "--samples", 10**9],
    "generate seed": ["generate", KEPT / "run", "--seed", 2**64],
    "prompt": ["generate", KEPT / "run", "--prompt", "\udcff"],
    "explain": ["explain", "gru", "--hidden", 10**9],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_cannot_be_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = elman(*OPTIONS[name])
    assert said.status == 2, said.out
    assert "Traceback" not in said.err
    assert "defect of elman" not in said.err, said.err


def test_what_nobody_thought_of_is_a_line_and_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Panic(BaseException):
        pass

    def broken(*given: Any) -> None:
        raise Panic("ouch\x1b")

    monkeypatch.setattr(jobs, "opened", broken)
    said = elman("generate", KEPT / "run")
    (path,) = tmp_path.iterdir()
    assert said.status == 2
    assert said.err.startswith("error: this is a defect of elman, please report it: Panic: ouch\ufffd\n")
    assert str(path) in said.err
    assert "def broken" not in said.err
    assert "in broken" in path.read_text()
    monkeypatch.setattr(jobs, "opened", lambda *given: (_ for _ in ()).throw(MemoryError()))
    assert "not enough memory" in elman("generate", KEPT / "run").err
    assert cli.plain("a\x1b[2J\x07\u202eb\n") == "a\ufffd[2J\ufffd\ufffdb\n"


@pytest.mark.parametrize("name", ["[/b]\x1b\na\udcff"])
def test_a_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    run = copy(tmp_path / name)
    for command in ("report", "evaluate", "generate", "resume"):
        said = on(run, command)
        assert said.status == 0, said.err
    assert "going on from step 10" in said.out


# --- versions ---------------------------------------------------------------------------------------------------------


def test_what_the_first_version_wrote_opens(run: Path) -> None:
    """tests/kept_run was written by elman 0.1.0.dev0, format 2; its last checkpoint is of step 10 of 20."""
    said = on(run, "evaluate")
    assert said.out.startswith("3.8556 bits per character (2.6725 nats), over 1,919 characters"), said.err
    assert on(run, "generate").status == 0
    assert on(run, "report").status == 0
    model = LanguageModel.from_pretrained(KEPT / "model")
    kept = LanguageModel.load(Run.open(run))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept.parameters(), strict=True))
    assert Tokenizer.load(KEPT / "model" / TOKENIZER).size == 15
    said = on(run, "resume")
    assert said.status == 0, said.err
    assert "going on from step 10" in said.out
    assert json.loads((run / LOG).read_text().splitlines()[-1])["step"] == 20


def test_a_run_goes_on_with_the_restarts_that_it_began_with(run: Path) -> None:
    """What was written before windows began anew by default has none; what says another share keeps it."""
    assert "restart" not in json.loads((run / CONFIG).read_text())["training"]
    assert on(run, "resume").status == 0
    for kept in (0.5, 0.25):
        config = json.loads((run / CONFIG).read_text())
        config["training"]["restart"] = kept
        (run / CONFIG).write_text(json.dumps(config))
        assert on(run, "resume").status == 0
        assert json.loads((run / CONFIG).read_text())["training"]["restart"] == kept
    from elman.tasks.lm import Language, Settings

    asked = Settings(restart=0.1, given=frozenset({"restart"}))
    assert Language.going_on(asked, config) is asked
    assert Language.going_on(Settings(), {"training": {"restart": "all"}}).restart == 0
    assert Language.going_on(Settings(), {}).restart == 0
    assert Settings().restart == 0.25


def test_a_model_says_its_format_and_a_newer_one_is_refused(tmp_path: Path) -> None:
    LanguageModel(5, hidden=3, embedding=2).save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["format"] == FORMAT
    fields(CONFIG, format=FORMAT + 1)(tmp_path)
    with pytest.raises(DataError, match=rf"another version(.|\n)*format\n  got: {FORMAT + 1}"):
        LanguageModel.from_pretrained(tmp_path)


# --- the schema -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "raw", "place"),
    [
        (whole(0, 5), "6", ""),
        (whole(0, 5), "true", ""),
        (whole(0, 5), "1.0", ""),
        (number(0, 1), "NaN", ""),
        (number(0, 1), str(BIG), ""),
        (text(3), '"abcd"', ""),
        (plain, "[]", ""),
        (each(text(3), 2), '["a", 1]', "[1]"),
        (each(text(3), 2), '["a", "b", "c"]', ""),
        (each(text(3), 2, named=True), '{"a": 1}', "['a']"),
        (record({"a": record({"b": plain})}), '{"a": {}}', "a.b"),
        (record({}, {"a": plain}), '{"a": {}}', "a"),
        (plain, "[" * 40 + "]" * 40, ""),
        (plain, b"\xff", ""),
        (plain, b"[" + b"[]," * 2**21 + b"[]]", ""),
        (plain, b" " * 2**25 + b"1", ""),
    ],
    ids=range(16),
)
def test_a_value_is_what_it_stands_for(check: Any, raw: str | bytes, place: str) -> None:
    with pytest.raises(Odd) as caught:
        parsed(raw, check)
    assert caught.value.place == place
    assert caught.value.expected
    assert parsed('{"a": {"b": 1, "more": [1]}}', record({"a": record({"b": plain})}))["a"]["b"] == 1
