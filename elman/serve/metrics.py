"""What a monitor is told, in Prometheus' form. What the scheduler counts is read when it is asked for, so that a step
pays nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST as FORM
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from elman.serve.asked import Job
from elman.serve.scheduler import Scheduler

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    def __init__(self, scheduler: Scheduler | None) -> None:
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        self._answers = Counter("elman_answers", "Requests that were answered.", ["route", "status"], **own)
        self._seconds = Histogram(
            "elman_answer_seconds",
            "From a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            **own,
        )
        self._texts = Counter("elman_texts", "Texts that have ended, by why.", ["reason"], **own)
        self._first = Histogram(
            "elman_first_symbol_seconds", "From a request to its first symbol.", buckets=_SECONDS, **own
        )
        if scheduler is not None:
            self._registry.register(_Counted(scheduler))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """status: 0 where the client went away before there was one."""
        self._answers.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def ended(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._texts.labels(job.reason or "cancelled").inc()
            if job.first is not None:
                self._first.observe(job.first - job.begun)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Counted(Collector):
    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.begun = scheduler, time.time()

    def collect(self) -> Iterator[Any]:
        counts, prefixes = self.scheduler.counts, self.scheduler.prefixes
        yield GaugeMetricFamily("elman_open_texts", "Texts that are being written.", self.scheduler.open)
        yield CounterMetricFamily("elman_written_symbols", "Symbols written.", counts.written)
        read = CounterMetricFamily(
            "elman_read_symbols", "Symbols of prompts, by how they were read.", labels=["how"]
        )
        for how, value in (("block", counts.blocks), ("step", counts.stepped), ("known", counts.known)):
            read.add_metric([how], value)
        yield read
        yield CounterMetricFamily("elman_steps", "Steps of all texts together.", counts.steps)
        busy = CounterMetricFamily("elman_busy_seconds", "Spent in steps, and in blocks.", labels=["in"])
        busy.add_metric(["step"], counts.step_seconds)
        busy.add_metric(["block"], counts.block_seconds)
        yield busy
        yield GaugeMetricFamily("elman_known_states", "States of texts that may go on.", len(prefixes))
        yield GaugeMetricFamily("elman_known_bytes", "Their memory.", prefixes.bytes)


__all__ = ["FORM", "Metrics"]
