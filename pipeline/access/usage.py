"""The live usage of an account's running period, for checks."""

from __future__ import annotations

from collections import OrderedDict
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.codec import parse_value
from aggregators.partitioning import partition_of
from aggregators.periods import period_at
from pipeline.access.checks import Counted
from schemas.clock import Clock
from schemas.errors import Transient
from schemas.live_view import AccountDirectory, LiveTotals
from schemas.meters import Meter
from schemas.rollup import Checkpoint, TotalKey

# How old an answer of Redis may be that a check uses again.
AGE_MS_MAX: Final = 250
ACCOUNTS_MAX: Final = 100_000


class _Read(NamedTuple):
    read_ms: int
    period_end_ms: int
    checkpoint: Checkpoint
    totals: dict[str, str]


class LiveUsageSource:
    """Reads an account's totals from Redis, at most once in `AGE_MS_MAX`, for all meters together."""

    def __init__(self, accounts: AccountDirectory, totals: LiveTotals, partitions: int, clock: Clock) -> None:
        self._accounts = accounts
        self._totals = totals
        self._partitions = partitions
        self._clock = clock
        self._reads: OrderedDict[str, _Read] = OrderedDict()

    async def __call__(self, account: str, meter: str) -> Counted:
        """The usage of a meter. Raises `Transient` if Redis does not answer, or nothing was counted yet."""
        found = self._reads.get(account)
        if found is None or not 0 <= self._clock.now_ms() - found.read_ms <= AGE_MS_MAX:
            found = await self._read(account)
            self._reads[account] = found
            self._reads.move_to_end(account)
            if len(self._reads) > ACCOUNTS_MAX:
                self._reads.popitem(last=False)
        checkpoint = found.checkpoint
        known = checkpoint.meter_set.meter(meter) if checkpoint.meter_set else None
        used = Decimal(0) if known is None else _value(found.totals.get(meter), known)
        return Counted(used, found.period_end_ms, checkpoint.stream_time_ms)

    async def _read(self, account: str) -> _Read:
        partition, now_ms = partition_of(account, self._partitions), self._clock.now_ms()
        _, states = await self._accounts.accounts(partition, [account])
        period = period_at(states[account], now_ms)
        key = TotalKey(account, period.start_ms)
        checkpoint, totals = await self._totals.account_totals(partition, [key])
        if checkpoint is None:
            raise Transient("nothing has been counted on this account's partition yet: is a worker running?")
        return _Read(now_ms, period.end_ms, checkpoint, dict(totals.get(key, {})))


def _value(text: str | None, meter: Meter) -> Decimal:
    minor = meter.aggregation.rule.empty_minor if text is None else parse_value(text).minor
    return Decimal(minor or 0).scaleb(-meter.scale)
