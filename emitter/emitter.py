"""The emitter: a bounded queue in front of one sending thread."""

from __future__ import annotations

import atexit
import http.client
import logging
import os
import threading
import time as machine_time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, Self

from emitter.answers import Verdict, error, pause_s, verdicts
from emitter.encoding import ID_CHARACTERS_MAX, NAME_CHARACTERS_MAX, Event, checked_time, encoded, uuid7
from emitter.transport import Answer, HttpTransport, Transport

OnRejected = Callable[[Event, str, str], None]
OnDropped = Callable[[Event, str], None]

LOG_INTERVAL_S: Final = 30.0

_log: Final = logging.getLogger("tidemark.emitter")
_NO_HEADERS: Final[Mapping[str, str]] = {}


class QueueFull(Exception):  # noqa: N818  # named by what happened to the caller
    """The queue stayed full for `block_timeout_s`: this event was not taken. Keep it, or emit less."""


class Stats(NamedTuple):
    """Events since the emitter was made (in this process): emitted = accepted + rejected + dropped + pending.

    `refused` were never taken (`QueueFull`). `last_error` says why the last attempt did not succeed, "" if it did.
    """

    emitted: int
    accepted: int
    rejected: int
    dropped: int
    pending: int
    refused: int
    requests: int
    retries: int
    last_error: str


class _Item(NamedTuple):
    """An event on its way: its number in the queue's order and its bytes."""

    number: int
    event: Event
    body: bytes


