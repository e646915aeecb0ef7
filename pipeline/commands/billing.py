"""The commands about webhooks and side tables: recover, resync, status, audit, and links of accounts to customers."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from aggregators.instants import format_instant_ms
from pipeline.clock import SystemClock
from pipeline.credits.balances import credit_problems
from pipeline.open import Base, open_base, open_side_tables, open_stripe_objects
from pipeline.settings import Settings
from pipeline.webhooks.linking import Linked, Linking, Wish, link_customers
from pipeline.webhooks.resync import PatientFeed, resync
from pipeline.webhooks.walker import CURSOR, KEPT_S, Walked, Walker
from schemas.billing_events import StripeObjects
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.errors import InvalidInput
from schemas.intent_ledger import IntentLedger
from schemas.log import BILLING_EVENTS_TOPIC, REPORTS_TOPIC
from schemas.side_tables import AuditRow, HeldEvent, Link, SideTables

if TYPE_CHECKING:
    from sinks.sql.store import PostgresSideTables

_SPAN: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNITS_S: Final = {"s": 1, "m": MINUTE_MS // SECOND_MS, "h": HOUR_MS // SECOND_MS, "d": DAY_MS // SECOND_MS}
STATUS_ROWS_MAX: Final = 10_000
# Of the store's connections, which each link needs one of.
ACCOUNTS_AT_ONCE_MAX: Final = 8


class Opened(NamedTuple):
    """What the commands need."""

    base: Base
    tables: SideTables
    objects: StripeObjects


class Status(NamedTuple):
    """How far the side tables are. `lag_events` have not been processed, and the oldest of them is in the log for
    `lag_s` seconds. `walked_until` is "" before the first walk. `set_aside` waits for objects that are missing.
    `unread_reports` are records of `billing.reports` that the ledger of intents does not have. `pending` counts its
    intents without an outcome, by hold; those under "" are about to be sent. `credits`: what is wrong with grants at
    Stripe, in words."""

    lag_events: int
    lag_s: int
    walked_until: str
    held: Sequence[HeldEvent]
    set_aside: Sequence[HeldEvent]
    due_bindings: int
    rows: dict[str, int]
    unread_reports: int
    pending: dict[str, int]
    credits: Sequence[str]


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Opened]:
    """The log, the side tables and Stripe's objects during the block. Raises `OperatorNeeded` if the key is for another
    mode or account of Stripe than the log."""
    base = await open_base(settings, create=False)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        objects = await open_stripe_objects(base)
        stack.push_async_callback(objects.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        yield Opened(base, tables, objects)


@contextlib.asynccontextmanager
async def _stores(settings: Settings) -> AsyncIterator[tuple[Base, PostgresSideTables]]:
    """The log and the side tables during the block: what is needed while Stripe does not answer."""
    base = await open_base(settings, create=False)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        yield base, tables


def span_s(field: str, text: str) -> int:
    """Seconds of a span such as `72h`, at most the 30 days that Stripe keeps events. Raises `InvalidInput`."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise InvalidInput(field, f"{text!r} is no span: write 90s, 30m, 72h or 30d")
    seconds = int(found[1]) * _UNITS_S[found[2]]
    if seconds > KEPT_S:
        raise InvalidInput(
            field, f"{text} is longer than the 30 days for which Stripe lists events: use billing resync"
        )
    return seconds


