"""What the gateway needs to link accounts and to change plans: the same code as the commands."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.changes.parts import Parts
from pipeline.clock import SystemClock
from pipeline.open import Base, change_parts, open_side_tables, open_stripe_changes, open_stripe_objects
from pipeline.webhooks.linking import Linking, Wish, link_customers
from schemas.billing_events import StripeObjects
from schemas.errors import InvalidInput, OperatorNeeded, Refused, TidemarkError
from schemas.intent_ledger import IntentState, LedgerIntent
from schemas.plan_changes import StripeChanges
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


class OpenedAccountLinks:
    """Implements `pipeline.http.dependencies.AccountLinks`. PostgreSQL and Stripe are opened by the first request that
    needs them, so that a gateway starts and takes events without them."""

    def __init__(self, base: Base, view: RedisLiveView) -> None:
        self._base = base
        self._view = view
        self._tables: PostgresSideTables | None = None
        self._objects: StripeObjects | None = None
        self._stripe: StripeChanges | None = None
        self._lock = asyncio.Lock()
        self._stack = contextlib.AsyncExitStack()

    async def link(self, account: str, customer: str, from_ms: int | None, actor: str) -> Link:
        """See `AccountLinks`."""
        tables, objects = await self._opened_tables(), await self._opened_objects()
        parts = Linking(self._base.log, tables, objects, self._base.clock, SystemClock())
        with _operators_matter(Refused):
            wish = Wish(account, customer, from_ms, actor, "")
            (linked,) = await link_customers(parts, [wish], secrets.token_hex(4))
        return linked.link

    async def links(self, account: str) -> Sequence[Link]:
        """See `AccountLinks`."""
        return await (await self._opened_tables()).links(account)

    async def intents(self, state: IntentState, account: str, limit: int, after: str) -> Sequence[LedgerIntent]:
        """See `AccountLinks`."""
        return await (await self._opened_tables()).intents.listed([state], account, limit, after=after)

    async def changes(self) -> Parts:
        """What plan changes need. Raises `Transient` and `OperatorNeeded`."""
        tables = await self._opened_tables()
        async with self._lock:
            if self._stripe is None:
                with _operators_matter(Refused, InvalidInput):
                    self._stripe = await open_stripe_changes(self._base)
                self._stack.push_async_callback(self._stripe.close)
        return change_parts(self._base, tables, self._stripe, self._view)

    async def close(self) -> None:
        """Close what was opened. Safe to call twice."""
        await self._stack.aclose()

    async def _opened_tables(self) -> PostgresSideTables:
        async with self._lock:
            if self._tables is None:
                with _operators_matter(Refused, InvalidInput):
                    self._tables = await open_side_tables(self._base)
                self._stack.push_async_callback(self._tables.close)
            return self._tables

    async def _opened_objects(self) -> StripeObjects:
        async with self._lock:
            if self._objects is None:
                with _operators_matter(Refused, InvalidInput):
                    self._objects = await open_stripe_objects(self._base)
                self._stack.push_async_callback(self._objects.close)
            return self._objects
