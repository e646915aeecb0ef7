"""Billing periods: anchors, bindings, closings and carried usage (I8, I9) agree with the oracle's calendar."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators import bindings as bindings_of
from aggregators.bindings import BINDINGS_MAX, customer_at, with_binding, with_closing
from aggregators.periods import is_closed, open_period, period_at
from oracle import accounts, rules
from oracle.model import Oracle
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import RestatementRecord
from schemas.meters import GRACE_MAX_MS, Policy
from schemas.periods import AccountState, Billing, Binding, Interval, Period

POLICY = Policy()
NOTHING = AccountState()


def at(text: str) -> int:
    """Milliseconds of a UTC date or instant."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def bound(*bindings: Binding) -> AccountState:
    """An account state with exactly these bindings."""
    return AccountState(bindings=bindings)


def monthly(anchor: str, *, effective: str = "2000-01-01", interval: str = "month", count: int = 1) -> Binding:
    """A monthly binding, by dates."""
    return Binding(
        effective_from_ms=at(effective), anchor_ms=at(anchor), interval=Interval(interval), interval_count=count
    )


def span(start: str, end: str) -> Period:
    """A period, by dates."""
    return Period(at(start), at(end))


NEAR = st.integers(at("1970-01-01") // MINUTE_MS, at("2120-01-01") // MINUTE_MS).map(lambda minute: minute * MINUTE_MS)
ANCHORS = NEAR | st.sampled_from([at(f"{year}-{day}") for year in (2023, 2024) for day in ("01-29", "01-30", "01-31")])
INSTANTS = st.integers(at("1950-01-01"), at("2150-01-01"))


@st.composite
def bindings(draw: st.DrawFn) -> tuple[Binding, ...]:
    """Up to four bindings, ascending."""
    return tuple(
        Binding(
            effective_from_ms=effective,
            anchor_ms=draw(ANCHORS),
            interval=draw(st.sampled_from(Interval)),
            interval_count=draw(st.sampled_from([1, 1, 2, 3, 12, 1200])),
        )
        for effective in sorted(draw(st.sets(NEAR, max_size=4)))
    )


@settings(max_examples=300, deadline=None)
@given(bindings(), INSTANTS)
def test_the_period_of_any_instant_is_the_oracles(account_bindings: tuple[Binding, ...], instant_ms: int) -> None:
    """The two calendars share no line: the oracle uses `datetime`, the product whole numbers."""
    known = [
        rules.Binding(each.effective_from_ms, each.anchor_ms, each.interval, each.interval_count)
        for each in account_bindings
    ]

    assert period_at(bound(*account_bindings), instant_ms) == rules.period_containing(known, instant_ms)


@given(bindings(), INSTANTS)
def test_periods_are_contiguous(account_bindings: tuple[Binding, ...], instant_ms: int) -> None:
    """No instant is in two periods or between two periods."""
    state = bound(*account_bindings)
    period = period_at(state, instant_ms)

    assert period.start_ms <= instant_ms < period.end_ms
    assert period_at(state, period.start_ms) == period == period_at(state, period.end_ms - 1)
    assert period_at(state, period.end_ms).start_ms == period.end_ms
    assert period_at(state, period.start_ms - 1).end_ms == period.start_ms


@pytest.mark.parametrize(
    ("account_bindings", "instant", "expected"),
    [
        pytest.param([], "2026-12-31T23:59:59", span("2026-12-01", "2027-01-01"), id="calendar month"),
        pytest.param([], "2024-02-29", span("2024-02-01", "2024-03-01"), id="leap February"),
        pytest.param([monthly("2026-01-31")], "2026-02-27", span("2026-01-31", "2026-02-28"), id="31 in February"),
        pytest.param([monthly("2026-01-31")], "2026-02-28", span("2026-02-28", "2026-03-31"), id="its own last day"),
        pytest.param([monthly("2026-01-31")], "2026-04-30", span("2026-04-30", "2026-05-31"), id="31 in April"),
        pytest.param([monthly("2026-01-31")], "2024-02-29", span("2024-02-29", "2024-03-31"), id="31 in a leap year"),
        pytest.param([monthly("2026-01-30")], "2026-03-01", span("2026-02-28", "2026-03-30"), id="30 does not drift"),
        pytest.param([monthly("2026-01-29")], "2024-02-29", span("2024-02-29", "2024-03-29"), id="29 in a leap year"),
        pytest.param([monthly("2026-01-29")], "2023-02-28", span("2023-02-28", "2023-03-29"), id="29 in a common year"),
        pytest.param([monthly("2024-02-29", interval="year")], "2026-03-01", span("2026-02-28", "2027-02-28"),
                     id="year of a leap day"),
        pytest.param([monthly("2024-02-29", interval="year")], "2028-02-28", span("2027-02-28", "2028-02-29"),
                     id="next leap day"),
        pytest.param([monthly("2026-01-31", count=3)], "2026-05-01", span("2026-04-30", "2026-07-31"), id="quarters"),
        pytest.param([monthly("2026-03-02", interval="week", count=2)], "2026-03-01", span("2026-02-16", "2026-03-02"),
                     id="fortnight before its anchor"),
        pytest.param([monthly("2026-03-01T17:30", interval="day")], "2026-03-05T17:29",
                     span("2026-03-04T17:30", "2026-03-05T17:30"), id="day from half past five"),
        pytest.param([monthly("2026-01-15", effective="2026-03-10")], "2026-03-09", span("2026-03-01", "2026-03-10"),
                     id="cut by a binding that begins"),
        pytest.param([monthly("2026-01-15", effective="2026-03-10")], "2026-03-10", span("2026-03-10", "2026-03-15"),
                     id="the rest until the anchor"),
        pytest.param([monthly("2026-01-15", effective="2026-03-10")], "2026-03-15", span("2026-03-15", "2026-04-15"),
                     id="the first whole one"),
        pytest.param([monthly("1970-01-01", effective="2026-03-10")], "2026-03-20", span("2026-03-01", "2026-04-01"),
                     id="a binding that changes no boundary cuts nothing"),
    ],
)  # fmt: skip
def test_periods_follow_the_calendar(account_bindings: list[Binding], instant: str, expected: Period) -> None:
    """Fixed examples, because the two calendars could share an error."""
    assert period_at(bound(*account_bindings), at(instant)) == expected


@pytest.mark.parametrize(
    ("stream_time", "closed", "expected"),
    [
        pytest.param("2026-03-31T23:59:59", False, False, id="running"),
        pytest.param("2026-04-01T00:59:59", False, False, id="within its grace"),
        pytest.param("2026-04-01T01:00", False, True, id="grace has passed"),
        pytest.param("2026-03-10", True, True, id="closed by a record while it runs"),
    ],
)
def test_a_period_is_closed_by_grace_or_by_a_record(stream_time: str, closed: bool, expected: bool) -> None:
    """Stream time alone decides, never a clock."""
    period = span("2026-03-01", "2026-04-01")
    state = AccountState(closed_start_ms=(period.start_ms,) if closed else ())

    assert is_closed(state, period, HOUR_MS, at(stream_time)) is expected


@pytest.mark.parametrize(
    ("closed", "expected"),
    [
        pytest.param([], "2026-03-01", id="the running one"),
        pytest.param(["2026-02-10"], "2026-03-01", id="an earlier one is closed"),
        pytest.param(["2026-03-10"], "2026-04-01", id="the running one is closed"),
        pytest.param(["2026-03-10", "2026-04-10", "2026-05-10"], "2026-06-01", id="three are closed"),
        pytest.param(["2026-03-10", "2026-05-10"], "2026-04-01", id="the first gap"),
    ],
)
def test_late_usage_is_carried_to_the_first_open_period(closed: list[str], expected: str) -> None:
    """Forward from stream time, never back."""
    state = NOTHING
    for instant in closed:
        state = with_closing(state, at(instant), POLICY.window_ms, at("2026-03-10"))

    assert open_period(state, at("2026-03-20")).start_ms == at(expected)


def test_a_binding_takes_effect_after_every_event_that_may_be_counted() -> None:
    """A binding must not cut counted usage, so it waits for stream time plus the future limit."""
    stream_time_ms = at("2026-03-20T12:00") + 30_000
    wished = monthly("2026-01-15", effective="2026-03-01")

    (effective,) = with_binding(NOTHING, wished, POLICY.future_ms, stream_time_ms).bindings

    assert effective == wished.model_copy(update={"effective_from_ms": at("2026-03-20T12:06")})


def test_a_binding_replaces_those_that_have_not_begun() -> None:
    """The newest binding wins; a binding in effect stays."""
    stream_time_ms = at("2026-03-20")
    state = bound(monthly("2026-01-15", effective="2026-01-01"), monthly("2026-01-20", effective="2026-06-01"))

    effective = with_binding(
        state, monthly("2026-01-25", effective="2026-05-01"), POLICY.future_ms, stream_time_ms
    ).bindings

    assert [each.effective_from_ms for each in effective] == [at("2026-01-01"), at("2026-05-01")]


def test_a_customer_may_be_bound_for_usage_that_is_counted_already() -> None:
    """The payer does not change where a period is cut."""
    wished = monthly("1970-01-01", effective="2026-03-01").model_copy(
        update={"billing": Billing.MAPPED, "stripe_customer": "cus_1"}
    )
    state = with_binding(NOTHING, wished, POLICY.future_ms, at("2026-03-20"))
    payer = customer_at(state, at("2026-03-05"))

    assert payer is not None
    assert payer.stripe_customer == "cus_1"
    assert customer_at(state, at("2026-02-28")) is None


def test_bindings_and_closings_of_an_account_are_bounded() -> None:
    """An account that gets another payer and a closing every day needs no more memory than another account."""
    state, stream_time_ms = NOTHING, at("2026-01-01")
    for day in range(400):
        stream_time_ms += DAY_MS
        anchor = monthly("2026-01-01").model_copy(
            update={
                "effective_from_ms": stream_time_ms,
                "anchor_ms": stream_time_ms,
                "billing": Billing.MAPPED,
                "stripe_customer": f"cus_{day}",
            }
        )
        state = with_binding(state, anchor, POLICY.future_ms, stream_time_ms)
        state = with_closing(state, stream_time_ms - DAY_MS, POLICY.window_ms, stream_time_ms)

    assert len(state.bindings) == len(state.customers) == len(state.payer_cuts_ms) == BINDINGS_MAX + 1
    # Every day is a period of its own, and a closing is kept until the greatest grace of any policy has passed.
    assert len(state.closed_start_ms) <= 4 + GRACE_MAX_MS // DAY_MS


class Step(NamedTuple):
    """One control record or event of an account."""

    kind: str
    minutes: int
    fields: dict[str, Any]


STEPS = st.lists(
    st.one_of(
        st.builds(Step, st.just("advance"), st.integers(0, 3 * 1440), st.just({})),
        st.builds(Step, st.just("close"), st.integers(-3 * 1440, 40 * 1440), st.just({})),
        st.builds(
            Step,
            st.just("bind"),
            st.integers(-2880, 2880),
            st.fixed_dictionaries(
                {
                    "anchor_ms": st.integers(-3000, 3000).map(lambda minute: at("2026-03-28") + minute * MINUTE_MS),
                    "interval": st.sampled_from(["day", "week", "month"]),
                    "interval_count": st.sampled_from([1, 1, 2]),
                    "billing": st.sampled_from([Billing.UNMAPPED, Billing.UNMAPPED, Billing.UNMAPPED, Billing.FREE]),
                }
            )
            | st.fixed_dictionaries(
                {
                    "billing": st.just(Billing.MAPPED),
                    "stripe_customer": st.sampled_from(["cus_1", "cus_2"]),
                }
            ),
        ),
        st.builds(Step, st.just("event"), st.integers(-3 * 1440, 5), st.just({})),
        st.builds(
            Step,
            st.just("answer"),
            st.just(0),
            st.sampled_from([{"begins": True}, {"begins": True}, {}, {}, {"declined": "no"}]),
        ),
    ),
    max_size=14,
)


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_bindings_and_closings_in_any_order_count_as_the_oracle_counts(steps: Sequence[Step]) -> None:
    """Every event counts in the oracle's period. Only a late binding moves usage that counted in its own period."""
    oracle = Oracle({"version": 1, "meters": []})
    state, log_ms = NOTHING, at("2026-03-28")
    counted: list[tuple[int, int]] = []
    for offset, step in enumerate(steps):
        instant_ms = log_ms + step.minutes * MINUTE_MS
        if step.kind == "advance":
            log_ms = instant_ms
        elif step.kind == "close":
            oracle.close(0, "acme", instant_ms, log_ms, offset)
            state = bindings_of.closed(state, instant_ms, offset, POLICY, log_ms)
        elif step.kind == "bind":
            binding = Binding(effective_from_ms=instant_ms, **step.fields)
            oracle.bind(0, "acme", binding.model_dump(mode="json"), log_ms, offset)
            state = bindings_of.bound(state, binding, offset, POLICY, log_ms)
        elif step.kind == "answer":
            if state.pending is not None:
                restatement = RestatementRecord(account="acme", position=state.pending.position, **step.fields)
                waits = bindings_of.is_waiting(state, log_ms)
                if restatement.begins:
                    oracle.begin_restatement(0, "acme", restatement.position, offset, log_ms)
                else:
                    oracle.restatement(
                        0, "acme", restatement.position, declined=bool(restatement.declined), timestamp_ms=log_ms
                    )
                    moves = waits and not restatement.declined
                    counted = [each for each in counted if not moves or each[1] < state.pending.from_ms]
                state = bindings_of.restated(state, restatement, offset, POLICY, log_ms)
        elif not bindings_of.is_waiting(state, log_ms):
            event = rules.Event("acme", "1", "t", "s", instant_ms * 1000, {})
            expected = oracle._counting_period(event, [], log_ms, POLICY.grace_ms)
            own = period = period_at(state, instant_ms)
            if is_closed(state, own, POLICY.grace_ms, log_ms):
                period = open_period(state, log_ms)
                if not bindings_of.is_payable_in(state, instant_ms, period):
                    assert expected is None
                    continue
            assert period == expected
            counted.append((instant_ms if period == own else period.start_ms, period.start_ms))
        assert bindings_of.is_waiting(state, log_ms) == oracle.accounts.is_waiting("acme", log_ms)
    for instant_ms, start_ms in counted:
        assert period_at(state, instant_ms).start_ms == start_ms
    for minutes in range(-4000, 60_000, 97):
        instant_ms = at("2026-03-28") + minutes * MINUTE_MS
        payer = customer_at(state, instant_ms)
        paying = oracle.accounts._payers["acme"]
        assert (payer[1:] if payer else ("unmapped", "")) == accounts._paying(paying, instant_ms)[3:]