async def recover(settings: Settings, since_s: int) -> Walked:
    """Append the events of the last `since_s` seconds that never came."""
    async with opened(settings) as (base, tables, objects):
        walker = Walker(base.log, objects, tables, base.clock, SystemClock())
        return await walker.walk(base.clock.now_ms() // SECOND_MS - since_s)


async def run_resync(
    settings: Settings, run: str, account: str = "", told: Callable[[int], None] = lambda _: None
) -> dict[str, int]:
    """Have all objects, or those of an account's customers, fetched again; returns the counts by kind.

    `run` names the resync. `told` gets the number of objects so far, again and again.
    """
    async with opened(settings) as (base, tables, objects):
        now_s = base.clock.now_ms() // SECOND_MS
        feed = PatientFeed(base.log, tables, SystemClock(), told).append
        customers = [""]
        if account:
            customers = [link.customer for link in await tables.links(account) if link.customer]
            if not customers:
                raise InvalidInput("--account", f"{account!r} is linked to no customer: tidemark account link")
        counts: dict[str, int] = {}
        for customer in customers:
            for kind, count in (await resync(feed, objects, tables, run, now_s, customer)).items():
                counts[kind.value] = counts.get(kind.value, 0) + count
        return counts


async def recompute(settings: Settings, account: str = "") -> int:
    """Have the role mirror compute one account's entitlements again, or those of all; returns of how many accounts."""
    async with _stores(settings) as (_, tables):
        found = await tables.entitlements.recompute(account)
        if account and not found:
            raise InvalidInput("--account", f"{account!r} is not known: tidemark account link")
        return found


async def status(settings: Settings) -> Status:
    """How far the side tables are, and what waits."""
    async with _stores(settings) as (base, tables):
        lag = 0
        oldest_ms = now_ms = base.clock.now_ms()
        for partition in range(base.genesis.partitions):
            bounds = await base.log.bounds(BILLING_EVENTS_TOPIC, partition)
            next_offset = max(await tables.position(partition) or 0, bounds.first)
            lag += bounds.next - next_offset
            for record in await base.log.read(BILLING_EVENTS_TOPIC, partition, next_offset, 1):
                oldest_ms = min(oldest_ms, record.timestamp_ms)
        unread, pending = await _ledger_status(base, tables.intents)
        cursor = await tables.cursor(CURSOR)
        return Status(
            lag,
            (now_ms - oldest_ms) // SECOND_MS,
            "" if cursor is None else format_instant_ms(cursor.until_s * SECOND_MS),
            await tables.held(limit=STATUS_ROWS_MAX),
            await tables.set_aside(STATUS_ROWS_MAX),
            (await tables.due()).bindings,
            dict(await tables.counts()),
            unread,
            pending,
            await credit_problems(tables.catalog, tables.grant_orders, now_ms),
        )


async def _ledger_status(base: Base, ledger: IntentLedger) -> tuple[int, dict[str, int]]:
    unread = 0
    pending: Counter[str] = Counter()
    for partition in range(base.genesis.partitions):
        bounds = await base.log.bounds(REPORTS_TOPIC, partition)
        unread += bounds.next - max(await ledger.position(partition) or 0, bounds.first)
        for waiting in await ledger.waiting(partition):
            pending[waiting.hold] += waiting.intents
    return unread, dict(pending)


async def audit(settings: Settings, account: str, limit: int) -> Sequence[AuditRow]:
    """An account's audit rows, oldest first."""
    async with _stores(settings) as (_, tables):
        return await tables.audit(account, limit)


async def lag_events(base: Base, tables: SideTables) -> int:
    """How many events of all partitions have not been processed."""
    lag = 0
    for partition in range(base.genesis.partitions):
        bounds = await base.log.bounds(BILLING_EVENTS_TOPIC, partition)
        lag += bounds.next - max(await tables.position(partition) or 0, bounds.first)
    return lag


async def link(settings: Settings, wishes: Sequence[Wish]) -> list[Linked]:
    """Link accounts to customers, and have the customers' held events processed; see `link_customers`."""
    async with opened(settings) as (base, tables, objects):
        parts = Linking(base.log, tables, objects, base.clock, SystemClock())
        return await link_customers(parts, wishes, secrets.token_hex(4))


async def unlink(settings: Settings, account: str, actor: str, reason: str) -> Link:
    """End an account's link from the current minute on; the account is unmapped then."""
    async with _stores(settings) as (base, tables):
        return await tables.unlink(account, actor, reason, base.clock.now_ms())
