"""The command that serves: what it says, and how it ends."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import queue
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from elman.app import cli
from elman.errors import DataError, InputError
from elman.serve import server
from elman.serve.asked import Ask
from elman.serve.http import read_keys
from elman.serve.server import Server, listening, made
from elman.serve.settings import Serving
from elman.tasks.lm import Language
from tests.serve.test_scheduler import WAIT, language
from tests.strangers import KEPT
from tests.strangers import elman as elman_command


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = str(KEPT / "run")
    taken = socket.create_server(("127.0.0.1", 0))
    with taken:
        found = CliRunner().invoke(cli.app, ["serve", run, "--port", str(taken.getsockname()[1])])
    assert "nothing can listen there" in str(found.exception)
    (tmp_path / "keys").write_text("\n# none\n")
    with pytest.raises(DataError, match="no keys"):
        read_keys(tmp_path / "keys")
    seen = []
    monkeypatch.setattr(Server, "run", lambda *_: seen.append(signal.getsignal(signal.SIGPIPE)))
    said = elman_command("serve", run, "--port", "0")
    assert re.fullmatch(r"run is served at http://127.0.0.1:\d+\n", said.out)
    assert seen == [signal.SIG_IGN]  # a client that goes away ends no server
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = CliRunner().invoke(cli.app, ["serve", run])
    assert "pip install 'elman[serve]'" in str(found.exception)


def test_the_precision_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    model, said = language(), []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    for precision in ("float32", "bfloat16"):
        serve = made(Language(model.tokenizer), model, "tiny", Serving(precision=precision))  # type: ignore[arg-type]
        assert serve.scheduler is not None
        serve.scheduler.close()
    assert said == ["medium"]
    with pytest.raises(InputError, match="unknown precision"):
        made(Language(model.tokenizer), model, "tiny", Serving(precision="float8"))  # type: ignore[arg-type]


def test_nothing_computes_any_more_when_the_server_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is in native code when the interpreter ends may take the process with it."""
    model, limits = language(), Serving(port=0)
    serve = made(Language(model.tokenizer), model, "tiny", limits)  # type: ignore[arg-type]
    scheduler = serve.scheduler
    assert scheduler is not None
    turn, begun = scheduler._turn, threading.Event()

    def slow(*given: Any) -> None:
        begun.set()
        time.sleep(0.3)
        turn(*given)

    def run(self: Server, sockets: Any) -> None:
        scheduler.submit([Ask(np.array([1]), 10**9)])
        begun.wait(WAIT)

    monkeypatch.setattr(scheduler, "_turn", slow)
    monkeypatch.setattr(Server, "run", run)
    with listening(limits) as listener:
        server._run(serve, listener, lambda words: None)
    assert not scheduler._thread.is_alive()


def test_sigterm_lets_a_stream_end_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in this process, which gets the signal from a client's thread in the middle of a stream."""
    listeners: queue.Queue[socket.socket] = queue.Queue()

    def listens(limits: Serving) -> socket.socket:
        listeners.put(listener := listening(limits))
        return listener

    def client() -> list[str]:
        connection = http.client.HTTPConnection(*listeners.get(timeout=WAIT).getsockname(), timeout=WAIT)
        options = {"max_tokens": 2000, "stream": True, "stream_options": {"include_usage": True}}
        how = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "a", **options}), how)
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: ")
        os.kill(os.getpid(), signal.SIGTERM)
        events = answer.read().decode().strip().split("\n\n")
        connection.close()
        return events

    monkeypatch.setattr(server, "listening", listens)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client)
        said = elman_command("serve", str(KEPT / "run"), "--port", "0")
        *_, last, usage, done = asked.result(WAIT)
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 2000
    assert done == "data: [DONE]"
    assert re.fullmatch(r"run is served at http://127.0.0.1:\d+\n", said.out)
    assert (said.status, said.err.strip()) == (128 + signal.SIGTERM, "")
