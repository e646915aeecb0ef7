"""What the gateway needs to link accounts and to change plans: the same code as the commands."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pipeline.access.credits import CreditParts
from pipeline.access.usage import LiveUsageSource
from pipeline.changes.parts import Parts
from pipeline.clock import SystemClock
from pipeline.http.dependencies import CreditStores
from pipeline.open import (
    Base,
    change_parts,
    open_side_tables,
    open_stripe_changes,
    open_stripe_objects,
    pack_parts,
)
from pipeline.roles.opened_access import READ_TIMEOUT_S
from pipeline.webhooks.linking import Linking, Wish, link_customers
from schemas.account_records import AccountRecords
from schemas.catalog_changes import CatalogStore
from schemas.errors import InvalidInput, OperatorNeeded, Refused, TidemarkError, Transient
from schemas.intent_ledger import IntentState, LedgerIntent
from schemas.journal import JournalStore
from schemas.revenue import RevenueStores
from schemas.seats import Seats
from schemas.side_tables import Link

if TYPE_CHECKING:
    from sinks.redis.view import RedisLiveView
    from sinks.sql.store import PostgresSideTables


@contextlib.contextmanager
def _operators_matter(*errors: type[TidemarkError]) -> Iterator[None]:
    """Raises `OperatorNeeded` instead: not the caller's request or key is wrong, but the deployment's settings are."""
    try:
        yield
    except errors as error:
        raise OperatorNeeded(str(error)) from error


class _Closed(Protocol):
    """Something that is closed at the end."""

    async def close(self) -> None: ...


Opened = TypeVar("Opened", bound=_Closed)


class _Once(Generic[Opened]):
    """Opens a store for its first caller, and for all who come meanwhile."""

    def __init__(self, open_: Callable[[], Coroutine[Any, Any, Opened]]) -> None:
        self._open = open_
        self._opening: asyncio.Task[Opened] | None = None

    async def __call__(self, wait_s: float | None = None) -> Opened:
        """The store. Raises `Transient`, after `wait_s` too while the opening goes on, and `OperatorNeeded`."""
        opening = self._opening
        if opening is None or (opening.done() and opening.exception() is not None):
            opening = self._opening = asyncio.create_task(self._open())
        done, _ = await asyncio.wait({opening}, timeout=wait_s)
        if not done:
            raise Transient(f"PostgreSQL did not answer in {wait_s:g} s")
        with _operators_matter(Refused, InvalidInput):
            return opening.result()

    async def close(self) -> None:
        """Close the store if it was opened. Safe to call twice."""
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            (opened,) = await asyncio.gather(opening, return_exceptions=True)
            if not isinstance(opened, BaseException):
                await opened.close()


class OpenedAccountLinks:
    """Implements `pipeline.http.dependencies.AccountLinks`. PostgreSQL and Stripe are opened by the first request that
    needs them, so that a gateway starts and takes events without them."""

    def __init__(self, base: Base, view: RedisLiveView) -> None:
        self._base = base
        self._view = view
        self._tables = _Once(lambda: open_side_tables(base, timeout_s=READ_TIMEOUT_S))
        self._objects = _Once(lambda: open_stripe_objects(base))
        self._stripe = _Once(lambda: open_stripe_changes(base))

    async def link(self, account: str, customer: str, from_ms: int | None, actor: str) -> Link:
        """See `AccountLinks`."""
        tables, objects = await self._tables(), await self._objects()
        parts = Linking(self._base.log, tables, objects, self._base.clock, SystemClock())
        with _operators_matter(Refused):
            wish = Wish(account, customer, from_ms, actor, "")
            (linked,) = await link_customers(parts, [wish], secrets.token_hex(4))
        return linked.link

    async def links(self, account: str) -> Sequence[Link]:
        """See `AccountLinks`."""
        return await (await self._tables(READ_TIMEOUT_S)).links(account)

    async def intents(self, state: IntentState, account: str, limit: int, after: str) -> Sequence[LedgerIntent]:
        """See `AccountLinks`."""
        return await (await self._tables(READ_TIMEOUT_S)).intents.listed([state], account, limit, after=after)

    async def changes(self) -> Parts:
        """What plan changes need. Raises `Transient` and `OperatorNeeded`."""
        return change_parts(self._base, await self._tables(), await self._stripe(), self._view)

    async def catalog(self) -> CatalogStore:
        """The catalog, for which Stripe need not answer. Raises `Transient` and `OperatorNeeded`."""
        return (await self._tables(READ_TIMEOUT_S)).catalog

    async def records(self) -> AccountRecords:
        """What SQL has of an account. Raises `Transient` and `OperatorNeeded`."""
        return (await self._tables(READ_TIMEOUT_S)).account_records

    async def revenue(self) -> RevenueStores:
        """What revenue is computed from. Raises `Transient` and `OperatorNeeded`."""
        tables = await self._tables(READ_TIMEOUT_S)
        return RevenueStores(tables.catalog, tables.revenue, tables.invoice_books)

    async def journal(self) -> JournalStore:
        """The journal. Raises `Transient` and `OperatorNeeded`."""
        return (await self._tables(READ_TIMEOUT_S)).journal

    async def seats(self) -> Seats:
        """Who holds seats. Raises `Transient` and `OperatorNeeded`."""
        return (await self._tables(READ_TIMEOUT_S)).seats

    async def credits(self) -> CreditStores:
        """The stores of credits. Raises `Transient` and `OperatorNeeded`."""
        tables, base = await self._tables(READ_TIMEOUT_S), self._base
        usage = LiveUsageSource(self._view.totals, base.genesis.partitions, base.clock)
        ledger = CreditParts(tables.credits, tables.catalog, tables.holds, usage, base.clock)
        return CreditStores(pack_parts(base, tables, await self._stripe()), ledger)

    async def tables(self) -> PostgresSideTables:
        """The side tables. Raises `Transient` and `OperatorNeeded`."""
        return await self._tables(READ_TIMEOUT_S)

    async def close(self) -> None:
        """Close what was opened. Safe to call twice."""
        for once in (self._tables, self._objects, self._stripe):
            await once.close()
