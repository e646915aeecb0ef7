"""Redis totals against the recount, in chunks of accounts, each at the checkpoint it was read with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aggregators.codec import parse_value
from reconciler.causes import Cause, Pair
from reconciler.compare import Difference, Range, differences
from reconciler.recount import PartitionState, Recounter, TotalName
from reconciler.report import Findings, Row
from reconciler.views import Behind, PartitionStates, ReconcilePolicy, Views, same_log
from schemas.rollup import TotalKey

# How often totals that appear while a chunk is compared are asked for once more.
ROUNDS_MAX: Final = 3
RETIRED: Final = (
    "their periods ended longer ago than policy.keep_periods_ms, and Redis lets such totals go; usage_hourly and the "
    "intents still tell them. --from leaves them out"
)


@dataclass(slots=True)
class TotalsComparison:
    """Compares Redis and the recount. Memory grows with the totals of one partition."""

    views: Views
    recounter: Recounter
    policy: ReconcilePolicy
    states: PartitionStates
    findings: Findings
    limits: Range
    retired: int = 0

    async def run(self, state: PartitionState) -> list[Difference[TotalName]]:
        """What differs on a partition; equal and unchecked values go to the findings."""
        base = await self.recounter.totals(state)
        keys = await self._walked(state.partition)
        keys |= {TotalKey(account, period.start_ms) for account, _, period in base}
        chosen = sorted(key for key in keys if self.limits.overlaps(state.history.period(*key)))
        differing: list[Difference[TotalName]] = []
        for chunk in _chunks(chosen, self.policy.totals_per_read):
            differing += await self._compare(state, base, chunk)
        if self.retired:
            row = Row(Pair.REDIS, Cause.UNCHECKED, state.partition, detail=RETIRED)
            self.findings.add(row, self.retired)
        return differing

    async def _walked(self, partition: int) -> set[TotalKey]:
        cursor, keys = await self.views.live.totals.total_keys(partition, 0, self.policy.totals_per_read)
        walked = set(keys)
        while cursor:
            cursor, keys = await self.views.live.totals.total_keys(partition, cursor, self.policy.totals_per_read)
            walked.update(keys)
        return walked

    async def _compare(
        self, state: PartitionState, base: Mapping[TotalName, int], keys: Sequence[TotalKey]
    ) -> list[Difference[TotalName]]:
        """Compare some accounts at the checkpoint that Redis answers with; totals that appeared meanwhile are read
        again."""
        asked = set(keys)
        accounts = frozenset(key.account for key in keys)
        for _ in range(ROUNDS_MAX):
            checkpoint, held = await self.views.live.totals.account_totals(state.partition, sorted(asked))
            at = await self.states.at(state.partition, same_log(state, checkpoint))
            if isinstance(at, Behind):
                self._unread(state, sum(len(fields) for fields in held.values()), at.detail)
                return []
            # A binding may have been folded since the state: both sides are cut as it was at this checkpoint.
            found = self._inside(
                {
                    (key.account, meter, at.history.period(*key)): parse_value(text).minor
                    for key, fields in held.items()
                    for meter, text in fields.items()
                }
            )
            expected = await self._expected(state, at, base, accounts)
            live_from_ms = at.checkpoint.stream_time_ms - at.history.kept_ms
            gone = {key for key in (*expected, *found) if key[2].end_ms <= live_from_ms}
            for key in gone:
                expected.pop(key, None)
                found.pop(key, None)
            appeared = {TotalKey(account, period.start_ms) for account, _, period in expected} - asked
            if not appeared:
                equal, differing = differences(expected, found)
                self.findings.equal(Pair.REDIS, equal)
                self.retired += len(gone)
                return differing
            asked |= appeared
        self._unread(state, len(asked), f"new periods of {len(accounts)} accounts kept appearing")
        return []

    async def _expected(
        self,
        state: PartitionState,
        at: PartitionState,
        base: Mapping[TotalName, int],
        accounts: frozenset[str],
    ) -> dict[TotalName, int]:
        if at.checkpoint.next_offset == state.checkpoint.next_offset:
            counted = {key: value for key, value in base.items() if key[0] in accounts}
        else:
            counted = await self.recounter.totals_of(at, accounts)
        return self._inside(counted)

    def _inside(self, counted: Mapping[TotalName, int]) -> dict[TotalName, int]:
        return {key: value for key, value in counted.items() if self.limits.overlaps(key[2])}

    def _unread(self, state: PartitionState, values: int, detail: str) -> None:
        self.findings.add(Row(Pair.REDIS, Cause.IN_FLIGHT, state.partition, detail=detail), values)


def _chunks(keys: Sequence[TotalKey], keys_max: int) -> Iterator[list[TotalKey]]:
    """Whole accounts, up to `keys_max` keys (more where one account alone has more)."""
    chunk: list[TotalKey] = []
    for index, key in enumerate(keys):
        chunk.append(key)
        ends_account = index + 1 == len(keys) or keys[index + 1].account != key.account
        if ends_account and (len(chunk) >= keys_max or index + 1 == len(keys)):
            yield chunk
            chunk = []
