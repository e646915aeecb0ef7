"""Service periods, computed from a billing cycle anchor.

Source: docs.stripe.com, "billing/subscriptions/billing-cycle". A monthly subscription with the anchor January 31 bills
on the last day of a shorter month: February 28, then March 31.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime
from fractions import Fraction
from typing import Final, Literal, NamedTuple

Interval = Literal["day", "week", "month", "year"]

# Exact for days and weeks; the mean of the calendar for months and years, which are computed by month.
_SECONDS: Final = {"day": 86_400, "week": 7 * 86_400, "month": 2_629_746, "year": 31_556_952}
_MONTHS: Final = {"month": 1, "year": 12}


class Recurrence(NamedTuple):
    """How often a price bills: `interval_count` intervals."""

    interval: Interval
    interval_count: int = 1


class Period(NamedTuple):
    """The UTC seconds `[start, end)`."""

    start: int
    end: int

    def share(self, part: Period) -> Fraction:
        """The fraction of this period that `part` covers. Seconds outside this period do not count."""
        seconds = min(self.end, part.end) - max(self.start, part.start)
        return Fraction(max(0, seconds), self.end - self.start)


def add_months(at: int, months: int) -> int:
    """The same day and time `months` later, or the last day of a shorter month."""
    moment = datetime.fromtimestamp(at, UTC)
    return _in_month(moment, moment.year * 12 + moment.month - 1 + months, moment.day)


def _in_month(moment: datetime, month: int, day: int) -> int:
    """A moment moved to a day, or the last day, of a month, which is counted from the year 0."""
    year, number = month // 12, month % 12 + 1
    day = min(day, calendar.monthrange(year, number)[1])
    return calendar.timegm(moment.replace(year=year, month=number, day=day).timetuple())


def boundary(anchor: int, recurrence: Recurrence, index: int) -> int:
    """The start of the period number `index`, counted from the anchor. A negative index is before the anchor.

    Each boundary is computed from the anchor, so that a short month does not shorten the later ones.
    """
    steps = index * recurrence.interval_count
    if recurrence.interval in _MONTHS:
        return add_months(anchor, steps * _MONTHS[recurrence.interval])
    return anchor + steps * _SECONDS[recurrence.interval]


def period_containing(anchor: int, recurrence: Recurrence, at: int) -> Period:
    """The period that contains the second `at`. The anchor may be later than `at`."""
    index = (at - anchor) // (_SECONDS[recurrence.interval] * recurrence.interval_count)
    start, end = boundary(anchor, recurrence, index), boundary(anchor, recurrence, index + 1)
    while start > at:
        index, start, end = index - 1, boundary(anchor, recurrence, index - 1), start
    while end <= at:
        index, start, end = index + 1, end, boundary(anchor, recurrence, index + 2)
    return Period(start, end)


def anchor_of(recurrence: Recurrence, start: int, day_of_month: int, **time: int) -> int:
    """The `billing_cycle_anchor` of a monthly or yearly subscription that starts at `start`.

    `time` has the hour, minute and second; those of `start` by default. The first full period begins within a month
    from `start`, on `day_of_month` or the last day of a shorter month. The anchor is the first boundary whose month has
    that day. Stripe's example: two-month periods from February with day 31 have the anchor August 31.
    """
    moment = datetime.fromtimestamp(start, UTC).replace(**time)  # type: ignore[arg-type]  # a time has no time zone
    first = moment.year * 12 + moment.month - 1
    first += _in_month(moment, first, day_of_month) < start
    months = recurrence.interval_count * _MONTHS[recurrence.interval]
    later = range(first, first + 13 * months, months)
    whole = (month for month in later if calendar.monthrange(month // 12, month % 12 + 1)[1] >= day_of_month)
    return _in_month(moment, next(whole, first), day_of_month)
