"""Answers stored under Idempotency-Keys (docs.stripe.com/api/idempotent_requests)."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from stripe_simulator.errors import ApiError, idempotency_key_in_use, idempotency_mismatch
from stripe_simulator.journal import Journal

KEY_CHARACTERS_MAX: Final = 255
DAY_MS: Final = 24 * 3_600_000
# API v2 keeps its answers longer.
WINDOW_MS: Final = {"v1": DAY_MS, "v2": 30 * DAY_MS}


class StoredAnswer(NamedTuple):
    """The answer to the first request with a key, and what the request asked."""

    request: list[Any]
    status: int
    body: Any
    request_id: str
    stored_ms: int


class Idempotency:
    """The stored answers of both modes and the keys of requests in execution."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._answers: dict[tuple[bool, str], StoredAnswer] = {}
        self._running: set[tuple[bool, str]] = set()
        journal.register("answer", self._apply)

    def replay(self, livemode: bool, key: str, request: list[Any], now_ms: int) -> StoredAnswer | None:
        """The stored answer to the same request, or None.

        `request` is the method, the path and the raw parameters. Raises `ApiError` for a key that is too long, in use,
        or used with another request.
        """
        if len(key) > KEY_CHARACTERS_MAX:
            raise ApiError(400, "The Idempotency-Key is longer than 255 characters.", kind="idempotency_error")
        if (livemode, key) in self._running:
            raise idempotency_key_in_use(key)
        stored = self._answers.get((livemode, key))
        if stored is None or stored.stored_ms <= now_ms - WINDOW_MS[str(stored.request[1])[1:3]]:
            return None
        if stored.request != request:
            raise idempotency_mismatch(key)
        return stored

    def begin(self, livemode: bool, key: str) -> None:
        """Mark a key as in use until `end`."""
        self._running.add((livemode, key))

    def end(self, livemode: bool, key: str) -> None:
        """The request with this key has ended."""
        self._running.discard((livemode, key))

    def store(self, livemode: bool, key: str, answer: StoredAnswer) -> None:
        """Store the answer of an executed request, in the transaction of its changes if there is one."""
        with self._journal.transaction():
            self._journal.change("answer", livemode, key, *answer)

    def _apply(self, livemode: bool, key: str, *answer: Any) -> None:
        self._answers[livemode, key] = StoredAnswer(*answer)
