"""The live usage of an account's running period, for checks."""

from __future__ import annotations

from collections import OrderedDict
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.codec import parse_value
from aggregators.partitioning import partition_of
from aggregators.periods import period_at
from pipeline.access.checks import Counted
from schemas.clock import MINUTE_MS, SECOND_MS, Clock
from schemas.errors import Transient
from schemas.live_view import LiveTotals
from schemas.meters import Meter
from schemas.periods import AccountState
from schemas.rollup import Checkpoint, TotalKey

# How old an answer of Redis may be that a check uses again.
AGE_MS_MAX: Final = 250
ACCOUNTS_MAX: Final = 100_000
# The rate of usage is that between two reads which are as far apart. Without such reads it is not known.
RATE_MS_MIN: Final = SECOND_MS
RATE_MS_MAX: Final = 3 * MINUTE_MS


class _Sample(NamedTuple):
    """The totals by meter, complete up to an instant."""

    complete_up_to_ms: int
    totals: dict[str, str]


class _Read(NamedTuple):
    """One answer of Redis. `earlier`: two samples of the same period, the older one a minute or more before."""

    read_ms: int
    period_start_ms: int
    period_end_ms: int
    checkpoint: Checkpoint
    totals: dict[str, str]
    earlier: tuple[_Sample, ...] = ()


class LiveUsageSource:
    """Reads an account's totals from Redis, at most once in `AGE_MS_MAX`, for all meters together."""

    def __init__(self, totals: LiveTotals, partitions: int, clock: Clock) -> None:
        self._totals = totals
        self._partitions = partitions
        self._clock = clock
        self._reads: OrderedDict[str, _Read] = OrderedDict()

    async def __call__(self, account: str, meter: str, *, fresh: bool = False) -> Counted:
        """The usage of a meter; with `fresh` from Redis in any case. Raises `Transient` if Redis does not answer, or
        nothing was counted yet."""
        found, is_cached = self._reads.get(account), True
        if fresh or found is None or not 0 <= self._clock.now_ms() - found.read_ms <= AGE_MS_MAX:
            found, is_cached = _after(found, await self._read(account, found)), False
            self._reads[account] = found
            self._reads.move_to_end(account)
            if len(self._reads) > ACCOUNTS_MAX:
                self._reads.popitem(last=False)
        checkpoint = found.checkpoint
        known = checkpoint.meter_set.meter(meter) if checkpoint.meter_set else None
        used = Decimal(0) if known is None else _value(found.totals.get(meter), known)
        a_minute = None if known is None else _a_minute(found, used, known)
        return Counted(
            used,
            found.period_end_ms,
            checkpoint.stream_time_ms,
            a_minute,
            is_cached=is_cached,
            period_start_ms=found.period_start_ms,
        )

    async def _read(self, account: str, before: _Read | None) -> _Read:
        partition, now_ms = partition_of(account, self._partitions), self._clock.now_ms()
        # Nearly always the period of the last read still runs, so that Redis is asked once.
        start_ms = before.period_start_ms if before else period_at(AccountState(), now_ms).start_ms
        checkpoint, state, totals = await self._totals.account_total(partition, TotalKey(account, start_ms))
        period = period_at(state, now_ms)
        if period.start_ms != start_ms:
            key = TotalKey(account, period.start_ms)
            checkpoint, _, totals = await self._totals.account_total(partition, key)
        if checkpoint is None:
            raise Transient("nothing has been counted on this account's partition yet: is a worker running?")
        return _Read(now_ms, period.start_ms, period.end_ms, checkpoint, totals)


def _after(before: _Read | None, read: _Read) -> _Read:
    """A read with the samples that give its rate."""
    if before is None or before.period_start_ms != read.period_start_ms:
        return read
    last = _Sample(before.checkpoint.stream_time_ms, before.totals)
    samples = before.earlier or (last,)
    # The younger sample becomes the older one once it is a minute old.
    if last.complete_up_to_ms - samples[-1].complete_up_to_ms >= MINUTE_MS:
        samples = (samples[-1], last)
    return read._replace(earlier=samples)


def _a_minute(read: _Read, used: Decimal, meter: Meter) -> Decimal | None:
    """The usage of a minute, at the rate since the older sample; None if no sample is old and young enough."""
    for sample in read.earlier:
        span_ms = read.checkpoint.stream_time_ms - sample.complete_up_to_ms
        if RATE_MS_MIN <= span_ms <= RATE_MS_MAX:
            return max(Decimal(0), used - _value(sample.totals.get(meter.slug), meter)) * MINUTE_MS / span_ms
    return None


def _value(text: str | None, meter: Meter) -> Decimal:
    minor = meter.aggregation.rule.empty_minor if text is None else parse_value(text).minor
    return Decimal(minor or 0).scaleb(-meter.scale)
