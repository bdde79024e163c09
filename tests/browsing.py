"""A page as it is served, in a browser without a screen, which is spoken to through a pipe (the DevTools protocol)."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from docs.browse import browser

_SAYS = {"Log.entryAdded": "entry", "Runtime.exceptionThrown": "exceptionDetails"}
# What it hears and says at its third and fourth file is its input and output.
_PIPED = ("sh", "-c", 'exec "$@" 3<&0 4>&1 >/dev/null', "sh")


class Tab:
    """console: what the page has complained of."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self._count, self._session = process, 0, {}
        self.console: list[Any] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = {
            "sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        }
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """Ask, and wait for the answer."""
        self._count += 1
        asked = {"id": self._count, "method": method, "params": params, **self._session}
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        to.write(json.dumps(asked).encode() + b"\0")
        to.flush()
        while True:
            raw = bytearray()
            while (byte := back.read(1)) != b"\0":
                assert byte, "the browser has ended"
                raw += byte
            said = json.loads(raw)
            if said.get("method") in _SAYS:
                complaint = said["params"][_SAYS[said["method"]]]
                self.console += [complaint] * (complaint.get("level") != "verbose")
            if said.get("id") == self._count:
                assert "error" not in said, said
                return said["result"]

    def run(self, script: str) -> Any:
        """What the body of an asynchronous function gives in the page."""
        how = {"awaitPromise": True, "returnByValue": True}
        found = self.send("Runtime.evaluate", expression=f"(async () => {{ {script} }})()", **how)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")


@contextmanager
def tab(width: int) -> Iterator[Tab]:
    """One that is so many pixels wide. Skips where there is no browser."""
    path = browser()
    if path is None:
        pytest.skip("no chromium is installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = (
            *_PIPED, path, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--remote-debugging-pipe", f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        )  # fmt: skip
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, **pipes) as process:
            try:
                made = Tab(process)
                size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
                made.send("Emulation.setDeviceMetricsOverride", **size)
                yield made
                made._session = {}
                made.send("Browser.close")
            finally:
                process.kill()
