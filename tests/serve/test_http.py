"""The server, as clients meet it: OpenAI's own, strangers, and those who go away."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from elman.data import Tokenizer
from elman.serve.asked import Ask, Job, Scored
from elman.serve.forms import Choice, completion
from elman.serve.scheduler import Scheduler
from elman.serve.server import Server, listening, made
from elman.serve.settings import Serving
from elman.serve.written import Spelling
from elman.tasks.lm import Language
from tests.browsing import tab
from tests.serve.test_scheduler import LETTERS, WAIT, alone, language

KEY = "a key"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server in a thread, whose limits are small."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"# of the tests\n\nanother\n{KEY}\n")
    limits = Serving(
        port=0, requests=8, connections=20, body=20_000, prompt=5000, tokens=10**6, patience=0.4, api_key_file=keys,
        ending=0.2, cors="https://example.org",
    )  # fmt: skip
    model = language()
    serve, listener = made(Language(model.tokenizer), model, "tiny", limits), listening(limits)  # type: ignore[arg-type]
    running = Server(serve)
    thread = threading.Thread(target=running.run, args=([listener],))
    thread.start()
    yield SimpleNamespace(port=listener.getsockname()[1], scheduler=serve.scheduler, model=model)
    running.should_exit = True
    thread.join(WAIT)
    assert not thread.is_alive()


def ask(served: Any, body: Any, path: str = "/v1/completions", **headers: str) -> tuple[int, Any, Any]:
    """(status, JSON, headers). body: bytes as they are."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=WAIT)
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body)
    own = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
    connection.request("GET" if body is None else "POST", path, raw, own)
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    json_ = answer.headers.get_content_type() == "application/json"
    return answer.status, json.loads(said) if json_ else said.decode(), answer.headers


def settled(scheduler: Scheduler) -> None:
    """Wait until nothing runs."""
    end = time.monotonic() + WAIT
    while scheduler.open:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_openais_client(served: SimpleNamespace) -> None:
    openai = pytest.importorskip("openai")  # where it is needed: it takes seconds
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key=KEY, max_retries=0)
    tokenizer = served.model.tokenizer
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "elman"
    how: Any = {
        "model": "tiny",
        "prompt": ["abc", "hg"],
        "max_tokens": 12,
        "seed": 5,
        "n": 2,
        "temperature": 0.9,
    }
    whole = client.completions.create(**how)
    right = [
        tokenizer.decode(alone(served.model, Ask(tokenizer.encode(p).numpy(), 12, 0.9, seed=5, choice=k)))
        for k, p in enumerate(["abc", "abc", "hg", "hg"])
    ]
    assert [choice.text for choice in whole.choices] == right
    assert {choice.finish_reason for choice in whole.choices} == {"length"}
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 48)
    texts, reasons, usage = [""] * 4, [None] * 4, None
    for chunk in client.completions.create(**how, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == right
    assert reasons == ["length"] * 4
    assert usage is not None
    assert usage.completion_tokens == 48
    stop = right[0][4:6]
    found = client.completions.create(
        **{**how, "prompt": "abc", "n": 1}, stop=["zz", stop], echo=True, logprobs=2
    )
    cut = right[0][: right[0].index(stop)]
    assert (found.choices[0].text, found.choices[0].finish_reason) == ("abc" + cut, "stop")
    scored = found.choices[0].logprobs
    assert "".join(scored.tokens).startswith("abc" + cut)
    assert scored.token_logprobs[0] is None
    assert all(len(top) >= 2 for top in scored.top_logprobs[1:])
    assert scored.text_offset == list(range(len(scored.tokens)))
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.AuthenticationError, match="give a key"):
        client.with_options(api_key="a kez").models.list()
    client.close()


