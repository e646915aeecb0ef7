"""A worker's cache of a partition's state: totals, cells, report entries, accounts.

Over its limit the cache is emptied. It is valid at the worker's own checkpoint only: a processor that finds another
checkpoint ends, and its cache with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas.clock import DAY_MS, HOUR_MS
from schemas.periods import AccountState
from schemas.rollup import BucketField, Changes, ReadRequest, TotalKey, View


class StateCache:
    """Values as of the worker's own checkpoint. An empty text is a value that is known to be absent."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._hour_ms = 0
        # No total is due before this stream time; 0 if the store was not asked yet.
        self.due_ms = 0
        self._totals: dict[TotalKey, dict[str, str]] = {}
        self._fields: dict[BucketField, str] = {}
        self._reports: dict[BucketField, str] = {}
        self.accounts: dict[str, AccountState] = {}

    def missing(self, request: ReadRequest) -> ReadRequest:
        """The part of the request that is not cached."""
        return request._replace(
            totals=[key for key in request.totals if key not in self._totals],
            cells=[key for key in request.cells if key not in self._fields],
            reports=[key for key in request.reports if key not in self._reports],
        )

    def completed(self, request: ReadRequest, read: View) -> View:
        """Cache the values that were read, and return a view of the whole request."""
        self._totals.update((key, dict(fields)) for key, fields in read.totals.items())
        self._fields.update(read.cells)
        self._reports.update(read.reports)
        totals = {key: self._totals[key] for key in request.totals}
        cells = {key: text for key in request.cells if (text := self._fields.get(key))}
        reports = {key: text for key in request.reports if (text := self._reports.get(key))}
        return read._replace(totals=totals, cells=cells, reports=reports)

    def remember_accounts(self, states: Mapping[str, AccountState]) -> None:
        """Cache account states."""
        if len(self.accounts) + len(states) > self._entries_max:
            self.accounts.clear()
        self.accounts.update(states)

    def apply(self, changes: Changes) -> None:
        """Apply the changes of a commit. Drops buckets that stream time has passed: nothing reads them again."""
        hour_ms = changes.checkpoint.stream_time_ms // HOUR_MS * HOUR_MS
        if hour_ms != self._hour_ms:
            self._hour_ms = hour_ms
            self._fields = {key: text for key, text in self._fields.items() if key.bucket_ms >= hour_ms}
            # A report bucket is a day long at most.
            self._reports = {key: text for key, text in self._reports.items() if key.bucket_ms > hour_ms - DAY_MS}
        if len(self._totals) + len(self._fields) + len(self._reports) > self._entries_max:
            self._totals.clear()
            self._fields.clear()
            self._reports.clear()
        for key, fields in changes.totals.items():
            # A commit has only the meters that changed, so it cannot add a whole total.
            if key in self._totals:
                self._totals[key].update(fields)
        for key in changes.retired:
            self._totals.pop(key, None)
        self.due_ms = min([self.due_ms, *changes.due.values()])
        self._fields.update(changes.cells)
        self._reports.update(changes.reports)
        self.accounts.update(changes.accounts)
