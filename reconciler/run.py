"""Runs one reconciliation over all partitions while traffic goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from aggregators.quantities import decimal_text
from aggregators.report_records import ReportedIntent
from reconciler.attribution import Attribution, StartName, attribution_of, total_of
from reconciler.causes import ARCHIVE_HAS_MORE, ARCHIVE_LACKS, Cause, Pair, direction
from reconciler.compare import Difference, Range
from reconciler.coverage import NOTHING_DUE
from reconciler.credits import CreditComparison
from reconciler.entitlements import EntitlementComparison
from reconciler.history import History
from reconciler.hourly_cells import CellsComparison
from reconciler.intents import IntentsComparison
from reconciler.invoices import InvoiceComparison
from reconciler.measured import MeasuredComparison
from reconciler.mirror import MirrorComparison
from reconciler.past import Past
from reconciler.recount import PartitionState, Recounter, TotalName
from reconciler.redis_totals import TotalsComparison
from reconciler.report import Findings, Report, Row
from reconciler.reports_index import ReportsIndex
from reconciler.revenue import RevenueComparison
from reconciler.stripe_flags import FlagComparison
from reconciler.stripe_sums import StripeComparison
from reconciler.views import Behind, PartitionStates, ReconcilePolicy, Views, attempted
from schemas.analytics import RecountKey
from schemas.clock import Clock
from schemas.log import EVENTS_TOPIC
from schemas.periods import Billing, Period
from schemas.reconciliation import PastRead
from schemas.reports import Intent
from schemas.rollup import Checkpoint

DEFAULT_POLICY: Final = ReconcilePolicy()
VIEW_NAMES: Final = {Pair.REDIS: "Redis", Pair.HOURLY: "usage_hourly", Pair.INTENTS: "the intents"}
UNPAID: Final = "the account has no Stripe customer for the time of this usage"


async def reconcile(
    views: Views,
    clock: Clock,
    *,
    from_ms: int | None = None,
    to_ms: int | None = None,
    policy: ReconcilePolicy = DEFAULT_POLICY,
    past: Iterable[PastRead] = (),
) -> Report:
    """Compare all views for the periods that overlap `[from_ms, to_ms)`; None is unlimited. Only reads.

    `past` are the last reads of Stripe in earlier runs: what was confirmed then, and has not changed, is not due.

    A view that does not answer becomes an `unchecked` row. Raises `Transient` only if the log does not answer how many
    partitions there are. Memory grows with the cells of `partitions_at_once` partitions and with `billing.reports`.
    Waits up to `archive_wait_s` for a partition whose archive is behind.
    """
    run = _Run(views, clock, policy, Range(from_ms, to_ms), Past(past))
    started_at_ms = clock.now_ms()
    partitions = range(await views.log.partition_count(EVENTS_TOPIC))
    pending = iter(partitions)

    async def work() -> None:
        for partition in pending:
            await run.partition(partition)

    async with asyncio.TaskGroup() as group:
        for _ in range(policy.partitions_at_once):
            group.create_task(work())
    await run.everywhere(partitions)
    return run.findings.report(started_at_ms, from_ms, to_ms)


class _Run:
    """One reconciliation. Used for one call of `reconcile`."""

    def __init__(self, views: Views, clock: Clock, policy: ReconcilePolicy, limits: Range, past: Past) -> None:
        self.views = views
        self.clock = clock
        self.policy = policy
        self.range = limits
        self.past = past
        self.findings = Findings(policy.rows_max)
        self.states = PartitionStates(views.reader, clock, policy.archive_wait_s)
        self.recounter = Recounter(views.reader)
        self.index = ReportsIndex(views.log, policy.reports_max)
        self.unread_reports: list[int] = []
        self.histories: dict[int, History] = {}

    async def partition(self, partition: int) -> None:
        """Compare everything that concerns one partition alone."""
        checkpoint = await attempted(
            self.findings, Pair.REDIS, partition, self.views.live.state.load_checkpoint(partition)
        )
        if checkpoint is None:
            detail = (
                "Redis has no checkpoint: the rollup has not started here, or Redis was emptied (`tidemark doctor`)"
            )
            self.findings.add(Row(Pair.REDIS, Cause.UNCHECKED, partition, detail=detail))
        state: PartitionState | Behind | None = None
        if checkpoint is not None:
            self._conserved(partition, checkpoint)
            self._deferred(partition, checkpoint)
            state = await attempted(self.findings, Pair.REDIS, partition, self.states.at(partition, checkpoint))
        totals: list[Difference[TotalName]] = []
        cells: list[Difference[RecountKey]] = []
        if isinstance(state, Behind):
            for pair in (Pair.REDIS, Pair.HOURLY):
                self.findings.add(Row(pair, Cause.IN_FLIGHT, partition, detail=state.detail))
        elif state is not None:
            totals, cells = await self._counted(state)
        attribution = Attribution()
        if isinstance(state, PartitionState):
            surplus = await attempted(self.findings, Pair.COUNTERS, partition, self._archived(state))
            attribution = attribution_of(totals, cells, partial(_is_additive, state.history), surplus or 0)
            self._total_rows(Pair.REDIS, state, totals, attribution)
            self._cell_rows(state, cells, attribution)
        await self._intents(partition, attribution)

    async def _counted(self, state: PartitionState) -> tuple[list[Difference[TotalName]], list[Difference[RecountKey]]]:
        totals = TotalsComparison(self.views, self.recounter, self.policy, self.states, self.findings, self.range)
        cells = CellsComparison(self.views, self.recounter, self.states, self.findings, self.range)
        partition = state.partition
        return (
            await attempted(self.findings, Pair.REDIS, partition, totals.run(state)) or [],
            await attempted(self.findings, Pair.HOURLY, partition, cells.run(state)) or [],
        )

    async def _intents(self, partition: int, attribution: Attribution) -> None:
        comparison = IntentsComparison(self.views, self.recounter, self.states, self.index, self.findings, self.range)
        compared = await attempted(self.findings, Pair.INTENTS, partition, comparison.run(partition))
        if compared is None:
            self.unread_reports.append(partition)
            return
        state, differing = compared
        if state is not None:
            self.histories[partition] = state.history
            self._total_rows(Pair.INTENTS, state, differing, attribution)
        self._unsent(partition)

    async def everywhere(self, partitions: Sequence[int]) -> None:
        """Compare what concerns all partitions together, as Stripe's sums and conflicting payloads, and the samples of
        one partition after the other."""
        measured = MeasuredComparison(self.views, self.policy, self.states, self.clock, self.findings, self.range)
        await measured.run(partitions)
        if self.unread_reports:
            detail = f"billing.reports was not read on partitions {', '.join(map(str, self.unread_reports))}"
            self.findings.add(Row(Pair.STRIPE, Cause.UNCHECKED, detail=detail))
        else:
            await self._at_stripe(partitions)
            drawn = CreditComparison(self.views, self.index, self._period_of, self.findings, self.range)
            await attempted(self.findings, Pair.CREDITS, None, drawn.run())
        await attempted(
            self.findings,
            Pair.ENTITLEMENTS,
            None,
            EntitlementComparison(self.views, self.clock, self.findings).run(),
        )
        revenue = RevenueComparison(self.views, self.clock, self.findings)
        await attempted(self.findings, Pair.REVENUE, None, revenue.run())
        reading = self.views.reader.conflicts(self.policy.rows_max)
        conflicts = await attempted(self.findings, Pair.DUPLICATES, None, reading)
        if conflicts is None:
            return
        self.findings.left_off(Pair.DUPLICATES, Cause.CONFLICT, conflicts.events - len(conflicts.rows))
        for conflict in conflicts.rows:
            other = " and ".join(conflict.differing)
            detail = f"event {conflict.id} came {conflict.times} more times with another {other}; the first was counted"
            self.findings.add(Row(Pair.DUPLICATES, Cause.CONFLICT, account=conflict.account, detail=detail))

    async def _at_stripe(self, partitions: Iterable[int]) -> None:
        """Compare bills, sums, flags and the mirror: half of the reads, a quarter, an eighth and an eighth at least, if
        all are due."""
        findings, limit = self.findings, self.policy.stripe_reads_max
        common = (self.views, self.policy, self.clock, self.index, self._period_of, findings, self.range)
        bills = InvoiceComparison(*common, self.past.invoices())
        findings.invoices = await attempted(
            findings, Pair.INVOICES, None, bills.run(partitions, limit // 2)
        ) or NOTHING_DUE  # fmt: skip
        sums = StripeComparison(*common, self.past.sums())
        kept = limit // 4 if self.views.tables is not None else 0
        left = max(0, limit - kept - findings.stripe_reads)
        findings.sums = await attempted(findings, Pair.STRIPE, None, sums.run(partitions, left)) or NOTHING_DUE
        flags = FlagComparison(self.views, self.policy, self.clock, findings, self.past.flags())
        await attempted(findings, Pair.FLAGS, None, flags.run(max(0, limit - findings.stripe_reads) // 2))
        mirror = MirrorComparison(self.views, self.clock, findings)
        await attempted(findings, Pair.MIRROR, None, mirror.run(max(0, limit - findings.stripe_reads)))

    def _conserved(self, partition: int, checkpoint: Checkpoint) -> None:
        """Add a finding if the counters of the checkpoint do not add up (I1)."""
        counters = checkpoint.counters
        if counters.conserved:
            self.findings.equal(Pair.COUNTERS, 1)
            return
        parts = sum(counters[1:])
        values = ", ".join(f"{name}={value}" for name, value in counters._asdict().items())
        row = Row(
            Pair.COUNTERS, direction(counters.received, parts), partition,
            expected=str(counters.received), found=str(parts),
            detail=f"received is not the sum of the others: {values}",
        )  # fmt: skip
        self.findings.add(row)

    def _deferred(self, partition: int, checkpoint: Checkpoint) -> None:
        waiting = checkpoint.counters.deferred
        if waiting:
            detail = (
                f"{waiting} events (older than the dedup window, or behind a late binding) wait for the archive's "
                "decision and count nowhere yet"
            )
            self.findings.add(Row(Pair.COUNTERS, Cause.IN_FLIGHT, partition, detail=detail), waiting)

    async def _archived(self, state: PartitionState) -> int:
        """Check that the archive has exactly the events that the rollup counted or found unmetered. Returns how many
        events too many the archive has; negative if it lacks some."""
        counters = state.checkpoint.counters
        # Counters that do not add up prove nothing about the archive.
        if not counters.conserved:
            return 0
        accepted = counters.counted + counters.unmetered
        archived = await self.views.reader.archived_events(state.partition, state.before_position)
        if archived == accepted:
            self.findings.equal(Pair.COUNTERS, 1)
            return 0
        detail = ARCHIVE_LACKS if archived < accepted else ARCHIVE_HAS_MORE
        row = Row(
            Pair.COUNTERS, direction(accepted, archived), state.partition,
            expected=str(accepted), found=str(archived), detail=f"events counted and unmetered; {detail}",
        )  # fmt: skip
        self.findings.add(row)
        return archived - accepted

    def _total_rows(
        self, pair: Pair, state: PartitionState, differing: Iterable[Difference[TotalName]], attribution: Attribution
    ) -> None:
        for difference in differing:
            account, slug, period = difference.key
            by_sign = direction(difference.expected, difference.found)
            cause, detail = _cause(by_sign, VIEW_NAMES[pair], attribution.of_total(difference.key, by_sign))
            expected, found = difference.texts(_scale(state.history, slug))
            row = Row(
                pair, cause, state.partition, account, slug, period, expected=expected, found=found, detail=detail,
            )  # fmt: skip
            self.findings.add(row)

    def _cell_rows(
        self, state: PartitionState, differing: Iterable[Difference[RecountKey]], attribution: Attribution
    ) -> None:
        """One row per cell of additive meters; one per period for the others, whose cells do not add up."""
        periods: dict[StartName, list[Difference[RecountKey]]] = {}
        for difference in differing:
            if _is_additive(state.history, difference.key.meter):
                self._cell_row(state, difference, attribution, "")
            else:
                periods.setdefault(total_of(difference.key), []).append(difference)
        for cells in periods.values():
            self._cell_row(state, cells[0], attribution, f"{len(cells)} cells of the period differ, this is one: ")

    def _cell_row(
        self, state: PartitionState, difference: Difference[RecountKey], attribution: Attribution, several: str
    ) -> None:
        key = difference.key
        by_sign, additive = direction(difference.expected, difference.found), _is_additive(state.history, key.meter)
        archive = attribution.of_cell(key, by_sign, additive=additive)
        cause, detail = _cause(by_sign, VIEW_NAMES[Pair.HOURLY], archive)
        expected, found = difference.texts(_scale(state.history, key.meter))
        row = Row(
            Pair.HOURLY, cause, state.partition, key.account, key.meter,
            state.history.period(key.account, key.period_start_ms),
            None if several else key.hour_ms,
            "" if key.dimensions == "{}" else key.dimensions,
            expected=expected, found=found, detail=several + detail,
        )  # fmt: skip
        self.findings.add(row)

    def _period_of(self, reported: ReportedIntent) -> Period:
        """The intent's period, with its present end if the history was read: an intent may be older than a binding that
        moved the end."""
        history, intent = self.histories.get(reported.partition), reported.intent
        if history:
            return history.period(intent.account, intent.period_start_ms)
        return Period(intent.period_start_ms, intent.period_end_ms)

    def _unsent(self, partition: int) -> None:
        """Report the intents without an outcome: they wait for a customer, or are on their way."""
        history = self.histories.get(partition)
        waiting: dict[tuple[Cause, TotalName], tuple[int, int]] = {}
        scales: dict[TotalName, int] = {}
        for reported in self.index.reported(partition):
            period, intent = self._period_of(reported), reported.intent
            known = history.accounts.get(intent.account) if history else None
            re_reported = known and known.re_reported(intent.period_start_ms, intent.bucket_start_ms)
            if reported.outcome is not None or re_reported or not self.range.overlaps(period):
                continue
            cause = Cause.IN_FLIGHT
            if reported.attempt is None and history and _billing(history, intent) is Billing.UNMAPPED:
                cause = Cause.UNKNOWN_CUSTOMER
            name = (intent.account, intent.meter, period)
            count, minor = waiting.get((cause, name), (0, 0))
            waiting[cause, name] = (count + 1, minor + reported.billed_minor)
            scales[name] = intent.scale
        for (cause, name), (count, minor) in waiting.items():
            reason = UNPAID if cause is Cause.UNKNOWN_CUSTOMER else "not settled yet"
            account, meter, period = name
            row = Row(
                Pair.STRIPE, cause, partition, account, meter, period,
                expected=decimal_text(minor, scales[name]), detail=f"{count} intents wait: {reason}",
            )  # fmt: skip
            self.findings.add(row)


def _cause(by_sign: Cause, view: str, archive: Cause | None) -> tuple[Cause, str]:
    if archive is None:
        return by_sign, f"{by_sign.value} in {view}"
    return archive, ARCHIVE_LACKS if archive is Cause.MISSING else ARCHIVE_HAS_MORE


def _is_additive(history: History, slug: str) -> bool:
    meter = history.definitions.get(slug)
    return meter is None or meter.aggregation.rule.additive


def _billing(history: History, intent: Intent) -> Billing:
    """How the account is billed at the instant of the usage, according to the archived control records."""
    known = history.accounts.get(intent.account)
    binding = known.customer_at(intent.instant_ms) if known else None
    if binding is None or (binding.billing is Billing.MAPPED and not binding.stripe_customer):
        return Billing.UNMAPPED
    return binding.billing


def _scale(history: History, slug: str) -> int:
    meter = history.definitions.get(slug)
    return meter.scale if meter else 0
