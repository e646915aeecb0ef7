"""A fake gateway for the emitter, with answers that tests choose."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from emitter import Answer, Emitter

Judge = Callable[[dict[str, Any]], dict[str, Any]]


def accept(_event: dict[str, Any]) -> dict[str, Any]:
    """Accepts every event."""
    return {"status": "accepted"}


class FakeGateway:
    """A transport that answers as the gateway does. `script` gives the first answers; then `judge` decides."""

    def __init__(self, judge: Judge = accept, script: tuple[object, ...] = ()) -> None:
        self.judge = judge
        self.script = list(script)
        self.requests: list[list[dict[str, Any]]] = []
        self.stored: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        assert headers["authorization"] == "Bearer tm_key"
        events = json.loads(body)
        self.requests.append(events)
        assert self.gate.wait(30)
        step = self.script.pop(0) if self.script else "judge"
        if isinstance(step, Exception):
            raise step
        if isinstance(step, Answer):
            return step
        answers = []
        for index, event in enumerate(events):
            decision = self.judge(event)
            self.stored[event["id"]] += decision["status"] == "accepted"
            answers.append({"index": index, "id": event["id"], **decision})
        if step == "lose the answer":
            raise ConnectionResetError("gone")
        return Answer(202, {}, json.dumps({"events": answers}).encode())


def make(gateway: FakeGateway, **settings: Any) -> Emitter:
    """An emitter whose pauses do not slow tests down."""
    quick = {"flush_interval_s": 0.001, "retry_base_s": 0.001, "retry_max_s": 0.002}
    return Emitter("http://unused", "tm_key", source="test", transport=gateway, **{**quick, **settings})


def conserved(emitter: Emitter) -> bool:
    """Whether the emitter's counts account for every event."""
    stats = emitter.stats()
    return stats.emitted + stats.recovered == stats.accepted + stats.rejected + stats.dropped + stats.pending
