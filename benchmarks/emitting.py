"""The cost of `emit()` for its caller."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Final

from benchmarks.figures import Figure
from benchmarks.machine import quantile
from emitter import Emitter
from emitter.transport import Answer

BURST_EVENTS: Final = 2_000
TARGET_US: Final = 20.0
PACE_S: Final = 0.0005


def _discard(body: bytes, headers: Mapping[str, str]) -> Answer:  # noqa: ARG001  the transport's signature
    events = [{"index": number, "status": "accepted"} for number in range(len(json.loads(body)))]
    return Answer(202, {}, json.dumps({"events": events}).encode())


def emit_figures(bursts: int) -> list[Figure]:
    """Measure single calls of `emit()`: in bursts, and at the pace of a busy web application."""
    figures = []
    for name, pace_s in (("in bursts of 2 000", 0.0), ("paced, 2 000 per second at most", PACE_S)):
        costs_us: list[float] = []
        with Emitter("http://127.0.0.1", "key", source="benchmark", transport=_discard) as emitter:
            for _ in range(bursts):
                for number in range(BURST_EVENTS):
                    began_ns = time.perf_counter_ns()
                    emitter.emit("api.request", "acct_000001", {"method": "GET", "number": number})
                    costs_us.append((time.perf_counter_ns() - began_ns) / 1000)
                    if pace_s:
                        time.sleep(pace_s)
                emitter.flush()
        section = "(e) emit(), with a transport that discards"
        median_us = quantile(costs_us, 0.5)
        verdict = "met" if median_us <= TARGET_US else "missed"
        target = f"target {TARGET_US:.0f} µs"
        figures.append(Figure(section, f"median {name}", median_us, "µs", median_us, target, verdict))
        figures.append(Figure(section, f"p99 {name}", quantile(costs_us, 0.99), "µs"))
    return figures
