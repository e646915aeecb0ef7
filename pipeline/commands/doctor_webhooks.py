"""The checks of `tidemark doctor` on the way back from Stripe: secrets, endpoint, canary, and what waits in SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from pipeline.billing.window import Hold
from pipeline.commands.finding import Finding
from pipeline.http.webhooks import WEBHOOK_PATH, load_secrets
from pipeline.open import Base, open_base, open_side_tables, unchecked_stripe_objects
from pipeline.settings import Settings
from pipeline.webhooks.recovery import CANARY_INTERVAL_S
from pipeline.webhooks.walker import CANARY_CURSOR, CANARY_PATIENCE_S
from schemas.billing_events import MIRRORED_TYPES
from schemas.clock import HOUR_MS, SECOND_MS
from schemas.errors import InvalidInput, Refused
from schemas.intent_ledger import IntentLedger
from schemas.side_tables import HeldCustomer, SideTables

# A beat may be late by a failed call or a restart.
CANARY_AGE_S_MAX: Final = 2 * CANARY_INTERVAL_S + CANARY_PATIENCE_S
# Less than a person's night.
DEADLINE_MS_MIN: Final = 24 * HOUR_MS
NAMED_MAX: Final = 3
WAITING_MAX: Final = 10_000


async def check_webhooks(settings: Settings) -> list[Finding]:
    """The signing secrets, and the endpoint at Stripe."""
    path = settings.stripe_webhook_secrets
    if path is None:
        remedy = "make an endpoint at Stripe, and set TIDEMARK_STRIPE_WEBHOOK_SECRETS to the file of its secret"
        return [Finding("note", "webhook_secrets", "not set: the gateway takes no webhooks", remedy)]
    remedy = "copy the endpoint's signing secret from Stripe's dashboard, whsec_…, into a line of its own"
    try:
        count = len(load_secrets(path))
    except InvalidInput as error:
        findings = [Finding("wrong", "webhook_secrets", error.message, remedy)]
    else:
        findings = [
            Finding("ok", "webhook_secrets", f"{count} in {path}")
            if count
            else Finding("wrong", "webhook_secrets", f"{path} is missing or has no secret", remedy)
        ]
    if settings.stripe_api_key.get_secret_value():
        findings.append(await _endpoint(settings))
    return findings


async def _endpoint(settings: Settings) -> Finding:
    objects = unchecked_stripe_objects(settings)
    try:
        endpoints = await objects.endpoints()
    except Refused as error:
        remedy = "allow the restricted key to read webhook endpoints, or look at the endpoint in Stripe's dashboard"
        return Finding("note", "webhook_endpoint", str(error), remedy)
    finally:
        await objects.close()
    ours = [each for each in endpoints if _is_ours(each.url, settings.stripe_webhook_url)]
    sought = settings.stripe_webhook_url or f"an address that ends with {WEBHOOK_PATH}"
    if not ours:
        detail = f"Stripe delivers to {', '.join(each.url for each in endpoints) or 'nobody'}, not to {sought}"
        remedy = "make the endpoint in Stripe's dashboard, or correct TIDEMARK_STRIPE_WEBHOOK_URL"
        return Finding("wrong", "webhook_endpoint", detail, remedy)
    best = min(ours, key=lambda each: (not each.is_enabled, len(each.missing)))
    if not best.is_enabled:
        detail, remedy = f"{best.id} for {best.url} is disabled", "enable the endpoint in Stripe's dashboard"
        return Finding("wrong", "webhook_endpoint", detail, remedy)
    if best.missing:
        detail = f"{best.id} for {best.url} does not get {', '.join(best.missing)}"
        return Finding("wrong", "webhook_endpoint", detail, "add these events to the endpoint in Stripe's dashboard")
    return Finding("ok", "webhook_endpoint", f"{best.id} for {best.url} gets every event that is mirrored")


def _is_ours(url: str, sought: str) -> bool:
    return url.rstrip("/") == sought.rstrip("/") if sought else urlsplit(url).path.rstrip("/") == WEBHOOK_PATH


async def check_side_tables(settings: Settings) -> list[Finding]:
    """PostgreSQL, the canary, and the events that wait. Writes nothing."""
    if settings.sql_url.startswith("pgserver://"):
        status = "wrong" if settings.stripe_api_key.get_secret_value() else "note"
        detail = "no PostgreSQL: the sink does not start, and nothing is known of subscriptions and invoices"
        return [Finding(status, "sql", detail, "set TIDEMARK_SQL_URL to a postgresql:// server to bill through Stripe")]
    base = await open_base(settings, create=False)
    try:
        tables = await open_side_tables(base, migrate=False)
        try:
            counts = await tables.counts()
            detail = f"{counts['stripe_customers']} customers, {counts['subscriptions']} subscriptions are mirrored"
            return [
                Finding("ok", "sql", detail),
                await _canary(base, tables),
                *await _held(base, tables),
                *await _reports(base, tables.intents),
                *await _set_aside(tables),
                *_unknown(await tables.ignored(base.settings.canary_customer)),
            ]
        finally:
            await tables.close()
    finally:
        await base.log.close()


async def _canary(base: Base, tables: SideTables) -> Finding:
    customer, now_ms = base.settings.canary_customer, base.clock.now_ms()
    if not customer:
        remedy = "make a customer at Stripe for it, and set TIDEMARK_CANARY_CUSTOMER for `tidemark mirror`"
        return Finding("note", "canary", "none: nobody notices within minutes that webhooks are lost", remedy)
    heard_ms, touched = await tables.heard_ms(customer, 0), await tables.cursor(CANARY_CURSOR)
    if heard_ms is not None and now_ms - heard_ms <= CANARY_AGE_S_MAX * SECOND_MS:
        return Finding("ok", "canary", f"heard {(now_ms - heard_ms) // SECOND_MS} s ago")
    heard = "never heard" if heard_ms is None else f"last heard {(now_ms - heard_ms) // SECOND_MS} s ago"
    if touched is None or now_ms - touched.moved_ms > CANARY_AGE_S_MAX * SECOND_MS:
        return Finding("wrong", "canary", f"{heard}, and nobody changes {customer}", "start `tidemark mirror`")
    if now_ms - touched.moved_ms <= CANARY_PATIENCE_S * SECOND_MS and heard_ms is None:
        return Finding("note", "canary", f"{customer} was changed just now", "ask again in two minutes")
    remedy = "webhooks are lost: see docs/runbook/webhooks.md"
    return Finding("wrong", "canary", f"{heard}, although {customer} is changed", remedy)


async def _held(base: Base, tables: SideTables) -> list[Finding]:
    """Held events, and until when their customers' usage can be billed."""
    events = await tables.held(limit=WAITING_MAX)
    if not events:
        return [Finding("ok", "held_events", "none")]
    customers = sorted({event.customer for event in events})
    detail = f"{_count(len(events))} of {_named(customers)}, who belong to no account"
    remedy = f"tidemark account link NAME --customer {customers[0]}; `tidemark billing status` names all"
    findings = [Finding("note", "held_events", detail, remedy)]
    grace_ms, now_ms = round(base.settings.stripe_invoice_grace_h * HOUR_MS), base.clock.now_ms()
    deadlines = sorted(
        (deadline_ms, each.customer)
        for each in await tables.held_customers(WAITING_MAX)
        if (deadline_ms := _deadline_ms(each, grace_ms)) is not None
    )
    if deadlines:
        deadline_ms, customer = deadlines[0]
        status, words = _until(deadline_ms, now_ms)
        detail = f"an invoice of {customer} {words}; usage of that period that is not reported by then is not on it"
        remedy = f"tidemark account link NAME --customer {customer} before that; see docs/runbook/unmapped-accounts.md"
        findings.append(Finding(status, "unmapped_deadline", detail, remedy))
    return findings


