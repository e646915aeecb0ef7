"""Compares Redis totals with the recount, in chunks of accounts, at the checkpoint of each read."""

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

# How often a chunk is read again because new totals appeared meanwhile.
ROUNDS_MAX: Final = 3
RETIRED: Final = (
    "their periods ended longer ago than policy.keep_periods_ms, and Redis deletes such totals; usage_hourly and the "
    "intents still have them. --from leaves them out"
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
        """Returns the differences of a partition; equal and unchecked values go to the findings."""
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
        walked: set[TotalKey] = set()
        cursor: int | None = None
        while cursor != 0:
            cursor, keys = await self.views.live.totals.total_keys(partition, cursor or 0, self.policy.totals_per_read)
            walked.update(keys)
        return walked

    async def _compare(
        self, state: PartitionState, base: Mapping[TotalName, int], keys: Sequence[TotalKey]
    ) -> list[Difference[TotalName]]:
        """Compare some accounts at the checkpoint of Redis' answer. If new totals appear meanwhile, read again."""
        wanted = set(keys)
        accounts = frozenset(key.account for key in keys)
        for _ in range(ROUNDS_MAX):
            checkpoint, totals = await self.views.live.totals.account_totals(state.partition, sorted(wanted))
            now = await self.states.at(state.partition, same_log(state, checkpoint))
            if isinstance(now, Behind):
                self._unread(state, sum(len(fields) for fields in totals.values()), now.detail)
                return []
            # A binding may have been folded after `state`: both sides use the periods of this checkpoint.
            found = self._inside(self._read_values(now, totals))
            expected = await self._expected(state, now, base, accounts)
            live_from_ms = now.checkpoint.stream_time_ms - now.history.kept_ms
            gone = {key for key in (*expected, *found) if key[2].end_ms <= live_from_ms}
            for key in gone:
                expected.pop(key, None)
                found.pop(key, None)
            appeared = {TotalKey(account, period.start_ms) for account, _, period in expected} - wanted
            if not appeared:
                equal, differing = differences(expected, found)
                self.findings.equal(Pair.REDIS, equal)
                self.retired += len(gone)
                return differing
            wanted |= appeared
        self._unread(state, len(wanted), f"new periods of {len(accounts)} accounts kept appearing")
        return []

    def _read_values(self, now: PartitionState, totals: Mapping[TotalKey, Mapping[str, str]]) -> dict[TotalName, int]:
        """The totals in minor units. A text that is no total is reported, and counts as missing."""
        values: dict[TotalName, int] = {}
        for key, fields in totals.items():
            period = now.history.period(*key)
            for meter, text in fields.items():
                try:
                    values[key.account, meter, period] = parse_value(text).minor
                except (ValueError, TypeError):
                    detail = f"Redis holds {text[:40]!r}, which is no total: rebuild the live view"
                    row = Row(Pair.REDIS, Cause.UNCHECKED, now.partition, key.account, meter, period, detail=detail)
                    self.findings.add(row)
        return values

    async def _expected(
        self,
        state: PartitionState,
        now: PartitionState,
        base: Mapping[TotalName, int],
        accounts: frozenset[str],
    ) -> dict[TotalName, int]:
        if now.checkpoint.next_offset == state.checkpoint.next_offset:
            counted = {key: value for key, value in base.items() if key[0] in accounts}
        else:
            counted = await self.recounter.totals_of(now, accounts)
        return self._inside(counted)

    def _inside(self, counted: Mapping[TotalName, int]) -> dict[TotalName, int]:
        return {key: value for key, value in counted.items() if self.limits.overlaps(key[2])}

    def _unread(self, state: PartitionState, values: int, detail: str) -> None:
        self.findings.add(Row(Pair.REDIS, Cause.IN_FLIGHT, state.partition, detail=detail), values)


def _chunks(keys: Sequence[TotalKey], keys_max: int) -> Iterator[list[TotalKey]]:
    """Chunks of whole accounts. A chunk ends with the account that brings it to `keys_max` keys."""
    chunk: list[TotalKey] = []
    for key in keys:
        if len(chunk) >= keys_max and key.account != chunk[-1].account:
            yield chunk
            chunk = []
        chunk.append(key)
    if chunk:
        yield chunk
