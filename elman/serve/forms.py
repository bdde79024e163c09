"""Requests and answers in the form of OpenAI's interface: bodies become what a scheduler is asked, and what it writes
becomes bodies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elman.data import Tokenizer
from elman.data.schema import Check, Odd, each, maybe, number, parsed, plain, record, text, truth, whole
from elman.errors import DataError
from elman.serve.asked import Ask, Job, Scored
from elman.serve.settings import Serving
from elman.serve.written import Spelling

_STOPS, _STOP, _TOP = (
    4,
    200,
    5,
)  # texts that stop, characters of each, likeliest symbols: as OpenAI's, but the second
# What this server does not do, and the values with which it has nothing to do.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "suffix": ("",), "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,),
}  # fmt: skip


class Refused(Exception):
    """An answer that is an error. param: the field that it is about."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        kind: str = "invalid_request_error", headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.error = {"message": message, "type": kind, "param": param, "code": code}

    @property
    def body(self) -> bytes:
        return dumped({"error": self.error})


def dumped(value: Any) -> bytes:
    """JSON in ASCII, so that any text is in it."""
    return json.dumps(value, separators=(",", ":")).encode()


def odd(error: Odd) -> Refused:
    where = f"'{error.place}': " if error.place else ""
    return Refused(400, f"{where}{error.expected} expected, got {error.got}", param=error.place or None)


def read_body(raw: bytes, known: Mapping[str, Check], needed: Sequence[str] = ()) -> dict[str, Any]:
    """An object with no other names than these; null is as if it were left out. Raises Refused."""
    try:
        fields = parsed(raw.decode(), record({}, {name: maybe(check) for name, check in known.items()}))
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is no UTF-8: byte 0x{raw[error.start]:02x} at {error.start}") from error
    except Odd as error:
        raise odd(error) from error
    fields = {name: value for name, value in fields.items() if value is not None}
    for name, value in fields.items():
        if name in known:
            continue
        if name not in _NEUTRAL:
            raise Refused(400, f"there is no field '{name[:60]}'", param=name[:60], code="unknown_parameter")
        if value not in _NEUTRAL[name] and not (name == "best_of" and value == fields.get("n")):
            raise Refused(
                400, f"'{name}' is not supported: leave it out", param=name, code="unsupported_parameter"
            )
    for name in needed:
        if name not in fields:
            raise Refused(400, f"'{name}' is needed", param=name, code="missing_required_parameter")
    return {name: value for name, value in fields.items() if name in known}


# --- /v1/completions --------------------------------------------------------------------------------------------------


def _prompt(value: Any, place: str) -> None:
    if isinstance(value, list):
        if not value or len(value) > 2**20:
            raise Odd(place, f"{len(value):,} values", "a text, symbols, or a list of one of the two")
        kinds = {type(one) for one in value}
        if kinds <= {str} or kinds == {int}:
            return
        if kinds == {list} and all({type(k) for k in one} == {int} for one in value):
            return
    elif isinstance(value, str):
        return
    raise Odd(
        place,
        "a list" if isinstance(value, list) else str(value)[:60],
        "a text, symbols, or a list of one of the two",
    )


def _stop(value: Any, place: str) -> None:
    each(text(_STOP), _STOPS)([value] if isinstance(value, str) else value, place)
    if "" in ([value] if isinstance(value, str) else value):
        raise Odd(place, "an empty text", "texts of at least a character")


def _checks(limits: Serving) -> dict[str, Check]:
    seed = whole(-(2**63), 2**64 - 1)
    return {
        "model": text(1000), "prompt": _prompt, "max_tokens": whole(0, limits.tokens), "temperature": number(0, 2),
        "top_p": number(0, 1), "seed": seed, "stop": _stop, "logprobs": whole(0, _TOP), "n": whole(1, limits.requests),
        "echo": truth, "stream": truth, "stream_options": record({}, {"include_usage": maybe(truth)}), "user": plain,
        "units": truth,
    }  # fmt: skip


@dataclass(frozen=True)
class Completion:
    """A request to write. asks: of all choices, in order; beginnings: what is told before each, with `echo`."""

    model: str | None
    asks: list[Ask]
    beginnings: list[str]
    stream: bool
    usage: bool
    unknown: int
    prompts: int  # symbols of all prompts together


