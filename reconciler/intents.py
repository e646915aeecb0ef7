"""Compares intents with the recount (I10): the intents up to the end of a report bucket, and those of an account up to
a flush, must add up to the totals there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from reconciler.causes import Cause, Pair, direction
from reconciler.compare import Difference, Range, differences
from reconciler.history import AccountHistory, FlushPoint
from reconciler.recount import PartitionState, Recounter, TotalName
from reconciler.report import Findings, Row, instant_text
from reconciler.reports_index import ReportsIndex
from reconciler.views import Behind, PartitionStates, Views
from schemas.clock import HOUR_MS
from schemas.log import offset_of
from schemas.reports import Intent
from schemas.rollup import Checkpoint

# So many of a partition's newest flushes are compared, each by a recount of one account.
FLUSHES_MAX: Final = 20
# A level without an intent is missing so long after its period began. Ticks come every few minutes at the latest.
LEVEL_WAITS_MS: Final = 2 * HOUR_MS


class Published(NamedTuple):
    """Report buckets that end by `before_ms` are closed and their intents durable; `detail` says why others wait. In
    the bucket that starts at `waiting_ms`, or later, intents are missing that a flush or the bucket's end asks for."""

    before_ms: int
    detail: str
    waiting_ms: int | None = None


@dataclass(frozen=True, slots=True)
class IntentsComparison:
    """Compares intents and the recount of a partition at the end of its last published report bucket."""

    views: Views
    recounter: Recounter
    states: PartitionStates
    index: ReportsIndex
    findings: Findings
    limits: Range

    async def run(self, partition: int) -> tuple[PartitionState | None, list[Difference[TotalName]]]:
        """The compared state (None if there is none) and the differences; everything else goes to the findings."""
        checkpoint, buckets = await self.views.live.reports.report_buckets(partition)
        # The topic is read after Redis: entries that Redis has deleted are in the topic by then.
        await self.index.catch_up(partition)
        if checkpoint is None or checkpoint.meter_set is None:
            return None, []
        published = _published(checkpoint, checkpoint.meter_set.policy.report_interval_ms, buckets)
        state = await self.states.at(partition, checkpoint)
        if isinstance(state, Behind):
            row = Row(Pair.INTENTS, Cause.IN_FLIGHT, partition, detail=state.detail)
            intents = (reported.intent for reported in self.index.reported(partition))
            self.findings.add(row, len({(intent.account, intent.meter, intent.period_start_ms) for intent in intents}))
            return None, []
        found: dict[TotalName, int] = {}
        pending = _pending_re_reports(state, published.before_ms)
        for reported in self.index.reported(partition):
            intent = reported.intent
            account = state.history.accounts.get(intent.account)
            re_reported = account and account.re_reported(intent.period_start_ms, intent.bucket_start_ms)
            # A redriven intent is the change of the total, and its revisions repeat that change.
            if intent.account in pending or re_reported or intent.revision:
                continue
            period = state.history.period(intent.account, intent.period_start_ms)
            if (
                _is_ours(intent, checkpoint)
                and intent.bucket_end_ms <= published.before_ms
                and self.limits.overlaps(period)
            ):
                name = (intent.account, intent.meter, period)
                found[name] = found.get(name, 0) + intent.delta_minor
        expected = await self.recounter.reported(state, published.before_ms)
        expected = {
            key: value
            for key, value in expected.items()
            if key[0] not in pending and (key in found or not _may_begin(state, key, published.before_ms))
        }
        await self._waiting(state, published, expected)
        # A total that did not change has no intent, so 0 and nothing are equal here.
        equal, differing = differences(
            {key: value for key, value in expected.items() if value and self.limits.overlaps(key[2])},
            {key: value for key, value in found.items() if value},
        )
        self.findings.equal(Pair.INTENTS, equal)
        await self._flushed(state, published.waiting_ms)
        return state, differing

    async def _flushed(self, state: PartitionState, waiting_ms: int | None) -> None:
        """Compare the intents of accounts up to their flushes. `waiting_ms` is that of `Published`."""
        accounts = state.history.accounts
        newest = sorted(
            (flush, name)
            for name, account in accounts.items()
            for flush in account.flushes[-FLUSHES_MAX:]
            if not _is_re_reported(account, flush)
        )[-FLUSHES_MAX:]
        waiting = [each for each in newest if waiting_ms is not None and waiting_ms < each[0].instant_ms]
        if waiting:
            detail = "a flush, or a report bucket before it, waits in Redis for its intents to be published"
            self.findings.add(Row(Pair.INTENTS, Cause.IN_FLIGHT, state.partition, detail=detail), len(waiting))
        found: dict[tuple[FlushPoint, str], dict[TotalName, int]] = {each: {} for each in newest if each not in waiting}
        for reported in self.index.reported(state.partition):
            intent, name = reported.intent, reported.intent.account
            if intent.revision or not _is_ours(intent, state.checkpoint):
                continue
            for flush, of in found:
                if name == of and intent.bucket_end_ms <= flush.instant_ms:
                    if accounts[name].re_reported(intent.period_start_ms, intent.bucket_start_ms):
                        continue
                    total = (name, intent.meter, state.history.period(name, intent.period_start_ms))
                    sums = found[flush, name]
                    sums[total] = sums.get(total, 0) + intent.delta_minor
        for (flush, name), sums in found.items():
            await self._flush(state, flush, name, sums)

    async def _flush(self, state: PartitionState, flush: FlushPoint, name: str, found: dict[TotalName, int]) -> None:
        """Compare the sums of an account's intents up to a flush."""
        then = msgspec.structs.replace(
            state.checkpoint, next_offset=offset_of(flush.position), stream_time_ms=flush.instant_ms
        )
        expected = await self.recounter.reported(state._replace(checkpoint=then), accounts=frozenset([name]))
        equal, differing = differences(
            {key: value for key, value in expected.items() if value and self.limits.overlaps(key[2])},
            {key: value for key, value in found.items() if value and self.limits.overlaps(key[2])},
        )
        self.findings.equal(Pair.INTENTS, equal)
        for difference in differing:
            _, slug, period = difference.key
            cause = direction(difference.expected, difference.found)
            meter = state.history.definitions.get(slug)
            before, after = difference.texts(meter.scale if meter else 0)
            detail = f"{cause.value} in the intents up to the flush at {instant_text(flush.instant_ms)}"
            row = Row(
                Pair.INTENTS, cause, state.partition, name, slug, period, expected=before, found=after, detail=detail
            )
            self.findings.add(row)

    async def _waiting(self, state: PartitionState, published: Published, expected: dict[TotalName, int]) -> None:
        now = await self.recounter.reported(state)
        waiting = [key for key, value in now.items() if value != expected.get(key, 0) and self.limits.overlaps(key[2])]
        if waiting:
            row = Row(Pair.INTENTS, Cause.IN_FLIGHT, state.partition, detail=published.detail)
            self.findings.add(row, len(waiting))