class Emitter:
    """Sends usage events in the background; may be used by any number of threads, and after a fork.

    `emit` never waits for the network. Events are kept in memory only: a process that is killed loses those not yet
    accepted, so call `close` (or leave the `with` block) when it ends; at a normal exit it is called for you.
    """

    def __init__(
        self,
        gateway_url: str,
        api_key: str,
        *,
        source: str,
        batch_events_max: int = 500,
        batch_bytes_max: int = 1_000_000,
        queue_events_max: int = 10_000,
        flush_interval_s: float = 0.2,
        when_full: Literal["block", "drop"] = "block",
        block_timeout_s: float = 1.0,
        request_timeout_s: float = 10.0,
        retry_base_s: float = 0.2,
        retry_max_s: float = 30.0,
        retry_for_s: float = 86_400.0,
        exit_timeout_s: float = 5.0,
        on_rejected: OnRejected | None = None,
        on_dropped: OnDropped | None = None,
        transport: Transport | None = None,
        now_ns: Callable[[], int] = machine_time.time_ns,
    ) -> None:
        """`queue_events_max` bounds what is waiting and under way together.

        `when_full="block"` lets `emit` wait up to `block_timeout_s` and then raise `QueueFull`; `"drop"` never waits,
        counts the event as dropped and tells `on_dropped` (use it in asyncio code). An event that could not be
        delivered for `retry_for_s` is dropped too. Callbacks run in the sending thread (`on_dropped` also in the
        caller of `emit`); what they raise is logged. Raises `ValueError` on settings that cannot work.
        """
        if not 0 < len(source) <= NAME_CHARACTERS_MAX:
            raise ValueError(f"source must have 1 to {NAME_CHARACTERS_MAX} characters, such as the service's name")
        if min(batch_events_max, batch_bytes_max, queue_events_max) < 1:
            raise ValueError("batch_events_max, batch_bytes_max and queue_events_max must be 1 or more")
        if when_full not in ("block", "drop"):
            raise ValueError(f"when_full must be block or drop, not {when_full!r}")
        self._own_transport = HttpTransport(gateway_url, request_timeout_s) if transport is None else None
        self._transport: Transport = transport or self._own_transport  # type: ignore[assignment]  # one of them is set
        self._headers = {
            "authorization": f"Bearer {api_key}",
            "content-type": "application/cloudevents-batch+json; charset=utf-8",
        }
        self._source = source
        self._batch_events_max = min(batch_events_max, queue_events_max)
        self._batch_bytes_max = batch_bytes_max
        self._queue_events_max = queue_events_max
        self._flush_interval_s = flush_interval_s
        self._block_s = block_timeout_s if when_full == "block" else 0.0
        self._drops = when_full == "drop"
        self._retry_base_s, self._retry_max_s, self._retry_for_s = retry_base_s, retry_max_s, retry_for_s
        self._exit_timeout_s = exit_timeout_s
        self._on_rejected, self._on_dropped = on_rejected, on_dropped
        self._now_ns = now_ns
        self._reset()
        _live.add(self)

    def _reset(self) -> None:
        """Start with nothing: at birth, and in the child of a fork, whose parent still has the events."""
        # Re-entrant, because a signal handler or a finaliser may emit while this thread holds the lock.
        lock = threading.RLock()
        self._work, self._settled = threading.Condition(lock), threading.Condition(lock)
        self._queue: deque[Event] = deque()
        self._under_way: dict[int, Event] = {}
        self._taken = self._queued = 0
        self._emitted = self._accepted = self._rejected = self._dropped = self._refused = 0
        self._requests = self._retries = 0
        self._last_error, self._logged_at_s = "", -LOG_INTERVAL_S
        self._thread: threading.Thread | None = None
        self._idle = False
        self._flushing = 0
        self._closing_at_s: float | None = None
        self._abandoned = False
        if self._own_transport is not None:
            self._own_transport.close()

    def emit(
        self,
        type: str,  # noqa: A002  # CloudEvents' name
        account: str,
        data: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002  # CloudEvents' name
        time: datetime | str | None = None,
    ) -> str:
        """Take one event and return its id; the sending thread does the rest.

        Pass the operation's own `id` wherever there is one: a job that runs twice is then counted once. Without it
        a UUIDv7 is made here. `time` is when it happened (an aware datetime or RFC 3339 text), now by default.
        `data` is copied one level deep: do not change lists or dicts inside it afterwards. Raises `ValueError` for
        what can be known to be wrong at once, `QueueFull` (see `when_full`), and `RuntimeError` after `close`.
        """
        if not 0 < len(type) <= NAME_CHARACTERS_MAX:
            raise ValueError(f"type must have 1 to {NAME_CHARACTERS_MAX} characters")
        if not 0 < len(account) <= NAME_CHARACTERS_MAX:
            raise ValueError(f"account must have 1 to {NAME_CHARACTERS_MAX} characters")
        if id is None:
            id = uuid7(self._now_ns)  # noqa: A001  # CloudEvents' name
        elif not 0 < len(id) <= ID_CHARACTERS_MAX:
            raise ValueError(f"id must have 1 to {ID_CHARACTERS_MAX} characters")
        instant = self._now_ns() if time is None else checked_time(time)
        event = Event(id, type, account, {} if data is None else dict(data), instant)
        with self._work:
            if self._closing_at_s is not None:
                raise RuntimeError("the emitter is closed: emit before close(), or make another one")
            if self._pending() < self._queue_events_max or self._wait_for_room():
                self._queue.append(event)
                self._emitted += 1
                self._queued += 1
                if self._idle or len(self._queue) == self._batch_events_max:
                    self._idle = False
                    self._work.notify()
                if self._thread is None:
                    self._start()
                return id
        self._tell_dropped([event], "queue_full")
        return id

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Send what was emitted before this call without lingering; whether all of it was settled in time."""
        deadline_s = machine_time.monotonic() + timeout_s
        with self._work:
            target = self._queued
            self._flushing += 1
            self._work.notify()
            try:
                while self._settled_before() < target:
                    left_s = deadline_s - machine_time.monotonic()
                    if left_s <= 0:
                        return False
                    self._settled.wait(left_s)
            finally:
                self._flushing -= 1
        return True

    def close(self, timeout_s: float = 30.0) -> bool:
        """Take no more events, send what is pending and stop; whether all of it was settled in time.

        What was not is dropped: counted and told to `on_dropped`. Safe to call twice, and from any thread.
        """
        with self._work:
            if self._closing_at_s is None:
                self._closing_at_s = machine_time.monotonic() + timeout_s
            thread = self._thread
            self._work.notify()
            self._settled.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
        with self._work:
            self._abandoned = True
            left = [*self._under_way.values(), *self._queue]
            self._under_way.clear()
            self._queue.clear()
            self._dropped += len(left)
            self._settled.notify_all()
        self._tell_dropped(left, "closed")
        if self._own_transport is not None and (thread is None or not thread.is_alive()):
            self._own_transport.close()
        _live.discard(self)
        return not left

    def stats(self) -> Stats:
        """The counters, of one moment."""
        with self._work:
            return Stats(
                self._emitted, self._accepted, self._rejected, self._dropped, self._pending(), self._refused,
                self._requests, self._retries, self._last_error,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _pending(self) -> int:
        return len(self._queue) + len(self._under_way)

    def _settled_before(self) -> int:
        """All events with a lower number are settled; batches go one after the other, so the first one tells."""
        return next(iter(self._under_way), self._taken)

    def _wait_for_room(self) -> bool:
        """Whether there is room now; counts the event that found none."""
        if self._drops:
            self._emitted += 1
            self._dropped += 1
            return False
        deadline_s = machine_time.monotonic() + self._block_s
        while self._pending() >= self._queue_events_max and self._closing_at_s is None:
            left_s = deadline_s - machine_time.monotonic()
            if left_s <= 0:
                self._refused += 1
                raise QueueFull(
                    f"{self._queue_events_max} events are waiting for the gateway ({self._last_error or 'it is slow'})"
                )
            self._settled.wait(left_s)
        if self._closing_at_s is not None:
            raise RuntimeError("the emitter was closed while waiting for room")
        return True

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="tidemark-emitter", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            chunk: list[_Item] = []
            size = 0
            for number, event in batch:
                try:
                    body = encoded(event, self._source)
                except (ValueError, TypeError) as failure:
                    self._settle_rejected(number, event, Verdict("rejected", "not_serializable", str(failure)))
                    continue
                if chunk and size + len(body) > self._batch_bytes_max:
                    self._deliver(chunk)
                    chunk, size = [], 0
                chunk.append(_Item(number, event, body))
                size += len(body) + 1
            if chunk:
                self._deliver(chunk)

    def _next_batch(self) -> list[tuple[int, Event]] | None:
        """Wait for events, linger for more, take a batch; None once the emitter is closed and empty."""
        with self._work:
            while not self._queue:
                if self._closing_at_s is not None:
                    return None
                self._idle = True
                self._work.wait()
            self._idle = False
            linger_until_s = machine_time.monotonic() + self._flush_interval_s
            while len(self._queue) < self._batch_events_max and not self._flushing and self._closing_at_s is None:
                left_s = linger_until_s - machine_time.monotonic()
                if left_s <= 0:
                    break
                self._work.wait(left_s)
            count = min(len(self._queue), self._batch_events_max)
            batch = [(self._taken + index, self._queue.popleft()) for index in range(count)]
            self._taken += count
            self._under_way.update(batch)
            return batch

    def _deliver(self, items: list[_Item]) -> None:
        """Send until every item is settled, under the same ids, so that a repeated request is counted once."""
        started_s = machine_time.monotonic()
        attempt = 0
        while items and not self._abandoned:
            answer = self._post(items)
            headers = _NO_HEADERS
            if answer is not None:
                headers = answer.headers
                if answer.status in (400, 413) and verdicts(answer, [item.event.id for item in items]) is None:
                    return self._split(items, error(answer))
                items = self._settle(items, answer)
            if not items:
                return None
            if machine_time.monotonic() - started_s > self._retry_for_s:
                return self._give_up(items)
            wait_s = pause_s(attempt, self._retry_base_s, self._retry_max_s, headers)
            self._note(f"{self._last_error}; {len(items)} events are sent again in {wait_s:.1f} s")
            self._pause(wait_s)
            attempt += 1
            self._retries += 1
        return None

    def _post(self, items: list[_Item]) -> Answer | None:
        self._requests += 1
        try:
            return self._transport(b"[" + b",".join(item.body for item in items) + b"]", self._headers)
        except (OSError, http.client.HTTPException) as failure:
            self._last_error = f"no answer: {type(failure).__name__}: {failure}"
        except Exception as failure:  # noqa: BLE001  # a transport of the application's may raise anything
            self._last_error = f"the transport failed: {type(failure).__name__}: {failure}"
        return None

    def _settle(self, items: list[_Item], answer: Answer) -> list[_Item]:
        """Settle what the answer decides; returns what must be sent again."""
        found = verdicts(answer, [item.event.id for item in items])
        if found is None:
            self._last_error = f"HTTP {answer.status}: {error(answer).reason}: {error(answer).detail}"
            return items
        left = []
        with self._work:
            if self._abandoned:
                return []
            for item, verdict in zip(items, found, strict=True):
                if verdict.status == "accepted":
                    self._accepted += 1
                    del self._under_way[item.number]
                elif verdict.status != "rejected":
                    left.append(item)
            self._last_error = f"HTTP {answer.status}: {len(left)} events have no verdict yet" if left else ""
            self._settled.notify_all()
        for item, verdict in zip(items, found, strict=True):
            if verdict.status == "rejected":
                self._settle_rejected(item.number, item.event, verdict)
        return left

    def _split(self, items: list[_Item], verdict: Verdict) -> None:
        """The request as a whole was refused: find the event that spoils it, or a size that is taken."""
        if len(items) == 1:
            return self._settle_rejected(items[0].number, items[0].event, verdict)
        half = len(items) // 2
        self._deliver(items[:half])
        return self._deliver(items[half:])

    def _settle_rejected(self, number: int, event: Event, verdict: Verdict) -> None:
        with self._work:
            if self._under_way.pop(number, None) is None:
                return
            self._rejected += 1
            self._settled.notify_all()
        self._note(f"event {event.id} was rejected: {verdict.reason}: {verdict.detail}")
        if self._on_rejected is not None:
            try:
                self._on_rejected(event, verdict.reason, verdict.detail)
            except Exception:
                _log.exception("on_rejected failed")

    def _give_up(self, items: list[_Item]) -> None:
        with self._work:
            given_up = [item.event for item in items if self._under_way.pop(item.number, None) is not None]
            self._dropped += len(given_up)
            self._settled.notify_all()
        self._tell_dropped(given_up, "not_delivered")

    def _tell_dropped(self, events: list[Event], reason: str) -> None:
        if events:
            self._note(f"{len(events)} events were dropped: {reason}")
        for event in events if self._on_dropped is not None else ():
            try:
                self._on_dropped(event, reason)  # type: ignore[misc]  # checked above
            except Exception:
                _log.exception("on_dropped failed")

    def _pause(self, wait_s: float) -> None:
        """Sleep between attempts; a close ends it when its own time is over."""
        until_s = machine_time.monotonic() + wait_s
        with self._work:
            while not self._abandoned:
                left_s = until_s - machine_time.monotonic()
                if self._closing_at_s is not None and self._closing_at_s < until_s:
                    left_s = self._closing_at_s - machine_time.monotonic()
                if left_s <= 0:
                    return
                self._work.wait(left_s)

    def _note(self, message: str) -> None:
        now_s = machine_time.monotonic()
        if now_s - self._logged_at_s >= LOG_INTERVAL_S:
            self._logged_at_s = now_s
            _log.warning("%s (further messages for %.0f s are only counted)", message, LOG_INTERVAL_S)


_live: Final[weakref.WeakSet[Emitter]] = weakref.WeakSet()


def _close_all() -> None:
    for emitter in list(_live):
        emitter.close(emitter._exit_timeout_s)  # noqa: SLF001  # this module's own


def _forget_all() -> None:
    for emitter in list(_live):
        emitter._reset()  # noqa: SLF001  # this module's own


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
