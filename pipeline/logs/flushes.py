"""Flushes: an account's usage so far becomes intents now, before the report bucket ends by itself (I10)."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from aggregators.codec import parse_flush_field, report_bucket_end_ms
from aggregators.partitioning import partition_of
from aggregators.report_records import ReportedIntent, ReportedIntents, parse_entries
from pipeline.logs.bindings import READ_RECORDS_MAX, AccountLog, HasAccounts, Plan, append_revised, standing
from schemas.clock import SECOND_MS, Clock
from schemas.control import FlushRecord
from schemas.errors import Transient
from schemas.intent_ledger import IntentLedger, IntentState
from schemas.live_view import ReportOutbox
from schemas.log import REPORTS_TOPIC, Log
from schemas.meters import Policy
from schemas.reports import Intent

LOOK_EVERY_S: Final = 0.2
# Of more unsettled intents, it is enough to know that there are some.
PENDING_MAX: Final = 1_000


class HasReports(Protocol):
    """A live view, or the part of one that knows the reports that wait."""

    @property
    def reports(self) -> ReportOutbox: ...


class Flush(NamedTuple):
    """A flush in the log: the account's usage of records below `offset` is reported with a timestamp before
    `instant_ms`, which is the stream time of the record, and later usage with a later one."""

    account: str
    partition: int
    offset: int
    revision: int
    instant_ms: int


class FlushProgress(NamedTuple):
    """How far a flush is. `is_published`: all intents of the account's usage up to the flush are in `billing.reports`.
    `flushed` are those of the flush itself; `unsettled` are those of all usage up to it that have no outcome yet."""

    is_published: bool
    flushed: tuple[ReportedIntent, ...] = ()
    unsettled: tuple[ReportedIntent, ...] = ()


async def flush_account(accounts: AccountLog, view: HasAccounts, account: str) -> Flush:
    """Append a flush record of one account, and return without waiting for the worker.

    Call it before a metered price is swapped, a subscription is cancelled at once, or a draft invoice is finalized, and
    then wait with `FlushWatch` until the intents are settled. Cheap: one record in the log, and no other account is
    reported. Repeating the call does no harm: the second flush reports what came in between.

    Usage that arrives after the flush is reported with a later timestamp, whatever its event time. So a price that is
    swapped, or a subscription that is cancelled, should have no usage from before it on its way.

    Raises `Transient` if the log or the live view does not answer, or if another command changed the account at the
    same time; in the latter case, and perhaps in the former, nothing was flushed: repeat the call.
    """
    known = await standing(accounts, view, account)
    record = FlushRecord(account=account, revision=known.state.revision + 1)
    appended = await append_revised(accounts, Plan(known.partition, known.next_offset, record))
    stream_time_ms = max(known.stream_time_ms, appended.latest_ms)
    after = known._replace(now_ms=stream_time_ms).after(record)
    # In its bucket's last millisecond a flush may change nothing, because the bucket ends by itself.
    is_cut = after.flushed_ms != known.state.flushed_ms
    instant_ms = after.flushed_ms if is_cut else known.policy.report_bucket_end_ms(stream_time_ms)
    return Flush(account, known.partition, appended.offset, record.revision, instant_ms)


class HasFlushes(HasAccounts, HasReports, Protocol):
    """A live view, or the parts of one that flushes need."""


async def flush_until_settled(
    accounts: AccountLog, view: HasFlushes, ledger: IntentLedger, account: str, patience: Clock, timeout_s: float
) -> None:
    """Flush an account, and wait until Stripe has, or has refused, all of its usage until now. Raises `Transient` if
    that takes longer than `timeout_s` of `patience`; the same again does no harm."""
    partition = partition_of(account, accounts.partitions)
    # Read before the flush, so that none of its intents is missed.
    end = (await accounts.log.bounds(REPORTS_TOPIC, partition)).next
    flushed = await flush_account(accounts, view, account)
    await FlushWatch(accounts.log, view, flushed, end, ledger).wait(patience, timeout_s, settled=True)


class FlushWatch:
    """Follows a flush. Reads `billing.reports` once, from `from_offset` on, and asks the ledger for older intents that
    are not settled; without a ledger those are not seen. Memory grows with the account's intents from there on."""

    def __init__(
        self, log: Log, view: HasReports, flush: Flush, from_offset: int, ledger: IntentLedger | None = None
    ) -> None:
        self._log = log
        self._view = view
        self._flush = flush
        self._next_offset = from_offset
        self._ledger = ledger
        self._reported = ReportedIntents()

    async def look(self) -> FlushProgress:
        """How far the flush is now. Raises `Transient` if the log, the live view or the ledger does not answer."""
        if not await self._is_published():
            return FlushProgress(is_published=False)
        # Read after Redis: what the relay has deleted there is in the log.
        await self._read()
        until_ms = self._flush.instant_ms
        read = list(self._reported)
        left = [each for each in read if each.outcome is None and each.redrive is None]
        if self._ledger is not None:
            known = {each.intent.identifier for each in read}
            pending = await self._ledger.listed((IntentState.PENDING,), self._flush.account, PENDING_MAX)
            left += [
                ReportedIntent(each.partition, each.intent, each.attempt)
                for each in pending
                if each.intent.identifier not in known
            ]
        return FlushProgress(
            is_published=True,
            flushed=tuple(each for each in read if each.intent.bucket_end_ms == until_ms),
            # Usage of a period that begins after the flush is reported when the period has begun.
            unsettled=tuple(
                each for each in left if each.intent.bucket_start_ms < until_ms and each.intent.instant_ms < until_ms
            ),
        )

    async def wait(self, patience: Clock, timeout_s: float, *, settled: bool) -> FlushProgress:
        """Wait until all intents up to the flush are published and, with `settled`, have an outcome.

        Raises `Transient` after `timeout_s` of `patience`; the message says what is missing. Waiting again is harmless.
        """
        until_ms = patience.now_ms() + timeout_s * SECOND_MS
        while True:
            progress = await self.look()
            if progress.is_published and not (settled and progress.unsettled):
                return progress
            if patience.now_ms() >= until_ms:
                raise Transient(f"{self._flush.account}: {self._missing(progress)} after {timeout_s:g} s")
            await patience.sleep(LOOK_EVERY_S)

    def _missing(self, progress: FlushProgress) -> str:
        place = f"record {self._flush.offset} of partition {self._flush.partition}"
        if not progress.is_published:
            return f"the flush, {place}, is not in billing.reports: a worker must run and keep up"
        meters = ", ".join(sorted({each.intent.meter for each in progress.unsettled}))
        return (
            f"the flush, {place}, is in billing.reports, and {len(progress.unsettled)} reports ({meters}) are not "
            "settled: the sink must run, and the account must have a customer or be free"
        )

    async def _is_published(self) -> bool:
        reports, flush = self._view.reports, self._flush
        checkpoint, buckets = await reports.report_buckets(flush.partition)
        if checkpoint is None or checkpoint.next_offset <= flush.offset:
            return False
        policy = checkpoint.meter_set.policy if checkpoint.meter_set else Policy()
        for bucket_ms in buckets:
            if bucket_ms >= 0 and report_bucket_end_ms(bucket_ms, policy) > flush.instant_ms:
                continue
            _, entries = await reports.reports_of(flush.partition, bucket_ms, flush.account)
            if bucket_ms >= 0 and entries:
                return False
            if bucket_ms < 0 and any(parse_flush_field(field).end_ms <= flush.instant_ms for field in entries):
                return False
        return True

    async def _read(self) -> None:
        partition = self._flush.partition
        end = (await self._log.bounds(REPORTS_TOPIC, partition)).next
        while self._next_offset < end:
            records = await self._log.read(REPORTS_TOPIC, partition, self._next_offset, READ_RECORDS_MAX)
            for record in records:
                for entry in parse_entries(record.value):
                    if isinstance(entry, Intent):
                        is_ours = entry.account == self._flush.account
                    else:
                        is_ours = self._reported.get(entry.identifier) is not None
                    if is_ours:
                        self._reported.add(partition, entry)
            self._next_offset = records[-1].next_offset if records else end
