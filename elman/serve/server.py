"""A server that runs until it is told to end: uvicorn, with limits for clients that send slowly, or take slowly."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from elman.errors import InputError
from elman.models import LanguageModel
from elman.segments.segment import read_memory
from elman.serve.http import Serve, read_keys
from elman.serve.others import service
from elman.serve.scheduler import Scheduler
from elman.serve.settings import Serving
from elman.tasks.task import Task
from elman.training.processes import PRECISIONS

_BACKLOG = 2048  # connections that wait to be taken
_HEADERS = 2**15  # bytes of a request's head
_LAST = 5.0  # seconds for a step, or a block of a prompt, to end when the server has
_SWITCH = 0.001  # seconds after which a thread lets another one compute: half a step


def protocol(limits: Serving) -> type[H11Protocol]:
    """uvicorn's, that ends a connection on which no request is complete in time, or no answer is taken; and the ones
    that are too many."""

    class Patient(H11Protocol):
        _waits: Any = None  # for a request
        _pushes: Any = None  # for the answer to be taken

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
            else:
                self._expect()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._expect()

        def _expect(self) -> None:
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self._waits is None:
                self._waits = self.loop.call_later(limits.patience, self._late)
            elif not idle and self._waits is not None:
                self._waits.cancel()
                self._waits = None

        def _late(self) -> None:
            self._waits = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.abort()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._pushes = self.loop.call_later(limits.patience, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._pushes is not None:
                self._pushes.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for timer in (self._waits, self._pushes):
                if timer is not None:
                    timer.cancel()

    return Patient


def made(task: Task, model: Any, name: str, limits: Serving) -> Serve:
    """What answers for a model. Raises InputError for a task that is not served or a precision that is none, DataError
    for a file of keys."""
    keys = [] if limits.api_key_file is None else read_keys(limits.api_key_file)
    kept = read_memory(limits.kept, "--kept")
    if limits.precision not in PRECISIONS:
        raise InputError(
            what="unknown precision", where="--precision", got=limits.precision, expected=" or ".join(PRECISIONS),
            mend="take one of them",
        )  # fmt: skip
    torch.set_num_threads(limits.threads)
    if limits.precision == "bfloat16":  # for good: a server is a process of its own
        torch.set_float32_matmul_precision("medium")
    if isinstance(model, LanguageModel):
        assert isinstance(kept, int), "read from words"
        scheduler = Scheduler(model, rows=limits.requests, seconds=limits.seconds, kept=kept)
        return Serve(limits.name or name, limits, scheduler=scheduler, keys=keys)
    return Serve(limits.name or name, limits, service=service(task, model, limits), keys=keys)


def listening(limits: Serving) -> socket.socket:
    """A socket that listens at the address. Raises InputError where there cannot be one."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            limits.host, limits.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise InputError(
            what=f"nothing can listen there: {error.strerror or error}", where="--host, --port",
            got=f"{limits.host}:{limits.port}", mend="choose another --port; 0 takes one that is free",
        ) from error  # fmt: skip


class Server(uvicorn.Server):
    """uvicorn's. serve: what answers. When it is told to end, what runs has `limits.ending` seconds."""

    def __init__(self, serve: Serve) -> None:
        self.serve_of = serve
        limits = serve.limits
        super().__init__(
            uvicorn.Config(
                serve.app(), http=protocol(limits), loop="asyncio", ws="none", lifespan="on", log_level=logging.ERROR,
                access_log=False, server_header=False, proxy_headers=False, backlog=_BACKLOG,
                h11_max_incomplete_event_size=_HEADERS, timeout_keep_alive=int(limits.patience) + 1,
                timeout_graceful_shutdown=int(limits.ending) + 1,
            )
        )  # fmt: skip

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if (scheduler := self.serve_of.scheduler) is not None:
            scheduler.close(self.serve_of.limits.ending)
        await super().shutdown(sockets)


def run(task: Task, model: Any, name: str, limits: Serving, notify: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM. notify: is given the address, once somebody listens there."""
    listener = listening(limits)
    with listener:
        _run(made(task, model, name, limits), listener, notify)


def _run(serve: Serve, listener: socket.socket, notify: Callable[[str], None]) -> None:
    host, port = listener.getsockname()[:2]
    at = f"[{host}]" if ":" in host else host
    notify(f"{serve.name} is served at http://{at}:{port}")
    interval, pipe = sys.getswitchinterval(), getattr(signal, "SIGPIPE", None)
    sys.setswitchinterval(_SWITCH)
    # A command ends where nobody reads its output any more; a server goes on where a client has gone.
    before = None if pipe is None else signal.signal(pipe, signal.SIG_IGN)
    try:
        Server(serve).run([listener])
    finally:
        serve.close()
        if serve.scheduler is not None:  # else the interpreter's end could find its thread in native code
            serve.scheduler.join(_LAST)
        sys.setswitchinterval(interval)
        if pipe is not None:
            signal.signal(pipe, before)


def name_of(folder: Path) -> str:
    """What a model is called whose run lies there."""
    return folder.resolve().name or "model"
