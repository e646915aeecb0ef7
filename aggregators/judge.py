"""Checks whether a decoded event can be counted. The gateway and the fold use the same checks in the same order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from aggregators.instants import format_instant_ms, parse_instant_us, why_no_instant
from aggregators.meters import CompiledMeterSet, Contribution, Failure, compiled
from aggregators.partitioning import partition_of
from schemas.adjustments import is_reserved
from schemas.clock import MILLISECOND_US
from schemas.events import TIME_MIN_US, EventStruct
from schemas.meters import MeterSet
from schemas.reasons import Reason
from schemas.validation import quoted

# In force before the first meter set: no meters and the default policy.
WITHOUT_METERS: Final = compiled(MeterSet(version=1, meters=()))


class Home(msgspec.Struct, frozen=True):
    """One of `partitions` partitions, and a cache of the accounts that `judge` has found on it: hashing is slow."""

    partition: int
    partitions: int
    accounts: set[str]


class Rules(msgspec.Struct, frozen=True):
    """What `judge` checks events against at one instant.

    `contributions` evaluates the meters in force. Event times before `earliest_us` or after `latest_us` are rejected.
    `home` is the partition that the events were read from, or None if their partition is not chosen yet.
    """

    contributions: Callable[[str, dict[str, Any], int], tuple[Contribution, ...] | Failure]
    earliest_us: int
    latest_us: int
    home: Home | None = None


def rules_at(now_ms: int, meter_set: CompiledMeterSet, home: Home | None = None) -> Rules:
    """The rules at `now_ms`: stream time in the fold, the clock's time in the gateway."""
    policy = meter_set.meter_set.policy
    earliest_us = max(TIME_MIN_US, (now_ms - policy.late_max_ms) * MILLISECOND_US)
    return Rules(meter_set.contributions, earliest_us, (now_ms + policy.future_ms) * MILLISECOND_US, home)


def event_time_us(event: EventStruct, arrival_ms: int) -> int | None:
    """The event's time in microseconds; None if `time` is malformed. An event without `time` has the time of its
    arrival in the log: the stream time at its record in `usage.events`."""
    return arrival_ms * MILLISECOND_US if event.time is None else parse_instant_us(event.time)


def judge(event: EventStruct, time_us: int | None, rules: Rules) -> tuple[Contribution, ...] | Failure:
    """The event's contributions to meters, or the first check that it fails. `time_us` is its `event_time_us`, which
    the caller needs too.

    The order: form of the time, partition of the account, range of the time, quantities of the meters.
    """
    if time_us is None:
        return Failure(Reason.BAD_TIME, f"time: {quoted(event.time or '')} {why_no_instant(event.time or '')}")
    home = rules.home
    if home is not None and event.subject not in home.accounts:
        partition = partition_of(event.subject, home.partitions)
        if partition != home.partition:
            return Failure(Reason.WRONG_PARTITION, f"subject belongs on partition {partition} of {home.partitions}")
        home.accounts.add(event.subject)
    # What Tidemark finds out about old usage is never too old.
    earliest_us = TIME_MIN_US if is_reserved(event.type) else rules.earliest_us
    if not earliest_us <= time_us <= rules.latest_us:
        if time_us < TIME_MIN_US:
            return Failure(Reason.TOO_FAR_IN_PAST, f"time: {event.time} is before 1970")
        if time_us < earliest_us:
            earliest = format_instant_ms(earliest_us // MILLISECOND_US)
            return Failure(Reason.TOO_OLD, f"time: {event.time} is before {earliest}")
        latest = format_instant_ms(rules.latest_us // MILLISECOND_US)
        return Failure(Reason.TOO_FAR_IN_FUTURE, f"time: {event.time} is after {latest}")
    return rules.contributions(event.type, event.data or {}, time_us)
