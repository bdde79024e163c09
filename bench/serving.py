"""A server under load: symbols a second and the gaps between them for 1, 32 and 256 clients, beside a loop of
`torch.nn` that answers one request after another; memory over many requests; clients that behave badly.

The server is a process of its own, and the clients are this one, so that both share the machine. A gap is the time
between two events of a stream, each of which may hold several symbols.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from elman.data import Tokenizer
from elman.models import LanguageModel

CLIENTS, LENGTH, WIDTH = (1, 32, 256), 400, 256
LETTERS = "".join(map(chr, range(32, 97)))  # 65, and <unk>
PROMPT = "THE RECURRENT NETWORK READS THIS BEFORE IT WRITES ON. "


def fast(figures: dict[str, float]) -> float:
    return figures["thousand symbols a second"]


class Wrong(RuntimeError):
    """The server answered otherwise than it should."""


def model() -> LanguageModel:
    """Embedding of 64, one GRU, logits of the characters."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.of("characters", LETTERS, None)
    made = LanguageModel(tokenizer.size, hidden=WIDTH).eval()
    made.tokenizer = tokenizer
    return made


@contextmanager
def server(*options: str) -> Iterator[tuple[int, int]]:
    """(port, process id) of a server of the model."""
    with tempfile.TemporaryDirectory() as folder:
        model().save_pretrained(Path(folder) / "model")
        command = [
            sys.executable,
            "-m",
            "elman",
            "serve",
            str(Path(folder) / "model"),
            "--port",
            "0",
            *options,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield int(process.stdout.readline().rpartition(":")[2]), process.pid
            finally:
                process.terminate()


async def request(port: int, body: bytes) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
    """(status, the rest of the answer, the connection)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    return int((await reader.readline()).split()[1]), reader, writer


async def stream(port: int, length: int, gaps: list[float], seed: int = 0) -> float:
    """One text; the seconds to its first event, and further ones in `gaps`."""
    asked = {"prompt": PROMPT, "max_tokens": length, "stream": True, "seed": seed}
    begun = last = time.perf_counter()
    status, reader, writer = await request(port, json.dumps(asked).encode())
    first, said, kept = 0.0, "", b""
    while part := await reader.read(2**16):
        now, kept = time.perf_counter(), kept + part
        *events, kept = kept.split(b"\n\n")
        for event in events:
            if b'data: {"id"' in event:
                said += json.loads(event[event.index(b"{") :])["choices"][0]["text"]
                if first:
                    gaps.append(now - last)
                first, last = first or now - begun, now
    writer.close()
    if status != 200 or len(said) != length:
        raise Wrong(f"status {status}, {len(said)} characters of {length}")
    return first


def loaded(port: int, clients: int, length: int = LENGTH) -> dict[str, float]:
    """What so many clients see, who begin together."""

    async def run() -> dict[str, float]:
        gaps: list[float] = []
        begun = time.perf_counter()
        first = await asyncio.gather(*(stream(port, length, gaps, k) for k in range(clients)))
        seconds = time.perf_counter() - begun
        gaps.sort()
        return {
            "thousand symbols a second": clients * length / seconds / 1e3,
            "gap, median, ms": 1e3 * gaps[len(gaps) // 2],
            "gap, 99th of 100, ms": 1e3 * gaps[len(gaps) * 99 // 100],
            "first symbol, median, ms": 1e3 * sorted(first)[clients // 2],
        }

    return asyncio.run(run())


@torch.no_grad()
def one_at_a_time(length: int = LENGTH) -> dict[str, float]:
    """The same model as one writes it with torch.nn: a cell in a loop, a draw for each symbol."""
    embedding, cell = nn.Embedding(len(LETTERS) + 1, 64), nn.GRUCell(64, WIDTH)
    readout = nn.Linear(WIDTH, len(LETTERS) + 1)
    prompt, gaps = torch.arange(len(PROMPT)) % len(LETTERS), []
    begun = time.perf_counter()
    h = torch.zeros(1, WIDTH)
    for symbol in prompt:
        h = cell(embedding(symbol[None]), h)
    symbol = prompt[-1:]
    for _ in range(length):
        last = time.perf_counter()
        h = cell(embedding(symbol), h)
        symbol = torch.multinomial(readout(h).softmax(-1)[0], 1)
        symbol.item()
        gaps.append(time.perf_counter() - last)
    seconds = time.perf_counter() - begun
    gaps.sort()
    return {
        "thousand symbols a second": length / seconds / 1e3, "gap, median, ms": 1e3 * gaps[length // 2],
        "gap, 99th of 100, ms": 1e3 * gaps[length * 99 // 100],
    }  # fmt: skip


def memory(port: int, process: int, requests: int = 10_000, together: int = 64) -> dict[str, float]:
    """Megabytes that the server takes, along so many requests of random texts."""

    async def some(count: int) -> None:
        waiting = asyncio.Semaphore(together)

        async def one(k: int) -> None:
            async with waiting:
                prompt = "".join(random.Random(k).choices(LETTERS, k=k % 150))
                body = json.dumps(
                    {"prompt": prompt, "max_tokens": 1 + k % 20, "stream": bool(k % 2)}
                ).encode()
                status, reader, writer = await request(port, body)
                await reader.read()
                writer.close()
                if status != 200:
                    raise Wrong(f"status {status} of request {k}")

        await asyncio.gather(*(one(k) for k in range(count)))

    found = {}
    for part in range(6):
        asyncio.run(some(requests // 5 if part else requests // 10))
        found["at first" if not part else f"after {part * requests // 5:,}"] = resident(process)
    return found


def resident(process: int) -> float:
    said = Path(f"/proc/{process}/status").read_text()
    return int(said.partition("VmRSS:")[2].split()[0]) / 1024


def badly(port: int, count: int = 60) -> dict[str, float]:
    """The load of 32 clients, beside as many of each kind that read nothing, send half a request, or send noise."""

    async def run() -> dict[str, float]:
        deaf = [
            await request(port, json.dumps({"prompt": "A", "max_tokens": 10_000, "stream": True}).encode())
            for _ in range(count)
        ]
        half = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
        for _, writer in half:
            writer.write(b"POST /v1/completions HTT")
        noise = random.Random(0)
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(noise.randbytes(300) + b"\r\n\r\n")
            with suppress(OSError):
                await reader.read()
            writer.close()
            status, reader, writer = await request(port, noise.randbytes(300))
            if status != 400:
                raise Wrong(f"noise was answered {status}")
            writer.close()
        gaps: list[float] = []
        begun = time.perf_counter()
        await asyncio.gather(*(stream(port, LENGTH, gaps, k) for k in range(32)))
        seconds = time.perf_counter() - begun
        for _, _, writer in deaf:
            writer.close()
        for _, writer in half:
            writer.close()
        gaps.sort()
        return {
            "thousand symbols a second": 32 * LENGTH / seconds / 1e3, "gap, median, ms": 1e3 * gaps[len(gaps) // 2],
            "gap, 99th of 100, ms": 1e3 * gaps[len(gaps) * 99 // 100],
        }  # fmt: skip

    return asyncio.run(run())


def connections(port: int, count: int = 900) -> float:
    """Seconds until /health answers while so many connections stand open and idle."""

    async def run() -> float:
        idle = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(count)))
        begun = time.perf_counter()
        for _, writer in idle[: count // 10]:
            writer.close()
        await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        if b" 200 " not in await reader.readline():
            raise Wrong("/health does not answer")
        for _, one in [*idle, (reader, writer)]:
            one.close()
        return time.perf_counter() - begun - 0.1

    return asyncio.run(run())
