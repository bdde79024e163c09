"""Threads that take turns as often as they can: what one of them does falls between any two steps of another."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def taking_turns(*work: Callable[[], object]) -> Iterator[None]:
    """Run each in a thread of its own, beside the body. At the end all of them are waited for, and the first error of
    one is raised."""
    failed: list[BaseException] = []

    def run(one: Callable[[], object]) -> None:
        try:
            one()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    if failed:
        raise failed[0]
