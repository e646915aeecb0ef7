"""Billing cycles: month ends, leap years, intervals, and anchors from a configuration."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stripe_simulator.engine.periods import (
    Interval,
    Recurrence,
    add_months,
    boundary,
    period_containing,
)
from tests.unit.stripe_engine.catalog import MONTH, YEAR, at, between


@pytest.mark.parametrize(
    ("anchor", "recurrence", "expected"),
    [
        pytest.param("2027-01-31", MONTH, ["2027-02-28", "2027-03-31", "2027-04-30"], id="month end"),
        pytest.param("2028-01-30", MONTH, ["2028-02-29", "2028-03-30", "2028-04-30"], id="leap February"),
        pytest.param("2027-11-30", Recurrence("month", 3), ["2028-02-29", "2028-05-30", "2028-08-30"], id="quarters"),
        pytest.param("2028-02-29", YEAR, ["2029-02-28", "2030-02-28", "2031-02-28"], id="years from a leap day"),
        pytest.param("2027-06-03", Recurrence("week", 2), ["2027-06-17", "2027-07-01", "2027-07-15"], id="two weeks"),
        pytest.param("2027-03-27", Recurrence("day"), ["2027-03-28", "2027-03-29", "2027-03-30"], id="days have 24 h"),
        pytest.param(
            "2027-01-31 23:59:59",
            MONTH,
            ["2027-02-28 23:59:59", "2027-03-31 23:59:59", "2027-04-30 23:59:59"],
            id="time of day",
        ),
    ],
)
def test_boundaries_follow_the_anchor(anchor: str, recurrence: Recurrence, expected: list[str]) -> None:
    """ "billing/subscriptions/billing-cycle": January 31 bills on February 28, then March 31."""
    assert [at(text) for text in expected] == [boundary(at(anchor), recurrence, index) for index in (1, 2, 3)]


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        pytest.param("2027-02-28 12:00:00", ("2027-02-28 12:00:00", "2027-03-31 12:00:00"), id="the boundary itself"),
        pytest.param("2027-02-28 11:59:59", ("2027-01-31 12:00:00", "2027-02-28 12:00:00"), id="one second before"),
        pytest.param("2027-01-10", ("2026-12-31 12:00:00", "2027-01-31 12:00:00"), id="before the anchor"),
        pytest.param("2024-02-29 12:00:00", ("2024-02-29 12:00:00", "2024-03-31 12:00:00"), id="years before"),
    ],
)
def test_the_period_of_an_instant(moment: str, expected: tuple[str, str]) -> None:
    """Periods are [start, end), also before the anchor."""
    assert between(*expected) == period_containing(at("2027-01-31 12:00:00"), MONTH, at(moment))


@given(
    anchor=st.integers(at("1999-12-31"), at("2033-01-01")),
    interval=st.sampled_from(["day", "week", "month", "year"]),
    count=st.integers(1, 12),
    moment=st.integers(at("2000-01-01"), at("2040-01-01")),
)
def test_periods_follow_each_other_without_gap(anchor: int, interval: Interval, count: int, moment: int) -> None:
    """Each second belongs to one period, and each end is the next start."""
    recurrence = Recurrence(interval, count)

    period = period_containing(anchor, recurrence, moment)

    assert period.start <= moment < period.end
    following = period_containing(anchor, recurrence, period.end)
    assert following.start == period.end
    assert period_containing(anchor, recurrence, period.end - 1) == period
    # The anchor is one of the boundaries.
    assert period_containing(anchor, recurrence, anchor).start == anchor


@given(start=st.integers(0, at("2040-01-01")), months=st.integers(-60, 60))
def test_added_months_keep_the_day_or_take_the_last(start: int, months: int) -> None:
    """Never the wrong month, never a day too early."""
    before = datetime.fromtimestamp(start, UTC)
    after = datetime.fromtimestamp(add_months(start, months), UTC)

    assert (after.year * 12 + after.month) - (before.year * 12 + before.month) == months
    assert after.time() == before.time()
    last = calendar.monthrange(after.year, after.month)[1]
    assert after.day == before.day or (after.day == last and last < before.day)