@pytest.mark.parametrize("given", ["a text", "symbols"])
@pytest.mark.parametrize(
    ("kind", "size", "offsets"),
    [
        ("characters", None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("bytes", None, [0, 1, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9]),
        ("words", None, [0, 3, 5, 8]),
    ],
)
def test_symbols_stand_where_they_begin_in_the_text(
    kind: str, size: int | None, offsets: list[int], given: str
) -> None:
    tokenizer = Tokenizer.of(kind, "is it so é and a text, it is", size)
    spelling, told, after = Spelling(tokenizer), "sé ☃ it", " so"
    symbols, more = tokenizer.encode(told).tolist(), tokenizer.encode(after).tolist()
    body = {"prompt": told if given == "a text" else symbols, "echo": True, "logprobs": 0}
    asked = completion(json.dumps(body).encode(), tokenizer, Serving())
    job = Job(asked.asks[0], threading.Condition(), lambda job: None, 0.0, 0.0)
    job.scored.extend(Scored(symbol, None, {}) for symbol in (*symbols, *more))
    pen, _ = spelling.begun(symbols[-1])
    job.pieces.extend(map(pen, more))
    text, scored = Choice(job, 0, asked.beginnings[0], spelling).more()
    assert scored is not None
    found = scored["text_offset"]
    whole = told if given == "a text" else tokenizer.decode(symbols)
    assert text.startswith(whole)
    if whole == told:
        assert found == offsets
    for name, at in zip(scored["tokens"], found, strict=True):
        if name.isascii() and name.isalpha():
            assert text[at:].startswith(name)


def test_what_is_said_around_a_text(served: SimpleNamespace) -> None:
    said = ask(served, {"prompt": "☃a", "max_tokens": 3, "temperature": 0})[1]
    assert said["usage"]["prompt_tokens_details"]["unknown_tokens"] == 1
    more = ask(served, {"prompt": "☃a" + said["choices"][0]["text"] + "b", "max_tokens": 1})[1]
    assert more["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    assert ask(served, {"prompt": "", "max_tokens": 0})[1]["choices"][0]["text"] == ""
    assert ask(served, {"prompt": "ab", "max_tokens": 0, "echo": True})[1]["choices"][0]["text"] == "ab"
    assert ask(served, {"prompt": [1, 2], "max_tokens": 0, "echo": True})[1]["choices"][0]["text"] == "\n "
    scored = ask(served, {"prompt": "ab", "max_tokens": 0, "echo": True, "logprobs": 0})[1]["choices"][0][
        "logprobs"
    ]
    assert scored["tokens"] == ["a", "b"]
    for prompt, tokens, at in (("a", ["a"], 1), ("", [], 0)):  # nothing follows a symbol that nobody gave
        asked = {"prompt": prompt, "max_tokens": 2, "echo": True, "logprobs": 1}
        choice = ask(served, asked)[1]["choices"][0]
        scored = choice["logprobs"]
        assert scored["tokens"] == list(choice["text"])
        assert scored["tokens"][:at] == tokens
        assert scored["text_offset"] == list(range(at + 2))
        assert [p is None for p in scored["token_logprobs"]] == [True] * at + [False] * 2
    asked = {"prompt": "☃a☃", "max_tokens": 2, "echo": True, "logprobs": 1}
    choice = ask(served, asked)[1]["choices"][0]
    assert choice["text"][:3] == "☃a☃"
    assert choice["logprobs"]["tokens"][:3] == ["<unk>", "a", "<unk>"]
    assert choice["logprobs"]["text_offset"][:4] == [0, 1, 2, 3]
    neutral = {"best_of": 1, "suffix": None, "logit_bias": {}, "presence_penalty": 0.0, "user": "me"}
    assert ask(served, {"prompt": "a", "max_tokens": 1, **neutral})[0] == 200
    events = ask(served, {"prompt": "a", "max_tokens": 1, "stream": True, "units": True})[1].split("\n\n")
    said = [json.loads(one.removeprefix("data: "))["choices"][0] for one in events if '"choices"' in one]
    assert [len(one["units"]["layer 1"]) for one in said if "units" in one] == [9]


# (body, status, field that is named)
WRONG: list[tuple[Any, int, str | None]] = [
    (b"", 400, None),
    (b"\xff\xfe", 400, None),
    (b"[1, 2]", 400, None),
    (b"[" * 10_000, 400, None),
    (b'{"a":' * 3000, 400, None),
    (b'{"prompt": "a", "temperature": NaN}', 400, "temperature"),
    (b'{"prompt": "a", "temperature": 1e999}', 400, "temperature"),
    (b'{"prompt": "a", "max_tokens": 1e400}', 400, "max_tokens"),
    (b'{"prompt": "\\ud800"}', 400, "prompt"),
    ({"prompt": "a", "max_tokens": -1}, 400, "max_tokens"),
    ({"prompt": "a", "max_tokens": 10**7}, 400, "max_tokens"),
    ({"prompt": "a", "max_tokens": True}, 400, "max_tokens"),
    ({"prompt": "a", "n": 0}, 400, "n"),
    ({"prompt": "a", "n": 9}, 400, "n"),
    ({"prompt": ["a"] * 3, "n": 3}, 400, "n"),
    ({"prompt": "a", "temperature": 3}, 400, "temperature"),
    ({"prompt": "a", "top_p": -0.1}, 400, "top_p"),
    ({"prompt": "a", "seed": "x"}, 400, "seed"),
    ({"prompt": "a", "stop": ""}, 400, "stop"),
    ({"prompt": "a", "stop": ["a"] * 5}, 400, "stop"),
    ({"prompt": "a", "stop": "a" * 300}, 400, "stop[0]"),
    ({"prompt": "a", "logprobs": 6}, 400, "logprobs"),
    ({"prompt": "a", "stream": "yes"}, 400, "stream"),
    ({"prompt": [[1], "a"]}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": [[]]}, 400, "prompt"),
    ({"prompt": [10**30]}, 400, "prompt"),
    ({"prompt": [-1]}, 400, "prompt"),
    ({"prompt": {"a": 1}}, 400, "prompt"),
    ({"prompt": "a" * 6000}, 400, "prompt"),
    ({"prompt": "a", "best_of": 3}, 400, "best_of"),
    ({"prompt": "a", "suffix": "b"}, 400, "suffix"),
    ({"prompt": "a", "logit_bias": {"1": 5}}, 400, "logit_bias"),
    ({"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty"),
    ({"prompt": "a", "tools": []}, 400, "tools"),
    ({"prompt": "a", "model": "gpt"}, 404, "model"),
    ({"prompt": "a" * 30_000}, 413, None),
]


@pytest.mark.parametrize(("body", "status", "param"), WRONG, ids=[str(body)[:40] for body, _, _ in WRONG])
def test_what_is_wrong_is_said(served: SimpleNamespace, body: Any, status: int, param: str | None) -> None:
    got, said, _ = ask(served, body)
    assert (got, said["error"]["param"]) == (status, param)
    assert set(said["error"]) == {"message", "type", "param", "code"}
    assert not re.search(r"/|Traceback|\.py", said["error"]["message"].replace("application/json", ""))


def test_what_is_not_there(served: SimpleNamespace) -> None:
    assert ask(served, None, "/nowhere")[0] == 404
    assert ask(served, None)[0] == 405
    assert ask(served, {}, **{"Content-Type": "text/plain"})[0] == 415
    assert ask(served, None, "/v1/models", Authorization="Basic x")[0] == 401
    assert ask(served, None, "/health", Authorization="")[1] == {"status": "ok"}
    page = ask(served, None, "/", Authorization="")
    assert "default-src 'none'" in page[2]["content-security-policy"]
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!data:)\w|url\(|@import|https?://""", page[1])
    metrics = ask(served, None, "/metrics")[1]
    assert 'elman_answers_total{route="other",status="404"}' in metrics
    assert "elman_written_symbols_total" in metrics
    assert "access-control-allow-origin" not in page[2]
    assert ask(served, None, "/health", Origin="https://example.org")[2]["access-control-allow-origin"]
    assert "access-control-allow-origin" not in ask(served, None, "/health", Origin="https://other.org")[2]


def test_it_is_asked_by_its_own_names_only(served: SimpleNamespace) -> None:
    """A page whose name was made to stand for this machine is no page of this server's."""
    for host in ("127.0.0.1", f"localhost:{served.port}", f"[::1]:{served.port}", "127.8.0.1"):
        assert ask(served, None, "/health", host=host)[0] == 200, host
    for host in (
        "evil.example",
        f"evil.example:{served.port}",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "[::2]",
        "",
    ):
        status, said, _ = ask(served, None, "/health", host=host)
        assert (status, said["error"]["code"]) == (403, "wrong_host"), host


def raw(served: Any, body: dict, path: str = "/v1/completions") -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(WAIT)
    connection.connect(("127.0.0.1", served.port))
    said = json.dumps(body).encode()
    connection.sendall(
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (path.encode(), KEY.encode(), len(said), said)
    )
    return connection


def test_who_goes_away_frees_his_rows_and_who_comes_too_late_is_told(served: SimpleNamespace) -> None:
    endless = {"prompt": "a", "max_tokens": 10**6, "n": 4}
    streaming = raw(served, {**endless, "stream": True})
    assert streaming.recv(10).startswith(b"HTTP/1.1 2")
    waiting = raw(served, endless)
    while served.scheduler.open < 8:
        time.sleep(0.005)
    status, said, headers = ask(served, {"prompt": "a"})
    assert (status, said["error"]["code"], headers["retry-after"]) == (429, "rate_limit_exceeded", "1")
    half = socket.create_connection(("127.0.0.1", served.port), timeout=WAIT)
    half.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a key\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]
    logging.getLogger("uvicorn.error").addHandler(handler)
    for connection in (half, streaming, waiting):
        connection.close()
    settled(served.scheduler)
    logging.getLogger("uvicorn.error").removeHandler(handler)
    assert logged == []  # who goes away is nothing to tell of
    assert ask(served, {"prompt": "a", "max_tokens": 1})[0] == 200


def test_a_body_in_pieces_has_a_limit_too(served: SimpleNamespace) -> None:
    pieces = (b" " * 1000 for _ in range(1000))
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=WAIT)
    how = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it does not read to the end
        connection.request("POST", "/v1/completions", pieces, how, encode_chunked=True)
        assert connection.getresponse().status == 413
    connection.close()
    assert served.scheduler.open == 0


def test_who_sends_slowly_or_takes_slowly_is_let_go(served: SimpleNamespace) -> None:
    half_open = socket.create_connection(("127.0.0.1", served.port), timeout=WAIT)
    half_open.sendall(b"GET /health HT")
    slow = socket.create_connection(("127.0.0.1", served.port), timeout=WAIT)
    slow.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a key\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    deaf = raw(served, {"prompt": "a", "max_tokens": 10**6, "n": 8, "stream": True, "logprobs": 5})
    with half_open, slow:
        with contextlib.suppress(ConnectionResetError):
            assert half_open.recv(100) == b""
        assert b" 408 " in slow.recv(1000)
    settled(served.scheduler)  # what it does not take fills the memory between, and then it is gone
    deaf.close()


def test_strange_bytes_and_many_connections(served: SimpleNamespace) -> None:
    for said in (b"\x00\xff" * 500 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"a" * 10**6):
        connection = socket.create_connection(("127.0.0.1", served.port), timeout=WAIT)
        with connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(said)
            assert connection.recv(100)[:12] in (b"HTTP/1.1 400", b"")
    many = [socket.create_connection(("127.0.0.1", served.port), timeout=WAIT) for _ in range(60)]
    time.sleep(0.6)
    for connection in many:
        connection.close()
    assert ask(served, None, "/health")[0] == 200


def test_the_page_writes_what_the_model_writes(served: SimpleNamespace) -> None:
    with tab(400) as page:
        page.send("Page.navigate", url=f"http://127.0.0.1:{served.port}/")
        found = page.run(f"""
            const until = async (ready) => {{
              for (let k = 0; k < 1000 && !ready(); k += 1) await new Promise((done) => setTimeout(done, 10));
            }};
            await until(() => document.readyState === "complete" && document.getElementById("write"));
            const [text, key, heat, fast, write, said] =
              ["text", "key", "temperature", "fast", "write", "said"].map((name) => document.getElementById(name));
            const fill = (box, value) => {{
              box.value = value;
              box.dispatchEvent(new Event("input"));
            }};
            fill(key, "{KEY}"); fill(heat, "0"); fill(text, "abc");
            write.click();
            await until(() => text.value.length > 8); // one symbol in each picture
            document.dispatchEvent(new KeyboardEvent("keydown", {{key: "Escape"}}));
            const slow = text.value;
            fill(text, "abc"); fast.checked = true;
            write.click();
            await until(() => text.value.length > 80);
            write.click();
            return {{slow, fast: text.value, units: document.querySelectorAll("#state canvas").length,
              wrong: said.classList.contains("wrong"), wide: document.documentElement.scrollWidth}};""")
        console = page.console
    tokenizer = served.model.tokenizer
    more = len(found["fast"]) - 3
    right = "abc" + tokenizer.decode(alone(served.model, Ask(tokenizer.encode("abc").numpy(), more, 0.0)))
    assert console == []
    assert found == {**found, "fast": right, "slow": right[: len(found["slow"])], "wrong": False, "units": 1}
    assert len(found["slow"]) > 8
    assert found["wide"] <= 400
    settled(served.scheduler)


def test_the_alphabet_is_as_the_tests_take_it() -> None:
    assert language().tokenizer.decode([1, 2]) == "\n "  # type: ignore[union-attr]
    assert len(LETTERS) == 10