def completion(raw: bytes, tokenizer: Tokenizer, limits: Serving) -> Completion:
    """Raises Refused."""
    fields = read_body(raw, _checks(limits))
    prompts = fields.get("prompt", "")
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        prompts = [prompts]
    n, echo, top = fields.get("n", 1), fields.get("echo", False), fields.get("logprobs")
    if n * len(prompts) > limits.requests:
        raise Refused(400, f"more than {limits.requests:,} texts at once", param="n")
    stop = fields.get("stop", [])
    ask = Ask(
        np.zeros(0, np.int64), fields.get("max_tokens", 16), float(fields.get("temperature", 1.0)),
        float(fields.get("top_p", 1.0)), fields.get("seed"), stop=tuple([stop] if isinstance(stop, str) else stop),
        logprobs=top, of_prompt=echo and top is not None, watched=fields.get("units", False),
    )  # fmt: skip
    asks, beginnings, unknown, total = [], [], 0, 0
    for prompt in prompts:
        symbols, beginning, given = _encoded(prompt, tokenizer, limits.prompt)
        total += len(symbols)
        unknown += 0 if tokenizer.unknown is None else int((symbols == tokenizer.unknown).sum())
        for _ in range(n):
            asks.append(replace(ask, prompt=symbols, choice=len(asks), of_prompt=ask.of_prompt and given))
            beginnings.append(beginning if echo else "")
    options = fields.get("stream_options") or {}
    return Completion(
        fields.get("model"),
        asks,
        beginnings,
        fields.get("stream", False),
        bool(options.get("include_usage")),
        unknown,
        total,
    )


def _encoded(prompt: str | list[int], tokenizer: Tokenizer, most: int) -> tuple[np.ndarray, str, bool]:
    """(symbols, at least one; the text they stand for; whether they are that text's)."""
    if isinstance(prompt, str):
        if len(prompt) > most * 16:  # no symbol of ours stands for more, as a rule; encoding takes time
            raise _too_long(f"{len(prompt):,} characters", most)
        try:
            symbols = tokenizer.encode(prompt).numpy()
        except DataError as error:
            raise Refused(400, error.what, param="prompt") from error
    else:
        if min(prompt) < 0 or max(prompt) >= tokenizer.size:
            raise Refused(400, f"symbols are 0 … {tokenizer.size - 1}", param="prompt")
        symbols = np.array(prompt, np.int64)
        prompt = tokenizer.decode(prompt)
    if len(symbols) > most:
        raise _too_long(f"{len(symbols):,} symbols", most)
    given = len(symbols) > 0
    if not given:  # what follows nothing follows the end of a line
        symbols = tokenizer.encode("\n").numpy()
    return (symbols if len(symbols) else np.zeros(1, np.int64)), prompt, given


def _too_long(got: str, most: int) -> Refused:
    return Refused(
        400,
        f"the prompt is too long: {got}, at most {most:,} symbols",
        param="prompt",
        code="context_length_exceeded",
    )


class Choice:
    """One text of an answer. echo: the prompt's text, where it is to be told."""

    def __init__(self, job: Job, index: int, echo: str, spelling: Spelling) -> None:
        self.job, self.index, self.names = job, index, spelling.names
        self._echo = echo
        self._places = _places(job.ask, echo, spelling)

    def more(self) -> tuple[str, dict[str, Any] | None]:
        """(text, logprobs) since the last call."""
        job, parts = self.job, [self._echo]
        self._echo = ""
        while job.pieces:
            parts.append(job.pieces.popleft())
        scored = []
        while job.scored:
            scored.append(job.scored.popleft())
        logprobs = None if job.ask.logprobs is None else self._logprobs(scored)
        return "".join(parts), logprobs

    def _logprobs(self, scored: list[Scored]) -> dict[str, Any]:
        names = self.names
        return {
            "tokens": [names[one.symbol] for one in scored],
            "token_logprobs": [one.logprob for one in scored],
            "top_logprobs": [{names[k]: p for k, p in one.top.items()} or None for one in scored],
            "text_offset": [self._places(one.symbol) for one in scored],
        }


