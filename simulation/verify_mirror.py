"""Compares the side tables with Stripe, and the bindings in the usage log with what Stripe does next."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from aggregators.binding_timeline import overlaps, timeline
from aggregators.bindings import customer_at
from aggregators.mirror import mirror_rows
from aggregators.partitioning import partition_of
from aggregators.periods import period_at
from pipeline.logs.fake import FakeLog
from pipeline.webhooks.appending import append_events
from pipeline.webhooks.processor import BillingEventProcessor
from pipeline.webhooks.resync import resync
from schemas.billing_events import MIRRORED_TYPES, RESYNC_TYPE, ObjectKind, ObjectName, Via
from schemas.clock import HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.log import BILLING_EVENTS_TOPIC, TopicSpec
from schemas.periods import AccountState, Billing
from schemas.side_tables import TABLE_OF, Outcome, Row
from simulation.services import SharedTables
from simulation.traffic import LINKED, PARTITIONS
from sinks.sql.dunning import ENTITY as DUNNING
from sinks.sql.step import STRIPE

if TYPE_CHECKING:
    from simulation.world import World

SHOWN_MAX: Final = 5
AHEAD_HOURS: Final = (0.25, 1, 3, 7, 12, 25, 49, 71)
BILLED: Final = ("active", "past_due")
# The column of each table that shows an end, and its last values.
_END: Final[Mapping[str, tuple[str, tuple[object, ...]]]] = {
    "stripe_customers": ("deleted", (1,)),
    "subscriptions": ("status", ("canceled", "incomplete_expired")),
    "invoices": ("status", ("paid", "void")),
}
_Rows = dict[tuple[str, str], Row]


async def unmirrored(world: World) -> str:
    """A text that names unfinished work on the side tables; empty if there is none."""
    world.account.simulator.catch_up()
    for partition in range(PARTITIONS):
        end = world.log.end(BILLING_EVENTS_TOPIC, partition)
        if (await world.tables.position(partition) or 0) < end:
            return f"the mirror of partition {partition}"
    if due := (await world.tables.due()).bindings:
        return f"{due} bindings"
    if aside := await world.tables.set_aside():
        return f"{len(aside)} events that are set aside"
    unseen = await world.tables.seen([event["id"] for event in world.account.happened()])
    missing = [event["id"] for event in _mirrored_events(world) if event["id"] not in unseen]
    return f"{len(missing)} events of Stripe" if missing else ""


async def verify_mirror(world: World) -> None:
    """Make all comparisons. The last one moves Stripe's clock ahead."""
    world.account.simulator.catch_up()
    expected = _expected(world)
    found = _mirror(await world.tables.mirror())
    _differ(world, "mirror", expected, found)
    await _events(world)
    _ends(world)
    await _fresh(world, {key: row for key, row in expected.items() if not row.get("deleted")})
    _bindings(world)


def _mirrored_events(world: World) -> list[dict[str, Any]]:
    return [event for event in world.account.happened() if event["type"] in MIRRORED_TYPES]


def _expected(world: World) -> _Rows:
    """The rows of every object that Stripe lists or ever told of, read one by one."""
    names = dict.fromkeys(world.account.listing())
    for event in _mirrored_events(world):
        thing = event["data"]["object"]
        if thing.get("object") in set(ObjectKind) and thing.get("id"):
            names[ObjectName(ObjectKind(thing["object"]), thing["id"])] = None
    rows: _Rows = {}
    for name in names:
        body = world.account.read(name)
        if name.id == world.canary:
            continue
        if body is None:
            rows[TABLE_OF[name.kind], name.id] = {"id": name.id, "deleted": 1}
        for table, own in mirror_rows(name, body).items():
            rows.update({(table, str(row["id"])): row for row in own})
    return rows


def _mirror(tables: Mapping[str, Sequence[Row]]) -> _Rows:
    """The rows of the mirror. Of an object that is gone only that counts."""
    rows = {(table, str(row["id"])): row for table, own in tables.items() for row in own}
    customers = TABLE_OF[ObjectKind.CUSTOMER]
    return {
        (table, key): {"id": key, "deleted": 1} if row.get("deleted") and table != customers else row
        for (table, key), row in rows.items()
    }


