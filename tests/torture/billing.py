"""The side tables after the rest, against a full listing of Stripe and the bindings in the log.

Only the rows of an object are made by the product (`aggregators.mirror`). Listing, events, hashes and bindings are read
and judged here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import httpx
import psycopg
from psycopg.rows import dict_row

from aggregators.mirror import mirror_rows
from pipeline.open import open_stripe_objects
from pipeline.webhooks.walker import Walker
from schemas.billing_events import ObjectKind, ObjectName
from schemas.clock import MINUTE_MS
from schemas.control import CONTROL_HEADER
from schemas.log import BILLING_EVENTS_TOPIC, EVENTS_TOPIC
from schemas.meters import MeterSet
from schemas.side_tables import MIRROR_COLUMNS, Row
from tests.torture.compare import Compared, compared
from tests.torture.deployment import Tortured
from tests.torture.shop import Shop
from tests.torture.stripe import KEY, TIMEOUT_S

LISTS: Final[Mapping[ObjectKind, tuple[str, str]]] = {
    ObjectKind.CUSTOMER: ("customers", ""),
    ObjectKind.SUBSCRIPTION: ("subscriptions", "items"),
    ObjectKind.SCHEDULE: ("subscription_schedules", ""),
    ObjectKind.INVOICE: ("invoices", "lines"),
    ObjectKind.CREDIT_GRANT: ("billing/credit_grants", ""),
    ObjectKind.CREDIT_NOTE: ("credit_notes", "lines"),
    ObjectKind.REFUND: ("refunds", ""),
    ObjectKind.DISPUTE: ("disputes", ""),
}
"""The list of each kind that is mirrored, and the nested list of which Stripe shows only the first ten rows."""

PROCESSED_S: Final = 120.0
SIDE_TABLES: Final = ("processed_events", "audit", "accounts", "account_bindings")
TERMS: Final = ("billing", "stripe_customer", "anchor_ms", "interval", "interval_count")
Found = Mapping[str, Any]


async def wait_for_billing(deployment: Tortured, shop: Shop) -> None:
    """Return when the mirrors have processed all events and sent all bindings. Stripe's list of events is read now, as
    the mirrors do every few minutes."""
    tables = deployment.tables
    objects = await open_stripe_objects(deployment.base)
    try:
        await Walker(deployment.base.log, objects, tables, deployment.base.clock).go_on()
    finally:
        await objects.close()

    async def processed() -> bool:
        ends = await deployment.ends(BILLING_EVENTS_TOPIC)
        positions = {partition: await tables.position(partition) or 0 for partition in ends}
        held = {event.customer for event in await tables.held(limit=100_000)}
        return positions == ends and not await tables.due_bindings() and not held & shop.linked.keys()

    await deployment.until(processed, "all billing events to be processed and all bindings to be sent")


async def compare_billing(deployment: Tortured, shop: Shop) -> list[Compared]:
    """All comparisons of the side tables of a deployment at rest."""
    async with httpx.AsyncClient(
        base_url=deployment.stripe.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=TIMEOUT_S
    ) as client:
        listing = await listed(client)
        events = [event async for event in _pages(client, "events")]
    stored = await asyncio.to_thread(_stored, deployment.sql_url)
    future_ms = MeterSet.model_validate(deployment.meter_set).policy.future_ms
    accounts = set(shop.linked.values())
    results = [
        mirrored(listing, await deployment.tables.mirror()),
        events_once(events, stored["processed_events"], shop.linked),
        audited_once(events, stored["audit"], shop.linked),
        chained(stored["accounts"], stored["audit"]),
        bindings_sent(accounts, stored["account_bindings"], await bindings_in_the_log(deployment), future_ms),
    ]
    # A comparison of nothing proves nothing.
    return [each if each.rows else each._replace(differing=1, shown=["nothing was compared"]) for each in results]


async def listed(client: httpx.AsyncClient) -> list[tuple[ObjectName, dict[str, Any]]]:
    """Every object that Stripe lists, with all rows of its nested list."""
    objects = []
    for kind, (path, part) in LISTS.items():
        async for body in _pages(client, path, **({"status": "all"} if kind is ObjectKind.SUBSCRIPTION else {})):
            if part and body[part]["has_more"]:
                where = f"invoices/{body['id']}/lines" if part == "lines" else "subscription_items"
                options = {} if part == "lines" else {"subscription": body["id"]}
                rows = [row async for row in _pages(client, where, **options)]
                body[part] = {**body[part], "data": rows, "has_more": False}
            objects.append((ObjectName(kind, body["id"]), body))
    return objects


async def _pages(client: httpx.AsyncClient, path: str, **options: str) -> Any:
    after: dict[str, str] = {}
    while True:
        answer = await client.get(f"/v1/{path}", params={**options, **after, "limit": "100"})
        page = answer.raise_for_status().json()
        for row in page["data"]:
            yield row
        if not page["has_more"]:
            return
        after = {"starting_after": page["data"][-1]["id"]}


def _stored(url: str) -> dict[str, list[Found]]:
    with psycopg.connect(url, row_factory=dict_row) as connection:
        return {name: [*connection.execute(f"SELECT * FROM {name}".encode())] for name in SIDE_TABLES}


def mirrored(listing: Iterable[tuple[ObjectName, Mapping[str, Any]]], mirror: Mapping[str, Sequence[Row]]) -> Compared:
    """The mirror's rows, without those of deleted objects, are the rows of what Stripe lists."""
    wanted = {
        (table, str(row[MIRROR_COLUMNS[table][0]])): dict(row)
        for name, body in listing
        for table, rows in mirror_rows(name, body).items()
        for row in rows
    }
    # No list of Stripe's shows the payment methods of all customers, and why payments failed.
    got = {
        (table, str(row[MIRROR_COLUMNS[table][0]])): {**row, **({"decline_code": None} if table == "invoices" else {})}
        for table, rows in mirror.items()
        for row in rows
        if not row.get("deleted") and table != "payment_methods"
    }
    return compared("PostgreSQL: the mirror against Stripe's lists", wanted, got)


