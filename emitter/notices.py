"""Notices to the application: a callback for every event that was not delivered, and occasional log lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from emitter.encoding import Event

OnRejected = Callable[[Event, str, str], None]
OnDropped = Callable[[Event, str], None]

LOG_INTERVAL_S: Final = 30.0

_log: Final = logging.getLogger("tidemark.emitter")


class Notices:
    """Calls the application's callbacks without holding a lock. Exceptions of callbacks are logged and not raised."""

    def __init__(self, on_rejected: OnRejected | None, on_dropped: OnDropped | None) -> None:
        self._on_rejected = on_rejected
        self._on_dropped = on_dropped
        self._logged_at_s = -LOG_INTERVAL_S

    def rejected(self, event: Event, reason: str, detail: str) -> None:
        """Report an event that the gateway or the encoder rejected permanently."""
        self.warn(f"event {event.id} was rejected: {reason}: {detail}")
        if self._on_rejected is not None:
            try:
                self._on_rejected(event, reason, detail)
            except Exception:  # noqa: BLE001  # the application's own code; sending must go on
                _log.exception("on_rejected failed")

    def dropped(self, events: Sequence[Event], reason: str) -> None:
        """Report dropped events. The reason is `queue_full`, `not_delivered` or `closed`."""
        if not events:
            return
        self.warn(f"{len(events)} events were dropped: {reason}")
        if self._on_dropped is None:
            return
        for event in events:
            try:
                self._on_dropped(event, reason)
            except Exception:  # noqa: BLE001  # the application's own code; sending must go on
                _log.exception("on_dropped failed")

    def warn(self, message: str) -> None:
        """Log at most one line per `LOG_INTERVAL_S`; other messages are discarded."""
        now_s = time.monotonic()
        if now_s - self._logged_at_s >= LOG_INTERVAL_S:
            self._logged_at_s = now_s
            _log.warning("%s (more of this within %.0f s is counted only)", message, LOG_INTERVAL_S)
