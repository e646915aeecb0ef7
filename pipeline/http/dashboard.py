"""The finance dashboard: its figures from the gateway's stores, and the links that open it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Final

from aggregators.recognition import Totals, net_of
from pipeline.access.revenue import read_revenue
from pipeline.http.dependencies import GatewayDependencies
from pipeline.http.page_links import PageLink, signing
from pipeline.settings import Settings
from portal.figures import Figures, UsageMonth, days_until
from portal.tokens import FINANCE, signed
from schemas.clock import MINUTE_MS
from schemas.dunning import DunningStore
from schemas.errors import InvalidInput, Transient
from schemas.recognition import InvoiceBook
from schemas.revenue import RevenueStores

# A year, and the running month.
MONTHS: Final = 13
AGE_MS_MAX: Final = MINUTE_MS


class GatewayBooks:
    """Implements `portal.figures.FinanceBooks`. The figures of one minute are computed once, whoever asks; a request
    that gives up leaves the others their answer."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies
        self._reading: asyncio.Task[Figures] | None = None
        self._read_ms = 0

    async def figures(self) -> Figures:
        """See `FinanceBooks`."""
        now_ms, reading = self._dependencies.clock.now_ms(), self._reading
        is_old = now_ms - self._read_ms >= AGE_MS_MAX or now_ms < self._read_ms
        if reading is None or (reading.done() and (is_old or reading.exception() is not None)):
            self._reading = reading = asyncio.create_task(self._read(now_ms))
            self._read_ms = now_ms
        return await asyncio.shield(reading)

    async def _read(self, now_ms: int) -> Figures:
        revenue, dunning = self._dependencies.revenue, self._dependencies.dunning
        if revenue is None or dunning is None:
            raise InvalidInput("TIDEMARK_SQL_URL", "is not set, so this gateway knows no revenue")
        stores, cases = await revenue(), dunning()
        if cases is None:
            raise Transient("PostgreSQL has not answered yet")
        return await read_figures(stores, cases, now_ms)


async def read_figures(stores: RevenueStores, dunning: DunningStore, now_ms: int) -> Figures:
    """Compute the figures. Takes some seconds for each 100 000 rows of the audit or invoices.

    Raises `Transient`, and `InvalidInput` before the first catalog.
    """
    found = await read_revenue(stores.catalog, stores.changes, now_ms, MONTHS)
    used: Counter[tuple[str, int]] = Counter()
    starts_ms = found.starts_ms
    totals = Totals(days_until(now_ms, starts_ms))
    async for page in stores.books.books():
        # A page takes some tenths of a second, in which the gateway takes events.
        await asyncio.to_thread(totals.add, page)
        for book in page:
            _count_usage(book, starts_ms, used)
    recoveries = await dunning.recoveries(starts_ms)

    def computed() -> Figures:
        return Figures(
            now_ms,
            starts_ms,
            found.movements,
            found.months,
            found.cohorts,
            totals.rows(),
            recoveries,
            [UsageMonth(start_ms, currency, minor) for (currency, start_ms), minor in sorted(used.items())],
            found.unpriced_items,
        )

    return await asyncio.to_thread(computed)


def _count_usage(book: InvoiceBook, starts_ms: Sequence[int], used: Counter[tuple[str, int]]) -> None:
    """Add the usage of an invoice that is owed, by the month in which the usage's period ended."""
    if book.invoice["status"] not in ("open", "paid"):
        return
    for line in book.lines:
        if line["id"] in book.metered:
            last_ms = int(line["end_ms"] or 0) - 1
            start_ms = max((each for each in starts_ms if each <= last_ms), default=None)
            if start_ms is not None:
                used[str(book.invoice["currency"]), start_ms] += net_of(line)


def dashboard_link(settings: Settings, secrets: Sequence[str], life_s: int, now_ms: int) -> PageLink:
    """A link to the dashboard. Raises `InvalidInput` with the setting that is missing, or the wrong field."""
    address, expires_ms = signing(settings, secrets, life_s, now_ms)
    return PageLink(f"{address}/revenue/{signed('', expires_ms, secrets[0], FINANCE)}/", expires_ms)
