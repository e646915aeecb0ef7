"""The reconciler's period boundaries and those of the fold have separate code and must agree on every instant."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.periods import period_at
from reconciler.boundaries import cuttings, period_containing, periods_over
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.periods import INSTANT_MAX_MS, INSTANT_MIN_MS, AccountState, Binding, Interval, Period

minutes = st.integers(INSTANT_MIN_MS // MINUTE_MS + 1, INSTANT_MAX_MS // MINUTE_MS).map(lambda m: m * MINUTE_MS)
# Most anchors are recent: there the lengths of months and leap days matter.
near = st.integers(0, 40_000 * 1440).map(lambda m: m * MINUTE_MS)
instants = st.one_of(st.integers(0, 40_000 * DAY_MS), st.integers(INSTANT_MIN_MS, INSTANT_MAX_MS))


@st.composite
def bindings(draw: st.DrawFn) -> tuple[Binding, ...]:
    """Up to four bindings, ascending by effective instant."""
    effective = sorted(draw(st.sets(st.one_of(near, minutes), max_size=4)))
    return tuple(
        Binding(
            effective_from_ms=at,
            anchor_ms=draw(st.one_of(st.just(0), near, minutes)),
            interval=draw(st.sampled_from(Interval)),
            interval_count=draw(st.one_of(st.integers(1, 3), st.integers(1, 1200))),
        )
        for at in effective
    )


def at(text: str) -> int:
    """Milliseconds of a UTC date or instant."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@given(bindings(), instants)
def test_the_period_of_any_instant_is_the_one_the_fold_counts_in(
    account_bindings: tuple[Binding, ...], instant_ms: int
) -> None:
    """Two calendars that share no line must give the same bounds, to the millisecond, for any account."""
    assert period_at(AccountState(bindings=account_bindings), instant_ms) == period_containing(
        cuttings(account_bindings), instant_ms
    )


@given(bindings(), st.integers(0, 20_000 * DAY_MS), st.integers(0, 400 * DAY_MS), st.integers(0, 3))
def test_periods_over_a_span_are_contiguous_and_cover_the_span(
    account_bindings: tuple[Binding, ...], from_ms: int, length_ms: int, more: int
) -> None:
    """An event outside all boundaries would stop the recount."""
    cut = cuttings(account_bindings)

    periods = periods_over(cut, from_ms, from_ms + length_ms, more)

    assert periods[0].start_ms <= from_ms < periods[0].end_ms
    assert [each.end_ms for each in periods[:-1]] == [each.start_ms for each in periods[1:]]
    assert len([each for each in periods if each.start_ms > from_ms + length_ms]) == more
    assert all(each == period_containing(cut, each.start_ms) for each in periods)


@pytest.mark.parametrize(
    ("anchor", "interval", "count", "instant", "expected"),
    [
        pytest.param("2026-01-31", "month", 1, "2026-02-10", ("2026-01-31", "2026-02-28"), id="day the month lacks"),
        pytest.param("2026-01-31", "month", 1, "2026-03-30", ("2026-02-28", "2026-03-31"), id="no drift after it"),
        pytest.param("2024-02-29", "year", 1, "2025-06-01", ("2025-02-28", "2026-02-28"), id="leap day"),
        pytest.param("2026-01-01", "week", 2, "2025-12-31", ("2025-12-18", "2026-01-01"), id="before the anchor"),
        pytest.param("2026-01-15T10:30", "month", 3, "2026-04-15T10:29", ("2026-01-15T10:30", "2026-04-15T10:30"),
                     id="minute before the boundary"),
    ],
)  # fmt: skip
def test_periods_follow_the_calendar(
    anchor: str, interval: str, count: int, instant: str, expected: tuple[str, str]
) -> None:
    """Fixed examples, because the two calendars could share an error."""
    binding = Binding(
        effective_from_ms=at("2020-01-01"), anchor_ms=at(anchor), interval=Interval(interval), interval_count=count
    )

    assert period_containing(cuttings((binding,)), at(instant)) == Period(at(expected[0]), at(expected[1]))


def test_a_binding_that_changes_only_the_customer_does_not_cut() -> None:
    """Otherwise a new customer would split the month's total in two."""
    binding = Binding(effective_from_ms=at("2026-01-15"), stripe_customer="cus_new")

    assert period_containing(cuttings((binding,)), at("2026-01-20")) == Period(at("2026-01-01"), at("2026-02-01"))