def customer_of_event(event: Found) -> str:
    """The customer that an event is about, "" without one."""
    thing = event["data"]["object"]
    return str(thing["id"] if thing["object"] == "customer" else thing.get("customer") or "")


def concerns(event: Found) -> bool:
    """Whether an event is about an object that is mirrored."""
    return event["data"]["object"]["object"] in [kind.value for kind in ObjectKind]


def events_once(events: Iterable[Found], processed: Iterable[Found], linked: Mapping[str, str]) -> Compared:
    """Every event that concerns the mirror was processed once, held if nobody linked its customer; and no other id."""
    every = list(events)
    wanted = {event["id"]: "processed" if customer_of_event(event) in linked else "held" for event in every}
    needed = {event["id"] for event in every if concerns(event)}
    rows = list(processed)
    counts = Counter(row["event_id"] for row in rows)
    got = {row["event_id"]: "held" if row["outcome"] == "held" else "processed" for row in rows}
    got = {each: state if counts[each] == 1 else f"{counts[each]} times" for each, state in got.items()}
    # An event about anything else need not come; one that came changes nothing.
    got = {each: state for each, state in got.items() if each in needed or each not in wanted}
    return compared("PostgreSQL: Stripe's events by id", {each: wanted[each] for each in needed}, got)


def audited_once(events: Iterable[Found], audit: Iterable[Found], linked: Mapping[str, str]) -> Compared:
    """Every event of a linked customer that concerns the mirror has one audit row, in the customer's account."""
    every = list(events)
    wanted = {
        event["id"]: [linked[customer_of_event(event)]]
        for event in every
        if concerns(event) and customer_of_event(event) in linked
    }
    others = {event["id"] for event in every} - wanted.keys()
    got: defaultdict[str, list[str]] = defaultdict(list)
    for row in audit:
        if row["cause"].startswith("evt_"):
            got[row["cause"]].append(row["account"])
    # An event about anything else need not have a row.
    counted = {each: where for each, where in got.items() if each not in others or len(where) > 1}
    return compared("PostgreSQL: audit rows by event", wanted, counted)


