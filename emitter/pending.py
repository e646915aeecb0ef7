"""The state of every event (waiting, being sent or settled), the limit of the queue, and all counters."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from emitter.encoding import Event, decoded
from emitter.spool import ADOPT_INTERVAL_S, Place, Spool, Unread


class QueueFull(Exception):
    """The queue stayed full for `block_timeout_s`, so the event was not taken. Keep the event and emit it later."""


class Stats(NamedTuple):
    """Counts since the emitter was created in this process: emitted + recovered = accepted + rejected + dropped +
    pending.

    `refused` events were never taken (`QueueFull`). `last_error` is why the last attempt failed, "" if it did not.

    The spool's: `recovered` events were left by dead processes. `unspooled` events are in memory only, because the
    spool could not take them; `spool_error` says why, "" if the last write succeeded. `spool_damaged` lines of its
    files could not be read.
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
    recovered: int
    unspooled: int
    spool_damaged: int
    spool_error: str


class Entry(NamedTuple):
    """An event in memory. With a spool: its JSON, and its place there, None if the spool could not take the event."""

    event: Event
    body: bytes = b""
    place: Place | None = None


class PendingEvents:
    """The state that emitting threads and the sending thread share. Every method is thread-safe.

    Events are numbered in the order of the queue. An event is settled exactly once: later answers on it are ignored.
    With a spool, events for which memory has no room are on disk only, until `take` has room.
    """

    def __init__(
        self, queue_events_max: int, batch_events_max: int, batch_bytes_max: int, spool: Spool | None = None
    ) -> None:
        # Re-entrant, because a signal handler or a finalizer may emit while this thread has the lock.
        self._lock = threading.RLock()
        self._sync_lock = threading.RLock()
        self._work, self._settled = threading.Condition(self._lock), threading.Condition(self._lock)
        self._queue_events_max = queue_events_max
        self._batch_events_max = batch_events_max
        self._batch_bytes_max = batch_bytes_max
        self._spool = spool
        self._queue: deque[Entry] = deque()
        self._under_way: dict[int, Entry] = {}
        self._taken_out = 0
        self._emitted = self._accepted = self._rejected = self._dropped = self._refused = 0
        self._requests = self._retries = 0
        self._recovered = self._unspooled = self._left_behind = 0
        self._last_error = ""
        self._idle = False
        self._flushing = 0
        self._closing_at_s: float | None = None
        self._abandoned = False

    def put(self, event: Event, wait_s: float | None, body: bytes = b"") -> bool:
        """Queue an event, and write its `body` to the spool. If there is no room, wait up to `wait_s` for room and then
        raise `QueueFull`.

        If `wait_s` is None, a full queue drops the event at once: the event is counted and the result is False. Raises
        `RuntimeError` after the emitter is closed.
        """
        with self._lock:
            place = None
            if self._closing_at_s is None and self._spool is not None and body:
                in_memory = self._has_room() and not self._spool.unread
                place = self._spool.append(body, in_memory=in_memory)
                if place is not None and not in_memory:
                    self._emitted += 1
                    self._wake(is_due=False)
                    return True
            if place is None and self._closing_at_s is None and not self._has_room():
                if wait_s is None:
                    self._emitted += 1
                    self._dropped += 1
                    return False
                self._wait_for_room(wait_s)
            if self._closing_at_s is not None:
                raise RuntimeError("the emitter is closed: emit before close(), or make another one")
            self._queue.append(Entry(event, body, place))
            self._emitted += 1
            self._unspooled += self._spool is not None and place is None
            self._wake(is_due=len(self._queue) == self._batch_events_max)
            return True

    def _has_room(self) -> bool:
        return len(self._queue) + len(self._under_way) < self._queue_events_max

    def _wake(self, *, is_due: bool) -> None:
        if self._idle or is_due:
            self._idle = False
            self._work.notify()

    def _wait_for_room(self, wait_s: float) -> None:
        deadline_s = time.monotonic() + wait_s
        while not self._has_room() and self._closing_at_s is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                self._refused += 1
                cause = self._last_error or "it is slow"
                raise QueueFull(f"{self._queue_events_max} events are waiting for the gateway ({cause})")
            self._settled.wait(left_s)

    def take(self, linger_s: float) -> list[tuple[int, Entry]]:
        """Wait for events, then up to `linger_s` for more, and take a batch with its numbers. Empty: stop sending."""
        with self._lock:
            while not self._fill():
                if self._closing_at_s is not None:
                    return []
                self._idle = True
                self._work.wait(ADOPT_INTERVAL_S if self._spool is not None else None)
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

    def _fill(self) -> bool:
        """Read a batch from the spool, if memory has less than one. Returns whether there is an event to send."""
        room = self._batch_events_max - len(self._queue)
        if self._spool is not None and room > 0 and not self._over():
            if not self._spool.unread:
                self._recovered += self._spool.adopt()
            while self._spool.unread:
                unread, lost = self._spool.read(room, self._batch_bytes_max)
                self._queue.extend(entry for each in unread if (entry := self._decoded(each)) is not None)
                self._dropped += lost
                # A file that somebody damaged may have no event.
                if self._queue:
                    break
            self._settled.notify_all()
        return bool(self._queue)

    def _decoded(self, unread: Unread) -> Entry | None:
        assert self._spool is not None, "the caller has read from it"  # noqa: S101
        try:
            return Entry(decoded(unread.body), unread.body, unread.place)
        except Exception:  # noqa: BLE001  # another version may have written it, and the sending must go on
            self._spool.damaged += 1
            self._spool.settle([unread.place])
            self._dropped += 1
            return None

    def accept(self, numbers: Iterable[int]) -> None:
        """Settle these events: the gateway accepted them."""
        with self._lock:
            self._accepted += len(self._settle(numbers))

    def reject(self, number: int) -> bool:
        """Settle this event: it is rejected permanently. Returns False if the event was settled before."""
        with self._lock:
            known = bool(self._settle([number]))
            self._rejected += known
            return known

    def drop(self, numbers: Iterable[int]) -> list[Event]:
        """Settle these events as dropped. Returns the events that were not settled before."""
        with self._lock:
            dropped = [entry.event for entry in self._settle(numbers)]
            self._dropped += len(dropped)
            return dropped

    def _settle(self, numbers: Iterable[int]) -> list[Entry]:
        entries = [entry for number in numbers if (entry := self._under_way.pop(number, None)) is not None]
        if self._spool is not None:
            self._spool.settle(entry.place for entry in entries if entry.place is not None)
        self._settled.notify_all()
        return entries

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
            # Events that are on disk only have no number yet.
            read_target = self._read_total() + self._unread()
            target = None
            self._flushing += 1
            self._work.notify()
            try:
                while True:
                    if target is None and self._read_total() >= read_target:
                        target = self._taken_out + len(self._queue)
                    # Batches are sent one after the other, so all events before the first one being sent are settled.
                    if self._abandoned or (target is not None and not self._queue_or_under_way_before(target)):
                        break
                    left_s = deadline_s - time.monotonic()
                    if left_s <= 0:
                        return False
                    self._settled.wait(left_s)
            finally:
                self._flushing -= 1
            return not self._left_behind

    def _queue_or_under_way_before(self, target: int) -> bool:
        return next(iter(self._under_way), self._taken_out) < target

    def _unread(self) -> int:
        return self._spool.unread if self._spool is not None else 0

    def _read_total(self) -> int:
        return self._spool.read_total if self._spool is not None else 0

    def close(self, timeout_s: float) -> None:
        """Take no more events, and end all attempts in `timeout_s`. Later calls do not change the deadline."""
        with self._lock:
            if self._closing_at_s is None:
                self._closing_at_s = time.monotonic() + timeout_s
            self._work.notify_all()
            self._settled.notify_all()

    def abandon(self) -> list[Event]:
        """Drop and return all pending events but those in the spool. A later answer on any of them is ignored."""
        with self._lock:
            entries = [*self._under_way.values(), *self._queue]
            lost = [entry.event for entry in entries if entry.place is None]
            if not self._abandoned and self._spool is not None:
                self._left_behind = len(entries) - len(lost) + self._spool.unread
                self._spool.close()
                self._spool.unread = 0
            self._abandoned = True
            self._under_way.clear()
            self._queue.clear()
            self._dropped += len(lost)
            self._work.notify_all()
            self._settled.notify_all()
            return lost

    def sync(self) -> None:
        """Make the disk keep what was written to the spool. Blocks for as long as the disk needs."""
        if self._spool is None:
            return
        failure = None
        with self._sync_lock:
            with self._lock:
                descriptors = list(self._spool.to_sync())
            try:
                for descriptor in descriptors:
                    os.fsync(descriptor)
            except OSError as error:
                failure = error
            with self._lock:
                self._spool.synced(failure)

    def forget(self) -> None:
        """In the child of a fork: the files of the spool belong to the parent."""
        if self._spool is not None:
            self._spool.forget()

    def stats(self) -> Stats:
        """A consistent copy of the counters."""
        with self._lock:
            pending = len(self._queue) + len(self._under_way) + self._unread() + self._left_behind
            damaged, problem = (self._spool.damaged, self._spool.problem) if self._spool is not None else (0, "")
            return Stats(
                self._emitted, self._accepted, self._rejected, self._dropped, pending, self._refused,
                self._requests, self._retries, self._last_error,
                self._recovered, self._unspooled, damaged, problem,
            )  # fmt: skip

    def _over(self) -> bool:
        return self._abandoned or (self._closing_at_s is not None and time.monotonic() >= self._closing_at_s)
