"""The start and end of billing periods (I8), and which periods are closed (I9)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from aggregators.instants import civil_from_days, days_from_civil, month_days
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.periods import INSTANT_MIN_MS, AccountState, Binding, Interval, Period


class Cut(NamedTuple):
    """The anchor and interval from which periods are counted from `from_ms` on."""

    from_ms: int
    anchor_ms: int
    interval: Interval
    interval_count: int


_CALENDAR = Cut(INSTANT_MIN_MS, 0, Interval.MONTH, 1)


def period_at(state: AccountState, instant_ms: int) -> Period:
    """The account's period that contains the instant."""
    if not state.bindings:
        return _calendar_month(instant_ms // DAY_MS)
    return _cut_period(cuts_of(state.bindings, state.payer_cuts_ms), instant_ms)


def _cut_period(cuts: tuple[Cut, ...], instant_ms: int) -> Period:
    index = max(i for i, cut in enumerate(cuts) if i == 0 or cut.from_ms <= instant_ms)
    cut = cuts[index]
    period = anchored_period(cut.anchor_ms, cut.interval, cut.interval_count, instant_ms)
    start_ms = period.start_ms if index == 0 else max(period.start_ms, cut.from_ms)
    end_ms = period.end_ms if index + 1 == len(cuts) else min(period.end_ms, cuts[index + 1].from_ms)
    return Period(start_ms, end_ms)


@lru_cache(maxsize=4096)
def cuts_of(bindings: tuple[Binding, ...], payer_cuts_ms: tuple[int, ...]) -> tuple[Cut, ...]:
    """One cut for each change of anchor or interval, and for each instant of `payer_cuts_ms` within a period."""
    cuts = [_CALENDAR]
    for binding in bindings:
        anchor_ms = binding.anchor_ms // MINUTE_MS * MINUTE_MS
        if (anchor_ms, binding.interval, binding.interval_count) != cuts[-1][1:]:
            cuts.append(Cut(binding.effective_from_ms, anchor_ms, binding.interval, binding.interval_count))
    for from_ms in payer_cuts_ms:
        before = [cut for cut in cuts if cut.from_ms <= from_ms]
        last = before[-1]
        if from_ms not in (last.from_ms, anchored_period(*last[1:], from_ms).start_ms):
            cuts[len(before) :] = [last._replace(from_ms=from_ms), *cuts[len(before) :]]
    return tuple(cuts)


@lru_cache(maxsize=4096)
def _calendar_month(day: int) -> Period:
    year, month, _ = civil_from_days(day)
    after = (year + 1, 1) if month == 12 else (year, month + 1)
    return Period(days_from_civil(year, month, 1) * DAY_MS, days_from_civil(*after, 1) * DAY_MS)


def anchored_period(anchor_ms: int, interval: Interval, interval_count: int, instant_ms: int) -> Period:
    """The period that contains the instant, counted from an anchor before or after the instant."""
    if interval in (Interval.DAY, Interval.WEEK):
        length_ms = interval_count * DAY_MS * (7 if interval is Interval.WEEK else 1)
        start_ms = anchor_ms + (instant_ms - anchor_ms) // length_ms * length_ms
        return Period(start_ms, start_ms + length_ms)
    months = interval_count * (12 if interval is Interval.YEAR else 1)
    anchor_year, anchor_month, _ = civil_from_days(anchor_ms // DAY_MS)
    year, month, _ = civil_from_days(instant_ms // DAY_MS)
    number = ((year - anchor_year) * 12 + month - anchor_month) // months
    if _months_after(anchor_ms, number * months) > instant_ms:
        number -= 1
    elif _months_after(anchor_ms, (number + 1) * months) <= instant_ms:
        number += 1
    return Period(_months_after(anchor_ms, number * months), _months_after(anchor_ms, (number + 1) * months))


def _months_after(anchor_ms: int, months: int) -> int:
    """The anchor moved by calendar months, without drift. If the month lacks the day, its last day is taken."""
    days, time_ms = divmod(anchor_ms, DAY_MS)
    year, month, day = civil_from_days(days)
    year, month = divmod(year * 12 + month - 1 + months, 12)
    month += 1
    return days_from_civil(year, month, min(day, month_days(year, month))) * DAY_MS + time_ms


def is_closed(state: AccountState, period: Period, grace_ms: int, stream_time_ms: int) -> bool:
    """Whether a period takes no more usage: its grace has passed in stream time, or a record closed the period."""
    return period.end_ms + grace_ms <= stream_time_ms or period.start_ms in state.closed_start_ms


def open_period(state: AccountState, stream_time_ms: int) -> Period:
    """The period that late usage is carried to: the period of the stream time, or the first open one after it."""
    period = period_at(state, stream_time_ms)
    # These periods have not ended, so only a record can have closed them.
    while period.start_ms in state.closed_start_ms:
        period = period_at(state, period.end_ms)
    return period
