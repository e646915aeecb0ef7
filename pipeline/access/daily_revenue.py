"""What each day earned, for the journal: computed once a day from all final invoices."""

from __future__ import annotations

from pipeline.access.revenue import read_recognition
from schemas.clock import DAY_MS, Clock
from schemas.journal import JournalStore
from schemas.recognition import InvoiceBooks


class DailyRevenue:
    """Writes the entries of a day once it has passed. What is found late is in the next day's entry."""

    def __init__(self, books: InvoiceBooks, journal: JournalStore, clock: Clock) -> None:
        self._books = books
        self._journal = journal
        self._clock = clock
        self._day = -1

    async def turn(self) -> None:
        """Write the entries of yesterday, unless this process has. Takes some seconds for each 100 000 invoices.

        Raises `Transient`; repeatable.
        """
        now_ms = self._clock.now_ms()
        today = now_ms // DAY_MS
        if today == self._day:
            return
        rows = await read_recognition(self._books, [0, today])
        await self._journal.add_recognized(today, {row.currency: row.recognized for row in rows}, now_ms)
        self._day = today