def _places(ask: Ask, echo: str, spelling: Spelling) -> Callable[[int], int]:
    """place(symbol) of the symbols that are told, one after another: after how many characters of the text it begins.

    A symbol is not as long as its name: `<unk>` stands for one character of a prompt, and of bytes several for one."""
    names = spelling.names

    def along(last: int | None, at: int) -> Callable[[int], int]:
        piece, _ = spelling.begun(last)

        def place(symbol: int) -> int:
            nonlocal at
            at += len(added := piece(symbol))
            return at - min(len(added), len(names[symbol]))  # of words a space may come first

        return place

    places: list[int] = []
    if ask.of_prompt and ask.logprobs is not None:
        symbols, spans = spelling.tokenizer.spans(echo)
        places = [first for first, _ in spans]
        if symbols.tolist() != ask.prompt.tolist():  # given as symbols, of which its text makes others
            places = list(map(along(None, 0), ask.prompt.tolist()))
    told, then = iter(places), along(int(ask.prompt[-1]), len(echo))

    def place(symbol: int) -> int:
        return then(symbol) if (first := next(told, None)) is None else first

    return place


class Answer:
    """What is said of a request's choices, whole or in events."""

    def __init__(
        self, asked: Completion, jobs: Sequence[Job], head: dict[str, Any], spelling: Spelling
    ) -> None:
        self.asked, self.jobs, self.head = asked, jobs, head
        self.choices = [Choice(job, k, asked.beginnings[k], spelling) for k, job in enumerate(jobs)]
        self._ended: set[int] = set()
        start = dumped(head)[:-1]
        self._before = [b'data: %s,"choices":[{"index":%d,"text":' % (start, k) for k in range(len(jobs))]

    @property
    def ended(self) -> bool:
        return all(job.reason is not None for job in self.jobs)

    def failed(self) -> Refused | None:
        """What went wrong, if anything did."""
        reasons = {job.reason for job in self.jobs}
        if "error" in reasons:
            return Refused(
                500, "the server failed at this request", kind="server_error", code="internal_error"
            )
        if "timeout" in reasons:
            return Refused(504, "the request took too long", kind="server_error", code="timeout")
        if "closed" in reasons:
            return Refused(503, "the server is ending", kind="server_error", code="closing")
        return None

    def whole(self) -> dict[str, Any]:
        choices = []
        for one in self.choices:
            piece, logprobs = one.more()
            choices.append(
                {"index": one.index, "text": piece, "logprobs": logprobs, "finish_reason": one.job.reason}
            )
        return {**self.head, "choices": choices, "usage": self.usage()}

    def events(self) -> Iterator[bytes]:
        """What is new since the last call."""
        for k, one in enumerate(self.choices):
            if k in self._ended:
                continue
            reason = one.job.reason  # before the pieces, all of which are there when there is one
            piece, logprobs = one.more()
            if not piece and reason is None and not (logprobs and logprobs["tokens"]):
                continue
            more = b"" if one.job.units is None else b',"units":' + dumped(one.job.units)
            one.job.units = None
            said_of = reason if reason in ("stop", "length") else None  # of others an error tells
            yield self._before[k] + dumped(piece) + b',"logprobs":%s,"finish_reason":%s%s}]}\n\n' % (
                dumped(logprobs), dumped(said_of), more,
            )  # fmt: skip
            if reason is not None:
                self._ended.add(k)

    def last(self) -> bytes:
        event = b""
        if self.asked.usage:
            event = b"data: " + dumped({**self.head, "choices": [], "usage": self.usage()}) + b"\n\n"
        return event + b"data: [DONE]\n\n"

    def usage(self) -> dict[str, Any]:
        written = sum(len(job.symbols) for job in self.jobs)
        return {
            "prompt_tokens": self.asked.prompts, "completion_tokens": written,
            "total_tokens": self.asked.prompts + written,
            # unknown_tokens: what the model has no symbol for.
            "prompt_tokens_details": {
                "cached_tokens": min(sum(job.known for job in self.jobs), self.asked.prompts),
                "unknown_tokens": self.asked.unknown,
            },
        }  # fmt: skip
