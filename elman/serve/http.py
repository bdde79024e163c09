"""The routes: OpenAI's interface, and what else a browser or a monitor asks for."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from elman.data.files import read_file
from elman.data.schema import Odd, text
from elman.errors import DataError, ElmanError, InputError, StateError
from elman.serve.forms import Answer, Refused, completion, dumped, odd, read_body
from elman.serve.metrics import FORM, Metrics
from elman.serve.others import Service
from elman.serve.page import page
from elman.serve.scheduler import Busy, Scheduler
from elman.serve.settings import Serving

_LONG = 20_000  # characters of a body that is taken apart beside the loop, not in it


class Owner:
    """Who is told that there is news of a request."""

    def __init__(self) -> None:
        self.news, self.gone = asyncio.Event(), False

    async def watch(self, receive: Callable[[], Any]) -> None:
        """Until the client has gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.news.set()


class _Bell:
    """Called in the scheduler's thread with whom there is news of: one word to the loop for all of them, and none
    before it has heard the last one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.owners, self.rung = loop, deque[set[Owner]](), False

    def __call__(self, owners: set[Owner]) -> None:
        self.owners.append(owners)
        if not self.rung:
            self.rung = True
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._heard)

    def _heard(self) -> None:
        self.rung = False  # before looking: what comes now rings again
        while self.owners:
            for owner in self.owners.popleft():
                owner.news.set()


class Serve:
    """A model behind HTTP. scheduler: of a language model; service: of another. keys: of clients, none: all may ask."""

    def __init__(
        self, name: str, limits: Serving, *, scheduler: Scheduler | None = None, service: Service | None = None,
        keys: Sequence[bytes] = (), title: str = "",
    ) -> None:  # fmt: skip
        self.name, self.limits, self.scheduler, self.service, self.keys = (
            name,
            limits,
            scheduler,
            service,
            list(keys),
        )
        self.begun, self.metrics = int(time.time()), Metrics(scheduler)
        self._page = page(name, scheduler) if scheduler is not None else None
        self._worker, self._waiting = ThreadPoolExecutor(1, "elman-service"), 0

    def app(self) -> FastAPI:
        # Its own pages of documentation would come from another address.
        app = FastAPI(title=self.name, docs_url=None, redoc_url=None, openapi_url=None, lifespan=self._life)
        app.get("/health")(self.health)
        app.get("/metrics")(self.told)
        app.get("/v1/models")(self.models)
        app.get("/v1/models/{name:path}")(self.model)
        if self.scheduler is not None:
            app.get("/")(self.page)
            app.post("/v1/completions")(self.completions)
        elif self.service is not None:
            app.post(f"/v1/{self.service.path}")(self.served)
        for kind in (Refused, HTTPException, Exception):
            app.exception_handler(kind)(self._refusal)
        app.add_middleware(_Measured, metrics=self.metrics, serve=self)
        if self.limits.cors is not None:
            app.add_middleware(
                CORSMiddleware, allow_origins=[self.limits.cors], allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            )  # fmt: skip
        return app

    @asynccontextmanager
    async def _life(self, app: FastAPI) -> AsyncIterator[None]:
        if self.scheduler is not None:
            self.scheduler.notify = _Bell(asyncio.get_running_loop())
        yield
        self.close()

    def close(self) -> None:
        """Have nothing run any more."""
        if self.scheduler is not None:
            self.scheduler.notify = lambda owners: None
            self.scheduler.close()
        self._worker.shutdown(wait=False, cancel_futures=True)

    # --- small things -------------------------------------------------------------------------------------------------

    def stranger(self, path: str, headers: Mapping[bytes, str]) -> Refused | None:
        """Why a request is not answered, whatever it asks for."""
        # A page from elsewhere may have its own name stand for this machine, and ask as if it were from here.
        if _is_here(self.limits.host) and not _is_here(headers.get(b"host", "localhost")):
            return Refused(
                403, "this server is asked as 127.0.0.1 or localhost; see --host", code="wrong_host"
            )
        if self.keys and path not in ("/health", "/") and not self.allowed(headers.get(b"authorization", "")):
            return Refused(
                401, "give a key: Authorization: Bearer KEY", kind="authentication_error", code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
        return None

    def allowed(self, header: str) -> bool:
        """Whether a request with this Authorization may be answered. Every key is compared, each in constant time."""
        scheme, _, given = header.partition(" ")
        told = given.strip().encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else b""
        return sum(hmac.compare_digest(told, key) for key in self.keys) > 0

    async def health(self) -> Response:
        alive = self.scheduler is None or self.scheduler.alive
        return _json({"status": "ok" if alive else "ending"}, 200 if alive else 503)

    async def told(self) -> Response:
        return Response(self.metrics.text(), media_type=FORM)

    async def page(self) -> Response:
        assert self._page is not None
        return self._page

    async def models(self) -> Response:
        return _json({"object": "list", "data": [self._model]})

    async def model(self, name: str) -> Response:
        self._expect(name)
        return _json(self._model)

    @property
    def _model(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.begun, "owned_by": "elman"}

    def _expect(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise Refused(
                404,
                f"there is no model '{name[:100]}'; this is '{self.name}'",
                param="model",
                code="model_not_found",
            )

    def _refusal(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            words = {
                404: f"there is nothing at {request.url.path[:100]}",
                405: f"{request.method} is not for this",
            }
            error = Refused(error.status_code, words.get(error.status_code, str(error.detail)[:200]))
        elif not isinstance(error, Refused):  # its traceback is in the log
            error = Refused(
                500, "the server failed at this request", kind="server_error", code="internal_error"
            )
        return Response(error.body, error.status, error.headers, "application/json")

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a page elsewhere may send without asking is of another type
            raise Refused(415, "the body is JSON, with Content-Type: application/json")
        most, close = self.limits.body, {"connection": "close"}
        length = request.headers.get("content-length", "0")
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.patience):
                if not length.isdecimal() or int(length) <= most:
                    async for part in request.stream():
                        body += part
                        if len(body) > most:
                            break
                    else:
                        return bytes(body)
        except TimeoutError as error:
            raise Refused(408, "the body did not come in time", code="timeout", headers=close) from error
        except ClientDisconnect as error:
            raise Refused(400, "the body did not come to its end", headers=close) from error
        raise Refused(413, f"the body is larger than {most:,} bytes", code="body_too_large", headers=close)

    # --- a text -------------------------------------------------------------------------------------------------------

    async def completions(self, request: Request) -> Response:
        scheduler, raw = self.scheduler, await self._body(request)
        assert scheduler is not None
        tokenizer = scheduler.spelling.tokenizer
        how = raw, tokenizer, self.limits
        asked = completion(*how) if len(raw) < _LONG else await asyncio.to_thread(completion, *how)
        self._expect(asked.model)
        owner = Owner()
        try:
            jobs = scheduler.submit(asked.asks, owner)
        except Busy as error:
            raise _busy() from error
        except StateError as error:
            raise Refused(503, error.what, kind="server_error", code="closing") from error
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
            "model": self.name,
        }  # fmt: skip
        answer = Answer(asked, jobs, head, scheduler.spelling)
        return Written(answer, owner, self.metrics)

    # --- other tasks --------------------------------------------------------------------------------------------------

    async def served(self, request: Request) -> Response:
        service, raw = self.service, await self._body(request)
        assert service is not None
        if self._waiting >= self.limits.requests:
            raise _busy()
        fields = {"model": text(1000), **service.fields}

        def answer() -> bytes:
            asked = read_body(raw, fields, service.needed)
            self._expect(asked.get("model"))
            return dumped({"object": service.path, "model": self.name, **service.answer(asked)})

        self._waiting += 1
        asked = asyncio.get_running_loop().run_in_executor(self._worker, answer)
        asked.add_done_callback(self._done)
        try:
            # One that has begun cannot be stopped; what is waiting for it is let go.
            async with asyncio.timeout(self.limits.seconds):
                return Response(await asked, media_type="application/json")
        except TimeoutError as error:
            raise Refused(504, "the request took too long", kind="server_error", code="timeout") from error
        except Odd as error:
            raise odd(error) from error
        except (InputError, DataError) as error:
            raise Refused(400, _said(error)) from error

    def _done(self, asked: Any) -> None:
        self._waiting -= 1
        if not asked.cancelled():
            asked.exception()  # where nobody waits any more, nobody else asks


class Written(Response):
    """The answer to a request to write, sent as it is written, or whole. Whoever goes away is written for no longer."""

    def __init__(self, answer: Answer, owner: Owner, metrics: Metrics) -> None:
        super().__init__()
        self.answer, self.owner, self.metrics = answer, owner, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        watcher = asyncio.create_task(self.owner.watch(receive))
        try:
            await (self._stream(send) if self.answer.asked.stream else self._whole(send))
        finally:
            watcher.cancel()
            for job in self.answer.jobs:
                if job.reason is None:
                    job.cancel()
            self.metrics.ended(self.answer.jobs)

    async def _news(self) -> bool:
        """Wait for some; whether there is somebody to tell."""
        if not self.answer.ended:
            await self.owner.news.wait()
            self.owner.news.clear()
        return not self.owner.gone

    async def _whole(self, send: Any) -> None:
        while not self.answer.ended:
            if not await self._news():
                return
        failed = self.answer.failed()
        body = dumped(self.answer.whole()) if failed is None else failed.body
        await _start(send, 200 if failed is None else failed.status, b"application/json", len(body))
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Any) -> None:
        await _start(send, 200, b"text/event-stream; charset=utf-8")
        while True:
            ended = self.answer.ended  # before what is told: then that is all
            failed = self.answer.failed() if ended else None
            events = b"".join(self.answer.events())
            if ended:
                events += self.answer.last() if failed is None else b"data: " + failed.body + b"\n\n"
            if events:
                await send({"type": "http.response.body", "body": events, "more_body": not ended})
            if ended or not await self._news():
                return


class _Measured:
    """Around everything: who may ask, and what is counted."""

    def __init__(self, app: Any, metrics: Metrics, serve: Serve) -> None:
        self.app, self.metrics, self.serve = app, metrics, serve

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, status = time.perf_counter(), 0

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        headers = {
            key: value.decode("latin-1") for key, value in reversed(scope["headers"])
        }  # the first of a name
        try:
            if (error := self.serve.stranger(scope["path"], headers)) is not None:
                answer = Response(error.body, error.status, error.headers, "application/json")
                return await answer(scope, receive, sent)
            return await self.app(scope, receive, sent)
        finally:
            route = getattr(
                scope.get("route"), "path", "other"
            )  # as it was declared: a stranger's paths are endless
            self.metrics.answered(route, status, time.perf_counter() - begun)


def _is_here(host: str) -> bool:
    """Whether an address, or what a Host header says, is this machine alone."""
    name = host if host.count(":") > 1 else host.partition(":")[0]
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    try:
        return name.lower() == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def read_keys(path: Path) -> list[bytes]:
    """The lines of a file of keys. Raises DataError."""
    mend = "write a key in each line"
    lines = read_file(path, 2**20, "the keys", mend).splitlines()
    keys = [line.strip() for line in lines if line.strip() and not line.startswith(b"#")]
    if not keys:
        raise DataError(what="there are no keys in the file", where=path, mend=mend)
    return keys


def _busy() -> Refused:
    return Refused(
        429, "as much is being answered as may be; try again", kind="rate_limit_error", code="rate_limit_exceeded",
        headers={"retry-after": "1"},
    )  # fmt: skip


def _said(error: ElmanError) -> str:
    """An error about what was sent, in a line. It names rows and columns of a request, no files."""
    got = "" if error.got is None else f", got {error.got}"
    expected = "" if error.expected is None else f", expected {error.expected}"
    return f"{error.what} ({error.where}{got}{expected})"


def _json(value: Any, status: int = 200) -> Response:
    return Response(dumped(value), status, media_type="application/json")


async def _start(send: Any, status: int, kind: bytes, length: int | None = None) -> None:
    headers = [(b"content-type", kind), (b"cache-control", b"no-store")]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    await send({"type": "http.response.start", "status": status, "headers": headers})
