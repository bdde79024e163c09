"""What can be set of a server: the options of `elman serve`. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elman.tasks.settings import option


@dataclass(frozen=True)
class Serving:
    """Where a server listens, and what it takes on. Sizes and times are limits: what goes beyond is refused."""

    host: str = option("127.0.0.1", "The address to listen at; 0.0.0.0: every one of this machine.")
    port: int = option(8000, "The port; 0: one that is free.", min=0, max=65535)
    name: str | None = option(None, "What the model is called. (default: as its folder)")
    threads: int = option(1, "That compute. Further ones pay for wide models.", min=1, max=1024)
    precision: str = option(
        "float32",
        "float32; or bfloat16 for the factors of products: many texts faster on processors with AMX.",
    )
    requests: int = option(
        256, "Texts that are written at once; further ones are answered 429.", min=1, max=2**16
    )
    connections: int = option(1000, "Open connections; further ones are closed.", min=1, max=2**20)
    body: int = option(2**20, "Bytes of a request.", min=1, max=2**25)
    prompt: int = option(100_000, "Symbols of a prompt.", min=1, max=2**24)
    tokens: int = option(10_000, "Symbols that a request may have written.", min=1, max=2**24)
    seconds: float = option(300.0, "That a request may take.", min=0.001)
    patience: float = option(
        10.0, "Seconds for a client to send its request, and to take what it is sent.", min=0.001
    )
    ending: float = option(30.0, "Seconds for what runs to end after SIGTERM.", min=0.0)
    kept: str = option("64 MB", "Memory for the states of texts that may go on.", metavar="BYTES")
    api_key_file: Path | None = option(
        None, "A file with a key in each line; who has none of them is refused."
    )
    cors: str | None = option(
        None, "A site (https://example.org) whose pages may ask; *: any.", metavar="ORIGIN"
    )