async def _reports(base: Base, intents: IntentLedger) -> list[Finding]:
    """Reports that wait for a person, by what holds them."""
    counts: Counter[str] = Counter()
    ends_ms: dict[str, int] = {}
    for partition in range(base.genesis.partitions):
        for waiting in await intents.waiting(partition):
            counts[waiting.hold] += waiting.intents
            ends_ms[waiting.hold] = min(waiting.period_end_ms, ends_ms.get(waiting.hold, waiting.period_end_ms))
    findings = []
    for hold in sorted(set(counts) - {Hold.NONE, Hold.EARLY}):
        final_ms = ends_ms[hold] + round(base.settings.stripe_invoice_grace_h * HOUR_MS)
        status, words = _until(final_ms, base.clock.now_ms())
        page = "unmapped-accounts" if hold == Hold.UNMAPPED else "stripe-dead-letters"
        detail = f"{counts[hold]} reports wait ({hold}); the invoice of the first one {words}"
        findings.append(Finding(status, "held_reports", detail, f"see docs/runbook/{page}.md"))
    return findings or [Finding("ok", "held_reports", "none")]


def _until(deadline_ms: int, now_ms: int) -> tuple[str, str]:
    """The status of a deadline, and how far it is."""
    hours = (deadline_ms - now_ms) / HOUR_MS
    words = f"is finalized in {hours:.1f} hours" if hours > 0 else f"was finalized {-hours:.1f} hours ago"
    return ("note" if deadline_ms - now_ms >= DEADLINE_MS_MIN else "wrong"), words


def _deadline_ms(held: HeldCustomer, grace_ms: int) -> int | None:
    """When the customer's next metered invoice is finalized."""
    period_ms = None if held.period_end_ms is None else held.period_end_ms + grace_ms
    return min((each for each in (held.finalizes_ms, period_ms) if each is not None), default=None)


async def _set_aside(tables: SideTables) -> list[Finding]:
    events = await tables.set_aside(WAITING_MAX)
    if not events:
        return [Finding("ok", "set_aside_events", "none")]
    detail = f"{_count(len(events))}, such as {_named([event.event_id for event in events])}: an object is missing"
    remedy = (
        "they are read again every hour; `tidemark quarantine list` says why, and docs/runbook/webhooks.md what then"
    )
    return [Finding("note", "set_aside_events", detail, remedy)]


def _unknown(ignored: Mapping[str, int]) -> list[Finding]:
    """Events that came and concern nothing that is mirrored."""
    findings = []
    if surprising := sorted(set(ignored) & set(MIRRORED_TYPES)):
        detail = "read, but name no object: " + ", ".join(f"{ignored[each]} {each}" for each in surprising)
        remedy = "normal for objects without a customer; if they have one, report it, and run `tidemark billing resync`"
        findings.append(Finding("note", "unreadable_events", detail, remedy))
    if others := sorted(set(ignored) - set(MIRRORED_TYPES)):
        detail = f"{_count(sum(ignored[each] for each in others))} of types that nothing reads: {_named(others)}"
        remedy = "take these types out of the endpoint in Stripe's dashboard; until then they only cost"
        findings.append(Finding("note", "unknown_events", detail, remedy))
    return findings or [Finding("ok", "unknown_events", "none")]


def _count(events: int) -> str:
    return f"{events} events" if events < WAITING_MAX else f"{WAITING_MAX} events or more"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED_MAX]) + (f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else "")