async def _events(world: World) -> None:
    """Each event of Stripe has one row and, if its customer is linked, one audit row.

    An event that was set aside may have another audit row, of the objects that were written then.
    """
    # A customer from whom the account was unlinked is nobody's; one whom it left for another stays the account's.
    links = sorted(world.tables.rows("account_customers"), key=lambda row: (row["account"], row["starts_ms"]))
    ends = {
        (row["account"], row["customer_id"])
        for row, after in pairwise(links)
        if row["account"] == after["account"] and not after["customer_id"]
    }
    linked = {row["customer_id"] for row in links if (row["account"], row["customer_id"]) not in ends} - {""}
    processed = {row["event_id"]: row for row in world.tables.rows("processed_events")}
    held = {key for key, row in processed.items() if row["outcome"] == Outcome.HELD and row["customer_id"] in linked}
    if held:
        world.fail("events", f"{len(held)} are held although their customer is linked, such as {min(held)}")
    # A move of a case of dunning names the event that caused it, beside the row of the event itself.
    rows = [row for row in world.tables.rows("audit") if row["entity"] != DUNNING]
    causes = Counter(row["cause"] for row in rows if row["cause"].startswith("evt_"))
    expected = {
        key: 1
        for key, row in processed.items()
        if row["outcome"] in (Outcome.APPLIED, Outcome.UNCHANGED) and row["type"] != RESYNC_TYPE
    }
    # Not all of them are in the quarantine: another partition may have recorded one meanwhile, as held.
    for event_id in world.tables.once_aside & causes.keys():
        if event_id in expected:
            causes[event_id] = 1
        else:
            # The customer was unlinked before the event was read again.
            del causes[event_id]
    _differ(world, "audit: rows by event", expected, dict(causes))
    # At rest nothing was missing. The canary's beat makes events meanwhile, which come seconds later.
    told = [event for event in _mirrored_events(world) if event["created"] < world.clock.now_ms() // SECOND_MS - 60]
    missing = [event["id"] for event in told if event["id"] not in processed]
    if missing:
        world.fail("events", f"{len(missing)} were never processed, such as {min(missing)}")


def _ends(world: World) -> None:
    """What has ended at Stripe never comes back in the audit: a slow answer replaces no newer one."""
    ended: set[tuple[str, str]] = set()
    for row in sorted(world.tables.rows("audit"), key=lambda row: (row["account"], row["seq"])):
        after: Any = json.loads(row["after_json"] or "{}")
        for table, (column, ends) in _END.items() if row["actor"] == STRIPE else ():
            for key, columns in after.get(table, {}).items():
                if columns.get(column) in ends:
                    ended.add((row["account"], key))
                elif column in columns and (row["account"], key) in ended:
                    world.fail("audit: ends", f"{key} had ended and is {columns[column]} by {row['cause']}")


async def _fresh(world: World, expected: _Rows) -> None:
    """A fresh database that is resynced has the same rows."""
    tables, log = SharedTables(timeline, overlaps), FakeLog(world.clock)
    await tables.migrate("test:acct_simulated", "fresh")
    await log.create_topics([TopicSpec(BILLING_EVENTS_TOPIC, PARTITIONS, -1)])
    now_s = world.clock.now_ms() // SECOND_MS
    await resync(lambda values: append_events(log, values, Via.RESYNC), world.objects, tables, "fresh", now_s)
    processor = BillingEventProcessor(log, tables, world.objects, world.clock, world.canary)
    for partition in range(PARTITIONS):
        offset = await processor.start_offset(partition)
        while records := await log.read(BILLING_EVENTS_TOPIC, partition, offset):
            await processor.step(partition, records)
            offset = records[-1].next_offset
    _differ(world, "fresh mirror", expected, _mirror(await tables.mirror()))


def _bindings(world: World) -> None:
    """Who pays by the bindings in the log, at instants ahead, is who has a subscription that bills by then."""
    states = {account: _state(world, account) for account in LINKED}
    moved_ms = {account: _moved_ms(world, account) for account in LINKED}
    for hours in AHEAD_HOURS:
        world.stripe_clock.skew_ms = round(hours * HOUR_MS)
        world.account.simulator.catch_up()
        now_ms = world.stripe_clock.now_ms()
        for account, state in states.items():
            if now_ms >= moved_ms[account]:
                continue
            customer = world.subscribers.customer_of[account]
            billed = [body for body in _subscriptions(world, customer) if body["status"] in BILLED]
            payer = customer_at(state, now_ms)
            found = payer.stripe_customer if payer and payer.billing is Billing.MAPPED else ""
            if now_ms < _closed_until_ms(state):
                # Whatever changes takes effect after the closed period.
                continue
            if any(now_ms - MINUTE_MS < change.from_ms <= now_ms for change in state.customers):
                # Bindings take effect at the start of a minute.
                continue
            if found != (customer if billed else ""):
                world.fail("bindings", f"{account} in {hours} h: {found or 'nobody'}, not {customer if billed else 0}")


def _moved_ms(world: World, account: str) -> float:
    """From when on a phase of a schedule may have moved the period's end, and a cancellation with it: only the phase's
    webhook says so."""
    now_s, instants_s = world.stripe_clock.now_ms() // SECOND_MS, list[int]()
    for body in _subscriptions(world, world.subscribers.customer_of[account]):
        if body["cancel_at_period_end"] and body["schedule"]:
            schedule = world.account.call("GET /v1/subscription_schedules/{schedule}", {}, body["schedule"])
            instants_s += [phase[edge] for phase in schedule["phases"] for edge in ("start_date", "end_date")]
    return min((each * SECOND_MS for each in instants_s if each > now_s), default=math.inf)


def _state(world: World, account: str) -> AccountState:
    stored = world.store.server.partitions[partition_of(account, PARTITIONS)]
    return stored.accounts.get(account, AccountState())


def _subscriptions(world: World, customer: str) -> list[dict[str, Any]]:
    return list(world.account.pages("GET /v1/subscriptions", {"customer": customer, "status": "all"}))


def _closed_until_ms(state: AccountState) -> int:
    return max((period_at(state, start_ms).end_ms for start_ms in state.closed_start_ms), default=0)


def _differ(world: World, view: str, expected: dict[Any, Any], found: dict[Any, Any]) -> None:
    keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if keys:
        shown = "; ".join(f"{key}: Stripe {expected.get(key)}, found {found.get(key)}" for key in keys[:SHOWN_MAX])
        world.fail(view, f"{len(keys)} differ: {shown}")
