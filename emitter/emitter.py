"""The class `Emitter`, which applications call."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import multiprocessing.util
import os
import threading
import time as machine_time
import weakref
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, Self

from emitter.encoding import ID_CHARACTERS_MAX, NAME_CHARACTERS_MAX, Event, checked_time, encoded, uuid7
from emitter.notices import Notices, OnDropped, OnRejected
from emitter.pending import PendingEvents, Stats
from emitter.sender import Sender, SenderSettings
from emitter.spool import Spool, SpoolSettings, SyncPolicy
from emitter.transport import HttpTransport, Transport, exposes_key

_log: Final = logging.getLogger("tidemark.emitter")


class Emitter:
    """Sends usage events in the background. Safe to use in any number of threads and after a fork.

    `emit` never waits for the network. Without `spool_path`, events are in memory only: a killed process loses the
    events that are not yet accepted. Call `close` (or leave the `with` block) before the process ends; a normal exit
    calls `close` itself.
    """

    def __init__(
        self,
        gateway_url: str = "",
        api_key: str = "",
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
        spool_path: str | os.PathLike[str] | None = None,
        spool_bytes_max: int = 100_000_000,
        spool_sync: SyncPolicy = "interval",
        spool_sync_interval_s: float = 1.0,
        on_rejected: OnRejected | None = None,
        on_dropped: OnDropped | None = None,
        transport: Transport | None = None,
        now_ns: Callable[[], int] = machine_time.time_ns,
    ) -> None:
        """`gateway_url` and `api_key` are needed unless there is a `transport`. `queue_events_max` limits the events
        that are waiting or being sent.

        If the queue is full, `emit` waits up to `block_timeout_s` and then raises `QueueFull` (`when_full="block"`), or
        it drops the event without waiting and calls `on_dropped` (`"drop"`, for asyncio code). An event that is not
        delivered within `retry_for_s` is dropped too.

        `spool_path` is a folder on a local disk, for one gateway. Events are written there before `emit` returns, and
        the next process with this folder sends those that have no answer. `spool_bytes_max` limits the folder; beyond
        the limit, and after errors of the disk, events are in memory only. `spool_sync` "each" syncs the disk before
        `emit` returns, "interval" every `spool_sync_interval_s`.

        Callbacks run in the sending thread, `on_dropped` also in the callers of `emit` and `close`; their exceptions
        are logged. Raises `ValueError` for invalid settings.
        """
        _check(source, min(batch_events_max, batch_bytes_max, queue_events_max), when_full)
        if transport is None and not api_key:
            raise ValueError("api_key is missing: `tidemark key create --role ingest` prints one")
        if transport is None and exposes_key(gateway_url):
            _log.warning("%s is not encrypted: everybody on the way can read the API key. Use https://", gateway_url)
        self._own_transport = HttpTransport(gateway_url, request_timeout_s) if transport is None else None
        self._transport = transport
        self._queue_events_max = queue_events_max
        self._batch_events_max = min(batch_events_max, queue_events_max)
        self._when_full = when_full
        self._block_timeout_s = block_timeout_s
        self._exit_timeout_s = exit_timeout_s
        self._spool_settings = None
        if spool_path is not None:
            spool = SpoolSettings(Path(spool_path), spool_bytes_max, spool_sync, spool_sync_interval_s)
            self._spool_settings = spool.checked()
        self._settings = SenderSettings(
            source, api_key, batch_bytes_max, flush_interval_s, retry_base_s, retry_max_s, retry_for_s
        )
        self._notices = Notices(on_rejected, on_dropped)
        self._now_ns = now_ns
        self._new_state()
        _live.add(self)
        if self._spool is not None and self._spool.is_left_behind:
            self._start()

    def _reset(self) -> None:
        """Set the empty state in the child of a fork, whose parent keeps the events."""
        self._events.forget()
        self._new_state()

    def _new_state(self) -> None:
        self._spool = Spool(self._spool_settings) if self._spool_settings is not None else None
        self._events = PendingEvents(
            self._queue_events_max, self._batch_events_max, self._settings.batch_bytes_max, self._spool
        )
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None
        # Re-entrant, like the lock of the pending events: a signal handler may emit while this thread has the lock.
        self._starting_lock = threading.RLock()
        self._is_starting = False
        if self._own_transport is not None:
            self._own_transport.forget()

    def emit(
        self,
        type: str,  # noqa: A002  # CloudEvents' name
        account: str,
        data: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002  # CloudEvents' name
        time: datetime | str | None = None,
        when_full: Literal["block", "drop"] | None = None,
    ) -> str:
        """Queue one event for the sending thread and return the event's id.

        If the operation has an id, pass it as `id`: a job that runs twice is then counted once. The id must be unique
        within the account, across all types and sources: of two events with one id, only the first is counted. The
        default is a new UUIDv7. `time` is when the usage happened (an aware datetime or RFC 3339 text); the default is
        now. `data` is copied one level deep: do not change lists or dicts inside `data` afterwards. `when_full`
        replaces the emitter's for this event. Raises `ValueError`
        for an invalid argument, `QueueFull` (see `when_full`), and `RuntimeError` after `close`.
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
        self._put(event, self._block_timeout_s if (when_full or self._when_full) == "block" else None)
        return id

    def _put(self, event: Event, wait_s: float | None) -> None:
        if not self._events.put(event, wait_s, self._body(event)):
            self._notices.dropped([event], "queue_full")
        elif self._thread is None:
            self._start()

    def _body(self, event: Event) -> bytes:
        """The event for the spool; empty if there is none, or if the event cannot be encoded."""
        if self._spool is None:
            return b""
        try:
            return encoded(event, self._settings.source)
        except Exception:  # noqa: BLE001  # the sending thread finds the same error, and reports the event
            return b""

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Send all events emitted before this call at once, and wait. Returns whether all were settled in time."""
        self._start_if_due()
        return self._events.wait_settled(timeout_s)

    def close(self, timeout_s: float = 30.0) -> bool:
        """Take no more events, send the pending ones and stop. Returns whether all were settled within `timeout_s`.

        Events that were not settled stay in the spool, for the next process with its folder. Events that are in memory
        only are dropped and passed to `on_dropped` with the reason `closed`; the gateway may have accepted some of
        them. Safe to call twice and from any thread.
        """
        self._start_if_due()
        self._events.close(timeout_s if self._thread is not None else 0.0)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
        self._is_closed.set()
        self._events.sync()
        left = self._events.abandon()
        self._notices.dropped(left, "closed")
        if self._own_transport is not None and (thread is None or not thread.is_alive()):
            self._own_transport.close()
        _live.discard(self)
        return not left and not self._events.stats().pending

    def stats(self) -> Stats:
        """A consistent copy of the counters."""
        return self._events.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _start_if_due(self) -> None:
        if self._thread is None and self._events.stats().pending:
            self._start()

    def _start(self) -> None:
        """Start the sending thread. This is done at the first event, so servers can fork before."""
        with self._starting_lock:
            if self._thread is not None or self._is_starting:
                return
            self._is_starting = True
            try:
                self._thread = self._started()
            except RuntimeError as error:
                # The event is queued already. After an exception the caller might emit it again under another id.
                self._notices.warn(f"the emitter's thread cannot start now, the next call tries again: {error}")
            finally:
                self._is_starting = False

    def _started(self) -> threading.Thread:
        transport = self._transport or self._own_transport
        assert transport is not None, "one of the two is set"  # noqa: S101
        sender = Sender(self._events, transport, self._notices, self._settings)
        thread = threading.Thread(target=self._run, args=(sender,), name="tidemark-emitter", daemon=True)
        thread.start()
        if self._spool_settings is not None and self._spool_settings.sync == "interval":
            syncing = (self._events, self._is_closed, self._spool_settings.sync_interval_s)
            threading.Thread(target=_sync, args=syncing, name="tidemark-emitter-spool", daemon=True).start()
        if multiprocessing.parent_process() is not None:
            # A child of multiprocessing ends without running Python's exit handlers.
            multiprocessing.util.Finalize(None, _close_all, exitpriority=0)
        return thread

    def _run(self, sender: Sender) -> None:
        # A method, because the thread's reference to the emitter keeps it from being collected before the exit.
        sender.run()


def _check(source: str, smallest_limit: int, when_full: str) -> None:
    if not 0 < len(source) <= NAME_CHARACTERS_MAX:
        raise ValueError(f"source must have 1 to {NAME_CHARACTERS_MAX} characters, such as the service's name")
    if smallest_limit < 1:
        raise ValueError("batch_events_max, batch_bytes_max and queue_events_max must be 1 or more")
    if when_full not in ("block", "drop"):
        raise ValueError(f"when_full must be block or drop, not {when_full!r}")


def _sync(events: PendingEvents, is_closed: threading.Event, interval_s: float) -> None:
    while not is_closed.wait(interval_s):
        events.sync()


_live: Final[weakref.WeakSet[Emitter]] = weakref.WeakSet()


def _close_all() -> None:
    for emitter in list(_live):
        try:
            emitter.close(emitter._exit_timeout_s)  # noqa: SLF001  # this module's own
        except Exception as error:  # noqa: BLE001  # the other emitters must be closed after any error
            emitter._notices.warn(f"an emitter could not be closed: {error!r}")  # noqa: SLF001  # as above


def _forget_all() -> None:
    for emitter in list(_live):
        emitter._reset()  # noqa: SLF001  # this module's own


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
