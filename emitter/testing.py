"""A double of the emitter for the tests of applications: it records events and answers as a gateway would."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from emitter.checks import missing_value, problem, wanting
from emitter.emitter import Emitter
from emitter.encoding import Event, bodies
from emitter.notices import OnDropped, OnRejected
from emitter.sender import Sender
from emitter.transport import Answer


class Rejected(NamedTuple):
    """An event that was rejected, and why."""

    event: Event
    reason: str
    detail: str


class FakeEmitter(Emitter):
    """An `Emitter` that sends nothing: no thread, no network, no files. An event is settled before `emit` returns.

    It rejects what a gateway rejects without knowing the meters: times, sizes, nesting, and data that is not JSON. With
    `meters` it also rejects events without the value that a meter needs. Whether a meter can use a value, only the
    gateway knows. Safe to use in any number of threads.
    """

    def __init__(
        self,
        *,
        source: str = "test",
        meters: Sequence[Mapping[str, Any]] | None = None,
        queue_events_max: int = 10_000,
        when_full: Literal["block", "drop"] = "block",
        on_rejected: OnRejected | None = None,
        on_dropped: OnDropped | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """As `Emitter`. `meters` is the list of that name in the answer of `GET /v1/meters`.

        With `when_full="block"`, a full queue raises `QueueFull` at once instead of waiting.
        """
        self._sending_lock = threading.RLock()
        self._is_sending = self._is_away = False
        self._rules: list[tuple[str, str, str | None, str | None]] = []
        self._emitted: list[Event] = []
        self._unjudged: deque[Event] = deque()
        self._accepted: list[Event] = []
        self._rejected: list[Rejected] = []
        self._dropped: list[Event] = []
        self._unmetered: list[Event] = []
        self._meters = meters
        self._application = (on_rejected, on_dropped)
        super().__init__(
            "http://unused", "key", source=source, queue_events_max=queue_events_max, when_full=when_full,
            block_timeout_s=0.0, on_rejected=self._note_rejected, on_dropped=self._note_dropped,
            transport=self._judge, now_ns=now_ns,
        )  # fmt: skip
        self._sender = Sender(self._events, self._judge, self._notices, self._settings)

    def emitted(self, *, type: str | None = None, account: str | None = None) -> list[Event]:  # noqa: A002  # as emit
        """The events that `emit` took, in their order and as they were given, whatever became of them."""
        return _chosen(self._emitted, type, account)

    def accepted(self, *, type: str | None = None, account: str | None = None) -> list[Event]:  # noqa: A002  # as emit
        """The events that were accepted. An id that comes again is accepted again, and here once: it counts once."""
        first = {(event.account, event.id): event for event in reversed(self._accepted)}
        return _chosen([event for event in self._accepted if first[event.account, event.id] is event], type, account)

    def rejected(self, *, type: str | None = None, account: str | None = None) -> list[Rejected]:  # noqa: A002  # as emit
        """The events that were rejected, with reason and detail."""
        return [each for each in self._rejected if _chosen([each.event], type, account)]

    def conflicts(self) -> list[Event]:
        """Accepted events that are not counted, because another event of the account came before under their id."""
        counted = {(event.account, event.id): event for event in self.accepted()}
        return [
            event
            for event in self._accepted
            if (event.type, event.data)
            != (counted[event.account, event.id].type, counted[event.account, event.id].data)
        ]

    def unmetered(self) -> list[Event]:
        """Accepted events that none of the `meters` counts: often the type is misspelt. Empty without `meters`."""
        return list(self._unmetered)

    def check(self) -> None:
        """Raise `AssertionError` if an event is not counted: rejected, dropped, pending, unmetered or in conflict."""
        problems = [f"{event.id} was rejected: {reason}: {detail}" for event, reason, detail in self._rejected]
        problems += [f"{event.id} was dropped" for event in self._dropped]
        problems += [f"{event.id} is an id of another event of {event.account}" for event in self.conflicts()]
        problems += [f"{event.id} is of no meter: {event.type}" for event in self._unmetered]
        pending = self.stats().pending
        problems += [f"{pending} events are pending: the gateway is away"] if pending else []
        if problems:
            raise AssertionError("events that are not counted:\n" + "\n".join(problems))

    def clear(self) -> None:
        """Forget the events so far. `stats` goes on, and pending events stay pending."""
        with self._sending_lock:
            self._emitted.clear()
            self._accepted.clear()
            self._rejected.clear()
            self._dropped.clear()
            self._unmetered.clear()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Within the block the gateway does not answer, so events are pending. Afterwards they are sent."""
        self._is_away = True
        self._events.failed("no answer: the gateway of the test is away")
        try:
            yield
        finally:
            self._is_away = False
            self._start()

    @contextmanager
    def rejecting(
        self,
        reason: str,
        detail: str = "",
        *,
        type: str | None = None,  # noqa: A002  # as emit
        account: str | None = None,
    ) -> Iterator[None]:
        """Within the block the gateway rejects these events, or all if neither type nor account is given."""
        rule = (reason, detail, type, account)
        self._rules.append(rule)
        try:
            yield
        finally:
            self._rules.remove(rule)

    def _put(self, event: Event, wait_s: float | None) -> None:
        with self._sending_lock:
            self._unjudged.append(event)
            try:
                super()._put(event, wait_s)
            except Exception:
                self._unjudged.pop()
                raise
            self._emitted.append(event)

    def _start(self) -> None:
        """Instead of a thread: send what is pending."""
        with self._sending_lock:
            # A callback may emit: the event is sent after those that are being sent.
            if self._is_sending:
                return
            self._is_sending = True
            try:
                while self._events.stats().pending and not self._is_away:
                    self._sender.send(self._events.take(0))
            finally:
                self._is_sending = False

    def flush(self, timeout_s: float = 30.0) -> bool:  # noqa: ARG002  # the emitter's
        """Whether no event is pending. Does not wait."""
        self._start()
        return not self._events.stats().pending

    def _judge(self, body: bytes, headers: Mapping[str, str]) -> Answer:  # noqa: ARG002  # the protocol's
        answers = []
        for index, raw in enumerate(bodies(body)):
            document = json.loads(raw)
            event = self._unjudged.popleft()
            while (event.account, event.id) != (document["subject"], document["id"]):
                # That one never got here.
                event = self._unjudged.popleft()
            wanted = wanting(document, self._meters or ())
            found = self._told(event) or problem(document, len(raw), self._now_ns()) or missing_value(document, wanted)
            answer = {"index": index, "id": event.id, "status": "rejected" if found else "accepted"}
            if found:
                answer |= {"reason": found[0], "detail": found[1]}
            else:
                self._accepted.append(event)
                self._unmetered += [event] if self._meters is not None and not wanted else []
            answers.append(answer)
        return Answer(202, {}, json.dumps({"events": answers}).encode())

    def _told(self, event: Event) -> tuple[str, str] | None:
        for reason, detail, event_type, account in self._rules:
            if _chosen([event], event_type, account):
                return reason, detail
        return None

    def _note_rejected(self, event: Event, reason: str, detail: str) -> None:
        self._rejected.append(Rejected(event, reason, detail))
        if self._application[0] is not None:
            self._application[0](event, reason, detail)

    def _note_dropped(self, event: Event, reason: str) -> None:
        self._dropped.append(event)
        if self._application[1] is not None:
            self._application[1](event, reason)


def _chosen(events: Sequence[Event], event_type: str | None, account: str | None) -> list[Event]:
    return [event for event in events if event_type in (None, event.type) and account in (None, event.account)]
