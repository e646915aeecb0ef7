"""The state of every event (waiting, being sent or settled), the limit of the queue, and all counters."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from emitter.encoding import Event


class QueueFull(Exception):
    """The queue stayed full for `block_timeout_s`, so the event was not taken. Keep the event and emit it later."""


class Stats(NamedTuple):
    """Counts since the emitter was created in this process: emitted = accepted + rejected + dropped + pending.

    `refused` events were never taken (`QueueFull`). `last_error` is why the last attempt failed, "" if it did not.
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


class PendingEvents:
    """The state that emitting threads and the sending thread share. Every method is thread-safe.

    Events are numbered in the order of the queue. An event is settled exactly once: later answers on it are ignored.
    """

    def __init__(self, queue_events_max: int, batch_events_max: int) -> None:
        # Re-entrant, because a signal handler or a finalizer may emit while this thread has the lock.
        self._lock = threading.RLock()
        self._work, self._settled = threading.Condition(self._lock), threading.Condition(self._lock)
        self._queue_events_max = queue_events_max
        self._batch_events_max = batch_events_max
        self._queue: deque[Event] = deque()
        self._under_way: dict[int, Event] = {}
        self._taken_out = 0
        self._emitted = self._accepted = self._rejected = self._dropped = self._refused = 0
        self._requests = self._retries = 0
        self._last_error = ""
        self._idle = False
        self._flushing = 0
        self._closing_at_s: float | None = None
        self._abandoned = False

    def put(self, event: Event, wait_s: float | None) -> bool:
        """Queue an event. If the queue is full, wait up to `wait_s` for room and then raise `QueueFull`.

        If `wait_s` is None, a full queue drops the event at once: the event is counted and the result is False. Raises
        `RuntimeError` after the emitter is closed.
        """
        with self._lock:
            if self._closing_at_s is None and len(self._queue) + len(self._under_way) >= self._queue_events_max:
                if wait_s is None:
                    self._emitted += 1
                    self._dropped += 1
                    return False
                self._wait_for_room(wait_s)
            if self._closing_at_s is not None:
                raise RuntimeError("the emitter is closed: emit before close(), or make another one")
            self._queue.append(event)
            self._emitted += 1
            if self._idle or len(self._queue) == self._batch_events_max:
                self._idle = False
                self._work.notify()
            return True

    def _wait_for_room(self, wait_s: float) -> None:
        deadline_s = time.monotonic() + wait_s
        while len(self._queue) + len(self._under_way) >= self._queue_events_max and self._closing_at_s is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                self._refused += 1
                cause = self._last_error or "it is slow"
                raise QueueFull(f"{self._queue_events_max} events are waiting for the gateway ({cause})")
            self._settled.wait(left_s)

    def take(self, linger_s: float) -> list[tuple[int, Event]]:
        """Wait for events, then up to `linger_s` for more, and take a batch with its numbers. Empty: stop sending."""
        with self._lock:
            while not self._queue:
                if self._closing_at_s is not None:
                    return []
                self._idle = True
                self._work.wait()
            self._idle = False
            linger_until_s = time.monotonic() + linger_s
            while len(self._queue) < self._batch_events_max and not self._flushing and self._closing_at_s is None:
                left_s = linger_until_s - time.monotonic()
                if left_s <= 0:
                    break
                self._work.wait(left_s)
            if self._over():
                return []
            count = min(len(self._queue), self._batch_events_max)
            batch = [(self._taken_out + index, self._queue.popleft()) for index in range(count)]
            self._taken_out += count
            self._under_way.update(batch)
            return batch

    def accept(self, numbers: Iterable[int]) -> None:
        """Settle these events: the gateway accepted them."""
        with self._lock:
            self._accepted += sum(self._under_way.pop(number, None) is not None for number in numbers)
            self._settled.notify_all()

    def reject(self, number: int) -> bool:
        """Settle this event: it is rejected permanently. Returns False if the event was settled before."""
        with self._lock:
            known = self._under_way.pop(number, None) is not None
            self._rejected += known
            self._settled.notify_all()
            return known

    def drop(self, numbers: Iterable[int]) -> list[Event]:
        """Settle these events as dropped. Returns the events that were not settled before."""
        with self._lock:
            dropped = [event for number in numbers if (event := self._under_way.pop(number, None)) is not None]
            self._dropped += len(dropped)
            self._settled.notify_all()
            return dropped

    def attempted(self, *, again: bool) -> None:
        """Count a request; `again` if its events were sent before."""
        with self._lock:
            self._requests += 1
            self._retries += again

    def failed(self, error: str) -> None:
        """Record why the last attempt left events unsettled; "" if it settled all."""
        self._last_error = error

    def pause(self, wait_s: float) -> bool:
        """Sleep between two attempts, but not beyond the deadline of `close`. Returns whether to continue."""
        until_s = time.monotonic() + wait_s
        with self._lock:
            while not self._over():
                end_s = until_s if self._closing_at_s is None else min(until_s, self._closing_at_s)
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    break
                self._work.wait(left_s)
            return not self._over()

    def wait_settled(self, timeout_s: float) -> bool:
        """Send without lingering. Returns whether all events that are pending now were settled in time."""
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            target = self._taken_out + len(self._queue)
            self._flushing += 1
            self._work.notify()
            try:
                # Batches are sent one after the other, so all events before the first one being sent are settled.
                while self._queue_or_under_way_before(target):
                    left_s = deadline_s - time.monotonic()
                    if left_s <= 0:
                        return False
                    self._settled.wait(left_s)
            finally:
                self._flushing -= 1
            return True

    def _queue_or_under_way_before(self, target: int) -> bool:
        return next(iter(self._under_way), self._taken_out) < target and not self._abandoned

    def close(self, timeout_s: float) -> None:
        """Take no more events, and end all attempts in `timeout_s`. Later calls do not change the deadline."""
        with self._lock:
            if self._closing_at_s is None:
                self._closing_at_s = time.monotonic() + timeout_s
            self._work.notify_all()
            self._settled.notify_all()

    def abandon(self) -> list[Event]:
        """Drop and return all pending events. A later answer on them is ignored."""
        with self._lock:
            self._abandoned = True
            left = [*self._under_way.values(), *self._queue]
            self._under_way.clear()
            self._queue.clear()
            self._dropped += len(left)
            self._work.notify_all()
            self._settled.notify_all()
            return left

    def stats(self) -> Stats:
        """A consistent copy of the counters."""
        with self._lock:
            return Stats(
                self._emitted, self._accepted, self._rejected, self._dropped,
                len(self._queue) + len(self._under_way), self._refused,
                self._requests, self._retries, self._last_error,
            )  # fmt: skip

    def _over(self) -> bool:
        return self._abandoned or (self._closing_at_s is not None and time.monotonic() >= self._closing_at_s)
