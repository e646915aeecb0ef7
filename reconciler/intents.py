"""Compares intents with the recount: reported and unreported intents must add up to the totals (I10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from reconciler.causes import Cause, Pair
from reconciler.compare import Difference, Range, differences
from reconciler.recount import PartitionState, Recounter, TotalName
from reconciler.report import Findings, Row
from reconciler.reports_index import ReportsIndex
from reconciler.views import Behind, PartitionStates, Views
from schemas.rollup import Checkpoint


class Published(NamedTuple):
    """Report buckets that end by `before_ms` are closed and their intents durable; `detail` says why others wait."""

    before_ms: int
    detail: str


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
            ours = (intent.log_id, intent.livemode, intent.stripe_account) == (
                checkpoint.log_id, checkpoint.livemode, checkpoint.stripe_account,
            )  # fmt: skip
            period = state.history.period(intent.account, intent.period_start_ms)
            if ours and intent.bucket_end_ms <= published.before_ms and self.limits.overlaps(period):
                name = (intent.account, intent.meter, period)
                found[name] = found.get(name, 0) + intent.delta_minor
        expected = await self.recounter.reported(state, published.before_ms)
        expected = {key: value for key, value in expected.items() if key[0] not in pending}
        await self._waiting(state, published, expected)
        # A total that did not change has no intent, so 0 and nothing are equal here.
        equal, differing = differences(
            {key: value for key, value in expected.items() if value and self.limits.overlaps(key[2])},
            {key: value for key, value in found.items() if value},
        )
        self.findings.equal(Pair.INTENTS, equal)
        return state, differing

    async def _waiting(self, state: PartitionState, published: Published, expected: dict[TotalName, int]) -> None:
        now = await self.recounter.reported(state)
        waiting = [key for key, value in now.items() if value != expected.get(key, 0) and self.limits.overlaps(key[2])]
        if waiting:
            row = Row(Pair.INTENTS, Cause.IN_FLIGHT, state.partition, detail=published.detail)
            self.findings.add(row, len(waiting))


def _pending_re_reports(state: PartitionState, before_ms: int) -> set[str]:
    """Accounts whose usage was restated, and whose restated intents are not published yet."""
    return {
        name
        for name, account in state.history.accounts.items()
        if any(bucket_ms >= before_ms for _, bucket_ms in account.restatements)
    }


def _published(checkpoint: Checkpoint, interval_ms: int, buckets: list[int]) -> Published:
    closed = Published(
        checkpoint.stream_time_ms // interval_ms * interval_ms,
        "the report bucket is still open: stream time has not passed it",
    )
    if buckets and buckets[0] < closed.before_ms:
        return Published(buckets[0], "a closed report bucket waits in Redis for its intents to be published")
    return closed
