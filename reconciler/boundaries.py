"""The start and end of billing periods, computed a second time with the standard library's calendar (I8).

This module must not share code with `aggregators.periods`, which the fold uses: a recount with the same arithmetic
would repeat every mistake.
"""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from datetime import date
from typing import Final, NamedTuple

from schemas.clock import DAY_MS, MINUTE_MS
from schemas.periods import Binding, Interval, Period

_EPOCH_YEAR: Final = 1970
_EPOCH_ORDINAL: Final = date(_EPOCH_YEAR, 1, 1).toordinal()
# The Gregorian calendar repeats every 400 years: instants beyond the years of `date` are moved by such cycles.
_CYCLE_YEARS: Final = 400
_CYCLE_DAYS: Final = 146_097
_FOR_EVER_MS: Final = 1 << 62


class Cutting(NamedTuple):
    """The anchor and interval from which periods are counted from `from_ms` on."""

    from_ms: int
    anchor_ms: int
    interval: Interval
    interval_count: int


CALENDAR_MONTHS: Final = Cutting(-_FOR_EVER_MS, 0, Interval.MONTH, 1)


def cuttings(bindings: Sequence[Binding], payer_cuts_ms: Sequence[int] = ()) -> tuple[Cutting, ...]:
    """The cuttings of an account with these bindings (ascending by effective instant), starting with calendar months.

    Periods are counted from the start of the anchor's minute. At the instants `payer_cuts_ms` another payer takes
    effect, which ends a period.
    """
    cut = [CALENDAR_MONTHS]
    for binding in bindings:
        anchor_ms = binding.anchor_ms - binding.anchor_ms % MINUTE_MS
        cutting = Cutting(binding.effective_from_ms, anchor_ms, binding.interval, binding.interval_count)
        if cutting[1:] != cut[-1][1:]:
            cut.append(cutting)
    for instant_ms in payer_cuts_ms:
        if period_containing(cut, instant_ms).start_ms != instant_ms:
            rule = [cutting for cutting in cut if cutting.from_ms < instant_ms][-1]
            cut.append(Cutting(instant_ms, *rule[1:]))
            cut.sort(key=lambda cutting: cutting.from_ms)
    return tuple(cut)


def period_containing(cut: Sequence[Cutting], instant_ms: int) -> Period:
    """The period that contains the instant. `cut` is a result of `cuttings`."""
    number = 0
    while number + 1 < len(cut) and cut[number + 1].from_ms <= instant_ms:
        number += 1
    rule = cut[number]
    ends_ms = cut[number + 1].from_ms if number + 1 < len(cut) else _FOR_EVER_MS
    step = _step_before(rule, instant_ms)
    return Period(max(rule.from_ms, _boundary(rule, step)), min(ends_ms, _boundary(rule, step + 1)))


def periods_over(cut: Sequence[Cutting], from_ms: int, to_ms: int, more: int = 0) -> tuple[Period, ...]:
    """The contiguous periods from the one containing `from_ms` to the one containing `to_ms`, and `more` after it."""
    periods = [period_containing(cut, from_ms)]
    while periods[-1].end_ms <= to_ms or more > 0:
        more -= periods[-1].end_ms > to_ms
        periods.append(period_containing(cut, periods[-1].end_ms))
    return tuple(periods)


def _step_before(rule: Cutting, instant_ms: int) -> int:
    """The number of the last boundary, counted from the anchor, that is not after the instant."""
    if rule.interval in (Interval.DAY, Interval.WEEK):
        return (instant_ms - rule.anchor_ms) // _fixed_length_ms(rule)
    year, month, _, _ = _civil(instant_ms)
    anchor_year, anchor_month, _, _ = _civil(rule.anchor_ms)
    step = ((year - anchor_year) * 12 + month - anchor_month) // _months(rule)
    while _boundary(rule, step) > instant_ms:
        step -= 1
    while _boundary(rule, step + 1) <= instant_ms:
        step += 1
    return step


def _boundary(rule: Cutting, step: int) -> int:
    """The instant `step` intervals after the anchor, counted from the anchor itself: 31 Jan, 28 Feb, 31 Mar."""
    if rule.interval in (Interval.DAY, Interval.WEEK):
        return rule.anchor_ms + step * _fixed_length_ms(rule)
    year, month, day, rest_ms = _civil(rule.anchor_ms)
    years, month0 = divmod(month - 1 + step * _months(rule), 12)
    return _instant(year + years, month0 + 1, day, rest_ms)


def _fixed_length_ms(rule: Cutting) -> int:
    return rule.interval_count * DAY_MS * (7 if rule.interval is Interval.WEEK else 1)


def _months(rule: Cutting) -> int:
    return rule.interval_count * (12 if rule.interval is Interval.YEAR else 1)


def _civil(instant_ms: int) -> tuple[int, int, int, int]:
    """(year, month, day, milliseconds of the day) in UTC, for any year."""
    days, rest_ms = divmod(instant_ms, DAY_MS)
    cycles, days = divmod(days, _CYCLE_DAYS)
    day = date.fromordinal(_EPOCH_ORDINAL + days)
    return day.year + cycles * _CYCLE_YEARS, day.month, day.day, rest_ms


def _instant(year: int, month: int, day: int, rest_ms: int) -> int:
    """The inverse of `_civil`. If the month lacks the day, its last day is taken."""
    cycles, years = divmod(year - _EPOCH_YEAR, _CYCLE_YEARS)
    last_day = calendar.monthrange(_EPOCH_YEAR + years, month)[1]
    ordinal = date(_EPOCH_YEAR + years, month, min(day, last_day)).toordinal()
    return (ordinal - _EPOCH_ORDINAL + cycles * _CYCLE_DAYS) * DAY_MS + rest_ms
