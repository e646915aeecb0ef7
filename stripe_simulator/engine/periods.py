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
    year, number = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(moment.day, calendar.monthrange(year, number + 1)[1])
    return calendar.timegm(moment.replace(year=year, month=number + 1, day=day).timetuple())


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
