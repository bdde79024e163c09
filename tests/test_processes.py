"""Several processes train one model: real ones, started by torchrun, against one process with the same batch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from elman.data import Tokenizer, windows
from elman.errors import InputError, NotSupported, StateError
from elman.models import LanguageModel
from elman.precision import of_products
from elman.training import Measure, Processes, Run, Trainer, Training
from tests.precision import reduces
from tests.strangers import elman

pytest.importorskip("accelerate", reason="several processes need elman[accelerate]")

TEXT = "the cat sat on the mat, and the dog lay by the log; who was it that saw them there?\n" * 80
TIMEOUT = 240.0


def command(processes: int, folder: Path, *more: str) -> list[str]:
    text = folder.parent / "text.txt"
    text.write_text(TEXT)
    many = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    train = f"-m elman train lm {text} --out {folder} --hidden 16 --window 16 --batch 4 --quiet"
    return [sys.executable, *many, *train.split(), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(processes: int, folder: Path, *more: str, status: int = 0) -> str:
    done = subprocess.run(
        command(processes, folder, *more), capture_output=True, text=True, timeout=TIMEOUT, env=environment()
    )
    assert (done.returncode == 0) == (status == 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("loss", "norm", "valid") if name in line]


@pytest.mark.conformance  # test_tasks.py has it for another task
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    how = ("--cell", "lstm", "--layers", "2", "--embedding", "16", "--steps", "40")  # layers of one trace
    elman(*command(1, tmp_path / "one", *how)[3:])
    told = run(2, tmp_path / "two", *how)
    assert told.count("2 processes") == 1  # only the first one speaks
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 4 * 2 + 16
    assert two == pytest.approx(one, rel=1e-4)
    assert one[-1] < 0.9 * one[0]


@pytest.mark.conformance  # seven times PyTorch is imported
def test_two_processes_survive_and_one_goes_on_with_their_run(tmp_path: Path) -> None:
    how = ("--dropout", "0.2", "--steps", "600", "--checkpoint-every", "10")
    run(2, tmp_path / "alone", *how)
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        command(2, folder, *how), start_new_session=True, env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + TIMEOUT
    while len(list(folder.glob("checkpoints/*.safetensors"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    for number in (process.pid, *map(int, workers)):
        os.kill(number, signal.SIGKILL)
    process.wait()
    kept = sorted(folder.glob("checkpoints/*.safetensors"))
    assert kept
    assert int(kept[-1].stem.removeprefix("step-")) < 600
    run(2, folder, *how, "--resume", "auto")
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "alone/model.safetensors").read_bytes()
    # What two have written holds all lanes: one can take it up.
    assert "going on from step 600" in run(1, folder, *how, "--resume", "auto")


@pytest.mark.conformance
def test_what_the_first_process_refuses_ends_all(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/something").write_text("")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What torchrun tells its processes, without itself, which takes as long to start as one of them.
    where = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            command(1, tmp_path / "full", "--steps", "3"), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=environment() | where | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=TIMEOUT)[0] for process in started]
    assert all(process.returncode for process in started)
    assert "".join(told).count("error: the run folder is not empty") == 1


# --- in one process ---------------------------------------------------------------------------------------------------


def steps(processes: Processes) -> list[float]:
    tokenizer = Tokenizer.characters(TEXT)
    torch.manual_seed(0)
    model = LanguageModel(tokenizer.size, hidden=32)
    batches = windows(tokenizer.encode(TEXT), 64, 4)
    return [s.loss for s in Training(model, batches, steps=40, processes=processes)]


def test_bfloat16_learns_the_same() -> None:
    with Processes("bfloat16") as processes:
        low = steps(processes)
    full = steps(Processes())
    assert low != full or not reduces()
    assert low == pytest.approx(full, rel=0.02)


def test_bfloat16_keeps_weights_and_gradients_as_they_are() -> None:
    torch.manual_seed(0)
    model = LanguageModel(50, hidden=32)
    x, y = torch.randint(50, (2, 20, 8)).unbind()
    wanted = torch.autograd.grad(model.loss(x, y)[0], list(model.parameters()))
    before = of_products["mkldnn"]()
    with Processes("bfloat16").products():
        assert of_products["mkldnn"]() == "bf16"
        loss, state = model.loss(x, y)
        found = torch.autograd.grad(loss, list(model.parameters()))
    assert of_products["mkldnn"]() == before
    assert loss.dtype == state[0].dtype == torch.float32
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown precision"):
        Processes("float8")
    with pytest.raises(InputError, match="unknown device"):
        Processes(device="abacus")
    with pytest.raises(InputError, match="a multiple of the 2 processes"):
        windows(torch.arange(99), 4, 3).split(0, 2)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(NotSupported, match="pip install"):
        Processes()
    monkeypatch.delenv("WORLD_SIZE")
    assert Processes().count == Processes("bfloat16").count == 1  # one process on a CPU needs nothing


def second(monkeypatch: pytest.MonkeyPatch, told: Callable[[float], float]) -> Processes:
    """The second of two, as it is on a machine of its own. told: what both say together, of what this one says."""
    processes = Processes()
    processes.rank, processes.count = 1, 2
    monkeypatch.setattr(processes, "share", lambda parameters, *values: tuple(map(told, values)))
    monkeypatch.setattr(processes, "gathered", lambda part: part)
    return processes


def trainer(run: Run, processes: Processes, *, resume: bool = False) -> Trainer:
    tokenizer = Tokenizer.characters(TEXT)
    model = LanguageModel(tokenizer.size, hidden=8)
    made = Training(model, windows(tokenizer.encode(TEXT), 8, 4), steps=20, processes=processes)
    return Trainer(made, run, lambda: Measure(1.0, "figure"), checkpoint_every=5, resume=resume)


def test_only_the_first_writes_wherever_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "on another machine")
    list(trainer(run, second(monkeypatch, lambda value: 2 * value)))
    assert not run.folder.exists()


def test_who_finds_another_checkpoint_than_the_others_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "on another machine")
    with pytest.raises(InputError, match="do not go on from one checkpoint") as told:
        trainer(run, second(monkeypatch, lambda value: value + 15), resume=True)
    assert "step 0 in process 1" in str(told.value)


def test_the_end_of_another_process_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*parts: object) -> None:
        raise RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:20868.")

    processes = Processes()
    processes.count, processes._accelerator = 2, SimpleNamespace(reduce=gone, gather=gone)
    for meet in (lambda: processes.total(1.0), lambda: processes.gathered(torch.zeros(2))):
        with pytest.raises(StateError, match="another process of those that train together has ended"):
            meet()