def chained(accounts: Iterable[Found], audit: Iterable[Found]) -> Compared:
    """Each account's audit rows are numbered from 1 on without a gap, each with the hash of the row before in its own,
    and the account knows the last one."""
    hashes = {(row["account"], row["seq"]): row["hash"] for row in audit_rows(audit)}
    wanted: dict[Any, Any] = {}
    got: dict[Any, Any] = dict(hashes)
    for row in audit_rows(audit):
        key = (row["account"], row["seq"])
        wanted[key] = row_hash(hashes.get((row["account"], row["seq"] - 1), "" if row["seq"] == 1 else None), row)
    for account in accounts:
        name = account["account"]
        for seq in range(1, account["audit_seq"] + 1):
            wanted.setdefault((name, seq), "a row")
        wanted[name, "last"] = account["audit_seq"], account["audit_hash"]
        last = max((seq for each, seq in hashes if each == name), default=0)
        got[name, "last"] = last, hashes.get((name, last), "")
    return compared("PostgreSQL: the audit's chains of hashes", wanted, got)


def audit_rows(audit: Iterable[Found]) -> list[Found]:
    """Audit rows by account and number."""
    return sorted(audit, key=lambda row: (row["account"], row["seq"]))


def row_hash(before: str | None, row: Found) -> str:
    """SHA-256 of the hash before and the row, as JSON without spaces."""
    names = ("account", "seq", "at_ms", "actor", "cause", "entity", "entity_id", "before_json", "after_json", "reason")
    text = json.dumps([before, *(row[name] for name in names)], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


async def bindings_in_the_log(deployment: Tortured) -> dict[str, list[Found]]:
    """The bindings of each account that took effect, in the log's order: a record whose revision is not higher than the
    one before changes nothing."""
    found: defaultdict[str, list[Found]] = defaultdict(list)
    revisions: Counter[str] = Counter()
    for partition in deployment.partitions:
        for record in await deployment.records(EVENTS_TOPIC, partition):
            if (CONTROL_HEADER, b"binding") not in record.headers:
                continue
            control = json.loads(record.value or b"")
            if control["revision"] > revisions[control["account"]]:
                revisions[control["account"]] = control["revision"]
                found[control["account"]].append(control["binding"])
    return found


def bindings_sent(
    accounts: Iterable[str], planned: Iterable[Found], logged: Mapping[str, Sequence[Found]], future_ms: int
) -> Compared:
    """The bindings of each linked account in the log are those planned in SQL, each once and in order."""
    plans: defaultdict[str, list[Found]] = defaultdict(list)
    for row in sorted(planned, key=lambda row: (row["account"], row["number"])):
        plans[row["account"]].append(row)
    wanted: dict[Any, Any] = {}
    got: dict[Any, Any] = {}
    for account in {*accounts, *plans}:
        own = list(logged.get(account, ()))
        for place, binding in enumerate(own):
            got[account, place] = content(binding)
        for place, row in enumerate(in_effect(plans[account], own, future_ms)):
            wanted[account, place] = content(row)
    return compared("log: bindings of linked accounts", wanted, got)


def content(binding: Found) -> dict[str, Any]:
    """What a binding says."""
    return {name: str(binding[name]) for name in ("effective_from_ms", *TERMS)}


def in_effect(plan: Sequence[Found], logged: Sequence[Found], future_ms: int) -> list[Found]:
    """The plan without those runs of bindings that the log lacks and that changed nothing when they were sent.

    A run changes nothing if all of it takes effect at once, after all usage that can have been counted, and its last
    binding says what was said before. Then the account has it, and the outbox need not send it.
    """
    kept: list[Found] = []
    run: list[Found] = []
    place = 0
    for row in plan:
        run.append(row)
        if place < len(logged) and content(row) == content(logged[place]):
            kept, run, place = kept + run, [], place + 1
        elif kept and _changes_nothing(kept[-1], run, future_ms):
            run = []
    return kept + run


def _changes_nothing(before: Found, run: Sequence[Found], future_ms: int) -> bool:
    sent_ms = [row["sent_ms"] for row in run]
    if None in sent_ms:
        return False
    beyond_ms = (min(sent_ms) + future_ms) // MINUTE_MS * MINUTE_MS + MINUTE_MS
    is_now = all(row["effective_from_ms"] <= beyond_ms for row in run)
    return is_now and all(run[-1][name] == before[name] for name in TERMS)
