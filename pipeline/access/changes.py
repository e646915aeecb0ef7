"""Which accounts have newer entitlements, whatever the clocks of those say who computed them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from schemas.clock import MINUTE_MS, Clock
from schemas.entitlements import Entitlements, Renewed

# A version may become visible after one with a higher number: a transaction takes at most half a minute.
OVERLAP_MS: Final = MINUTE_MS
CHANGED_AT_ONCE: Final = 10_000


class Changes:
    """Reads the versions that were made since the first call; those of the last minute again and again."""

    def __init__(self, entitlements: Entitlements, clock: Clock) -> None:
        self._entitlements = entitlements
        self._clock = clock
        # When each read ended, and the highest number by then; the first one is a minute old or older.
        self._marks: list[tuple[int, int]] = []

    async def pages(self) -> AsyncIterator[Sequence[Renewed]]:
        """The newer versions, page by page; none at the first call. If the caller fails with a page, the next call has
        the page again. Raises `Transient`."""
        now_ms = self._clock.now_ms()
        if not self._marks:
            self._marks = [(now_ms, await self._entitlements.last_number())]
            return
        after = self._marks[0][1]
        while True:
            page = await self._entitlements.changed(after, CHANGED_AT_ONCE)
            if page:
                yield page
                after = page[-1].number
            if len(page) < CHANGED_AT_ONCE:
                break
        # A clock that was set back begins anew.
        self._marks = [each for each in self._marks if each[0] <= now_ms] or self._marks[:1]
        self._marks.append((now_ms, after))
        while len(self._marks) > 1 and self._marks[1][0] <= now_ms - OVERLAP_MS:
            self._marks.pop(0)
