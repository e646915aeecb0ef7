"""The work of the sending thread: encode events, send them, read the answer, send again."""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from emitter.answers import error, event_answers, is_refused, pause_s
from emitter.encoding import Event, batch, encoded
from emitter.notices import Notices
from emitter.pending import Entry, PendingEvents
from emitter.transport import Answer, Transport

_NO_HEADERS: Final[Mapping[str, str]] = {}


class SenderSettings(NamedTuple):
    """Settings of the sender; see `Emitter`."""

    source: str
    api_key: str
    batch_bytes_max: int
    flush_interval_s: float
    retry_base_s: float
    retry_max_s: float
    retry_for_s: float


class _Item(NamedTuple):
    """An event that is being sent: its number among the pending events and its encoded body."""

    number: int
    event: Event
    body: bytes


class Sender:
    """Sends one request at a time, in the order of the queue, until the emitter is closed."""

    def __init__(self, events: PendingEvents, transport: Transport, notices: Notices, settings: SenderSettings) -> None:
        self._events = events
        self._transport = transport
        self._notices = notices
        self._settings = settings
        self._headers = {
            "authorization": f"Bearer {settings.api_key}",
            "content-type": "application/cloudevents-batch+json; charset=utf-8",
        }

    def run(self) -> None:
        """The body of the sending thread. Returns after `close`, when no events are left or its timeout has passed."""
        while taken := self._events.take(self._settings.flush_interval_s):
            self.send(taken)

    def send(self, entries: Sequence[tuple[int, Entry]]) -> None:
        """Send events with their numbers until all of it is settled, or the emitter is closed."""
        chunk: list[_Item] = []
        size = 0
        for number, entry in entries:
            item = self._encoded(number, entry)
            if item is None:
                continue
            if chunk and size + len(item.body) > self._settings.batch_bytes_max:
                self._deliver(chunk)
                chunk, size = [], 0
            chunk.append(item)
            size += len(item.body) + 2
        if chunk:
            self._deliver(chunk)

    def _encoded(self, number: int, entry: Entry) -> _Item | None:
        event = entry.event
        try:
            return _Item(number, event, entry.body or encoded(event, self._settings.source))
        except Exception as failure:  # noqa: BLE001  # objects of the application in `data` may raise anything
            self._reject(number, event, "not_serializable", str(failure))
            return None

    def _deliver(self, items: list[_Item]) -> None:
        """Send the items until all are settled. Their ids stay the same, so a repeated event is counted once."""
        started_s = time.monotonic()
        attempt = 0
        while True:
            answer = self._post(items, again=attempt > 0)
            headers = answer.headers if answer is not None else _NO_HEADERS
            if answer is not None:
                if is_refused(answer) and event_answers(answer, [item.event.id for item in items]) is None:
                    self._split(items, answer)
                    return
                items = self._settle(items, answer)
            if not items:
                return
            if time.monotonic() - started_s > self._settings.retry_for_s:
                self._notices.dropped(self._events.drop(item.number for item in items), "not_delivered")
                return
            wait_s = pause_s(attempt, self._settings.retry_base_s, self._settings.retry_max_s, headers)
            self._notices.warn(
                f"{self._events.stats().last_error}; {len(items)} events are sent again in {wait_s:.1f} s"
            )
            if not self._events.pause(wait_s):
                return
            attempt += 1

    def _post(self, items: list[_Item], *, again: bool) -> Answer | None:
        self._events.attempted(again=again)
        try:
            return self._transport(batch(item.body for item in items), self._headers)
        except (OSError, http.client.HTTPException) as failure:
            self._events.failed(f"no answer: {type(failure).__name__}: {failure}")
        except Exception as failure:  # noqa: BLE001  # a transport of the application may raise anything
            self._events.failed(f"the transport failed: {type(failure).__name__}: {failure}")
        return None

    def _settle(self, items: list[_Item], answer: Answer) -> list[_Item]:
        """Settle the items that the answer accepts or rejects; return the items that must be sent again."""
        answers = event_answers(answer, [item.event.id for item in items])
        if answers is None:
            stated = error(answer)
            self._events.failed(f"HTTP {answer.status}: {stated.reason}: {stated.detail}")
            return items
        answered = list(zip(items, answers, strict=True))
        self._events.accept(item.number for item, event in answered if event.status == "accepted")
        for item, event in answered:
            if event.status == "rejected":
                self._reject(item.number, item.event, event.reason, event.detail)
        left = [item for item, event in answered if event.status not in ("accepted", "rejected")]
        self._events.failed(f"HTTP {answer.status}: {len(left)} events have no answer yet" if left else "")
        return left

    def _split(self, items: list[_Item], answer: Answer) -> None:
        """Send the halves of a refused request separately, to find the invalid event or an accepted size."""
        if len(items) == 1:
            stated = error(answer)
            self._reject(items[0].number, items[0].event, stated.reason, stated.detail)
            return
        half = len(items) // 2
        self._deliver(items[:half])
        if self._events.pause(0):
            self._deliver(items[half:])

    def _reject(self, number: int, event: Event, reason: str, detail: str) -> None:
        if self._events.reject(number):
            self._notices.rejected(event, reason, detail)
