"""Service periods, computed from a billing cycle anchor.

Source: docs.stripe.com, "billing/subscriptions/billing-cycle". A monthly subscription with the anchor January 31 bills
on the last day of a shorter month: February 28, then March 31.
"""

from __future__ import annotations

import calendar
import math
from datetime import UTC, datetime
from fractions import Fraction
from typing import Final, Literal, NamedTuple

Interval = Literal["day", "week", "month", "year"]

_SECONDS: Final[dict[str, int]] = {"day": 86_400, "week": 7 * 86_400}
_MONTHS: Final[dict[str, int]] = {"month": 1, "year": 12}


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
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return calendar.timegm(moment.replace(year=year, month=month + 1, day=day).timetuple())


def boundary(anchor: int, recurrence: Recurrence, index: int) -> int:
    """The start of the period number `index`, counted from the anchor. A negative index is before the anchor.

    Each boundary is computed from the anchor, so that a short month does not shorten the later ones.
    """
    steps = index * recurrence.interval_count
    if recurrence.interval in _SECONDS:
        return anchor + steps * _SECONDS[recurrence.interval]
    return add_months(anchor, steps * _MONTHS[recurrence.interval])


def period_containing(anchor: int, recurrence: Recurrence, at: int) -> Period:
    """The period that contains the second `at`. The anchor may be later than `at`."""
    index = _index_near(anchor, recurrence, at)
    start, end = boundary(anchor, recurrence, index), boundary(anchor, recurrence, index + 1)
    while start > at:
        index, start, end = index - 1, boundary(anchor, recurrence, index - 1), start
    while end <= at:
        index, start, end = index + 1, end, boundary(anchor, recurrence, index + 2)
    return Period(start, end)


def _index_near(anchor: int, recurrence: Recurrence, at: int) -> int:
    if recurrence.interval in _SECONDS:
        return (at - anchor) // (_SECONDS[recurrence.interval] * recurrence.interval_count)
    first, second = datetime.fromtimestamp(anchor, UTC), datetime.fromtimestamp(at, UTC)
    months = (second.year - first.year) * 12 + second.month - first.month
    return months // (_MONTHS[recurrence.interval] * recurrence.interval_count)


class AnchorConfig(NamedTuple):
    """`billing_cycle_anchor_config`. A missing hour, minute or second is that of the subscription's start."""

    day_of_month: int
    month: int | None = None
    hour: int | None = None
    minute: int | None = None
    second: int | None = None


def anchor_of(config: AnchorConfig, recurrence: Recurrence, start: int) -> int:
    """The `billing_cycle_anchor` of a monthly or yearly subscription that starts at `start`.

    The first full period begins within one period from `start`, on `day_of_month` or the last day of a shorter month.
    The anchor can be later: the first boundary whose month has that day, so that the day is not forgotten. Stripe's
    example: two-month periods from February with day 31 have the anchor August 31 and a first boundary in February.
    """
    moment = datetime.fromtimestamp(start, UTC)
    months = recurrence.interval_count * _MONTHS[recurrence.interval]
    first = moment.year * 12 + moment.month - 1
    # A month of the year fixes the boundaries only if the periods divide the year.
    every = math.gcd(months, 12)
    while (config.month and (first + 1 - config.month) % every) or _configured(config, moment, first) < start:
        first += 1
    for month in range(first, first + 13 * months, months):
        if calendar.monthrange(month // 12, month % 12 + 1)[1] >= config.day_of_month:
            return _configured(config, moment, month)
    return _configured(config, moment, first)


def _configured(config: AnchorConfig, start: datetime, month: int) -> int:
    """The configured instant in a month, which is counted from the year 0."""
    year, number = month // 12, month % 12 + 1
    return calendar.timegm(
        start.replace(
            year=year,
            month=number,
            day=min(config.day_of_month, calendar.monthrange(year, number)[1]),
            hour=start.hour if config.hour is None else config.hour,
            minute=start.minute if config.minute is None else config.minute,
            second=start.second if config.second is None else config.second,
        ).timetuple()
    )
