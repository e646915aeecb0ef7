"""The mirror role: Stripe's events to the side tables, and the bindings that follow to the usage log."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final

from pipeline.access.daily_revenue import DailyRevenue
from pipeline.access.dunning import DunningGauges
from pipeline.access.renewal import Renewal
from pipeline.changes import collecting, following, trials
from pipeline.changes.duplicates import heal
from pipeline.changes.gauges import BoughtGauges
from pipeline.changes.migrating import watch
from pipeline.changes.operating import turn
from pipeline.changes.parts import Parts
from pipeline.clock import SystemClock
from pipeline.credits import buying, granting, packs
from pipeline.credits.stores import PackParts
from pipeline.metrics import MetricName, Metrics
from pipeline.open import (
    account_log,
    change_parts,
    open_base,
    open_live_view,
    open_side_tables,
    open_stripe_changes,
    open_stripe_objects,
    pack_parts,
)
from pipeline.roles.base import relaying, run_processor, runner_settings
from pipeline.runner.runner import Runner
from pipeline.settings import Settings
from pipeline.webhooks.binding_outbox import BindingOutbox, OutboxStatus
from pipeline.webhooks.overdue import append_overdue
from pipeline.webhooks.processor import BILLING_GROUP, BillingEventProcessor, ProcessorStatus
from pipeline.webhooks.recovery import Recovery
from pipeline.webhooks.set_aside import append_set_aside
from pipeline.webhooks.walker import Canary, Walker
from schemas.clock import DAY_MS, SECOND_MS, Clock
from schemas.log import BILLING_EVENTS_TOPIC
from schemas.plan_changes import PlanChanges
from schemas.seats import Seats, Waiting
from schemas.side_tables import SideTables

if TYPE_CHECKING:
    from sinks.sql.store import PostgresSideTables

# One transaction has the events of a read: small enough that its locks are short, large enough that the events of a
# sign-up share their fetches, also when they are read again into a fresh database.
READ_EVENTS_MAX: Final = 500
HELD_EVENTS_MAX: Final = 10_000
COUNT_INTERVAL_S: Final = 15.0
RENEWAL_INTERVAL_S: Final = 0.2
SWEEP_INTERVAL_S: Final = 10.0
CHANGES_INTERVAL_S: Final = 10.0
SEATS_INTERVAL_S: Final = 1.0
# A customer who has paid waits for the credits.
CREDITS_INTERVAL_S: Final = 2.0
TOP_UP_INTERVAL_S: Final = 30.0
JOURNAL_INTERVAL_S: Final = 1.0
DAILY_INTERVAL_S: Final = 60.0
# Every subscription is looked at.
HEAL_INTERVAL_S: Final = 60.0
# A quote that differs from its invoice is shown for so long.
DIFFERING_MS: Final = 7 * DAY_MS
SWEPT_MAX: Final = 10_000
# Each one is an audit row, and its account is locked meanwhile.
SEATS_SWEPT_MAX: Final = 500
# Numbered in one transaction.
JOURNAL_ENTRIES_MAX: Final = 500
# The events of a sign-up come within a second or two, and share their fetches if they are read together. One event
# alone does not wait so long: an account waits for what it bought.
LINGER_S: Final = 1.5
QUIET_S: Final = 0.4
# What only the process that owns partition 0 knows. Another process, and one that lost the partition, shows none.
OWNER_GAUGES: Final[tuple[MetricName, ...]] = (
    "tidemark_mirror_held_events",
    "tidemark_mirror_set_aside_events",
    "tidemark_mirror_overlaps",
    "tidemark_mirror_due_bindings",
    "tidemark_mirror_due_binding_age_seconds",
    "tidemark_mirror_recovered_events",
    "tidemark_mirror_walked_seconds",
    "tidemark_mirror_canary_heard_seconds",
    "tidemark_mirror_canary_silent",
    "tidemark_changes_differing",
    "tidemark_changes_oldest_age_seconds",
    "tidemark_seats_unpaid_accounts",
    "tidemark_seats_oldest_age_seconds",
)


async def run_mirror(settings: Settings) -> None:
    """Process Stripe's events until stopped. The process that owns partition 0 also sends bindings and looks for lost
    events."""
    base = await open_base(settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        objects = await open_stripe_objects(base)
        stack.push_async_callback(objects.close)
        view = open_live_view(settings)
        stack.push_async_callback(view.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        stripe = await open_stripe_changes(base)
        stack.push_async_callback(stripe.close)
        changes = change_parts(base, tables, stripe, view)

        processor = BillingEventProcessor(base.log, tables, objects, base.clock, settings.canary_customer)
        outbox = BindingOutbox(tables, account_log(base), view)
        canary = Canary(settings.canary_customer, objects, tables, base.clock) if settings.canary_customer else None
        walker = Walker(base.log, objects, tables, base.clock, SystemClock())
        metrics, counted = Metrics(), Counted(tables, tables.plan_changes, tables.seats, base.clock)
        bought = BoughtGauges(
            tables.trials, tables.duplicates, tables.unfinalized, tables.migrations, tables.grant_orders, base.clock
        )
        renewal = Renewal(tables.catalog, tables.entitlements, base.clock)
        dunned = DunningGauges(tables.dunning, base.clock)
        recoveries: list[Recovery] = []

        def beside(runner: Runner) -> Iterable[Awaitable[None]]:
            def owned() -> set[int]:
                return {0} & set(runner.assigned(BILLING_EVENTS_TOPIC))

            async def again() -> int:
                overdue = await append_overdue(base.log, tables, base.clock)
                return overdue + await append_set_aside(base.log, tables)

            recovery = Recovery(walker, canary, base.clock, lambda: bool(owned()), again)
            recoveries.append(recovery)

            def failed() -> None:
                metrics.add("tidemark_relay_failures_total", view="bindings")

            def not_renewed() -> None:
                metrics.add("tidemark_relay_failures_total", view="entitlements")

            return (
                relaying(owned, lambda _: outbox.relay(), settings.relay_interval_s, on_failure=failed),
                relaying(owned, lambda _: counted.count(), COUNT_INTERVAL_S),
                relaying(owned, lambda _: dunned.count(), COUNT_INTERVAL_S),
                relaying(owned, lambda _: bought.count(), COUNT_INTERVAL_S),
                relaying(owned, lambda _: renewal.turn(), RENEWAL_INTERVAL_S, on_failure=not_renewed),
                *_at_stripe(owned, changes, tables, metrics),
                *_of_credits(owned, pack_parts(base, tables, stripe), metrics),
                *_journaling(owned, settings, base.clock, tables, metrics),
                relaying(owned, lambda _: tables.holds.sweep(base.clock.now_ms(), SWEPT_MAX), SWEEP_INTERVAL_S),
                recovery.run(),
            )

        def refresh() -> None:
            show(metrics, base.clock, processor.status(), outbox.status(), counted, recoveries)
            show_renewal(metrics, renewal)
            is_owner = any(recovery.is_owner for recovery in recoveries)
            dunned.show(metrics, is_owner=is_owner)
            bought.show(metrics, is_owner=is_owner)

        runner = runner_settings(
            settings, BILLING_GROUP, flush_events_max=READ_EVENTS_MAX, linger_s=LINGER_S, quiet_s=QUIET_S
        )
        await run_processor(base, processor, runner, beside, metrics, refresh)


def _journaling(
    owned: Callable[[], set[int]], settings: Settings, clock: Clock, tables: PostgresSideTables, metrics: Metrics
) -> Iterable[Awaitable[None]]:
    """The journal's entries get their numbers, and go into the outbox if the finance system has an address. Each day
    gets its entry of what was earned."""
    delivers, limit = bool(settings.journal_webhook_url), JOURNAL_ENTRIES_MAX
    daily = DailyRevenue(tables.invoice_books, tables.journal, clock)

    async def number() -> None:
        while await tables.journal.number(clock.now_ms(), limit, delivers=delivers) == limit:
            pass

    def failed() -> None:
        metrics.add("tidemark_relay_failures_total", view="journal")

    return (
        relaying(owned, lambda _: number(), JOURNAL_INTERVAL_S, on_failure=failed),
        relaying(owned, lambda _: daily.turn(), DAILY_INTERVAL_S, on_failure=failed),
    )


def _at_stripe(
    owned: Callable[[], set[int]], changes: Parts, tables: PostgresSideTables, metrics: Metrics
) -> Iterable[Awaitable[None]]:
    """What is done at Stripe again and again: lost operations, dunning, seats, trials and second subscriptions. Also
    looks whether a migration left two prices on one subscription."""

    def repeated(turn: Callable[[], Awaitable[object]], interval_s: float, view: str = "changes") -> Awaitable[None]:
        def failed() -> None:
            metrics.add("tidemark_relay_failures_total", view=view)

        return relaying(owned, lambda _: turn(), interval_s, on_failure=failed)

    return (
        repeated(lambda: turn(changes), CHANGES_INTERVAL_S),
        repeated(lambda: collecting.collect(changes, tables.dunning), CHANGES_INTERVAL_S),
        repeated(lambda: following.follow(changes), SEATS_INTERVAL_S, "seats"),
        relaying(owned, lambda _: tables.seats.sweep(changes.clock.now_ms(), SEATS_SWEPT_MAX), SWEEP_INTERVAL_S),
        repeated(lambda: trials.follow(changes, tables.trials), CHANGES_INTERVAL_S),
        repeated(lambda: heal(changes, tables.duplicates), HEAL_INTERVAL_S),
        repeated(lambda: watch(tables.catalog, tables.plan_moves, tables.migrations, changes.clock), HEAL_INTERVAL_S),
    )


def _of_credits(owned: Callable[[], set[int]], parts: PackParts, metrics: Metrics) -> Iterable[Awaitable[None]]:
    """What is done for credits again and again: grants at Stripe, packs that are paid, pages that are over, top-ups."""

    def failed() -> None:
        metrics.add("tidemark_relay_failures_total", view="credits")

    def repeated(turn: Callable[[], Awaitable[object]], interval_s: float) -> Awaitable[None]:
        return relaying(owned, lambda _: turn(), interval_s, on_failure=failed)

    return (
        repeated(lambda: granting.turn(granting.parts_of(parts)), CHANGES_INTERVAL_S),
        repeated(lambda: packs.unpack(parts), CREDITS_INTERVAL_S),
        repeated(lambda: buying.follow(parts), CHANGES_INTERVAL_S),
        repeated(lambda: buying.top_up(parts), TOP_UP_INTERVAL_S),
    )


class Counted:
    """What waits for a person, counted now and then because a scrape cannot wait for SQL; None before the first."""

    def __init__(self, tables: SideTables, changes: PlanChanges, seats: Seats, clock: Clock) -> None:
        self._tables = tables
        self._changes = changes
        self._seats = seats
        self._clock = clock
        self.held: int | None = None
        self.aside: int | None = None
        self.overlaps: int | None = None
        self.differing: int | None = None
        self.oldest_change_ms: int | None = None
        self.unpaid_seats = Waiting(0, None)

    async def count(self) -> None:
        self.held = len(await self._tables.held(limit=HELD_EVENTS_MAX))
        self.aside = len(await self._tables.set_aside(HELD_EVENTS_MAX))
        self.overlaps = len(await self._tables.overlaps(self._clock.now_ms()))
        self.differing = await self._changes.differing(self._clock.now_ms() - DIFFERING_MS)
        self.oldest_change_ms = await self._changes.oldest_open_ms()
        self.unpaid_seats = await self._seats.waiting()


def show(
    metrics: Metrics,
    clock: Clock,
    status: ProcessorStatus,
    due: OutboxStatus,
    counted: Counted,
    recoveries: Iterable[Recovery],
) -> None:
    """Set the gauges. Those of the owner of partition 0 end with the ownership: the next owner shows newer values."""
    for outcome, events in status.outcomes.items():
        metrics.set("tidemark_mirror_events", events, outcome=outcome)
    for result, fetches in status.fetches.items():
        metrics.set("tidemark_mirror_fetches", fetches, result=result)
    if status.delay_s is not None:
        metrics.set("tidemark_mirror_delay_seconds", status.delay_s)
    metrics.set("tidemark_mirror_oldest_event_age_seconds", _age_s(clock, status.waiting_ms) or 0)
    metrics.set("tidemark_mirror_gaps", status.gaps, of="log")
    for gauge in OWNER_GAUGES:
        metrics.clear(gauge)
    for recovery in recoveries:
        if recovery.is_owner:
            _waiting_gauges(metrics, clock, due, counted)
            _recovery_gauges(metrics, recovery)


def show_renewal(metrics: Metrics, renewal: Renewal) -> None:
    """Set the gauges of the accounts that this process could not renew as usual."""
    metrics.set("tidemark_mirror_set_aside_accounts", renewal.set_aside)
    metrics.set("tidemark_mirror_unreadable_accounts", len(renewal.unreadable))


def _waiting_gauges(metrics: Metrics, clock: Clock, due: OutboxStatus, counted: Counted) -> None:
    metrics.set("tidemark_mirror_due_bindings", due.due)
    _set_known(metrics, "tidemark_mirror_due_binding_age_seconds", _age_s(clock, due.oldest_ms))
    _set_known(metrics, "tidemark_mirror_held_events", counted.held)
    _set_known(metrics, "tidemark_mirror_set_aside_events", counted.aside)
    _set_known(metrics, "tidemark_mirror_overlaps", counted.overlaps)
    _set_known(metrics, "tidemark_changes_differing", counted.differing)
    metrics.set("tidemark_changes_oldest_age_seconds", _age_s(clock, counted.oldest_change_ms) or 0)
    metrics.set("tidemark_seats_unpaid_accounts", counted.unpaid_seats.accounts)
    metrics.set("tidemark_seats_oldest_age_seconds", _age_s(clock, counted.unpaid_seats.oldest_ms) or 0)


def _recovery_gauges(metrics: Metrics, recovery: Recovery) -> None:
    metrics.set("tidemark_mirror_recovered_events", recovery.found)
    metrics.set("tidemark_mirror_canary_silent", int(recovery.is_silent))
    metrics.set("tidemark_mirror_gaps", recovery.gaps, of="list")
    _set_known(metrics, "tidemark_mirror_walked_seconds", recovery.until_s)
    _set_known(metrics, "tidemark_mirror_canary_heard_seconds", recovery.heard_s)


def _set_known(metrics: Metrics, name: MetricName, value: float | None) -> None:
    if value is not None:
        metrics.set(name, value)


def _age_s(clock: Clock, since_ms: int | None) -> float | None:
    return None if since_ms is None else max(0, clock.now_ms() - since_ms) / SECOND_MS