def _is_ours(intent: Intent, checkpoint: Checkpoint) -> bool:
    """Whether the intent is of this log, and of its mode and account at Stripe."""
    return (intent.log_id, intent.livemode, intent.stripe_account) == (
        checkpoint.log_id, checkpoint.livemode, checkpoint.stripe_account,
    )  # fmt: skip


def _is_re_reported(account: AccountHistory, flush: FlushPoint) -> bool:
    """Whether a restatement after the flush reported its usage once more, in a later bucket."""
    return any(flush.instant_ms <= bucket_ms for _, bucket_ms in account.restatements)


def _may_begin(state: PartitionState, name: TotalName, before_ms: int) -> bool:
    """Whether a level may stand in a period only since a report bucket that is open: the first record after the
    period's start has carried the level over, and the archive does not say when that record came."""
    meter = state.history.definitions.get(name[1])
    return meter is not None and meter.carry_over and name[2].start_ms > before_ms - LEVEL_WAITS_MS


def _pending_re_reports(state: PartitionState, before_ms: int) -> set[str]:
    """Accounts whose usage was restated, and whose restated intents are not published yet."""
    return {
        name
        for name, account in state.history.accounts.items()
        if any(bucket_ms >= before_ms for _, bucket_ms in account.restatements)
    }


def _published(checkpoint: Checkpoint, interval_ms: int, buckets: list[int]) -> Published:
    closed_ms = checkpoint.stream_time_ms // interval_ms * interval_ms
    # A flush cuts an account's bucket in two, and both parts are complete when the bucket of all accounts is. Flushes
    # that the relay has not seen have the negative end of that bucket as key, also while the bucket is open.
    unseen = [-bucket - interval_ms for bucket in buckets if bucket < 0]
    starts = [bucket // interval_ms * interval_ms for bucket in buckets if bucket >= 0]
    waiting = unseen + [start_ms for start_ms in starts if start_ms < closed_ms]
    if waiting and min(waiting) < closed_ms:
        detail = "a closed report bucket waits in Redis for its intents to be published"
        return Published(min(waiting), detail, min(waiting))
    detail = "the report bucket is still open: stream time has not passed it"
    return Published(closed_ms, detail, min(waiting, default=None))
