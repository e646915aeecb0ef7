"""`tidemark billing`: what Stripe rejected, and sending it again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from aggregators.instants import format_instant_ms
from aggregators.quantities import decimal_text
from pipeline.billing.redrive import REPORTS_KEPT_MS, Redriven, Redriver, failed_intents
from pipeline.open import Base, open_base, open_side_tables, open_stripe
from pipeline.settings import Settings
from schemas.errors import InvalidInput
from schemas.intent_ledger import IntentLedger, IntentState, LedgerIntent

if TYPE_CHECKING:
    from sinks.sql.store import PostgresSideTables
    from sinks.stripe.client import StripeClientMeters


async def failed_reports(settings: Settings, account: str | None, limit: int) -> list[dict[str, Any]]:
    """The reports that Stripe does not bill, as JSON objects, the newest last, by the ledger of intents.

    Without a Stripe key, only dead letters. Raises `Transient` if SQL, the log or Stripe does not answer.
    """
    meters = open_stripe(settings)
    try:
        async with _ledger(settings) as (base, ledger):
            since_ms = base.clock.now_ms() - REPORTS_KEPT_MS
            rejections = await meters.rejections(since_ms) if meters else ()
            failed = await failed_intents(ledger, rejections, account or "", limit)
            return [_row(each.known, each.detail) for each in failed]
    finally:
        if meters is not None:
            await meters.close()


async def held_reports(settings: Settings, account: str | None, limit: int) -> list[dict[str, Any]]:
    """The reports that wait, as JSON objects, the newest last. Memory grows with the result. Raises `Transient`."""
    held: list[LedgerIntent] = []
    after = ""
    async with _ledger(settings) as (_, ledger):
        while page := await ledger.listed([IntentState.PENDING], account or "", after=after):
            held += [known for known in page if known.hold]
            after = page[-1].intent.identifier
    held.sort(key=lambda known: (known.intent.bucket_end_ms, known.partition, known.offset))
    return [_row(known, f"{known.hold}: {known.detail}") for known in held[-limit:]]


@asynccontextmanager
async def _ledger(settings: Settings) -> AsyncIterator[tuple[Base, IntentLedger]]:
    async with AsyncExitStack() as stack:
        base = await open_base(settings, create=False)
        stack.push_async_callback(base.log.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        yield base, tables.intents


async def redrive_reports(settings: Settings, identifiers: Sequence[str], actor: str, reason: str) -> list[Redriven]:
    """Redrive the reports; see `Redriver`. Raises `InvalidInput` without a Stripe key."""
    async with _opened(settings) as (base, meters, tables):
        redriver = Redriver(base.log, tables.intents, meters, meters, base.clock, tables.bills)
        return await redriver.redrive(identifiers, actor, reason)


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Base, StripeClientMeters, PostgresSideTables]]:
    meters = open_stripe(settings)
    if meters is None:
        raise InvalidInput(
            "TIDEMARK_STRIPE_API_KEY", "is not set; Stripe's sums are read before anything is sent again"
        )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(meters.close)
        base = await open_base(settings, create=False)
        stack.push_async_callback(base.log.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        yield base, meters, tables


def _row(known: LedgerIntent, detail: str) -> dict[str, Any]:
    intent = known.intent
    return {
        "identifier": intent.identifier,
        "account": intent.account,
        "meter": intent.meter,
        "instant": format_instant_ms(intent.instant_ms),
        "quantity": decimal_text(known.billed_minor, intent.scale),
        "stripe_customer": known.stripe_customer,
        "detail": detail,
    }
